"""Our data streams for the data plane's benchmark: senders in one process, the receiving server in another."""

import multiprocessing
import os
import socket
import struct
import tempfile
import threading
import time
from functools import partial
from multiprocessing.connection import Connection
from queue import Queue
from typing import Any, cast

from dataplane_run import PATIENCE_SECONDS, Peak, Run
from vfio_agent.datatls import context, new_identity
from vfio_agent.devices.protocol import PrecopyInfo
from vfio_agent.frames import StreamHello
from vfio_agent.linkrate import LinkMeter
from vfio_agent.metrics import AgentMetrics, Stage
from vfio_agent.ratelimit import TokenBucket
from vfio_agent.receiver import DataServer, Expected, Inlet
from vfio_agent.sender import Sender
from vfio_api.errors import VFIOMigrationError

BLOCK_BYTES = 64 << 10  # of random bytes, that the state consists of: in a core's cache, as the peer's page of zeros
UID = "6c1b2a52-9f0e-4c3c-8d53-0a5b8de3a4d1"


class PlainSocket(socket.socket):
    """A connected socket with what the streams ask of a TLS one; it shows a certificate that was put into its mouth."""

    shown = b""

    def settimeout(self, value: float | None) -> None:
        """The system keeps the time: socket polls before every call to do so, which ssl does only if it must wait."""
        super().settimeout(None)
        seconds = struct.pack("ll", *divmod(round((value or 0) * 1_000_000), 1_000_000))
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self.setsockopt(socket.SOL_SOCKET, option, seconds)

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """All that was asked for, as far as it comes in time: without records there is no reason to return earlier."""
        return super().recv_into(buffer, nbytes, flags | socket.MSG_WAITALL)

    def do_handshake(self) -> None:
        """Nothing is negotiated."""

    def getpeercert(self, binary_form: bool = False) -> bytes:
        """The certificate that the other side is known to have."""
        del binary_form
        return self.shown


class PlainContext:
    """Stands in for ssl.SSLContext: measures what the streams cost without TLS. It is for this benchmark only."""

    def __init__(self, shown: bytes):
        self._shown = shown

    def wrap_socket(self, plain: socket.socket, **_: bool) -> PlainSocket:
        """The same connection; `plain` is empty afterwards, as with ssl."""
        timeout = plain.gettimeout()
        made = PlainSocket(plain.family, plain.type, plain.proto, plain.detach())
        made.settimeout(timeout)
        made.shown = self._shown
        return made


class Source:
    """A device in STOP_COPY with `size` bytes of state. block: fd of what its state repeats; None: it costs nothing,
    as what the buffer holds already is its state."""

    def __init__(self, size: int, block: int | None):
        self._left, self._block = size, block
        self._filled = False

    def readinto(self, buffer: memoryview) -> int:
        """See DataStream."""
        count = min(len(buffer), self._left)
        if self._block is not None:
            for at in range(0, count, BLOCK_BYTES):
                os.preadv(self._block, [buffer[at : min(at + BLOCK_BYTES, count)]], 0)
        elif not self._filled:
            buffer[:] = os.urandom(len(buffer))
            self._filled = True
        self._left -= count
        return count

    def ready(self) -> bool:
        """It costs nothing."""
        return True

    def write(self, data: memoryview) -> int:
        """It is being saved."""
        raise AssertionError(f"{len(data)} bytes are loaded into a source")

    def precopy_info(self) -> PrecopyInfo:
        """It is not in pre-copy."""
        raise OSError(22, "not in pre-copy")

    def close(self) -> None:
        """Nothing is held."""


class Sink:
    """A device in RESUMING that takes all. fd: where to write it; None: it costs nothing."""

    def __init__(self, fd: int | None):
        self._fd = fd

    def readinto(self, buffer: memoryview) -> int:
        """It is being loaded."""
        raise AssertionError(f"{len(buffer)} bytes are read from a target")

    def ready(self) -> bool:
        """It takes whatever comes."""
        return True

    def write(self, data: memoryview) -> int:
        """See DataStream."""
        return len(data) if self._fd is None else os.write(self._fd, data)

    def precopy_info(self) -> PrecopyInfo:
        """It is not in pre-copy."""
        raise OSError(22, "not in pre-copy")

    def close(self) -> None:
        """Nothing is held."""


