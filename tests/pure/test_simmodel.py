"""The simulated device obeys the table, carries its state whole, shows a broken barrier as lost writes."""

import errno
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfio_agent.devices.protocol import NoDataError, PrecopyInfo
from vfio_agent.devices.simfabric import Fabric
from vfio_agent.devices.simfaults import Fault, FaultOp
from vfio_agent.devices.simmodel import ALL_FLAGS, CONFIG_BYTES, DeviceConfig, SimDevice
from vfio_agent.devices.simstate import PAGE_BYTES, SCRATCH_BYTES, LoadStream, SaveStream
from vfio_api.device import DATA_FD_ARCS, IllegalArcError, MigrationFlags, path
from vfio_api.device import DeviceState as S

MODEL = "sim:1"
LATENCY = 1 / 128  # seconds; binary fractions, so that sums are exact
RATE = 1024
SIZES = st.one_of(st.integers(1, 40), st.integers(PAGE_BYTES - 20, 3 * PAGE_BYTES + 20), st.just(9 * PAGE_BYTES))


def new_device(
    size: int = 3 * PAGE_BYTES,
    *,
    dirty_rate: float = 0,
    flags: MigrationFlags = ALL_FLAGS,
    address: str = "sim0",
) -> SimDevice:
    config = DeviceConfig(address, MODEL, size, dirty_rate, flags)
    return SimDevice(config, Fabric(), now=0.0)


def saving(device: SimDevice, state: S, now: float = 0.0) -> tuple[SaveStream, float]:
    now, stream = device.set_state(state, now)
    assert isinstance(stream, SaveStream)
    return stream, now


def resuming(device: SimDevice, now: float = 0.0) -> LoadStream:
    _, stream = device.set_state(S.RESUMING, now)
    assert isinstance(stream, LoadStream)
    return stream


def read_available(device: SimDevice, stream: SaveStream, now: float, chunk: int = 1 << 20) -> bytes:
    """Until the temporary or final end of the data, at one moment."""
    data, buffer = bytearray(), memoryview(bytearray(chunk))
    while True:
        try:
            count = device.read(stream, buffer, now)
        except NoDataError:
            return bytes(data)
        if not count:
            return bytes(data)
        data += buffer[:count]


def whole_state(device: SimDevice, now: float = 0.0) -> bytes:
    stream, now = saving(device, S.STOP_COPY, now)
    return read_available(device, stream, now)


# --- arcs


@given(
    flags=st.sampled_from([MigrationFlags(value) for value in range(8)]),
    goals=st.lists(st.sampled_from(S), max_size=12),
)
def test_arcs_are_refused_or_gone_as_the_table_says(flags: MigrationFlags, goals: list[S]) -> None:
    device = new_device(flags=flags)
    for goal in goals:
        before = device.state
        try:
            expected = path(before, goal, flags)
        except IllegalArcError:
            with pytest.raises(OSError) as refused:  # noqa: PT011
                device.set_state(goal, 0.0)
            assert refused.value.errno == errno.EINVAL
            assert device.state == before
            continue
        if before is S.RESUMING and expected:
            # Nothing was loaded, so there is no way out but a reset.
            with pytest.raises(OSError, match="not complete") as refused:
                device.set_state(goal, 0.0)
            assert refused.value.errno == errno.EINVAL
            assert device.state is S.RESUMING
            device.reset(0.0)
            continue
        _, stream = device.set_state(goal, 0.0)
        assert device.state == goal
        arcs = list(zip((before, *expected), expected, strict=False))
        assert (stream is not None) == bool(arcs and arcs[-1] in DATA_FD_ARCS)


@given(fails_at=st.integers(0, 2), to_error=st.booleans(), code=st.sampled_from([errno.EIO, errno.ETIMEDOUT]))
def test_an_arc_that_fails_on_the_way_leaves_an_interior_state(fails_at: int, to_error: bool, code: int) -> None:
    device = new_device()
    states = [S.RUNNING, *path(S.RUNNING, S.STOP_COPY, ALL_FLAGS)]
    arc = (states[fails_at], states[fails_at + 1])
    device.faults.append(Fault(FaultOp.ARC, arc, errno=code, to_error=to_error))
    with pytest.raises(OSError, match="injected") as failed:
        device.set_state(S.STOP_COPY, 0.0)
    assert failed.value.errno == code
    assert device.state is (S.ERROR if to_error else arc[0])
    if to_error:
        for goal in set(S) - {S.ERROR}:
            with pytest.raises(OSError, match=r"no arc|Invalid"):
                device.set_state(goal, 0.0)
        device.reset(0.0)
        assert device.state is S.RUNNING
    device.set_state(S.STOP_COPY, 0.0)
    assert device.state is S.STOP_COPY


