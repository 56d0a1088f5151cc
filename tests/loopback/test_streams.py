"""Sender and DataServer over real TLS on loopback, between devices with memory in place of kernel ones."""

import contextlib
import datetime
import errno
import itertools
import os
import socket
import ssl
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import Queue
from typing import Any
from uuid import uuid4

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from vfio_agent.datatls import Identity, context, new_identity
from vfio_agent.devices.protocol import NoDataError, PrecopyInfo
from vfio_agent.frames import (
    COUNT,
    HEADER,
    MAX_DATA,
    PREAMBLE,
    FrameReader,
    FrameType,
    StreamHello,
    pack_count,
    pack_hello,
    pack_preamble,
)
from vfio_agent.linkrate import LinkMeter
from vfio_agent.outlet import Outlet, Route
from vfio_agent.ratelimit import MIN_CHUNK, TokenBucket
from vfio_agent.receiver import DataServer, Expected, Inlet, _read_exactly
from vfio_agent.sender import Sender
from vfio_api.errors import DeviceError, FrameError, Reason, StreamError, VFIOMigrationError

MIB = 1 << 20
PATIENCE = 20.0  # a test that waits longer than this has failed; nothing is measured against it


class SavingDevice:
    """A device's data fd while it is saved: pre-copy data, then ENOMSG until STOP_COPY, then the rest and 0."""

    def __init__(self, initial: bytes, rest: bytes = b"", chunk: Callable[[int], int] = lambda room: room):
        self._initial, self._rest, self._chunk = initial, rest, chunk
        self._at, self._stopped, self.closed = 0, False, False
        self.fails_at: int | None = None
        self.fails_with = errno.EIO
        self.read_bytes = 0
        self.starved = threading.Event()
        self._anew = False

    def stop_copy(self) -> None:
        """The arc to STOP_COPY is made."""
        self._stopped = True

    def readinto(self, buffer: memoryview) -> int:
        if self.closed:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        if self.fails_at is not None and self._at >= self.fails_at:
            raise OSError(self.fails_with, os.strerror(self.fails_with))
        there = self._initial + self._rest if self._stopped else self._initial
        if self._at == len(there):
            if self._stopped:
                return 0
            self.starved.set()
            raise NoDataError
        count = min(len(buffer), len(there) - self._at, max(1, self._chunk(len(buffer))))
        buffer[:count] = there[self._at : self._at + count]
        self._at += count
        self.read_bytes += count
        return count

    def write(self, data: memoryview) -> int:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    def precopy_info(self) -> PrecopyInfo:
        if self._stopped:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        anew, self._anew = self._anew, False
        return PrecopyInfo(len(self._initial) - self._at, 0, anew)

    def reinit(self, more: bytes, *, flagged: bool = True) -> None:
        """The device has new initial data."""
        self._anew = flagged
        self._initial += more

    def close(self) -> None:
        self.closed = True


class LoadingDevice:
    """A device's data fd in RESUMING. It takes at most `most` bytes at once, and stands still until `go` is set."""

    def __init__(self, most: int = 1 << 30, *, keep: bool = True):
        self.loaded = bytearray()
        self.count = 0
        self._most, self._keep = most, keep
        self.fails_at: int | None = None
        self.fails_with = errno.EINVAL
        self.go = threading.Event()
        self.go.set()
        self.asked = threading.Event()

    def readinto(self, buffer: memoryview) -> int:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    def write(self, data: memoryview) -> int:
        self.asked.set()
        assert self.go.wait(PATIENCE)
        if self.fails_at is not None and self.count >= self.fails_at:
            raise OSError(self.fails_with, os.strerror(self.fails_with))
        part = data[: self._most]
        if self._keep:
            self.loaded += part
        self.count += len(part)
        return len(part)

    def precopy_info(self) -> PrecopyInfo:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    def close(self) -> None:
        pass