def _names(streams: int) -> list[str]:
    return [f"dev{n}" for n in range(streams)]


def _target(pipe: Connection, streams: int, tls: bool) -> None:
    """A process with one agent's receiving side. Says its certificate and port, hears the source's certificate."""
    identity = new_identity("target")
    server = DataServer("127.0.0.1", 0)
    pipe.send((identity.certificate, server.port))
    pins = (cast(bytes, pipe.recv()),)
    sink = os.open(os.devnull, os.O_WRONLY) if tls else None
    ended: Queue[VFIOMigrationError | None] = Queue()

    def complete(_config: bytes) -> None:
        ended.put(None)

    peak = Peak.start()
    inlets = {name: Inlet(name, Sink(sink), complete, ended.put) for name in _names(streams)}
    made = context(identity, pins, server=True) if tls else cast(Any, PlainContext(pins[0]))
    server.expect(UID, Expected(made, pins, inlets))
    pipe.send("ready")
    for _ in inlets:
        error = ended.get(timeout=PATIENCE_SECONDS)
        if error is not None:
            raise error
    pipe.send((*peak.end(), sum(inlet.loaded_bytes for inlet in inlets.values())))
    server.close()


def _source(pipe: Connection, streams: int, tls: bool, size: int, certificate: bytes, port: int) -> None:
    """A process with one agent's sending side. Says its certificate, and once it hears "go" what it measured."""
    identity = new_identity("source")
    pipe.send(identity.certificate)
    pins = (certificate,)
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        file.write(os.urandom(BLOCK_BYTES))
        file.flush()
        limit, link, metrics = TokenBucket(0), LinkMeter(), AgentMetrics("bench")
        made = context(identity, pins, server=False) if tls else cast(Any, PlainContext(certificate))
        news: Queue[None] = Queue()
        peak = Peak.start()  # what a sender holds from the start counts
        senders = [
            Sender(
                StreamHello(UID, name, 1),
                f"127.0.0.1:{port}",
                made,
                pins,
                limit,
                partial(news.put, None),
                link=link,
                carried=partial(metrics.sent, Stage.STOP_COPY),
                streams=streams,
            )
            for name in _names(streams)
        ]
        pipe.recv()
        began = time.monotonic()
        for sender in senders:
            sender.connect(PATIENCE_SECONDS)
            sender.finish()
        for sender in senders:
            sender.begin(Source(size // streams, file.fileno() if tls else None))
        while not all(sender.progress.finished for sender in senders):
            news.get(timeout=PATIENCE_SECONDS)
            for sender in senders:
                if sender.error is not None:
                    raise sender.error
        seconds = time.monotonic() - began
        pipe.send((*peak.end(), seconds))
        for sender in senders:
            sender.stop()


def ours(streams: int, tls: bool, size: int) -> Run:
    """Our streams, from one process to another."""
    spawn = multiprocessing.get_context("spawn")
    into, theirs = spawn.Pipe()
    target = spawn.Process(target=_target, args=(theirs, streams, tls), daemon=True)
    target.start()
    theirs.close()
    certificate, port = into.recv()
    out, others = spawn.Pipe()
    source = spawn.Process(target=_source, args=(others, streams, tls, size, certificate, port), daemon=True)
    source.start()
    others.close()
    into.send(out.recv())
    into.recv()
    out.send("go")
    sent_cpu, sent_growth, seconds = out.recv()
    loaded_cpu, loaded_growth, loaded = into.recv()
    source.join()
    target.join()
    if loaded != size:
        raise RuntimeError(f"{loaded} of {size} bytes of state were loaded")
    return Run(seconds, sent_cpu + loaded_cpu, size, (sent_growth, loaded_growth))


def suite() -> str:
    """The cipher suite that two of our contexts agree on."""
    ends = new_identity("target"), new_identity("source")
    pins = [(end.certificate,) for end in ends]
    server, client = context(ends[0], pins[1], server=True), context(ends[1], pins[0], server=False)
    left, right = socket.socketpair()
    with left, right:
        handshake = threading.Thread(target=server.wrap_socket, args=(left,), kwargs={"server_side": True})
        handshake.start()
        agreed = client.wrap_socket(right).cipher()
        handshake.join()
    assert agreed is not None
    return agreed[0]