def test_arcs_take_their_time_and_their_delays() -> None:
    config = DeviceConfig(
        "sim0", MODEL, 1, arc_latency_seconds=1.0, arc_latencies_seconds={(S.RUNNING_P2P, S.STOP): 8.0}
    )
    device = SimDevice(config, Fabric(), now=0.0)
    device.faults.append(Fault(FaultOp.ARC, (S.STOP, S.STOP_COPY), delay_seconds=32.0))
    done, stream = device.set_state(S.STOP_COPY, 100.0)
    assert done == 100.0 + 1.0 + 8.0 + 33.0
    assert stream is not None


def test_an_arc_is_not_done_early_nor_begun_twice() -> None:
    device = SimDevice(DeviceConfig("sim0", MODEL, 1, arc_latency_seconds=1.0), Fabric(), now=0.0)
    device.begin_arc(S.STOP, 0.0)
    with pytest.raises(OSError, match="on an arc"):
        device.begin_arc(S.STOP, 0.5)
    with pytest.raises(ValueError, match="no arc is done"):
        device.finish_arc(0.5)
    device.finish_arc(1.0)
    assert device.state is S.RUNNING_P2P


def test_a_reset_can_fail_and_then_changes_nothing() -> None:
    device = new_device()
    device.write_region(0, b"x")
    device.faults.append(Fault(FaultOp.RESET, errno=errno.EIO))
    with pytest.raises(OSError, match="injected"):
        device.reset(0.0)
    assert device.read_region(0, 1) == b"x"
    device.reset(0.0)
    assert device.read_region(0, 1) == b"\0"


@pytest.mark.parametrize("fault", [{"op": FaultOp.ARC}, {"op": FaultOp.READ, "arc": (S.STOP, S.RESUMING)}])
def test_faults_that_fit_nothing_are_refused(fault: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="arc"):
        Fault(**fault)  # type: ignore[arg-type]


# --- state and stream


@settings(deadline=None)
@given(size=SIZES, dirtied=st.integers(0, 30), data=st.data())
def test_a_state_arrives_whole_in_any_segmentation(size: int, dirtied: int, data: st.DataObject) -> None:
    source, target = new_device(size, dirty_rate=PAGE_BYTES), new_device(size, address="sim1")
    source.write_region(3, b"marker")
    source.start_traffic(7, (8, 9), 0.0)
    stream, now = saving(source, S.STOP_COPY, float(dirtied))
    parts = data.draw(st.lists(st.integers(1, size + 500), min_size=1, max_size=20))
    loading = resuming(target)
    expected = source.data_size(now)
    assert expected > size
    total = turn = 0
    while True:
        buffer = memoryview(bytearray(parts[turn % len(parts)] if turn < 200 else 1 << 20))
        turn += 1
        count = source.read(stream, buffer, now)
        if not count:
            break
        total += count
        assert source.data_size(now) == expected - total
        cut = data.draw(st.integers(0, count)) if turn < 10 else count
        for part in (buffer[:cut], buffer[cut:count]):
            assert target.write(loading, part) == len(part)
    assert total == expected
    target.set_state(S.STOP, 0.0)
    assert target.read_region(0, 10) == b"\0\0\0marker\0"
    assert target.identity is not None
    assert (target.identity.port, target.identity.peers) == (7, (8, 9))
    # What was loaded is what would be sent on: nothing but the bytes themselves says so better.
    assert whole_state(target) == whole_state_again(source, now)


def whole_state_again(device: SimDevice, now: float) -> bytes:
    device.set_state(S.STOP, now)
    return whole_state(device, now)


