"""The target's end of the data streams: one port per agent, one thread per connection, TLS -> device.

A connection begins with a preamble that names the migration, so that the right TLS context (with that migration's
pins) can be taken; nothing else is believed before the handshake is done.
"""

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from errno import ENODEV
from typing import TypeVar

import structlog

from vfio_agent.advice import advice
from vfio_agent.datatls import check_pin, cut
from vfio_agent.devices.protocol import DataStream
from vfio_agent.door import Door, Stranger
from vfio_agent.frames import (
    HEADER,
    PREAMBLE,
    FrameReader,
    FrameType,
    buffer_bytes,
    pack_count,
    parse_hello,
    parse_preamble,
)
from vfio_api.addresses import listener
from vfio_api.errors import DeviceError, FrameError, Reason, StreamError, VFIOMigrationError

log = structlog.get_logger()
HANDSHAKE_SECONDS = 10.0
STALL_SECONDS = 60.0
ACCEPT_RETRY_SECONDS = 0.1
DEAD_PEER_MILLISECONDS = 30_000
STRANGERS = 512
_Buffer = TypeVar("_Buffer", bytearray, memoryview)


@dataclass(slots=True)
class Inlet:
    """Where one device's state goes. `complete` is called once, in the receiving thread, after END, with what CONFIG
    carried (b"" if there was none); `failed` with what went wrong. `loaded_bytes` counts what the device took.
    """

    device: str
    stream: DataStream
    complete: Callable[[bytes], None]
    failed: Callable[[VFIOMigrationError], None]
    loaded_bytes: int = 0
    taken: bool = False


@dataclass(slots=True)
class Expected:
    """A target session's streams: who may connect, and the devices that wait for their state."""

    context: ssl.SSLContext
    pinned: tuple[bytes, ...]
    inlets: dict[str, Inlet]
    connections: set[socket.socket] = field(default_factory=set)


