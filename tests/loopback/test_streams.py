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
from dataclasses import dataclass, field
from queue import Queue
from uuid import uuid4

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from vfio_agent.datatls import Identity, context, new_identity
from vfio_agent.devices.protocol import NoDataError, PrecopyInfo
from vfio_agent.frames import (
    HEADER,
    MAX_DATA,
    FrameType,
    StreamHello,
    pack_count,
    pack_hello,
    pack_preamble,
)
from vfio_agent.ratelimit import TokenBucket
from vfio_agent.receiver import DataServer, Expected, Inlet
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
        self.read_bytes = 0
        self.starved = threading.Event()

    def stop_copy(self) -> None:
        """The arc to STOP_COPY is made."""
        self._stopped = True

    def readinto(self, buffer: memoryview) -> int:
        if self.closed:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        if self.fails_at is not None and self._at >= self.fails_at:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
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
        return PrecopyInfo(len(self._initial) - self._at, 0)

    def close(self) -> None:
        self.closed = True


class LoadingDevice:
    """A device's data fd in RESUMING. It takes at most `most` bytes at once, and stands still until `go` is set."""

    def __init__(self, most: int = 1 << 30, *, keep: bool = True):
        self.loaded = bytearray()
        self.count = 0
        self._most, self._keep = most, keep
        self.fails_at: int | None = None
        self.go = threading.Event()
        self.go.set()
        self.asked = threading.Event()

    def readinto(self, buffer: memoryview) -> int:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    def write(self, data: memoryview) -> int:
        self.asked.set()
        assert self.go.wait(PATIENCE)
        if self.fails_at is not None and self.count >= self.fails_at:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
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
        inlet = Inlet("gpu0", device, lambda: ended.put(None), ended.put)
        pins = tuple(p.certificate for p in pinned or (self.source,))
        tls = context(identity, pins, server=True)
        self.server.expect(uid, Expected(tls, pins, {"gpu0": inlet}))
        return Target(uid, device, identity, inlet, ended)

    def sender(
        self,
        target: Target,
        *,
        identity: Identity | None = None,
        expects: Identity | None = None,
        uid: str | None = None,
        device: str = "gpu0",
        rate: int = 0,
    ) -> tuple[Sender, threading.Event]:
        """A sender to `target`, not connected; the event is set whenever it has something to tell."""
        changed = threading.Event()
        pins = ((expects or target.identity).certificate,)
        made = Sender(
            StreamHello(uid or target.uid, device, 1),
            f"127.0.0.1:{self.server.port}",
            context(identity or self.source, pins, server=False),
            pins,
            TokenBucket(rate),
            changed.set,
        )
        self._senders.append(made)
        return made, changed

    def connected(self, target: Target, saving: SavingDevice, rate: int = 0) -> tuple[Sender, threading.Event]:
        sender, changed = self.sender(target, rate=rate)
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
    assert sender.error.message == "device gpu0: reading its state failed: [Errno 5] Input/output error"


def test_a_write_error_of_the_device_fails_both_ends(bench: Bench) -> None:
    saving, target = SavingDevice(os.urandom(3 * MIB)), bench.target(LoadingDevice(most=1000))
    target.device.fails_at = 5000
    sender, changed = bench.connected(target, saving)
    error = target.end()
    assert isinstance(error, DeviceError)
    assert (error.device, error.errno, error.reason) == ("gpu0", errno.EINVAL, Reason.STATE_REFUSED)
    assert error.message == "device gpu0: it refused state at byte 5000: [Errno 22] Invalid argument"
    until(changed, lambda: sender.error is not None)
    assert sender.error is not None
    assert sender.error.device == "gpu0"


def test_a_device_that_takes_nothing_is_an_error_and_no_endless_loop(bench: Bench) -> None:
    saving, target = SavingDevice(b"state"), bench.target(LoadingDevice(most=0))
    bench.connected(target, saving)
    error = target.end()
    assert error is not None
    assert error.message == "device gpu0: it took no bytes"


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