@settings(deadline=None)
@given(
    size=SIZES,
    rate=st.integers(0, 20),
    rounds=st.lists(st.tuples(st.integers(1, 3 * PAGE_BYTES), st.integers(0, 4)), max_size=12),
    p2p=st.booleans(),
)
def test_dirtying_while_copying_loses_nothing(size: int, rate: int, rounds: list[tuple[int, int]], p2p: bool) -> None:
    source, target = new_device(size, dirty_rate=rate * PAGE_BYTES), new_device(size, address="sim1")
    loading = resuming(target)
    stream, now = saving(source, S.PRE_COPY)
    first = source.precopy_info(stream, now)
    assert first.initial_bytes > size
    assert first.dirty_bytes == 0
    for chunk, passed in rounds:
        before = source.precopy_info(stream, now)
        buffer = memoryview(bytearray(chunk))
        try:
            count = source.read(stream, buffer, now)
        except NoDataError:
            assert before == PrecopyInfo(0, 0)
            count = 0
        after = source.precopy_info(stream, now)
        assert sum_of(after) == sum_of(before) - count
        assert after.initial_bytes <= before.initial_bytes
        assert count == min(chunk, sum_of(before))
        target.write(loading, buffer[:count])
        now += passed
    if p2p:
        now, _ = source.set_state(S.PRE_COPY_P2P, now)
    now, no_new_stream = source.set_state(S.STOP_COPY, now)
    assert no_new_stream is None
    expected = source.data_size(now)
    rest = read_available(source, stream, now + 100)
    assert len(rest) == expected
    target.write(loading, memoryview(rest))
    target.set_state(S.STOP, 0.0)
    assert whole_state(target) == whole_state_again(source, now)


def sum_of(info: PrecopyInfo) -> int:
    return info.initial_bytes + info.dirty_bytes


def test_precopy_follows_the_kernel() -> None:
    device = new_device(dirty_rate=PAGE_BYTES)
    stream, _ = saving(device, S.PRE_COPY)
    read_available(device, stream, 0.0)
    assert device.precopy_info(stream, 0.0) == PrecopyInfo(0, 0)
    with pytest.raises(NoDataError):
        device.read(stream, memoryview(bytearray(1)), 0.0)
    info = device.precopy_info(stream, 2.0)
    assert info.initial_bytes == 0
    assert 2 * PAGE_BYTES < info.dirty_bytes < 3 * PAGE_BYTES
    device.set_state(S.STOP_COPY, 2.0)
    with pytest.raises(OSError, match="STOP_COPY") as refused:
        device.precopy_info(stream, 2.0)
    assert refused.value.errno == errno.EINVAL
    assert 2 * PAGE_BYTES < len(read_available(device, stream, 9.0)) < 3 * PAGE_BYTES
    assert device.data_size(9.0) == 0


def part_of(device: SimDevice, stream: SaveStream, size: int, now: float) -> bytes:
    buffer = memoryview(bytearray(size))
    return bytes(buffer[: device.read(stream, buffer, now)])


@pytest.mark.parametrize("read", [0, 100, PAGE_BYTES, 10 * PAGE_BYTES])
def test_reinit_begins_the_initial_data_anew(read: int) -> None:
    """In the middle of a record or after all is read: initial_bytes rises, dirty_bytes falls to 0, said once."""
    source, target = new_device(dirty_rate=PAGE_BYTES), new_device(address="sim1")
    source.opt_in()
    stream, _ = saving(source, S.PRE_COPY)
    loading = resuming(target)
    data = part_of(source, stream, read, 0.0) if read else b""
    source.precopy_info(stream, 2.0)
    source.reinit(2.0)
    info = source.precopy_info(stream, 2.0)
    assert info.initial_bytes >= 3 * PAGE_BYTES
    assert (info.dirty_bytes, info.reinit) == (0, True)
    assert not source.precopy_info(stream, 2.0).reinit
    data += read_available(source, stream, 2.0)
    assert source.precopy_info(stream, 2.0) == PrecopyInfo(0, 0)
    source.set_state(S.STOP_COPY, 4.0)
    target.write(loading, memoryview(data + read_available(source, stream, 4.0)))
    target.set_state(S.STOP, 0.0)
    assert whole_state(target) == whole_state_again(source, 4.0)


def test_reinit_is_said_only_to_who_has_opted_in() -> None:
    device = new_device()
    stream, _ = saving(device, S.PRE_COPY)
    read_available(device, stream, 0.0)
    device.reinit(0.0)
    info = device.precopy_info(stream, 0.0)
    assert (info.initial_bytes, info.reinit) == (0, False)
    assert info.dirty_bytes > 3 * PAGE_BYTES
    device.open(0.0)
    device.opt_in()
    device.close(0.0)
    device.open(0.0)  # the next user has not opted in
    stream, _ = saving(device, S.PRE_COPY)
    device.reinit(0.0)
    assert not device.precopy_info(stream, 0.0).reinit


