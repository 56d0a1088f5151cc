"""Frozen types to protobuf and back. Nothing unbounded or unknown gets past this module.

Every `*_from_wire` raises ValueError if a field is not what the protocol allows.
"""

from vfio_api.device import DeviceState, MigrationFlags
from vfio_api.errors import Reason
from vfio_api.types import (
    AgentHello,
    Command,
    DeviceReport,
    Failure,
    Goal,
    MigrationKey,
    Outcome,
    Peer,
    Role,
    SessionDevice,
    SessionReport,
    SessionSpec,
    Timing,
)
from vfio_api.v1 import agent_pb2 as pb

MAX_DEVICES = 256
MAX_SESSIONS = 256
MAX_TIMINGS = 1024  # a target session times every device's load, and its barriers
MAX_TEXT = 4096
KNOWN_FLAGS = sum(MigrationFlags)
MAX_CERTIFICATE = 8192
# 256 device reports with long names stay well below this.
MAX_MESSAGE_BYTES = 4 * 1024 * 1024


def _text(value: str, what: str) -> str:
    if len(value) > MAX_TEXT:
        raise ValueError(f"{what} has {len(value)} characters, at most {MAX_TEXT} are allowed")
    return value


def _bounded(count: int, limit: int, what: str) -> None:
    if count > limit:
        raise ValueError(f"{count} {what} in one message, at most {limit} are allowed")


def command_to_wire(command: Command) -> pb.Command:
    """A Command as protobuf."""
    message = pb.Command(
        migration=pb.MigrationKey(
            uid=command.migration.uid, namespace=command.migration.namespace, name=command.migration.name
        ),
        role=command.role,
        goal=command.goal,
        epoch=command.epoch,
        sequence=command.sequence,
        deadline_milliseconds=command.deadline_milliseconds,
        decision=command.decision or "",
        peers=[pb.Peer(node=p.node, data_address=p.data_address, certificate=p.certificate) for p in command.peers],
        attempt=command.attempt,
        again=command.again,
    )
    if command.spec is not None:
        message.spec.CopyFrom(_spec_to_wire(command.spec))
    return message


def _spec_to_wire(spec: SessionSpec) -> pb.SessionSpec:
    return pb.SessionSpec(
        devices=[pb.SessionDevice(name=d.name, address=d.address, peer_node=d.peer_node) for d in spec.devices],
        pre_copy=spec.pre_copy,
        bandwidth_limit_bytes_per_second=spec.bandwidth_limit_bytes_per_second,
        switchover_timeout_milliseconds=spec.switchover_timeout_milliseconds,
        no_switchover_ack=not spec.switchover_ack,
    )


def command_from_wire(message: pb.Command) -> Command:
    """A Command from protobuf. Raises ValueError."""
    _bounded(len(message.peers), MAX_DEVICES, "peers")
    _bounded(len(message.again), MAX_DEVICES, "again")
    for peer in message.peers:
        _bounded(len(peer.certificate), MAX_CERTIFICATE, "certificate bytes")
    return Command(
        migration=MigrationKey(
            uid=_text(message.migration.uid, "uid"),
            namespace=_text(message.migration.namespace, "namespace"),
            name=_text(message.migration.name, "name"),
        ),
        role=Role(message.role),
        goal=Goal(message.goal),
        epoch=message.epoch,
        sequence=message.sequence,
        deadline_milliseconds=message.deadline_milliseconds,
        decision=Outcome(message.decision) if message.decision else None,
        spec=_spec_from_wire(message.spec) if message.HasField("spec") else None,
        peers=tuple(
            Peer(_text(p.node, "node"), _text(p.data_address, "data address"), p.certificate) for p in message.peers
        ),
        attempt=message.attempt,
        again=tuple(_text(name, "again") for name in message.again),
    )


def _spec_from_wire(message: pb.SessionSpec) -> SessionSpec:
    _bounded(len(message.devices), MAX_DEVICES, "devices")
    return SessionSpec(
        devices=tuple(
            SessionDevice(_text(d.name, "name"), _text(d.address, "address"), _text(d.peer_node, "node"))
            for d in message.devices
        ),
        pre_copy=message.pre_copy,
        bandwidth_limit_bytes_per_second=message.bandwidth_limit_bytes_per_second,
        switchover_timeout_milliseconds=message.switchover_timeout_milliseconds,
        switchover_ack=not message.no_switchover_ack,
    )


