"""The rate of a link: probed, limited, and told."""

import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

# --- the rate of the link
from loopback.stream_bench import MIB, PATIENCE, Bench, RawSource, SavingDevice, finish
from vfio_agent.datatls import context
from vfio_agent.frames import (
    COUNT,
    HEADER,
    PREAMBLE,
    FrameReader,
    FrameType,
    pack_count,
)
from vfio_agent.linkrate import LinkMeter
from vfio_agent.outlet import Outlet, Route
from vfio_agent.ratelimit import MIN_CHUNK, TokenBucket
from vfio_agent.receiver import _read_exactly
from vfio_api.errors import StreamError


def test_a_probe_measures_the_link_and_is_no_state(bench: Bench) -> None:
    link = LinkMeter()
    saving, target = SavingDevice(b"state"), bench.target()
    sender, changed = bench.sender(target, link=link)
    sender.connect(PATIENCE)
    assert link.bytes_per_second() == 0
    sender.probe()
    assert link.bytes_per_second() > 0
    assert sender.progress.sent_bytes == target.inlet.loaded_bytes == 0
    sender.begin(saving)
    finish(saving, sender, changed)
    assert target.end() is None
    assert target.device.loaded == b"state"
    assert sender.progress.bytes_per_second > 0


def test_streams_probe_at_once(bench: Bench) -> None:
    link = LinkMeter()
    targets = [bench.target() for _ in range(4)]
    senders = [bench.sender(target, link=link, streams=4) for target in targets]
    for sender, _ in senders:
        sender.connect(PATIENCE)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda sender: sender[0].probe(), senders))
    assert link.bytes_per_second() > 0
    for (sender, changed), target in zip(senders, targets, strict=True):
        saving = SavingDevice(b"state")
        sender.begin(saving)
        finish(saving, sender, changed)
        assert target.end() is None


class Ledger(TokenBucket):
    """A limit that notes what is taken."""

    def __init__(self, rate: int):
        super().__init__(rate)
        self.taken = 0

    def take(self, count: int) -> float:
        self.taken += count
        return super().take(count)


@pytest.mark.parametrize("rate", [1, 1000, 100_000, MIB])
@pytest.mark.parametrize("streams", [1, 4])
def test_a_probe_takes_little_of_a_limit(bench: Bench, rate: int, streams: int) -> None:
    ledger = Ledger(rate)
    for _ in range(streams):
        made = Outlet(*bench.route(bench.target()), ledger, LinkMeter(), PATIENCE)
        made.connect(PATIENCE)
        made.probe(streams)
        made.interrupt()
        made.close()
    frames = streams * (HEADER.size + COUNT.size + HEADER.size * (1 + rate // 10 // MIN_CHUNK))  # PROBED, headers
    assert ledger.taken <= rate // 10 + frames
    assert (ledger.taken > 0) is (rate >= 100_000)


@pytest.mark.parametrize(("streams", "share"), [(64, 256 * 1024), (1000, 64 * 1024)])
def test_probes_of_many_streams_are_bounded_together(bench: Bench, streams: int, share: int) -> None:
    ledger = Ledger(0)
    made = Outlet(*bench.route(bench.target()), ledger, LinkMeter(), PATIENCE)
    made.connect(PATIENCE)
    made.probe(streams)
    made.close()
    assert ledger.taken <= share + HEADER.size * 5 + COUNT.size


def test_a_probe_that_is_answered_late_is_not_measured_and_the_stream_goes_on(bench: Bench) -> None:
    target, late = bench.target(), threading.Event()
    tls = context(target.identity, (bench.source.certificate,), server=True)

    def serve(listener: socket.socket) -> None:
        """By hand: answers PROBED only when `late` is set, and then whatever comes."""
        plain, _ = listener.accept()
        plain.settimeout(PATIENCE)
        assert len(plain.recv(PREAMBLE.size)) == PREAMBLE.size
        reader = FrameReader()
        with tls.wrap_socket(plain, server_side=True) as secure:
            for _ in iter(lambda: reader.data_bytes < 5, False):
                kind, length = reader.header(_read_exactly(secure, bytearray(HEADER.size)))
                payload = _read_exactly(secure, bytearray(length))
                if kind is FrameType.PROBED:
                    assert late.wait(PATIENCE)
                    secure.sendall(pack_count(FrameType.ACK, reader.probed(payload)))
                elif kind is FrameType.HELLO:
                    secure.sendall(pack_count(FrameType.ACK, 0))
            secure.sendall(pack_count(FrameType.ACK, 5))

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        served, link = pool.submit(serve, listener), LinkMeter()
        hello, route = bench.route(target)
        route = Route(f"127.0.0.1:{listener.getsockname()[1]}", route.context, route.pinned)
        made = Outlet(hello, route, TokenBucket(0), link, PATIENCE, answer_seconds=0.05)
        made.connect(PATIENCE)
        made.probe(1)
        assert link.bytes_per_second() == 0
        late.set()
        made.send(HEADER.pack(FrameType.DATA, 5) + b"state")
        made.acknowledged(5, "DATA")
        served.result(PATIENCE)
        made.close()


def test_a_limit_holds_back_what_is_sent(bench: Bench) -> None:
    """The time is the test's own: it passes only while the outlet waits for the limit."""
    now = [0.0]

    def clock() -> float:
        return now[0]

    def hold(seconds: float, *_: object, **__: object) -> None:
        now[0] += seconds

    link = LinkMeter(clock=clock)
    target = bench.target()
    made = Outlet(*bench.route(target), TokenBucket(1_000_000, clock=clock), link, PATIENCE, hold=hold)
    made.connect(PATIENCE)
    frame = memoryview(HEADER.pack(FrameType.DATA, 100_000) + bytes(100_000))
    for _ in range(30):
        made.data(frame, made.now(), 100_000)
    made.close()
    assert now[0] >= 3 * 0.99 - 0.02, "3 MB at 1 MB/s, but for the burst"
    assert 0.9e6 < link.bytes_per_second() < 1.1e6


def test_a_probe_that_is_called_off_ends(bench: Bench) -> None:
    sender, _ = bench.sender(bench.target())
    sender.connect(PATIENCE)
    sender.interrupt()
    with pytest.raises(StreamError, match="device gpu0"):
        sender.probe()


def test_a_probe_without_its_end_is_refused(bench: Bench) -> None:
    target = bench.target()
    with RawSource(bench, target) as tls:
        tls.sendall(HEADER.pack(FrameType.PROBE, 3) + b"abc" + pack_count(FrameType.END, 0))
        error = target.end()
    assert error is not None
    assert "END is out of order: it may not follow PROBE" in error.message


def test_a_rate_limit_lets_the_whole_state_through(bench: Bench) -> None:
    state = os.urandom(2 * MIB)
    saving, target = SavingDevice(state), bench.target()
    finish(saving, *bench.connected(target, saving, rate=200 * MIB))
    assert target.end() is None
    assert target.device.loaded == state