def test_reinit_is_for_pre_copy_and_for_devices_that_know_it() -> None:
    device = new_device()
    for state in (S.RUNNING, S.STOP_COPY):
        device.set_state(state, 0.0)
        with pytest.raises(OSError, match=state.name) as refused:
            device.reinit(0.0)
        assert refused.value.errno == errno.EINVAL
    older = SimDevice(DeviceConfig("sim0", MODEL, 1, precopy_info_v2=False), Fabric(), now=0.0)
    with pytest.raises(OSError, match="PRECOPY_INFOv2") as refused:
        older.opt_in()
    assert refused.value.errno == errno.ENOTTY


@pytest.mark.parametrize("leave", [S.STOP, S.RUNNING])
def test_a_stream_dies_with_the_saving_states(leave: S) -> None:
    device = new_device()
    stream, _ = saving(device, S.PRE_COPY)
    device.set_state(leave, 0.0)
    with pytest.raises(OSError, match="left the saving states") as refused:
        device.read(stream, memoryview(bytearray(8)), 0.0)
    assert refused.value.errno == errno.ENODEV
    device.set_state(S.PRE_COPY, 0.0)
    with pytest.raises(OSError, match="earlier pre-copy") as refused:
        device.precopy_info(stream, 0.0)
    assert refused.value.errno == errno.ENODEV


def test_a_stream_goes_one_way() -> None:
    device = new_device()
    loading = resuming(device)
    with pytest.raises(OSError, match="not for reading") as refused:
        device.read(loading, memoryview(bytearray(8)), 0.0)
    assert refused.value.errno == errno.EBADF
    device.reset(0.0)
    with pytest.raises(OSError, match="left RESUMING") as refused:
        device.write(loading, memoryview(b"x"))
    assert refused.value.errno == errno.ENODEV
    stream, _ = saving(device, S.STOP_COPY)
    with pytest.raises(OSError, match="not for writing") as refused:
        device.write(stream, memoryview(b"x"))
    assert refused.value.errno == errno.EBADF


def damaged(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def take_all(device: SimDevice, loading: LoadStream, data: bytes) -> None:
    device.write(loading, memoryview(data))
    device.set_state(S.STOP, 0.0)


@settings(deadline=None)
@given(st.data())
def test_damage_anywhere_is_refused(data: st.DataObject) -> None:
    size = PAGE_BYTES + 100
    state = whole_state(new_device(size))
    target = new_device(size)
    loading = resuming(target)
    # The pages' content is most of it: look at what is around it as often.
    near_the_ends = st.one_of(st.integers(0, 150), st.integers(len(state) - 500, len(state) - 1))
    bad = damaged(state, data.draw(st.one_of(near_the_ends, st.integers(0, len(state) - 1))))
    with pytest.raises(OSError, match=r".") as refused:
        take_all(target, loading, bad)
    assert refused.value.errno in {errno.EFAULT, errno.EINVAL, errno.ENOMEM}
    assert target.state is S.RESUMING
    with pytest.raises(OSError, match="not complete"):
        target.set_state(S.STOP, 0.0)


@settings(deadline=None)
@given(st.data())
def test_a_state_cut_short_is_never_accepted(data: st.DataObject) -> None:
    state = whole_state(new_device(PAGE_BYTES + 100))
    target = new_device(PAGE_BYTES + 100)
    target.write(resuming(target), memoryview(state[: data.draw(st.integers(0, len(state) - 1))]))
    with pytest.raises(OSError, match="not complete") as refused:
        target.set_state(S.STOP, 0.0)
    assert refused.value.errno == errno.EINVAL
    assert target.state is S.RESUMING


@pytest.mark.parametrize("newer", [0, 1])
def test_a_page_that_is_missing_or_old_is_refused(newer: int) -> None:
    """All that comes is sound, and yet it is not the whole state, or not the newest."""
    source, target = new_device(dirty_rate=PAGE_BYTES), new_device(address="sim1")
    stream, _ = saving(source, S.PRE_COPY)
    first = read_available(source, stream, 0.0)
    source.set_state(S.STOP_COPY, float(newer))
    trailer = read_available(source, stream, 0.0)
    record = PAGE_BYTES + 16
    if newer:
        trailer = trailer[record:]
    else:
        first = first[:-record]
    loading = resuming(target)
    with pytest.raises(OSError, match="missing or older") as refused:
        target.write(loading, memoryview(first + trailer))
    assert refused.value.errno == errno.EINVAL


def test_a_device_that_begins_to_load_is_nobody_any_more() -> None:
    device = new_device()
    device.write_region(0, b"x")
    device.start_traffic(1, (), 0.0)
    resuming(device)
    assert device.identity is None
    device.reset(0.0)
    assert device.read_region(0, 1) == b"\0"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"size_bytes": 3 * PAGE_BYTES + 1}, errno.EINVAL),
        ({"model": "sim:2"}, errno.EINVAL),
    ],
)
def test_the_state_of_another_kind_is_refused(change: dict[str, object], code: int) -> None:
    state = whole_state(new_device())
    target = SimDevice(replace(new_device().config, **change), Fabric(), now=0.0)  # type: ignore[arg-type]
    loading = resuming(target)
    with pytest.raises(OSError, match="state of") as refused:
        target.write(loading, memoryview(state))
    assert refused.value.errno == code
    with pytest.raises(OSError, match="earlier write") as refused:
        target.write(loading, memoryview(state))
    assert refused.value.errno == errno.ENODEV


