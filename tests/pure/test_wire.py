"""Frozen types to protobuf and back: nothing is lost, nothing unbounded or unknown gets through; current stubs."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfio_api import wire
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

REPOSITORY = Path(__file__).resolve().parents[2]

text = st.text(st.characters(codec="utf-8"), max_size=20)
uids = st.from_regex(wire.UID, fullmatch=True)
u64 = st.integers(0, 2**63 - 1)
measured = st.integers(0, 2**53)
u32 = st.integers(0, 2**31 - 1)
flags = st.integers(0, 7).map(MigrationFlags)

commands = st.builds(
    Command,
    migration=st.builds(MigrationKey, uids, text, text),
    role=st.sampled_from(Role),
    goal=st.sampled_from(Goal),
    epoch=u64,
    sequence=u64,
    deadline_milliseconds=u32,
    decision=st.none() | st.sampled_from(Outcome),
    spec=st.none()
    | st.builds(
        SessionSpec,
        devices=st.lists(
            st.builds(SessionDevice, text, text, text), max_size=3, unique_by=(lambda d: d.name, lambda d: d.address)
        ).map(tuple),
        pre_copy=st.booleans(),
        bandwidth_limit_bytes_per_second=u64,
        switchover_timeout_milliseconds=u32,
        switchover_ack=st.booleans(),
    ),
    peers=st.lists(st.builds(Peer, text, text, st.binary(max_size=20)), max_size=3).map(tuple),
)
devices = st.builds(
    DeviceReport,
    name=text,
    address=text,
    state=st.sampled_from(DeviceState),
    flags=flags,
    stop_copy_bytes=measured,
    initial_bytes=measured,
    dirty_bytes=measured,
    transferred_bytes=measured,
    bytes_per_second=measured,
    initial_acknowledged=st.booleans(),
    drained=st.booleans(),
    size_unknown=st.booleans(),
)
reports = st.builds(
    SessionReport,
    migration_uid=uids,
    role=st.sampled_from(Role),
    epoch=u64,
    sequence=u64,
    reached=st.none() | st.sampled_from(Goal),
    backward=st.booleans(),
    certificate=st.binary(max_size=20),
    devices=st.lists(devices, max_size=3).map(tuple),
    failure=st.none() | st.builds(Failure, st.sampled_from(Reason), text, text, text, st.integers(0, 4095)),
    timings=st.lists(st.builds(Timing, text, measured), max_size=3).map(tuple),
    link_bytes_per_second=measured,
)
hellos = st.builds(
    AgentHello,
    protocol=u32,
    version=text,
    incarnation=text,
    instance=text,
    data_address=text,
    highest_epoch=u64,
    sessions=st.lists(reports, max_size=2).map(tuple),
)


@given(command=commands)
def test_a_command_comes_back_as_it_was(command: Command) -> None:
    raw = wire.command_to_wire(command).SerializeToString()
    assert wire.command_from_wire(pb.Command.FromString(raw)) == command


@given(report=reports)
def test_a_report_comes_back_as_it_was(report: SessionReport) -> None:
    raw = wire.report_to_wire(report).SerializeToString()
    assert wire.report_from_wire(pb.SessionReport.FromString(raw)) == report


@settings(max_examples=50)
@given(hello=hellos)
def test_a_hello_comes_back_as_it_was(hello: AgentHello) -> None:
    raw = wire.hello_to_wire(hello).SerializeToString()
    assert wire.hello_from_wire(pb.Hello.FromString(raw)) == hello


KEY = pb.MigrationKey(uid="u")


def test_who_says_nothing_of_acknowledgements_wants_them() -> None:
    """An operator of before the field must not have its devices stopped without."""
    message = pb.Command(migration=KEY, role="Source", goal="Prepared", spec=pb.SessionSpec(pre_copy=True))
    spec = wire.command_from_wire(message).spec
    assert spec is not None
    assert spec.switchover_ack


# --- bounds

COMMAND = Command(MigrationKey("u", "n", "m"), Role.SOURCE, Goal.PREPARED, 1, 1, 1)
DEVICE = DeviceReport("gpu0", "0000:3b:00.2", DeviceState.RUNNING)
REPORT = SessionReport("u", Role.SOURCE, 1, 1)
HELLO = AgentHello(1, "v", "boot", "pod", "host:1", 1)


LONG_NAME = "x" * (wire.MAX_NAME + 1)


def spec(count: int, name: str = "gpu", address: str = "pci") -> SessionSpec:
    """`name` and `address` are numbered if there is more than one device."""
    numbers = [str(number) if count > 1 else "" for number in range(count)]
    return SessionSpec(tuple(SessionDevice(f"{name}{n}", f"{address}{n}", "b") for n in numbers))


def key(uid: str) -> MigrationKey:
    return MigrationKey(uid, "n", "m")


TWINS = SessionSpec((SessionDevice("gpu0", "a", "b"), SessionDevice("gpu0", "b", "b")))
SAME = SessionSpec((SessionDevice("gpu0", "a", "b"), SessionDevice("gpu1", "a", "b")))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (replace(COMMAND, spec=spec(257)), "257 devices in one message, at most 256 are allowed"),
        (replace(COMMAND, spec=spec(1, LONG_NAME)), "name has 254 characters, at most 253 are allowed"),
        (replace(COMMAND, spec=spec(1, address=LONG_NAME)), "address has 254 characters"),
        (replace(COMMAND, spec=TWINS), "two devices have the name gpu0"),
        (replace(COMMAND, spec=SAME), "two devices have the address a"),
        (replace(COMMAND, migration=key("x" * 37)), "'x+' is no UID: 1 to 36 letters, digits and dashes"),
        (replace(COMMAND, migration=key("")), "'' is no UID"),
        (replace(COMMAND, migration=key("../../etc/passwd")), "'../../etc/passwd' is no UID"),
        (replace(COMMAND, migration=key("u\n")), "is no UID"),
        (replace(COMMAND, migration=MigrationKey("u", LONG_NAME, "m")), "namespace has 254 characters"),
        (replace(COMMAND, epoch=2**63), "epoch is 9223372036854775808, at most 9223372036854775807"),
        (replace(COMMAND, sequence=2**64 - 1), "sequence is 18446744073709551615"),
        (replace(COMMAND, again=(LONG_NAME,)), "again has 254 characters"),
        (replace(COMMAND, peers=(Peer("n", "a", b""),) * 257), "257 peers in one message"),
        (replace(COMMAND, peers=(Peer("n", "a", bytes(8193)),)), "8193 certificate bytes in one message"),
        (replace(COMMAND, peers=(Peer(LONG_NAME, "a", b""),)), "node has 254 characters"),
    ],
)
def test_a_command_beyond_the_bounds_is_refused(command: Command, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wire.command_from_wire(wire.command_to_wire(command))


@pytest.mark.parametrize(
    ("report", "message"),
    [
        (replace(REPORT, devices=(DEVICE,) * 257), "257 devices in one message"),
        (replace(REPORT, certificate=bytes(8193)), "8193 certificate bytes"),
        (replace(REPORT, migration_uid="x" * 37), "is no UID"),
        (replace(REPORT, sequence=2**63), "sequence is 9223372036854775808"),
        (replace(REPORT, timings=(Timing("x" * 321, 1),)), "step has 321 characters, at most 320"),
        (replace(REPORT, lost=(LONG_NAME,)), "lost has 254 characters"),
        (replace(REPORT, timings=(Timing("load", 1),) * 1025), "1025 timings in one message"),
    ],
)
def test_a_report_beyond_the_bounds_is_refused(report: SessionReport, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wire.report_from_wire(wire.report_to_wire(report))


def test_what_a_device_measures_beyond_the_bounds_is_taken_for_very_much() -> None:
    """A driver that says 2**64 - 1 must not make an agent unheard."""
    device = replace(DEVICE, stop_copy_bytes=2**64 - 1, dirty_bytes=2**64 - 1)
    found = wire.report_from_wire(wire.report_to_wire(replace(REPORT, devices=(device,))))
    assert found.devices == (replace(DEVICE, stop_copy_bytes=2**53, dirty_bytes=2**53),)
    assert 2 * wire.MAX_DEVICES * wire.MAX_MEASURED < 2**63, (
        "what is left of all of them is written to the API as int64"
    )


def test_a_hello_beyond_the_bounds_is_refused() -> None:
    message = wire.hello_to_wire(replace(HELLO, sessions=(REPORT,) * 257))
    with pytest.raises(ValueError, match="257 sessions in one message"):
        wire.hello_from_wire(message)
    with pytest.raises(ValueError, match="highest epoch is 9223372036854775808"):
        wire.hello_from_wire(wire.hello_to_wire(replace(HELLO, highest_epoch=2**63)))


def change(message: pb.Command | pb.SessionReport, **fields: object) -> Callable[[], object]:
    for name, value in fields.items():
        setattr(message, name, value)
    if isinstance(message, pb.Command):
        return lambda: wire.command_from_wire(message)
    return lambda: wire.report_from_wire(message)


@pytest.mark.parametrize(
    "parse",
    [
        change(wire.command_to_wire(COMMAND), role="Observer"),
        change(wire.command_to_wire(COMMAND), goal="PostCopy"),
        change(wire.command_to_wire(COMMAND), goal=""),
        change(wire.command_to_wire(COMMAND), decision="Maybe"),
        change(wire.report_to_wire(REPORT), role=""),
        change(wire.report_to_wire(REPORT), reached="Nowhere"),
    ],
)
def test_a_word_that_the_protocol_does_not_have_is_refused(parse: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="is not a valid"):
        parse()


def test_a_device_state_that_the_uapi_does_not_have_is_refused() -> None:
    message = wire.report_to_wire(replace(REPORT, devices=(DEVICE,)))
    message.devices[0].state = 8
    with pytest.raises(ValueError, match="8 is not a valid DeviceState"):
        wire.report_from_wire(message)


def test_a_failure_with_an_unknown_reason_is_refused() -> None:
    message = wire.report_to_wire(replace(REPORT, failure=Failure(Reason.ARC_FAILED, "m")))
    message.failure.reason = "BadLuck"
    with pytest.raises(ValueError, match="'BadLuck' is not a valid Reason"):
        wire.report_from_wire(message)


def test_a_target_with_256_devices_can_report_how_long_each_took_to_load() -> None:
    steps = ["resuming", *(f"load/gpu{n}" for n in range(256)), "barrier_c", "barrier_d"]
    report = replace(REPORT, timings=tuple(Timing(step, 1) for step in steps))
    assert wire.report_from_wire(wire.report_to_wire(report)) == report


def test_a_failure_that_names_very_many_devices_is_cut_and_not_lost() -> None:
    states = ", ".join(f"gpu-of-the-team-{n}=RUNNING_P2P" for n in range(256))
    report = replace(REPORT, failure=Failure(Reason.STEP_TIMEOUT, f"not reached; devices are in {states}"))
    found = wire.report_from_wire(wire.report_to_wire(report)).failure
    assert found is not None
    assert found.message == f"not reached; devices are in {states}"[: wire.MAX_TEXT]


def test_the_largest_report_fits_into_a_message() -> None:
    device = replace(DEVICE, name="n" * 63, address="a" * 64, transferred_bytes=2**63 - 1)
    failure = Failure(Reason.ARC_FAILED, "x" * wire.MAX_TEXT)
    largest = replace(REPORT, devices=(device,) * 256, certificate=bytes(8192), failure=failure)
    assert len(wire.report_to_wire(largest).SerializeToString()) < 256 * 1024


def largest_hello(devices: int = wire.MAX_NODE_DEVICES) -> pb.Hello:
    """Everything that is bounded is at its bound, and every character is as long as characters get."""

    def text(length: int, number: int = 0) -> str:
        return (f"{number:x}" + "\N{GRINNING FACE}" * length)[:length]

    def name(number: int = 0) -> str:
        return text(wire.MAX_NAME, number)

    most, measured = wire.MAX_NUMBER, wire.MAX_MEASURED
    numbers = (measured, measured, measured, measured, measured)
    reports = []
    for n in range(wire.MAX_SESSIONS):
        own = range(n, devices, wire.MAX_SESSIONS)
        made = [DeviceReport(name(d), name(d), DeviceState.ERROR, MigrationFlags(7), *numbers) for d in own]
        timings = [Timing(text(wire.MAX_STEP, t), measured) for t in range(n, wire.MAX_NODE_TIMINGS, wire.MAX_SESSIONS)]
        failure = Failure(Reason.ARC_FAILED, text(wire.MAX_TEXT), name(), name(), 2**31)
        reports.append(
            SessionReport(
                f"{n:036}",
                Role.SOURCE,
                most,
                most,
                Goal.RUNNING_P2P,
                True,
                bytes(wire.MAX_CERTIFICATE),
                tuple(made),
                failure,
                tuple(timings),
                measured,
                tuple(name(d) for d in own),
                wire.MAX_ATTEMPT,
                measured,
            )
        )
    said = AgentHello(2, name(), name(), name(), name(), most, tuple(reports))
    return wire.hello_to_wire(said)


def test_the_largest_hello_fits_into_a_message_and_is_taken() -> None:
    said = largest_hello()
    assert wire.MAX_MESSAGE_BYTES / 2 < said.ByteSize() < wire.MAX_MESSAGE_BYTES
    assert len(wire.hello_from_wire(said).sessions) == wire.MAX_SESSIONS


def test_more_devices_than_a_node_may_have_in_sessions_are_refused() -> None:
    with pytest.raises(ValueError, match="1025 devices of sessions in one message, at most 1024 are allowed"):
        wire.hello_from_wire(largest_hello(wire.MAX_NODE_DEVICES + 1))


@pytest.mark.parametrize(("role", "most"), [(Role.TARGET, 2**16), (Role.SOURCE, 2**24)])
def test_attempts_that_nobody_makes_are_refused(role: Role, most: int) -> None:
    """The sum of all targets' attempts is told to the sources: one that was made up must not end their streams."""
    assert wire.report_from_wire(wire.report_to_wire(replace(REPORT, role=role, attempt=most))).attempt == most
    with pytest.raises(ValueError, match=f"attempt is {most + 1}, at most {most} is allowed"):
        wire.report_from_wire(wire.report_to_wire(replace(REPORT, role=role, attempt=most + 1)))
    with pytest.raises(ValueError, match=f"attempt is {most + 1}, at most {most} is allowed"):
        wire.command_from_wire(wire.command_to_wire(replace(COMMAND, role=role, attempt=most + 1)))


# --- the generated stubs


def test_the_generated_stubs_are_those_of_the_proto(tmp_path: Path) -> None:
    proto = "vfio_api/v1/agent.proto"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"-I{REPOSITORY / 'api'}",
            f"--python_out={tmp_path}",
            f"--pyi_out={tmp_path}",
            f"--grpc_python_out={tmp_path}",
            str(REPOSITORY / "api" / proto),
        ],
        check=True,
    )
    for name in ("agent_pb2.py", "agent_pb2.pyi", "agent_pb2_grpc.py"):
        made = (tmp_path / "vfio_api/v1" / name).read_text()
        assert made == (REPOSITORY / "api/vfio_api/v1" / name).read_text(), f"{name} is stale: make generate"