@dataclass
class Target:
    """One migration's inlet at a server, and what came out of it."""

    uid: str
    device: LoadingDevice
    identity: Identity
    inlet: Inlet
    configs: list[bytes]
    ended: "Queue[VFIOMigrationError | None]" = field(default_factory=Queue)

    def end(self) -> VFIOMigrationError | None:
        """None: complete. Otherwise what failed."""
        return self.ended.get(timeout=PATIENCE)


class Bench:
    """A server, and senders to it."""

    def __init__(self) -> None:
        self.server = DataServer("127.0.0.1", 0)
        self.source = new_identity("source")
        self._senders: list[Sender] = []

    def target(self, device: LoadingDevice | None = None, *pinned: Identity) -> Target:
        """A target session that expects a stream from `pinned` (from our source if nobody is named)."""
        uid, identity = str(uuid4()), new_identity("target")
        ended: Queue[VFIOMigrationError | None] = Queue()
        device = device or LoadingDevice()
        configs: list[bytes] = []

        def complete(config: bytes) -> None:
            configs.append(config)
            ended.put(None)

        inlet = Inlet("gpu0", device, complete, ended.put)
        pins = tuple(p.certificate for p in pinned or (self.source,))
        tls = context(identity, pins, server=True)
        self.server.expect(uid, Expected(tls, pins, {"gpu0": inlet}))
        return Target(uid, device, identity, inlet, configs, ended)

    def sender(
        self,
        target: Target,
        *,
        identity: Identity | None = None,
        expects: Identity | None = None,
        uid: str | None = None,
        device: str = "gpu0",
        rate: int = 0,
        port: int = 0,
        changed: threading.Event | None = None,
        **options: Any,
    ) -> tuple[Sender, threading.Event]:
        """A sender to `target`, not connected; the event is set whenever it has something to tell."""
        changed = changed or threading.Event()
        pins = ((expects or target.identity).certificate,)
        made = Sender(
            StreamHello(uid or target.uid, device, 1),
            f"127.0.0.1:{port or self.server.port}",
            context(identity or self.source, pins, server=False),
            pins,
            TokenBucket(rate),
            changed.set,
            **options,
        )
        self._senders.append(made)
        return made, changed

    def route(self, target: Target) -> tuple[StreamHello, Route]:
        """What a bare connection to `target` needs."""
        pins = (target.identity.certificate,)
        tls = context(self.source, pins, server=False)
        return StreamHello(target.uid, "gpu0", 1), Route(f"127.0.0.1:{self.server.port}", tls, pins)

    def connected(
        self, target: Target, saving: SavingDevice, rate: int = 0, **options: Any
    ) -> tuple[Sender, threading.Event]:
        sender, changed = self.sender(target, rate=rate, **options)
        sender.connect(PATIENCE)
        sender.begin(saving)
        return sender, changed

    def close(self) -> None:
        for sender in self._senders:
            sender.stop()
        self.server.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


def until(changed: threading.Event, holds: Callable[[], bool]) -> None:
    """Wait for what the sender tells; it tells every change that is waited for here."""
    while not holds():
        assert changed.wait(PATIENCE), "the sender has nothing to tell"
        changed.clear()


def finish(saving: SavingDevice, sender: Sender, changed: threading.Event) -> None:
    saving.stop_copy()
    sender.finish()
    until(changed, lambda: sender.progress.finished or sender.error is not None)
    assert sender.error is None


# --- whole states


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


# --- the rate of the link


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

    def hold(seconds: float) -> None:
        now[0] += seconds

    link = LinkMeter(clock=clock)
    target = bench.target()
    made = Outlet(*bench.route(target), TokenBucket(1_000_000, clock=clock), link, PATIENCE, hold=hold)
    made.connect(PATIENCE)
    frame = memoryview(HEADER.pack(FrameType.DATA, 100_000) + bytes(100_000))
    for _ in range(30):
        made.data(frame, made.now())
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


# --- who may connect