def test_foreign_bytes_and_too_many_bytes_are_refused() -> None:
    target = new_device()
    with pytest.raises(OSError, match="no state") as refused:
        target.write(resuming(target), memoryview(b"GET"))
    assert refused.value.errno == errno.EFAULT
    target.reset(0.0)
    loading = resuming(target)
    target.write(loading, memoryview(whole_state(new_device())))
    with pytest.raises(OSError, match="after the end") as refused:
        target.write(loading, memoryview(b"x"))
    assert refused.value.errno == errno.ENOMEM


def test_faults_of_the_stream_come_once_and_where_they_were_put() -> None:
    source, target = new_device(), new_device(address="sim1")
    source.faults += [
        Fault(FaultOp.READ, limit_bytes=5),
        Fault(FaultOp.READ, errno=errno.EIO, after_bytes=100),
    ]
    target.faults.append(Fault(FaultOp.WRITE, limit_bytes=3))
    loading = resuming(target)
    stream, _ = saving(source, S.STOP_COPY)
    buffer = memoryview(bytearray(200))
    assert source.read(stream, buffer, 0.0) == 5
    assert target.write(loading, buffer[:5]) == 3
    assert target.write(loading, buffer[3:5]) == 2
    assert source.read(stream, buffer, 0.0) == 200
    target.write(loading, buffer)
    with pytest.raises(OSError, match="injected"):
        source.read(stream, buffer, 0.0)
    target.write(loading, memoryview(read_available(source, stream, 0.0)))
    target.set_state(S.STOP, 0.0)


def test_a_fault_may_come_more_often_or_until_it_is_cleared() -> None:
    device = new_device()
    device.faults += [Fault(FaultOp.READ, limit_bytes=5, times=2), Fault(FaultOp.READ, limit_bytes=3, times=0)]
    stream, _ = saving(device, S.STOP_COPY)
    buffer = memoryview(bytearray(100))
    assert [device.read(stream, buffer, 0.0) for _ in range(6)] == [5, 5, 3, 3, 3, 3]
    device.faults.clear()
    assert device.read(stream, buffer, 0.0) == 100


def test_a_read_may_end_too_early() -> None:
    source, target = new_device(), new_device(address="sim1")
    source.faults.append(Fault(FaultOp.READ, ends=True, after_bytes=PAGE_BYTES, times=0))
    stream, now = saving(source, S.STOP_COPY)
    short = read_available(source, stream, now, chunk=PAGE_BYTES)
    assert 0 < len(short) < 3 * PAGE_BYTES
    target.write(resuming(target), memoryview(short))
    with pytest.raises(OSError, match="not complete") as refused:
        target.set_state(S.STOP, 0.0)
    assert refused.value.errno == errno.EINVAL


@pytest.mark.parametrize("chunk", [1000, PAGE_BYTES, 1 << 20])
def test_an_endless_state_is_sound_but_never_ends(chunk: int) -> None:
    source, target = new_device(), new_device(address="sim1")
    source.faults.append(Fault(FaultOp.ENDLESS, times=0))
    stream, now = saving(source, S.STOP_COPY)
    loading, read = resuming(target), 0
    while read < 10 * 3 * PAGE_BYTES:
        part = part_of(source, stream, chunk, now)
        assert part
        read += target.write(loading, memoryview(part))
    source.faults.clear()
    target.write(loading, memoryview(read_available(source, stream, now)))
    target.set_state(S.STOP, 0.0)


def test_precopy_info_may_lie_and_fail() -> None:
    device = new_device()
    stream, _ = saving(device, S.PRE_COPY)
    device.faults += [Fault(FaultOp.INFO, limit_bytes=10), Fault(FaultOp.INFO, errno=errno.EIO)]
    assert device.precopy_info(stream, 0.0).initial_bytes == 10
    with pytest.raises(OSError, match="injected"):
        device.precopy_info(stream, 0.0)
    assert device.precopy_info(stream, 0.0).initial_bytes > 3 * PAGE_BYTES


