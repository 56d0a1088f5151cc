"""P2P traffic between simulated devices: what is quiesced, lost, and counted."""

import errno
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pure.sim_world import LATENCY, MODEL, RATE, new_device, read_available
from vfio_agent.devices.simfabric import Fabric
from vfio_agent.devices.simmodel import ALL_FLAGS, DeviceConfig, SimDevice
from vfio_agent.devices.simstate import PAGE_BYTES, LoadStream, SaveStream
from vfio_api.device import DeviceState as S
from vfio_api.device import MigrationFlags

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