def test_a_source_that_is_not_pinned_is_refused(bench: Bench) -> None:
    target = bench.target()
    sender, _ = bench.sender(target, identity=new_identity("mallory"))
    with pytest.raises(StreamError):
        sender.connect(PATIENCE)
    assert not target.inlet.taken
    assert target.ended.empty()


def test_a_target_that_is_not_pinned_is_refused(bench: Bench) -> None:
    target = bench.target()
    sender, _ = bench.sender(target, expects=new_identity("expected"))
    with pytest.raises(StreamError, match="no data stream to"):
        sender.connect(PATIENCE)
    assert not target.inlet.taken


def signed_by(issuer: Identity) -> Identity:
    """What whoever holds the key of a pinned certificate could make: another one, which ssl would trust."""
    ca = x509.load_der_x509_certificate(issuer.certificate)
    ca_key = serialization.load_pem_private_key(issuer.pem, None)
    assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "leaf")]))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(ca_key, hashes.SHA256())
    )
    pem = made.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Identity(made.public_bytes(serialization.Encoding.DER), pem)


def test_a_certificate_signed_by_a_pinned_one_is_not_the_pinned_one(bench: Bench) -> None:
    """ssl takes it for trusted, the handshake passes: the pin itself must refuse."""
    target = bench.target()
    sender, _ = bench.sender(target, identity=signed_by(bench.source))
    with pytest.raises(StreamError):
        sender.connect(PATIENCE)
    assert not target.inlet.taken
    leaf = signed_by(target.identity)
    pins = (bench.source.certificate,)
    impostor = Expected(context(leaf, pins, server=True), pins, {"gpu0": target.inlet})
    bench.server.forget(target.uid)
    bench.server.expect(target.uid, impostor)
    with pytest.raises(StreamError, match="not the one the operator named") as refused:
        bench.sender(target)[0].connect(PATIENCE)
    assert refused.value.reason is Reason.PEER_REFUSED


def test_an_unknown_migration_is_refused(bench: Bench) -> None:
    target = bench.target()
    sender, _ = bench.sender(target, uid=str(uuid4()))
    with pytest.raises(StreamError, match="device gpu0"):
        sender.connect(PATIENCE)
    assert not target.inlet.taken


def test_a_forgotten_migration_is_refused(bench: Bench) -> None:
    target = bench.target()
    bench.server.forget(target.uid)
    with pytest.raises(StreamError):
        bench.sender(target)[0].connect(PATIENCE)


def test_a_connection_in_its_handshake_does_not_escape_the_end_of_its_session(bench: Bench) -> None:
    target = bench.target()
    hello, route = bench.route(target)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = route.context.wrap_bio(incoming, outgoing)
    with socket.create_connection(("127.0.0.1", bench.server.port), PATIENCE) as sock:
        sock.sendall(pack_preamble(target.uid))
        for turn in itertools.count():
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                sock.sendall(outgoing.read())
                incoming.write(sock.recv(65536))
            if turn == 0:  # the server has answered, so it has looked the migration up
                bench.server.forget(target.uid)
        tls.write(pack_hello(hello))
        with contextlib.suppress(OSError):  # refused already
            sock.sendall(outgoing.read())
        assert_refused(sock)
    assert not target.inlet.taken


def test_what_is_expected_again_keeps_its_streams_within_reach(bench: Bench) -> None:
    saving, target = SavingDevice(os.urandom(MIB), b"rest"), bench.target()
    sender, changed = bench.connected(target, saving)
    until(changed, lambda: sender.progress.drained)
    pins = (bench.source.certificate,)
    again = Expected(context(target.identity, pins, server=True), pins, {"gpu0": target.inlet})
    bench.server.expect(target.uid, again)
    bench.server.forget(target.uid)
    assert target.end() is not None


def test_an_unknown_device_is_refused(bench: Bench) -> None:
    target = bench.target()
    with pytest.raises(StreamError, match="the target closed the data stream"):
        bench.sender(target, device="gpu7")[0].connect(PATIENCE)
    assert target.ended.empty()