@pytest.mark.parametrize(
    "fault", [{"op": FaultOp.WRITE, "ends": True}, {"op": FaultOp.READ, "times": -1}], ids=["end", "times"]
)
def test_faults_that_mean_nothing_are_refused(fault: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"end|until"):
        Fault(**fault)  # type: ignore[arg-type]


# --- config registers


def test_config_registers_are_not_in_the_stream_but_in_the_config() -> None:
    source, target = new_device(), new_device(address="sim1")
    assert source.get_config() == b""
    source.write_registers(60, b"last")
    target.write(resuming(target), memoryview(whole_state(source)))
    target.set_state(S.STOP, 0.0)
    assert target.get_config() == b""
    target.restore_config(source.get_config())
    assert target.read_registers(58, 6) == b"\0\0last"


def test_config_registers_are_blank_after_a_reset_only() -> None:
    device = new_device()
    device.write_registers(0, b"set up")
    device.set_state(S.STOP, 0.0)
    resuming(device)
    assert device.read_registers(0, 6) == b"set up"
    device.reset(0.0)
    assert device.get_config() == b""


@pytest.mark.parametrize("size", [0, 1, CONFIG_BYTES - 1, CONFIG_BYTES + 1])
def test_a_config_of_another_size_is_refused_and_changes_nothing(size: int) -> None:
    device = new_device()
    device.write_registers(0, b"set up")
    with pytest.raises(OSError, match="bytes of registers") as refused:
        device.restore_config(b"x" * size)
    assert refused.value.errno == errno.EINVAL
    assert device.read_registers(0, 6) == b"set up"


def test_a_config_can_fail_both_ways_and_has_bounds() -> None:
    device = new_device()
    device.faults += [Fault(FaultOp.CONFIG, errno=errno.EIO, times=2)]
    for action in (device.get_config, lambda: device.restore_config(bytes(CONFIG_BYTES))):
        with pytest.raises(OSError, match="injected"):
            action()
    for offset, length in ((-1, 1), (CONFIG_BYTES, 1), (0, CONFIG_BYTES + 1)):
        with pytest.raises(OSError, match="Invalid"):
            device.read_registers(offset, length)
    with pytest.raises(OSError, match="Invalid"):
        device.write_registers(CONFIG_BYTES, b"x")


def test_open_close_and_reset_leave_a_blank_device() -> None:
    device = new_device(dirty_rate=PAGE_BYTES)
    blank = whole_state(device)
    device.open(0.0)
    with pytest.raises(OSError, match="is open") as refused:
        device.open(0.0)
    assert refused.value.errno == errno.EBUSY
    for forget in (device.reset, device.close):
        device.write_region(0, b"x")
        device.start_traffic(1, (), 0.0)
        device.set_state(S.STOP, 50.0)
        forget(50.0)
        assert device.identity is None
        assert whole_state(device, 50.0) == blank
        device.reset(50.0)
    assert not device.opened


def test_regions_are_bounded_and_guarded_by_the_state() -> None:
    device = new_device()
    for offset, length in ((-1, 1), (SCRATCH_BYTES, 1), (0, SCRATCH_BYTES + 1), (0, -1)):
        with pytest.raises(OSError, match="Invalid"):
            device.read_region(offset, length)
    saving(device, S.STOP_COPY)
    assert device.read_region(0, 2) == b"\0\0"
    with pytest.raises(OSError, match="STOP_COPY"):
        device.write_region(0, b"x")
    resuming(device)
    with pytest.raises(OSError, match="RESUMING"):
        device.read_region(0, 1)


# --- P2P


@dataclass
class Host:
    """Devices of one host that all write to each other; time goes on with every arc."""

    fabric: Fabric
    devices: list[SimDevice]
    now: float = 0.0

    def to(self, device: SimDevice, state: S) -> SaveStream | LoadStream | None:
        self.now, stream = device.set_state(state, self.now)
        return stream

    def all_to(self, *states: S, order: Sequence[int] | None = None) -> None:
        for state in states:
            for index in order or range(len(self.devices)):
                self.to(self.devices[index], state)

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.fabric.advance(self.now)


