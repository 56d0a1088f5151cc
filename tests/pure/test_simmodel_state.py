"""The state of a simulated device, its stream, and the config that is not in it."""

import errno
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pure.sim_world import MODEL, SIZES, new_device, read_available, resuming, saving, whole_state
from vfio_agent.devices.protocol import NoDataError, PrecopyInfo
from vfio_agent.devices.simfabric import Fabric
from vfio_agent.devices.simfaults import Fault, FaultOp
from vfio_agent.devices.simmodel import CONFIG_BYTES, DeviceConfig, SimDevice
from vfio_agent.devices.simstate import PAGE_BYTES, SCRATCH_BYTES, LoadStream, SaveStream
from vfio_api.device import DeviceState as S

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