def test_a_second_stream_for_a_device_is_refused_and_the_first_goes_on(bench: Bench) -> None:
    saving, target = SavingDevice(b"", b"state"), bench.target()
    first, changed = bench.connected(target, saving)
    with pytest.raises(StreamError):
        bench.sender(target)[0].connect(PATIENCE)
    finish(saving, first, changed)
    assert target.end() is None
    assert target.device.loaded == b"state"


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"GET / HTTP/1.1\r\nHost: node\r\n\r\n".ljust(64),
        bytes(1000),
        pack_preamble(str(uuid4())),
        pack_preamble("\0" * 36),
        b"VFM1" + b"\xff" * 36,
    ],
    ids=["nothing", "http", "zeros", "unknown migration", "no migration", "no ASCII"],
)
def test_garbage_on_the_port_is_harmless(bench: Bench, garbage: bytes) -> None:
    saving, target = SavingDevice(b"state"), bench.target()
    with socket.create_connection(("127.0.0.1", bench.server.port), PATIENCE) as sock:
        sock.sendall(garbage)
        with contextlib.suppress(OSError):  # refused already
            sock.shutdown(socket.SHUT_WR)
        assert_refused(sock)
    finish(saving, *bench.connected(target, saving))
    assert target.end() is None


def test_a_peer_that_trickles_is_cut_before_it_is_known(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vfio_agent.receiver.HANDSHAKE_SECONDS", 0.3)
    with socket.create_connection(("127.0.0.1", bench.server.port)) as sock:
        sock.settimeout(0.05)
        for byte in pack_preamble("u" * 36)[:-1]:  # every byte comes in time, the preamble as a whole does not
            try:
                sock.sendall(bytes([byte]))
                assert sock.recv(1) == b""
                return
            except TimeoutError:
                continue
            except OSError:
                return
    raise AssertionError("the connection was never cut")


def test_plaintext_after_a_good_preamble_is_harmless(bench: Bench) -> None:
    saving, target = SavingDevice(b"state"), bench.target()
    with socket.create_connection(("127.0.0.1", bench.server.port), PATIENCE) as sock:
        sock.sendall(pack_preamble(target.uid) + pack_hello(StreamHello(target.uid, "gpu0", 1)))
        assert_refused(sock)
    assert not target.inlet.taken
    finish(saving, *bench.connected(target, saving))
    assert target.end() is None


def assert_refused(sock: socket.socket) -> None:
    """The server ends the connection; a TLS alert may come first."""
    sock.settimeout(PATIENCE)
    try:
        while sock.recv(4096):
            pass
    except ConnectionResetError:
        pass


# --- what goes wrong on the way


class RawSource:
    """A source that speaks TLS and frames by hand."""

    def __init__(self, bench: Bench, target: Target):
        self.sock = socket.create_connection(("127.0.0.1", bench.server.port), PATIENCE)
        self.sock.sendall(pack_preamble(target.uid))
        tls = context(bench.source, (target.identity.certificate,), server=False)
        self.tls = tls.wrap_socket(self.sock)
        self.tls.sendall(pack_hello(StreamHello(target.uid, "gpu0", 1)))
        assert len(self.tls.recv(16)) == 16

    def __enter__(self) -> ssl.SSLSocket:
        return self.tls

    def __exit__(self, *_: object) -> None:
        self.tls.close()


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (HEADER.pack(FrameType.DATA, 10)[:5], "truncated: 5 of 8 bytes"),
        (HEADER.pack(FrameType.DATA, 10) + b"abc", "truncated: 3 of 10 bytes"),
        (HEADER.pack(FrameType.DATA, MAX_DATA + 1), "allowed are 1 to 1048576"),
        (HEADER.pack(99, 1), "frame type 99 is unknown"),
        (pack_hello(StreamHello("u", "gpu0", 1)), "HELLO is out of order"),
        (pack_count(FrameType.END, 5), "the source sent 5 bytes of state, 0 were received"),
        (pack_count(FrameType.INITIAL, 5), "INITIAL says offset 5, 0 bytes were received"),
        (pack_count(FrameType.ACK, 0), "ACK is out of order"),
    ],
)
def test_a_stream_that_is_cut_or_wrong_fails_the_inlet(bench: Bench, sent: bytes, message: str) -> None:
    target = bench.target()
    with RawSource(bench, target) as tls:
        tls.sendall(sent)
        tls.shutdown(socket.SHUT_WR)
    error = target.end()
    assert isinstance(error, FrameError)
    assert message in error.message
    assert (error.reason, error.device) == (Reason.FRAME_INVALID, "gpu0")
    assert target.ended.empty()