def new_host(count: int, *, working: bool, flags: MigrationFlags = ALL_FLAGS) -> Host:
    fabric = Fabric(RATE, LATENCY)
    devices = []
    for port in range(count):
        config = DeviceConfig(f"sim{port}", MODEL, 2 * PAGE_BYTES, flags=flags, arc_latency_seconds=1 / 512)
        devices.append(SimDevice(config, fabric, now=0.0))
    for port, device in enumerate(devices if working else ()):
        device.start_traffic(port, tuple(p for p in range(count) if p != port), 0.0)
    return Host(fabric, devices)


def move(source: Host, target: Host) -> None:
    """Sources in STOP_COPY to targets in STOP."""
    for left, right in zip(source.devices, target.devices, strict=True):
        source.to(left, S.STOP)
        loading = target.to(right, S.RESUMING)
        stream = source.to(left, S.STOP_COPY)
        assert isinstance(stream, SaveStream)
        assert isinstance(loading, LoadStream)
        right.write(loading, memoryview(read_available(left, stream, source.now)))
        target.to(right, S.STOP)


@given(
    count=st.integers(2, 5),
    ran=st.integers(1, 64),
    barrier=st.sampled_from([S.RUNNING_P2P, S.PRE_COPY_P2P]),
    data=st.data(),
)
@settings(deadline=None, max_examples=40)
def test_the_barrier_loses_no_write(count: int, ran: int, barrier: S, data: st.DataObject) -> None:
    order = st.permutations(range(count))
    source, target = new_host(count, working=True), new_host(count, working=False)
    source.wait(ran / 256)
    if barrier is S.PRE_COPY_P2P:
        source.all_to(S.PRE_COPY, order=data.draw(order))
        source.wait(ran / 256)
    source.all_to(barrier, order=data.draw(order))
    assert source.fabric.totals().in_flight == 0
    source.all_to(S.STOP_COPY, order=data.draw(order))
    account = source.fabric.totals()
    assert account.sent == account.received > 0
    assert (account.lost, account.missing, account.in_flight) == (0, 0, 0)
    move(source, target)
    assert (target.fabric.totals().sent, target.fabric.totals().missing) == (0, 0)
    target.all_to(S.RUNNING_P2P, order=data.draw(order))
    target.all_to(S.RUNNING, order=data.draw(order))
    target.wait(1.0)
    after = target.fabric.totals()
    assert (after.lost, after.missing, after.doubled) == (0, 0, 0)
    assert after.sent > count * RATE
    assert all(device.endpoint.gaps() == 0 for device in target.devices)


@pytest.mark.parametrize("flags", [ALL_FLAGS, MigrationFlags.STOP_COPY])
def test_stopping_one_by_one_loses_writes_and_the_target_shows_it(flags: MigrationFlags) -> None:
    source, target = new_host(3, working=True, flags=flags), new_host(3, working=False, flags=flags)
    source.wait(0.25)
    source.all_to(S.STOP_COPY)
    account = source.fabric.totals()
    assert account.lost > 0
    assert account.missing == account.lost == account.sent - account.received
    assert sum(device.endpoint.aborted for device in source.devices) == account.lost
    move(source, target)
    # The host they came from is gone; their states still tell.
    assert target.fabric.totals().missing == account.lost
    if MigrationFlags.P2P not in flags:
        return
    target.all_to(S.RUNNING_P2P)
    target.all_to(S.RUNNING)
    target.wait(0.25)
    assert target.fabric.totals().lost == 0
    assert target.fabric.totals().missing == account.lost
    assert sum(device.endpoint.gaps() for device in target.devices) == account.lost


def test_starting_one_by_one_loses_writes() -> None:
    source, target = new_host(3, working=True), new_host(3, working=False)
    source.wait(0.25)
    source.all_to(S.RUNNING_P2P, S.STOP_COPY)
    move(source, target)
    target.to(target.devices[0], S.RUNNING)
    target.wait(0.25)
    target.all_to(S.RUNNING)
    account = target.fabric.totals()
    assert account.lost == account.missing > 0


def test_leaving_pre_copy_past_the_barrier_loses_writes() -> None:
    """PRE_COPY_P2P -> STOP is safe, but PRE_COPY -> STOP goes through RUNNING: only the barrier helps."""
    source = new_host(2, working=True)
    source.wait(0.25)
    source.all_to(S.PRE_COPY)
    source.to(source.devices[0], S.PRE_COPY_P2P)
    source.wait(0.25)
    assert source.fabric.totals().lost == 0, "it answers while quiescent"
    source.to(source.devices[0], S.STOP_COPY)
    source.wait(0.25)
    assert source.fabric.totals().lost > 0


