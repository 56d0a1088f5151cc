"""The data port against who knows the protocol, and against who only wants to be in the way."""

import contextlib
import os
import resource
import socket
import ssl
import threading
from collections.abc import Iterator

import pytest

from loopback.stream_bench import PATIENCE, Bench, RawSource, SavingDevice, Target, finish
from loopback.test_streams_peers import assert_refused
from vfio_agent.datatls import Identity, context, new_identity
from vfio_agent.frames import StreamHello, pack_hello, pack_preamble
from vfio_agent.receiver import Expected
from vfio_api.errors import StreamError

HERE = "127.0.0.1"
ELSEWHERE = "127.0.0.2"


def assert_loads(bench: Bench, target: Target, state: bytes = b"state") -> None:
    """A source that is expected gets in, and its state is loaded."""
    saving = SavingDevice(b"", state)
    finish(saving, *bench.connected(target, saving))
    assert target.end() is None
    assert target.device.loaded == state


def assert_untouched(target: Target) -> None:
    assert not target.inlet.taken
    assert target.ended.empty()
    assert target.device.count == 0


# --- certificates


def test_the_certificate_of_another_migration_is_refused(bench: Bench) -> None:
    """It is pinned at this very port, only not for this migration."""
    other_source = new_identity("other")
    target, other = bench.target(), bench.target(None, other_source)
    with pytest.raises(StreamError):
        bench.sender(target, identity=other_source)[0].connect(PATIENCE)
    assert_untouched(target)
    # nor with the preamble of one migration, and the HELLO of the other
    with raw_tls(bench, other, other_source) as tls:
        tls.sendall(pack_hello(StreamHello(target.uid, "gpu0", 1)))
        assert_refused(tls)
    assert_untouched(target)
    assert_untouched(other)
    assert_loads(bench, target)


def test_the_certificate_of_a_session_that_ended_is_refused(bench: Bench) -> None:
    """The same migration was prepared once more, with fresh certificates."""
    first, second = new_identity("first"), new_identity("second")
    target = bench.target(None, first)
    pins = (second.certificate,)
    again = context(target.identity, pins, server=True)
    bench.server.forget(target.uid)
    bench.server.expect(target.uid, Expected(again, pins, {"gpu0": target.inlet}))
    with pytest.raises(StreamError):
        bench.sender(target, identity=first)[0].connect(PATIENCE)
    assert_untouched(target)


def test_no_certificate_is_refused(bench: Bench) -> None:
    target = bench.target()
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.check_hostname, bare.verify_mode = False, ssl.CERT_NONE
    with preamble_sent(bench, target) as sock, pytest.raises((ConnectionError, ssl.SSLError)):
        listen_in_tls(bare, sock)
    assert_untouched(target)
    assert_loads(bench, target)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def test_only_tls_1_3_is_spoken(bench: Bench, version: ssl.TLSVersion) -> None:
    target = bench.target()
    tls = context(bench.source, (target.identity.certificate,), server=False)
    tls.minimum_version = tls.maximum_version = version
    with preamble_sent(bench, target) as sock:
        if version is ssl.TLSVersion.TLSv1_3:  # all else is right
            with tls.wrap_socket(sock) as secure:
                assert secure.version() == "TLSv1.3"
                secure.sendall(pack_hello(StreamHello(target.uid, "gpu0", 1)))
                assert len(secure.recv(16)) == 16
            return
        with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
            tls.wrap_socket(sock)
    assert_untouched(target)


# --- what was heard once, said again


class Wiretap:
    """Passes one connection on to the port, and remembers what the source sent."""

    def __init__(self, port: int):
        self._listener = socket.create_server((HERE, 0))
        self._port, self.heard = port, bytearray()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def _run(self) -> None:
        with self._listener, self._listener.accept()[0] as source, socket.create_connection((HERE, self._port)) as to:
            back = threading.Thread(target=self._copy, args=(to, source, None), daemon=True)
            back.start()
            self._copy(source, to, self.heard)
            back.join(PATIENCE)

    @staticmethod
    def _copy(one: socket.socket, other: socket.socket, heard: bytearray | None) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                if heard is not None:
                    heard += data
                other.sendall(data)
        with contextlib.suppress(OSError):
            other.shutdown(socket.SHUT_WR)

    def end(self) -> bytes:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        return bytes(self.heard)


def recorded(bench: Bench, target: Target) -> bytes:
    """What a source sent for a whole state, as it went over the wire."""
    tap, saving = Wiretap(bench.server.port), SavingDevice(b"", b"state of before")
    sender, changed = bench.sender(target, port=tap.port)
    sender.connect(PATIENCE)
    sender.begin(saving)
    finish(saving, sender, changed)
    assert target.end() is None
    sender.stop()
    return tap.end()