def test_a_stream_that_ends_between_frames_is_a_broken_one(bench: Bench) -> None:
    target = bench.target()
    with RawSource(bench, target) as tls:
        tls.shutdown(socket.SHUT_WR)
    error = target.end()
    assert error is not None
    assert "closed the data stream before its end" in error.message
    assert (error.reason, error.device) == (Reason.STREAM_BROKEN, "gpu0")


def test_a_read_error_of_the_device_names_device_and_errno(bench: Bench) -> None:
    saving, target = SavingDevice(os.urandom(MIB)), bench.target()
    saving.fails_at = 0
    sender, changed = bench.connected(target, saving)
    until(changed, lambda: sender.error is not None)
    assert isinstance(sender.error, DeviceError)
    assert (sender.error.device, sender.error.errno) == ("gpu0", errno.EIO)
    assert sender.error.message == (
        "device gpu0: reading its state failed after 0 bytes: [Errno 5] Input/output error; "
        "look at the kernel log of its node"
    )


def test_a_write_error_of_the_device_fails_both_ends(bench: Bench) -> None:
    saving, target = SavingDevice(os.urandom(3 * MIB)), bench.target(LoadingDevice(most=1000))
    target.device.fails_at = 5000
    sender, changed = bench.connected(target, saving)
    error = target.end()
    assert isinstance(error, DeviceError)
    assert (error.device, error.errno, error.reason) == ("gpu0", errno.EINVAL, Reason.STATE_REFUSED)
    assert error.message == (
        "device gpu0: it refused state at byte 5000: [Errno 22] Invalid argument; the state does not fit or came "
        "incomplete: compare driver and firmware versions of both devices"
    )
    until(changed, lambda: sender.error is not None)
    assert sender.error is not None
    assert sender.error.device == "gpu0"


def test_a_device_that_takes_nothing_is_an_error_and_no_endless_loop(bench: Bench) -> None:
    saving, target = SavingDevice(b"state"), bench.target(LoadingDevice(most=0))
    bench.connected(target, saving)
    error = target.end()
    assert error is not None
    assert error.message == "device gpu0: it took no bytes"


@pytest.mark.parametrize(
    ("code", "reason", "step"),
    [
        (errno.ENOMEM, Reason.STATE_REFUSED, "its node is out of memory for the state"),
        (errno.ENOSPC, Reason.STATE_REFUSED, "its node has no room for the state"),
        (errno.EFAULT, Reason.STATE_REFUSED, "its driver could not copy these bytes"),
        (errno.ENODEV, Reason.DEVICE_LOST, "the device is gone"),
    ],
)
def test_a_write_error_says_what_to_do_next(bench: Bench, code: int, reason: Reason, step: str) -> None:
    saving, target = SavingDevice(os.urandom(MIB)), bench.target(LoadingDevice(most=1000))
    target.device.fails_at, target.device.fails_with = 5000, code
    bench.connected(target, saving)
    error = target.end()
    assert isinstance(error, DeviceError)
    assert (error.device, error.errno, error.reason) == ("gpu0", code, reason)
    assert error.message.startswith(f"device gpu0: it refused state at byte 5000: [Errno {code}]")
    assert step in error.message


