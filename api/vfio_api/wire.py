"""Frozen types to protobuf and back. Nothing unbounded or unknown gets past this module.

Every `*_from_wire` raises ValueError if a field is not what the protocol allows.
"""

import re
from collections.abc import Iterable
from ipaddress import ip_address

from vfio_api.device import DeviceState, MigrationFlags
from vfio_api.errors import Reason
from vfio_api.types import (
    AgentHello,
    Command,
    DeviceReport,
    Failure,
    Goal,
    Hook,
    MigrationKey,
    Outcome,
    PauseMethod,
    Peer,
    Role,
    SessionDevice,
    SessionReport,
    SessionSpec,
    Timing,
    Workload,
)
from vfio_api.v1 import agent_pb2 as pb

MAX_DEVICES = 256
MAX_SESSIONS = 256
MAX_TIMINGS = 1024  # a target session times every device's load, and its barriers
MAX_TEXT = 4096  # of what is said to people
MAX_NAME = 253  # of objects, nodes and devices, as Kubernetes has it; of addresses
MAX_STEP = 320  # a step may have a device's name in it
MAX_NUMBER = 2**63 - 1  # what Lease, journal and the API can hold; so that one more is still a number on the wire
MAX_MEASURED = 2**53  # what 256 devices measure is added up, and the API holds int64
MAX_ATTEMPT = 2**16  # of one target; a source is told the sum of all targets'
UID = re.compile(r"[A-Za-z0-9-]{1,36}")  # part of a path in the journal, and of a stream's fixed preamble
KNOWN_FLAGS = sum(MigrationFlags)
# Every report of every device has some: to look one up takes a tenth of the time in which an enum finds it.
_FLAGS = {number: MigrationFlags(number) for number in range(KNOWN_FLAGS + 1)}
MAX_CERTIFICATE = 8192
MAX_PORT = 65_535
MAX_PAUSE_MILLISECONDS = 600_000
MAX_RETRIES = 16
MAX_NODE_DEVICES = 1024  # in all sessions of a node: a device is in one at most
# A session times its barriers, and each device twice at most.
MAX_NODE_TIMINGS = 2 * MAX_NODE_DEVICES + 16 * MAX_SESSIONS
# The largest Hello that the above allow, with every character as long as characters get, stays below this: a test.
MAX_MESSAGE_BYTES = 32 * 1024 * 1024


def _text(value: str, what: str, limit: int = MAX_TEXT) -> str:
    if len(value) > limit:
        raise ValueError(f"{what} has {len(value)} characters, at most {limit} are allowed")
    return value


def _name(value: str, what: str) -> str:
    return _text(value, what, MAX_NAME)


def uid(value: str) -> str:
    """The UID of a migration. Raises ValueError if it is none."""
    if not UID.fullmatch(value):
        raise ValueError(f"{value[:80]!r} is no UID: 1 to 36 letters, digits and dashes are allowed")
    return value


def number(value: int, what: str) -> int:
    """A count from the wire. Raises ValueError if nobody could add to it."""
    if value > MAX_NUMBER:
        raise ValueError(f"{what} is {value}, at most {MAX_NUMBER} is allowed")
    return value


def _measured(value: int) -> int:
    """What a device or a clock says, which may be anything: of what cannot be, as much as can."""
    return value if value < MAX_MEASURED else MAX_MEASURED


def _once(values: Iterable[str], what: str) -> None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise ValueError(f"two devices have the {what} {value}")
        seen.add(value)


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
        devices=[
            pb.SessionDevice(name=d.name, address=d.address, peer_node=d.peer_node, pod_uid=d.pod_uid)
            for d in spec.devices
        ],
        pre_copy=spec.pre_copy,
        bandwidth_limit_bytes_per_second=spec.bandwidth_limit_bytes_per_second,
        switchover_timeout_milliseconds=spec.switchover_timeout_milliseconds,
        no_switchover_ack=not spec.switchover_ack,
        workloads=[_workload_to_wire(workload) for workload in spec.workloads],
    )


def _workload_to_wire(workload: Workload) -> pb.Workload:
    hook = workload.hook
    return pb.Workload(
        pod_uid=workload.pod_uid,
        pod_namespace=workload.pod_namespace,
        pod_name=workload.pod_name,
        method=workload.method,
        timeout_milliseconds=workload.timeout_milliseconds,
        moved=workload.moved,
        hook=None
        if hook is None
        else pb.Hook(
            address=hook.address,
            port=hook.port,
            path=hook.path,
            timeout_milliseconds=hook.timeout_milliseconds,
            retries=hook.retries,
        ),
    )


def command_from_wire(message: pb.Command) -> Command:
    """A Command from protobuf. Raises ValueError."""
    _bounded(len(message.peers), MAX_DEVICES, "peers")
    _bounded(len(message.again), MAX_DEVICES, "again")
    for peer in message.peers:
        _bounded(len(peer.certificate), MAX_CERTIFICATE, "certificate bytes")
    return Command(
        migration=MigrationKey(
            uid=uid(message.migration.uid),
            namespace=_name(message.migration.namespace, "namespace"),
            name=_name(message.migration.name, "name"),
        ),
        role=Role(message.role),
        goal=Goal(message.goal),
        epoch=number(message.epoch, "epoch"),
        sequence=number(message.sequence, "sequence"),
        deadline_milliseconds=message.deadline_milliseconds,
        decision=Outcome(message.decision) if message.decision else None,
        spec=_spec_from_wire(message.spec) if message.HasField("spec") else None,
        peers=tuple(
            Peer(_name(p.node, "node"), _name(p.data_address, "data address"), p.certificate) for p in message.peers
        ),
        attempt=_attempt(message),
        again=tuple(_name(name, "again") for name in message.again),
    )