def report_to_wire(report: SessionReport) -> pb.SessionReport:
    """A SessionReport as protobuf."""
    message = pb.SessionReport(
        migration_uid=report.migration_uid,
        role=report.role,
        epoch=report.epoch,
        sequence=report.sequence,
        reached=report.reached or "",
        backward=report.backward,
        certificate=report.certificate,
        devices=[
            pb.DeviceReport(
                name=d.name,
                address=d.address,
                state=d.state,
                flags=d.flags,
                stop_copy_bytes=d.stop_copy_bytes,
                initial_bytes=d.initial_bytes,
                dirty_bytes=d.dirty_bytes,
                transferred_bytes=d.transferred_bytes,
                bytes_per_second=d.bytes_per_second,
                initial_acknowledged=d.initial_acknowledged,
                drained=d.drained,
                size_unknown=d.size_unknown,
            )
            for d in report.devices
        ],
        timings=[pb.Timing(step=t.step, microseconds=t.microseconds) for t in report.timings],
        link_bytes_per_second=report.link_bytes_per_second,
        lost=report.lost,
        attempt=report.attempt,
    )
    if report.failure is not None:
        f = report.failure
        message.failure.CopyFrom(
            pb.Failure(reason=f.reason, message=f.message[:MAX_TEXT], device=f.device, arc=f.arc, errno=f.errno)
        )
    return message


def report_from_wire(message: pb.SessionReport) -> SessionReport:
    """A SessionReport from protobuf. Raises ValueError."""
    _bounded(len(message.devices), MAX_DEVICES, "devices")
    _bounded(len(message.timings), MAX_TIMINGS, "timings")
    _bounded(len(message.lost), MAX_DEVICES, "lost")
    _bounded(len(message.certificate), MAX_CERTIFICATE, "certificate bytes")
    failure = None
    if message.HasField("failure"):
        f = message.failure
        failure = Failure(
            Reason(f.reason),
            _text(f.message, "message"),
            _text(f.device, "device"),
            _text(f.arc, "arc"),
            f.errno,
        )
    return SessionReport(
        migration_uid=_text(message.migration_uid, "uid"),
        role=Role(message.role),
        epoch=message.epoch,
        sequence=message.sequence,
        reached=Goal(message.reached) if message.reached else None,
        backward=message.backward,
        certificate=message.certificate,
        devices=tuple(_device_from_wire(d) for d in message.devices),
        failure=failure,
        timings=tuple(Timing(_text(t.step, "step"), t.microseconds) for t in message.timings),
        link_bytes_per_second=message.link_bytes_per_second,
        lost=tuple(_text(name, "lost") for name in message.lost),
        attempt=message.attempt,
    )


def _device_from_wire(d: pb.DeviceReport) -> DeviceReport:
    return DeviceReport(
        name=_text(d.name, "name"),
        address=_text(d.address, "address"),
        state=DeviceState(d.state),
        flags=MigrationFlags(d.flags & KNOWN_FLAGS),
        stop_copy_bytes=d.stop_copy_bytes,
        initial_bytes=d.initial_bytes,
        dirty_bytes=d.dirty_bytes,
        transferred_bytes=d.transferred_bytes,
        bytes_per_second=d.bytes_per_second,
        initial_acknowledged=d.initial_acknowledged,
        drained=d.drained,
        size_unknown=d.size_unknown,
    )


def hello_to_wire(hello: AgentHello) -> pb.Hello:
    """An AgentHello as protobuf."""
    return pb.Hello(
        protocol=hello.protocol,
        version=hello.version,
        incarnation=hello.incarnation,
        instance=hello.instance,
        data_address=hello.data_address,
        highest_epoch=hello.highest_epoch,
        sessions=[report_to_wire(s) for s in hello.sessions],
    )


def hello_from_wire(message: pb.Hello) -> AgentHello:
    """An AgentHello from protobuf. Raises ValueError."""
    _bounded(len(message.sessions), MAX_SESSIONS, "sessions")
    return AgentHello(
        protocol=message.protocol,
        version=_text(message.version, "version"),
        incarnation=_text(message.incarnation, "incarnation"),
        instance=_text(message.instance, "instance"),
        data_address=_text(message.data_address, "data address"),
        highest_epoch=message.highest_epoch,
        sessions=tuple(report_from_wire(s) for s in message.sessions),
    )