class DataServer:
    """Listens on the agent's data port. Sessions register what they expect; everything else is refused."""

    def __init__(self, host: str, port: int):
        self._listener = listener(host, port, backlog=256)
        self._expected: dict[str, Expected] = {}
        self._lock = threading.Lock()
        self._door = Door(STRANGERS)  # who is known takes no place: there is one stream for each device
        self._closed = False
        self._thread = threading.Thread(target=self._accept, name="data-accept", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port listened on."""
        return int(self._listener.getsockname()[1])

    def expect(self, migration_uid: str, expected: Expected) -> None:
        """Let the streams of a migration in from now on; said again for the same peers, nothing changes."""
        with self._lock:
            known = self._expected.get(migration_uid)
            # its streams must stay known to `forget`
            if known is None or (known.pinned != expected.pinned and not known.connections):
                self._expected[migration_uid] = expected

    def forget(self, migration_uid: str) -> None:
        """Close the streams of a migration and let no more in."""
        with self._lock:
            expected = self._expected.pop(migration_uid, None)
            open_now = list(expected.connections) if expected else []
        for connection in open_now:
            cut(connection)

    def close(self) -> None:
        """Stop listening."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)

    def _accept(self) -> None:
        while not self._closed:
            try:
                connection, address = self._listener.accept()
            except OSError as error:
                if self._closed:
                    return
                log.warning("data connection not accepted", error=str(error))
                time.sleep(ACCEPT_RETRY_SECONDS)  # out of descriptors, most likely: they come back
                continue
            stranger = self._door.enter(connection, address[0], HANDSHAKE_SECONDS)
            if stranger is None:
                connection.close()
                log.warning("data connection refused: too many that have not introduced themselves", peer=address[0])
                continue
            serve = threading.Thread(target=self._serve, args=(connection, stranger), name="data-receive", daemon=True)
            try:
                serve.start()
            except RuntimeError as error:  # no more threads to be had
                stranger.met()
                connection.close()
                log.warning("data connection refused", peer=address[0], error=str(error))

    def _serve(self, connection: socket.socket, stranger: Stranger) -> None:
        peer = stranger.address
        inlet: Inlet | None = None
        expected: Expected | None = None
        try:
            with stranger, connection:
                connection.settimeout(HANDSHAKE_SECONDS)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_PEER_MILLISECONDS)
                uid = parse_preamble(bytes(_read_exactly(connection, bytearray(PREAMBLE.size))))
                expected = self._lookup(uid)
                secure = stranger.follow(
                    expected.context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
                )
                with contextlib.closing(secure):
                    secure.do_handshake()
                    check_pin(secure, expected.pinned)
                    self._register(uid, expected, secure)
                    reader = FrameReader()
                    inlet = self._greet(secure, reader, expected, uid)
                    stranger.met()
                    self._load(secure, reader, inlet, buffer_bytes(len(expected.inlets)))
        except VFIOMigrationError as error:
            self._report(inlet, error, peer)
        except OSError as error:
            self._report(inlet, StreamError(f"data stream from {peer} broke: {error}"), peer)
        finally:
            if expected is not None:
                with self._lock:
                    expected.connections = {c for c in expected.connections if c.fileno() >= 0}

    def _report(self, inlet: Inlet | None, error: VFIOMigrationError, peer: str) -> None:
        log.warning("data stream ended", peer=peer, device=inlet.device if inlet else "", error=error.message)
        if inlet is not None:
            error.device = error.device or inlet.device
            inlet.failed(error)

    def _lookup(self, uid: str) -> Expected:
        with self._lock:
            expected = self._expected.get(uid)
        if expected is None:
            raise StreamError(
                f"a data stream for migration {uid} came, but no session here expects it",
                reason=Reason.PEER_REFUSED,
            )
        return expected

    def _register(self, uid: str, expected: Expected, secure: ssl.SSLSocket) -> None:
        with self._lock:
            if self._expected.get(uid) is not expected:  # forgotten since the handshake began: nobody would cut it
                raise StreamError(
                    f"the session of migration {uid} ended while a data stream connected", reason=Reason.PEER_REFUSED
                )
            expected.connections.add(secure)

    def _greet(self, secure: ssl.SSLSocket, reader: FrameReader, expected: Expected, uid: str) -> Inlet:
        _, length = reader.header(_read_exactly(secure, bytearray(HEADER.size)))
        hello = parse_hello(_read_exactly(secure, bytearray(length)))
        with self._lock:
            inlet = expected.inlets.get(hello.device)
            if hello.migration_uid != uid or inlet is None or inlet.taken:
                raise StreamError(
                    f"HELLO names device {hello.device} of migration {hello.migration_uid}: not expected here, or "
                    "its stream is open already",
                    reason=Reason.PEER_REFUSED,
                )
            inlet.taken = True
        secure.sendall(pack_count(FrameType.ACK, 0))
        return inlet

    def _pass_on(self, secure: ssl.SSLSocket, buffer: memoryview, length: int, inlet: Inlet | None) -> None:
        """A payload of any length goes through the buffer to the device, or nowhere."""
        while length:
            part = _read_exactly(secure, buffer[: min(length, len(buffer))])
            if inlet is not None:
                _write_all(inlet, part)
            length -= len(part)

    def _load(self, secure: ssl.SSLSocket, reader: FrameReader, inlet: Inlet, room: int) -> None:
        buffer = memoryview(bytearray(room))
        head, config = bytearray(HEADER.size), b""
        secure.settimeout(STALL_SECONDS)  # once: each change is a call into the system, twice per frame
        while True:
            # between frames the source may have nothing to say for as long as its session lives (the session's end
            # closes this connection, a dead peer is found by keep-alive); within a frame it may not stall
            kind, length = reader.header(_read_exactly(secure, head, may_rest=True))
            if kind in (FrameType.DATA, FrameType.PROBE):
                self._pass_on(secure, buffer, length, inlet if kind is FrameType.DATA else None)
                continue
            payload = _read_exactly(secure, buffer[:length])
            if kind is FrameType.INITIAL:
                secure.sendall(pack_count(FrameType.ACK, reader.initial(payload)))
            elif kind is FrameType.PROBED:
                secure.sendall(pack_count(FrameType.ACK, reader.probed(payload)))
            elif kind is FrameType.CONFIG:
                config = bytes(payload)
            elif kind is FrameType.END:
                reader.end(payload)
                # acknowledge first: the source's part ends here, validating is the target's own
                secure.sendall(pack_count(FrameType.ACK, reader.data_bytes))
                inlet.complete(config)
                return


def _write_all(inlet: Inlet, data: memoryview) -> None:
    while data:
        try:
            count = inlet.stream.write(data)
        except OSError as error:
            raise DeviceError(
                f"device {inlet.device}: it refused state at byte {inlet.loaded_bytes}: {error}; {advice(error.errno)}",
                reason=Reason.DEVICE_LOST if error.errno == ENODEV else Reason.STATE_REFUSED,
                device=inlet.device,
                arc="RESUMING",
                errno=error.errno or 0,
            ) from error
        if count <= 0:
            raise DeviceError(
                f"device {inlet.device}: it took no bytes", reason=Reason.STATE_REFUSED, device=inlet.device
            )
        inlet.loaded_bytes += count
        data = data[count:]


def _read_exactly(sock: socket.socket, into: _Buffer, *, may_rest: bool = False) -> _Buffer:
    """Fill `into`. may_rest: the first byte may take longer than the socket's timeout."""
    view, filled = memoryview(into), 0
    while filled < len(view):
        try:
            count = sock.recv_into(view[filled:], len(view) - filled)
        except TimeoutError as error:
            if filled or not may_rest or error.errno is not None:  # with an errno it is the system's: a dead peer
                raise
            continue
        if count == 0:
            if not filled:
                raise StreamError("the source closed the data stream before its end; its agent's log says why")
            raise FrameError(f"the data stream was truncated: {filled} of {len(view)} bytes of a frame came")
        filled += count
    return into