def test_entering_a_p2p_state_completes_what_is_under_way() -> None:
    host = new_host(2, working=True)
    host.wait(0.25)
    first = host.devices[0]
    began = host.now
    host.to(first, S.RUNNING_P2P)
    assert host.now >= first.endpoint.drained_at > began + 1 / 512
    sent = first.identity.with_peer(1).sent if first.identity else 0
    host.wait(0.5)
    assert first.identity is not None
    assert first.identity.with_peer(1).sent == sent
    assert first.identity.with_peer(1).received > sent


def test_a_blank_device_sends_nothing_and_answers_to_nobody() -> None:
    host = new_host(2, working=False)
    host.wait(1.0)
    assert host.fabric.totals().sent == 0
    host.devices[0].start_traffic(0, (1,), host.now)
    host.wait(1.0)
    account = host.fabric.totals()
    assert account.received == 0
    assert account.lost + account.in_flight == account.sent > 0


def test_a_device_that_is_reset_is_missed_by_its_peers() -> None:
    host = new_host(2, working=True)
    host.wait(0.25)
    host.devices[1].reset(host.now)
    host.wait(0.25)
    assert host.devices[0].endpoint.aborted > 0
    assert host.devices[1].endpoint.aborted == 0


def test_two_devices_that_answer_as_one_port_are_counted() -> None:
    host = new_host(3, working=False)
    peer, one, other = host.devices
    peer.start_traffic(0, (1,), 0.0)
    one.start_traffic(1, (), 0.0)
    host.wait(0.25)
    assert host.fabric.totals().doubled == 0
    other.start_traffic(1, (), host.now)
    assert (other.endpoint.doubled, host.fabric.totals().doubled) == (1, 1)
    host.wait(0.25)
    assert host.fabric.totals().doubled > 1


def test_moving_within_a_host_doubles_only_if_both_run() -> None:
    host = new_host(3, working=False)
    peer, source, target = host.devices
    peer.start_traffic(0, (1,), 0.0)
    source.start_traffic(1, (0,), 0.0)
    host.wait(0.25)
    for device in (peer, source):
        host.to(device, S.RUNNING_P2P)
    stream = host.to(source, S.STOP_COPY)
    loading = host.to(target, S.RESUMING)
    assert isinstance(stream, SaveStream)
    assert isinstance(loading, LoadStream)
    target.write(loading, memoryview(read_available(source, stream, host.now)))
    for state in (S.STOP, S.RUNNING_P2P, S.RUNNING):
        host.to(target, state)
    host.to(peer, S.RUNNING)
    host.wait(0.25)
    account = host.fabric.totals()
    assert (account.lost, account.missing, account.doubled) == (0, 0, 0)
    # A source that runs again after that is what must never happen.
    host.to(source, S.RUNNING_P2P)
    host.wait(0.25)
    assert host.fabric.totals().doubled > 1


def test_the_traffic_does_not_depend_on_how_often_it_is_looked_at() -> None:
    often, once = new_host(3, working=True), new_host(3, working=True)
    for _ in range(256):
        often.wait(1 / 1024)
    once.wait(0.25)
    assert often.fabric.totals() == once.fabric.totals()
    for host in (often, once):
        host.all_to(S.STOP)
    assert often.fabric.totals() == once.fabric.totals()


def test_configure_changes_the_traffic_from_then_on() -> None:
    host = new_host(2, working=True)
    host.wait(1.0)
    before = host.fabric.totals()
    host.fabric.configure(0, LATENCY, host.now)
    host.wait(1.0)
    assert host.fabric.totals().sent == before.sent
    assert host.fabric.totals().in_flight == 0
    host.fabric.configure(10 * RATE, LATENCY, host.now)
    host.wait(1.0)
    assert host.fabric.totals().sent - before.sent == 10 * before.sent
    with pytest.raises(ValueError, match="negative"):
        host.fabric.configure(-1, 0, host.now)


def test_start_is_for_blank_running_devices() -> None:
    device = new_device()
    device.start_traffic(1, (), 0.0)
    with pytest.raises(OSError, match="already is port 1") as refused:
        device.start_traffic(1, (), 0.0)
    assert refused.value.errno == errno.EBUSY
    device.reset(0.0)
    device.set_state(S.STOP, 0.0)
    with pytest.raises(OSError, match="is STOP") as refused:
        device.start_traffic(1, (), 0.0)
    assert refused.value.errno == errno.EIO
