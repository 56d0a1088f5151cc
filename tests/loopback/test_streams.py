"""What a stream carries, whole and in bounds, over real TLS on loopback."""

import errno
import itertools
import os
import threading
import tracemalloc
from collections.abc import Callable

import pytest

# --- whole states
from loopback.stream_bench import MIB, PATIENCE, Bench, Endless, LoadingDevice, SavingDevice, finish, until
from vfio_agent.devices.protocol import PrecopyInfo
from vfio_agent.frames import (
    MAX_DATA,
)
from vfio_agent.ratelimit import TokenBucket
from vfio_agent.sender import Sender
from vfio_api.errors import DeviceError


def cycling(*sizes: int) -> Callable[[int], int]:
    """A device that gives at most these many bytes, one after the other."""
    turns = itertools.cycle(sizes)
    return lambda _room: next(turns)


SEGMENTS: dict[str, tuple[int, ...]] = {"as it fits": (MIB,), "one byte, then all": (1, MIB), "odd": (4093, 7, 65537)}


@pytest.mark.parametrize("segments", SEGMENTS)
@pytest.mark.parametrize(
    ("initial", "rest"), [(0, 0), (1, 0), (0, 1), (MAX_DATA, 1), (MAX_DATA + 1, MAX_DATA - 1), (3 * MIB, 2 * MIB + 5)]
)
def test_a_whole_state_arrives_as_it_was(bench: Bench, segments: str, initial: int, rest: int) -> None:
    state = os.urandom(initial + rest)
    saving = SavingDevice(state[:initial], state[initial:], cycling(*SEGMENTS[segments]))
    target = bench.target(LoadingDevice(most=100_003))
    sender, changed = bench.connected(target, saving)
    finish(saving, sender, changed)
    assert target.end() is None
    assert target.device.loaded == state
    assert sender.progress.sent_bytes == target.inlet.loaded_bytes == len(state)


def test_a_device_that_takes_one_byte_at_a_time_gets_all(bench: Bench) -> None:
    state = os.urandom(3000)
    saving, target = SavingDevice(b"", state), bench.target(LoadingDevice(most=1))
    finish(saving, *bench.connected(target, saving))
    assert target.end() is None
    assert target.device.loaded == state


def test_initial_data_is_acknowledged_only_when_it_is_loaded(bench: Bench) -> None:
    saving, target = SavingDevice(os.urandom(3 * MIB), b"rest"), bench.target()
    target.device.go.clear()
    sender, changed = bench.connected(target, saving)
    assert target.device.asked.wait(PATIENCE)
    assert not sender.progress.initial_acknowledged
    target.device.go.set()
    until(changed, lambda: sender.progress.initial_acknowledged and sender.progress.drained)
    assert target.inlet.loaded_bytes == 3 * MIB
    assert not sender.progress.finished
    finish(saving, sender, changed)
    assert target.end() is None
    assert target.inlet.loaded_bytes == 3 * MIB + 4


def test_the_end_is_acknowledged_only_when_all_is_loaded(bench: Bench) -> None:
    saving, target = SavingDevice(b"", os.urandom(1000)), bench.target()
    target.device.go.clear()
    sender, changed = bench.connected(target, saving)
    saving.stop_copy()
    sender.finish()
    assert target.device.asked.wait(PATIENCE)
    assert not sender.progress.finished
    target.device.go.set()
    until(changed, lambda: sender.progress.finished)
    assert target.end() is None


@pytest.mark.parametrize("flagged", [True, False], ids=["with REINIT", "by its number only"])
def test_new_initial_data_is_acknowledged_anew(bench: Bench, flagged: bool) -> None:
    saving, target = SavingDevice(os.urandom(MIB)), bench.target()
    sender, changed = bench.connected(target, saving)
    until(changed, lambda: sender.progress.initial_acknowledged and sender.progress.drained)
    target.device.go.clear()
    saving.reinit(b"more of it", flagged=flagged)
    until(changed, lambda: not sender.progress.initial_acknowledged)
    target.device.go.set()
    until(changed, lambda: sender.progress.initial_acknowledged)
    assert target.inlet.loaded_bytes == MIB + 10
    finish(saving, sender, changed)
    assert target.end() is None


