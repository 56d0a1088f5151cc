"""Sender and DataServer over real TLS on loopback, between devices with memory in place of kernel ones."""

import errno
import os
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Queue
from typing import Any
from uuid import uuid4

from vfio_agent.datatls import Identity, context, new_identity
from vfio_agent.devices.protocol import NoDataError, PrecopyInfo
from vfio_agent.frames import (
    StreamHello,
    pack_hello,
    pack_preamble,
)
from vfio_agent.outlet import Route
from vfio_agent.ratelimit import TokenBucket
from vfio_agent.receiver import DataServer, Expected, Inlet
from vfio_agent.sender import Sender
from vfio_api.errors import VFIOMigrationError

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

    def ready(self) -> bool:
        return True

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

    def ready(self) -> bool:
        return False

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


def until(changed: threading.Event, holds: Callable[[], bool]) -> None:
    """Wait for what the sender tells; it tells every change that is waited for here."""
    while not holds():
        assert changed.wait(PATIENCE), "the sender has nothing to tell"
        changed.clear()


def finish(saving: SavingDevice, sender: Sender, changed: threading.Event) -> None:
    saving.stop_copy()
    sender.stopped()
    sender.finish()
    until(changed, lambda: sender.progress.finished or sender.error is not None)
    assert sender.error is None


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