def replay(bench: Bench, said: bytes) -> None:
    with socket.create_connection((HERE, bench.server.port), PATIENCE) as sock:
        with contextlib.suppress(OSError):  # refused while it still talks
            sock.sendall(said)
            sock.shutdown(socket.SHUT_WR)
        assert_refused(sock)


def test_a_replayed_stream_loads_nothing(bench: Bench) -> None:
    target = bench.target()
    said = recorded(bench, target)
    assert len(said) > len(b"state of before")
    replay(bench, said)  # while the session lives
    assert bytes(target.device.loaded) == b"state of before"
    assert target.ended.empty()
    # a device that waits for its state again (it was lost after Commit), with the same certificates
    target.inlet.taken = False
    replay(bench, said)
    assert not target.inlet.taken
    assert bytes(target.device.loaded) == b"state of before"
    bench.server.forget(target.uid)
    replay(bench, said)  # when it has ended
    assert bytes(target.device.loaded) == b"state of before"
    assert target.ended.empty()


# --- in the way


@contextlib.contextmanager
def preamble_sent(bench: Bench, target: Target) -> Iterator[socket.socket]:
    with socket.create_connection((HERE, bench.server.port), PATIENCE) as sock:
        sock.sendall(pack_preamble(target.uid))
        yield sock


@contextlib.contextmanager
def raw_tls(bench: Bench, target: Target, identity: Identity) -> Iterator[ssl.SSLSocket]:
    """A connection that is let in, and has said nothing yet."""
    tls = context(identity, (target.identity.certificate,), server=False)
    with preamble_sent(bench, target) as sock, tls.wrap_socket(sock) as secure:
        yield secure


def listen_in_tls(tls: ssl.SSLContext, sock: socket.socket) -> None:
    """In TLS 1.3 a client hears only after its own handshake that it was refused."""
    with tls.wrap_socket(sock) as secure:
        secure.recv(1)


@contextlib.contextmanager
def crowd(bench: Bench, count: int, address: str) -> Iterator[list[socket.socket]]:
    """So many connections from `address` that say nothing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))  # both ends are in this process
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        port = bench.server.port
        yield [
            stack.enter_context(socket.create_connection((HERE, port), PATIENCE, source_address=(address, 0)))
            for _ in range(count)
        ]


@pytest.mark.parametrize("address", [ELSEWHERE, HERE], ids=["from elsewhere", "from the source's own address"])
def test_600_connections_that_say_nothing_keep_no_source_out(bench: Bench, address: str) -> None:
    target = bench.target()
    with crowd(bench, 600, address) as silent:
        assert_loads(bench, target)
        assert_refused(silent[0])  # it was there for longest


def test_who_fills_the_port_again_and_again_pushes_out_his_own(bench: Bench) -> None:
    """Sources connect while one address opens connections without an end."""
    enough, tries = threading.Event(), 0

    def push() -> None:
        nonlocal tries
        there: list[socket.socket] = []
        while not enough.is_set():
            with contextlib.suppress(OSError):
                there.append(socket.create_connection((HERE, bench.server.port), 1, source_address=(ELSEWHERE, 0)))
                tries += 1
            if len(there) > 600:
                there.pop(0).close()
        for each in there:
            each.close()

    with crowd(bench, 520, ELSEWHERE):
        pusher = threading.Thread(target=push)
        pusher.start()
        try:
            for number in range(5):
                assert_loads(bench, bench.target(), b"state %d" % number)
        finally:
            enough.set()
            pusher.join(PATIENCE)
    assert tries


def test_a_known_stream_takes_no_strangers_place(bench: Bench) -> None:
    """Who was let in is not cut, however many come after."""
    target, other = bench.target(), bench.target()
    with RawSource(bench, target), crowd(bench, 600, HERE):
        assert_loads(bench, other)
        assert target.ended.empty(), "the first stream was cut"
        assert target.inlet.taken


@pytest.mark.parametrize("said", ["the preamble", "TLS"], ids=["in the handshake", "before HELLO"])
def test_a_peer_that_stops_before_it_is_known_is_cut(bench: Bench, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vfio_agent.receiver.HANDSHAKE_SECONDS", 0.3)
    target = bench.target()
    if said == "TLS":
        with raw_tls(bench, target, bench.source) as tls:
            tls.sendall(pack_hello(StreamHello(target.uid, "gpu0", 1))[:7])
            assert_refused(tls)
    else:
        with preamble_sent(bench, target) as sock:
            sock.sendall(b"\x16\x03\x01\x02\x00" + os.urandom(7))  # a record that never becomes whole
            assert_refused(sock)
    assert_untouched(target)