@pytest.mark.parametrize("flagged", [True, False], ids=["with REINIT", "by its number only"])
def test_who_asks_between_the_barriers_sees_new_initial_data(bench: Bench, flagged: bool) -> None:
    saving, target = SavingDevice(os.urandom(MIB)), bench.target()
    sender, changed = bench.connected(target, saving)
    until(changed, lambda: sender.progress.initial_acknowledged and sender.progress.drained)
    target.device.go.clear()
    saving.reinit(b"more of it", flagged=flagged)
    assert not sender.rested()
    target.device.go.set()
    sender.confirm()
    until(changed, lambda: sender.confirmed)
    assert target.inlet.loaded_bytes == MIB + 10
    finish(saving, sender, changed)
    assert target.end() is None


class Watched(SavingDevice):
    """Notes which threads read it once it is stopped."""

    def __init__(self, initial: bytes, rest: bytes):
        super().__init__(initial, rest)
        self.readers: list[str] = []

    def readinto(self, buffer: memoryview) -> int:
        if self._stopped:
            self.readers.append(threading.current_thread().name)
        return super().readinto(buffer)


@pytest.mark.parametrize(("rest", "woken"), [(0, False), (1000, False), (200_000, True)])
def test_a_little_rest_is_sent_by_who_stops_the_device(bench: Bench, rest: int, woken: bool) -> None:
    saving, target = Watched(os.urandom(MIB), os.urandom(rest)), bench.target()
    sender, changed = bench.connected(target, saving, streams=15_000)  # so that it is polled every 30 s
    until(changed, lambda: sender.progress.initial_acknowledged and sender.progress.drained)
    until(changed, lambda: sender.rested() or changed.set() is not None)  # the sending thread has nothing to do
    finish(saving, sender, changed)
    assert target.end() is None
    assert target.inlet.loaded_bytes == MIB + rest
    assert ("send-gpu0" in saving.readers) == woken


def test_a_little_rest_that_cannot_be_read_fails_the_stream(bench: Bench) -> None:
    saving, target = Watched(b"abc", b"def"), bench.target()
    sender, changed = bench.connected(target, saving)
    until(changed, lambda: sender.progress.initial_acknowledged and sender.progress.drained)
    saving.fails_at = 3
    saving.stop_copy()
    sender.stopped()
    until(changed, lambda: sender.error is not None)
    assert sender.error is not None
    assert "device gpu0: reading its state failed after 3 bytes" in sender.error.message


def test_a_stream_that_has_failed_is_not_at_rest_and_sends_nothing_more(bench: Bench) -> None:
    saving, target = Watched(b"abc", b"def"), bench.target()
    sender, changed = bench.connected(target, saving)
    until(changed, lambda: sender.progress.initial_acknowledged and sender.progress.drained)
    saving.fails_at = 3
    sender.confirm()
    until(changed, lambda: sender.error is not None)
    failure, saving.fails_at = sender.error, None
    assert not sender.rested()
    saving.stop_copy()
    sender.stopped()
    sender.stop()
    assert saving.readers == []
    assert sender.error is failure


def test_a_stream_that_was_called_off_is_not_at_rest(bench: Bench) -> None:
    saving, target = SavingDevice(b"abc"), bench.target()
    sender, changed = bench.connected(target, saving)
    until(changed, lambda: sender.progress.initial_acknowledged and sender.progress.drained)
    sender.interrupt()
    assert not sender.rested()


class Dirtying(SavingDevice):
    """What it has left in pre-copy is dirty data; it had no initial data."""

    def precopy_info(self) -> PrecopyInfo:
        info = super().precopy_info()
        return PrecopyInfo(0, info.initial_bytes)


class Told(threading.Event):
    """Notes what a sender knew each time when it had something to tell."""

    def __init__(self) -> None:
        super().__init__()
        self.sender: Sender | None = None
        self.dirty: list[int] = []

    def set(self) -> None:
        assert self.sender is not None
        self.dirty.append(self.sender.progress.dirty_bytes)
        super().set()