def _spec_from_wire(message: pb.SessionSpec) -> SessionSpec:
    _bounded(len(message.devices), MAX_DEVICES, "devices")
    _once((d.name for d in message.devices), "name")
    _once((d.address for d in message.devices), "address")
    _bounded(len(message.workloads), MAX_DEVICES, "workloads")
    if len({w.pod_uid for w in message.workloads}) < len(message.workloads):
        raise ValueError("a pod is named twice")
    if sum(w.HasField("hook") for w in message.workloads) > 1:
        raise ValueError("two pods have hooks: what one of them saves could be loaded by the other")
    return SessionSpec(
        devices=tuple(
            SessionDevice(
                _name(d.name, "name"),
                _name(d.address, "address"),
                _name(d.peer_node, "node"),
                uid(d.pod_uid) if d.pod_uid else "",
            )
            for d in message.devices
        ),
        pre_copy=message.pre_copy,
        bandwidth_limit_bytes_per_second=number(message.bandwidth_limit_bytes_per_second, "bandwidth limit"),
        switchover_timeout_milliseconds=message.switchover_timeout_milliseconds,
        switchover_ack=not message.no_switchover_ack,
        workloads=tuple(_workload_from_wire(workload) for workload in message.workloads),
    )


def _workload_from_wire(message: pb.Workload) -> Workload:
    hook, method = message.hook, PauseMethod(message.method)
    hooked = message.HasField("hook")
    if hooked != (method is PauseMethod.HOOK):
        raise ValueError(f"pod {message.pod_uid!r:.80}: method {method.value} {'has no' if hooked else 'needs a'} hook")
    if hooked:
        ip_address(hook.address)  # of a pod: no name is looked up
        _limited(hook.port, MAX_PORT, "hook port")
        _limited(hook.timeout_milliseconds, MAX_PAUSE_MILLISECONDS, "hook timeout")
        _limited(hook.retries, MAX_RETRIES, "hook retries")
    _limited(message.timeout_milliseconds, MAX_PAUSE_MILLISECONDS, "pause timeout")
    return Workload(
        pod_uid=uid(message.pod_uid),
        pod_namespace=_name(message.pod_namespace, "namespace"),
        pod_name=_name(message.pod_name, "pod"),
        method=method,
        timeout_milliseconds=message.timeout_milliseconds,
        hook=Hook(
            _name(hook.address, "hook address"),
            hook.port,
            _name(hook.path, "hook path"),
            hook.timeout_milliseconds,
            hook.retries,
        )
        if hooked
        else None,
        moved=message.moved,
    )


def _limited(value: int, limit: int, what: str) -> None:
    if value > limit:
        raise ValueError(f"{what} is {value}, at most {limit} is allowed")


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
        turned_microseconds=report.turned_microseconds,
    )
    if report.failure is not None:
        f = report.failure
        message.failure.CopyFrom(
            pb.Failure(
                reason=f.reason,
                message=f.message[:MAX_TEXT],
                device=f.device[:MAX_NAME],
                arc=f.arc[:MAX_NAME],
                errno=f.errno,
            )
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
            _name(f.device, "device"),
            _name(f.arc, "arc"),
            f.errno,
        )
    return SessionReport(
        migration_uid=uid(message.migration_uid),
        role=Role(message.role),
        epoch=number(message.epoch, "epoch"),
        sequence=number(message.sequence, "sequence"),
        reached=Goal(message.reached) if message.reached else None,
        backward=message.backward,
        certificate=message.certificate,
        devices=tuple(_device_from_wire(d) for d in message.devices),
        failure=failure,
        timings=tuple(Timing(_text(t.step, "step", MAX_STEP), _measured(t.microseconds)) for t in message.timings),
        link_bytes_per_second=_measured(message.link_bytes_per_second),
        lost=tuple(_name(name, "lost") for name in message.lost),
        attempt=_attempt(message),
        turned_microseconds=_measured(message.turned_microseconds),
    )


def _attempt(message: pb.SessionReport | pb.Command) -> int:
    limit = MAX_ATTEMPT if message.role == Role.TARGET else MAX_ATTEMPT * MAX_DEVICES
    if message.attempt > limit:
        raise ValueError(f"attempt is {message.attempt}, at most {limit} is allowed")
    return message.attempt


def _device_from_wire(d: pb.DeviceReport) -> DeviceReport:
    return DeviceReport(
        name=_name(d.name, "name"),
        address=_name(d.address, "address"),
        state=DeviceState(d.state),
        flags=_FLAGS[d.flags & KNOWN_FLAGS],
        stop_copy_bytes=_measured(d.stop_copy_bytes),
        initial_bytes=_measured(d.initial_bytes),
        dirty_bytes=_measured(d.dirty_bytes),
        transferred_bytes=_measured(d.transferred_bytes),
        bytes_per_second=_measured(d.bytes_per_second),
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
    _bounded(sum(len(s.devices) for s in message.sessions), MAX_NODE_DEVICES, "devices of sessions")
    _bounded(sum(len(s.lost) for s in message.sessions), MAX_NODE_DEVICES, "lost of sessions")
    _bounded(sum(len(s.timings) for s in message.sessions), MAX_NODE_TIMINGS, "timings of sessions")
    return AgentHello(
        protocol=message.protocol,
        version=_name(message.version, "version"),
        incarnation=_name(message.incarnation, "incarnation"),
        instance=_name(message.instance, "instance"),
        data_address=_name(message.data_address, "data address"),
        highest_epoch=number(message.highest_epoch, "highest epoch"),
        sessions=tuple(report_from_wire(s) for s in message.sessions),
    )