def test_a_device_that_is_gone_while_it_is_read(bench: Bench) -> None:
    saving, target = SavingDevice(os.urandom(MIB), chunk=lambda _room: 1000), bench.target()
    saving.fails_at, saving.fails_with = 5000, errno.ENODEV
    sender, changed = bench.connected(target, saving)
    until(changed, lambda: sender.error is not None)
    assert isinstance(sender.error, DeviceError)
    assert (sender.error.reason, sender.error.errno) == (Reason.DEVICE_LOST, errno.ENODEV)
    assert "after 5000 bytes" in sender.error.message


class NeverEnding(SavingDevice):
    """In STOP_COPY it says that there is nothing for now, which is for pre-copy only."""

    def readinto(self, buffer: memoryview) -> int:
        count = super().readinto(buffer)
        if not count:
            raise NoDataError
        return count


def test_enomsg_in_stop_copy_is_an_error_and_no_endless_loop(bench: Bench) -> None:
    saving, target = NeverEnding(b"state", b"rest"), bench.target()
    sender, changed = bench.connected(target, saving)
    saving.stop_copy()
    sender.finish()
    until(changed, lambda: sender.error is not None)
    assert isinstance(sender.error, DeviceError)
    assert (sender.error.errno, sender.error.device) == (errno.ENOMSG, "gpu0")
    assert "ENOMSG, no data for now, in STOP_COPY" in sender.error.message
    assert not sender.progress.finished


class BrokenInfo(SavingDevice):
    code = errno.EIO

    def precopy_info(self) -> PrecopyInfo:
        raise OSError(self.code, os.strerror(self.code))


def test_a_device_without_pre_copy_has_nothing_to_tell_before_its_end(bench: Bench) -> None:
    """Its driver knows no VFIO_MIG_GET_PRECOPY_INFO at all; it hands out its stream in STOP_COPY."""
    saving, target = BrokenInfo(b"", b"state"), bench.target()
    saving.code = errno.ENOTTY
    saving.stop_copy()
    finish(saving, *bench.connected(target, saving))
    assert target.end() is None
    assert target.device.loaded == b"state"


def test_a_device_that_cannot_tell_how_much_is_left_fails(bench: Bench) -> None:
    sender, changed = bench.connected(bench.target(), BrokenInfo(b"state"))
    until(changed, lambda: sender.error is not None)
    assert isinstance(sender.error, DeviceError)
    assert sender.error.errno == errno.EIO


# --- a peer that says nothing; the short patience is the case, nothing is measured against it


def test_a_target_that_accepts_and_says_nothing(bench: Bench) -> None:
    target = bench.target()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        sender, _ = bench.sender(target, port=port)
        with pytest.raises(StreamError) as refused:
            sender.connect(0.2)
        assert f"no data stream to 127.0.0.1:{port}" in refused.value.message
        assert "while awaiting its TLS handshake" in refused.value.message


def test_a_target_that_does_not_answer_hello(bench: Bench) -> None:
    target = bench.target()
    tls = context(target.identity, (bench.source.certificate,), server=True)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]

        def greet() -> ssl.SSLSocket:
            plain, _ = silent.accept()
            plain.recv(PREAMBLE.size)
            return tls.wrap_socket(plain, server_side=True)

        with ThreadPoolExecutor(1) as pool:
            greeted = pool.submit(greet)
            sender, _ = bench.sender(target, port=port, patience=0.2)
            with pytest.raises(StreamError) as refused:
                sender.connect(PATIENCE)
            greeted.result(PATIENCE).close()
    expected = f"while awaiting the acknowledgement of HELLO (0 bytes) by 127.0.0.1:{port}"
    assert expected in refused.value.message