def test_a_device_that_rests_after_a_burst_is_told_of_as_resting(bench: Bench) -> None:
    saving, target, told = Dirtying(b"", chunk=lambda _room: 1000), bench.target(), Told()
    told.sender, _ = sender, _ = bench.sender(target, changed=told)
    sender.connect(PATIENCE)
    sender.begin(saving)
    until(told, lambda: sender.progress.drained)
    saving.reinit(os.urandom(MIB), flagged=False)
    until(told, lambda: max(told.dirty) > 0 and told.dirty[-1] == 0)
    assert target.inlet.loaded_bytes <= MIB
    finish(saving, sender, told)
    assert target.end() is None


# --- what the state does not carry


def test_the_config_arrives_after_the_state(bench: Bench) -> None:
    saving, target = SavingDevice(b"state", b"rest"), bench.target()
    read_at: list[int] = []

    def config() -> bytes:
        read_at.append(saving.read_bytes)
        return b"registers"

    finish(saving, *bench.connected(target, saving, config=config))
    assert target.end() is None
    assert target.configs == [b"registers"]
    assert read_at == [len(b"staterest")]
    assert target.device.loaded == b"staterest"


def test_without_a_config_nothing_is_carried(bench: Bench) -> None:
    saving, target = SavingDevice(b"state"), bench.target()
    finish(saving, *bench.connected(target, saving))
    assert target.end() is None
    assert target.configs == [b""]


def refused_config() -> bytes:
    raise DeviceError("device gpu0: no config", device="gpu0", errno=errno.EIO)


@pytest.mark.parametrize(
    ("config", "message"), [(refused_config, "no config"), (lambda: bytes(4097), "has 4097 bytes, at most 4096")]
)
def test_a_config_that_cannot_be_had_fails_before_the_end(
    bench: Bench, config: Callable[[], bytes], message: str
) -> None:
    saving, target = SavingDevice(b"state"), bench.target()
    sender, changed = bench.connected(target, saving, config=config)
    saving.stop_copy()
    sender.finish()
    until(changed, lambda: sender.error is not None)
    assert isinstance(sender.error, DeviceError)
    assert message in sender.error.message
    sender.stop()
    assert target.end() is not None
    assert target.configs == []


# --- bounds


def test_a_slow_loader_bounds_what_is_read_ahead(bench: Bench) -> None:
    """Back-pressure reaches the device's read: what lies between is the sockets' buffers and one frame."""
    saving, target = SavingDevice(os.urandom(64 * MIB), chunk=lambda _room: 64 * 1024), bench.target()
    target.device.go.clear()
    sender, changed = bench.connected(target, saving)
    assert target.device.asked.wait(PATIENCE)
    before = -1
    settled = threading.Event()
    while before != saving.read_bytes:  # until the sender is stuck in its socket
        before = saving.read_bytes
        settled.wait(0.2)
    assert saving.read_bytes - target.device.count <= 16 * MIB
    assert saving.read_bytes < 64 * MIB
    target.device.go.set()
    finish(saving, sender, changed)
    assert target.end() is None


def test_memory_does_not_grow_with_the_state(bench: Bench) -> None:
    saving, target = Endless(256 * MIB), bench.target(LoadingDevice(keep=False))
    sender, changed = bench.sender(target)
    sender.connect(PATIENCE)
    tracemalloc.start()
    try:
        sender.begin(saving)
        finish(saving, sender, changed)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert target.end() is None
    assert target.device.count == 256 * MIB
    assert peak < 16 * MIB


def test_a_token_bucket_lets_no_more_than_its_rate_through() -> None:
    now = [0.0]
    bucket = TokenBucket(1000, burst_seconds=0.1, clock=lambda: now[0])
    assert bucket.take(100) == 0.0
    assert bucket.take(100) == pytest.approx(0.1)
    now[0] += 0.1
    assert bucket.take(50) == pytest.approx(0.05)
    now[0] += 100.0
    assert bucket.take(100) == 0.0
    assert bucket.take(1000) == pytest.approx(1.0)
    assert TokenBucket(0).take(1 << 40) == 0.0