@pytest.mark.parametrize(
    ("size", "awaited"), [(256 * MIB, "to take more of the stream"), (10, "the acknowledgement of END (10 bytes)")]
)
def test_a_stream_that_stalls_names_the_peer_and_what_was_awaited(bench: Bench, size: int, awaited: str) -> None:
    saving, target = Endless(size), bench.target(LoadingDevice(keep=False))
    target.device.go.clear()
    sender, changed = bench.connected(target, saving, patience=0.2)
    saving.stop_copy()
    sender.finish()
    until(changed, lambda: sender.error is not None)
    target.device.go.set()
    error = sender.error
    assert isinstance(error, StreamError)
    assert (error.reason, error.device) == (Reason.STREAM_BROKEN, "gpu0")
    assert f"data stream to 127.0.0.1:{bench.server.port} stalled after" in error.message
    assert awaited in error.message
    assert "was awaited for 0.2 s" in error.message


def test_interrupting_the_source_ends_both_threads(bench: Bench) -> None:
    saving, target = SavingDevice(os.urandom(MIB), b"rest"), bench.target()
    sender, changed = bench.connected(target, saving)
    until(changed, lambda: sender.progress.drained)
    sender.interrupt()
    sender.stop()
    assert saving.closed
    assert sender.error is None
    assert target.end() is not None
    assert_no_thread("send-gpu0")


class Hanging(SavingDevice):
    """Its read does not come back until `go` is set."""

    def __init__(self, state: bytes):
        super().__init__(state)
        self.go, self.asked = threading.Event(), threading.Event()

    def readinto(self, buffer: memoryview) -> int:
        self.asked.set()
        assert self.go.wait(PATIENCE)
        return super().readinto(buffer)


def test_ending_a_stream_waits_for_its_device_no_longer_than_told(bench: Bench) -> None:
    """All streams of a session share what is left of one deadline, which for the last may be nothing."""
    saving = Hanging(b"state")
    sender, _ = bench.connected(bench.target(), saving)
    assert saving.asked.wait(PATIENCE)
    sender.stop(0.0)
    assert not saving.go.is_set()
    assert saving.closed
    saving.go.set()


def test_a_data_stream_that_comes_too_late_is_closed(bench: Bench) -> None:
    """An arc outlived its deadline, and the session has turned back: nobody else would close the fd."""
    late, later = SavingDevice(b"state"), SavingDevice(b"state")
    sender, _ = bench.sender(bench.target())
    sender.connect(PATIENCE)
    sender.interrupt()
    sender.begin(late)
    sender.stop()
    sender.begin(later)
    assert late.closed
    assert later.closed


def test_a_stopped_source_that_waits_for_a_slow_target_ends(bench: Bench) -> None:
    saving, target = SavingDevice(os.urandom(16 * MIB)), bench.target()
    target.device.go.clear()
    sender, _ = bench.connected(target, saving)
    assert target.device.asked.wait(PATIENCE)
    sender.stop()
    assert sender.error is None
    assert_no_thread("send-gpu0")
    target.device.go.set()
    assert target.end() is not None


def test_forgetting_a_migration_ends_its_streams(bench: Bench) -> None:
    saving, target = SavingDevice(os.urandom(MIB), b"rest"), bench.target()
    sender, changed = bench.connected(target, saving)
    until(changed, lambda: sender.progress.drained)
    bench.server.forget(target.uid)
    assert target.end() is not None
    saving.stop_copy()
    sender.finish()
    until(changed, lambda: sender.error is not None)
    assert bytes(target.device.loaded) == saving._initial[: len(target.device.loaded)], "nothing but state is loaded"


def assert_no_thread(name: str) -> None:
    assert name not in [thread.name for thread in threading.enumerate()]


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


class Endless(SavingDevice):
    """256 MiB without having them."""

    def __init__(self, size: int):
        super().__init__(b"")
        self._left = size

    def readinto(self, buffer: memoryview) -> int:
        count = min(len(buffer), self._left)
        self._left -= count
        self.read_bytes += count
        return count


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
