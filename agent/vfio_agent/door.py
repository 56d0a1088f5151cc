"""Connections to the data port that have not introduced themselves yet: for how long, and how many at once.

Anybody who reaches the port can open connections. Each costs a thread until it is known or cut, so there is room for so
many; when it is full, the address with the most of them gives up its oldest. Who fills the port so pushes out his own
connections, and a source that is expected gets in.
"""

import contextlib
import socket
import ssl
import threading
from collections import Counter

from vfio_agent.datatls import cut

MAKE_ROOM_SECONDS = 1.0  # in which a connection that was cut ends


class Stranger:
    """A connection that is cut unless it is `met` in time, however it trickles."""

    def __init__(self, door: "Door", connection: socket.socket, address: str, seconds: float):
        self.address = address
        self._door, self._socket = door, connection
        self._timer = threading.Timer(seconds, self.cut)
        self._timer.daemon = True

    def __enter__(self) -> "Stranger":
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.met()
        del self._timer  # it knows whom to cut: together they would keep the connection's memory

    def follow(self, secure: ssl.SSLSocket) -> ssl.SSLSocket:
        """TLS has taken the connection over."""
        self._socket = secure
        return secure

    def cut(self) -> None:
        """End the connection; the calls of the thread that serves it then fail."""
        cut(self._socket)

    def met(self) -> None:
        """The peer is known, or gone: it counts no more. To be said any number of times."""
        self._timer.cancel()
        self._door.leave(self)


class Door:
    """Room for `room` strangers."""

    def __init__(self, room: int):
        self._places = threading.BoundedSemaphore(room)
        self._strangers: dict[Stranger, None] = {}  # the oldest first
        self._lock = threading.Lock()

    def enter(self, connection: socket.socket, address: str, seconds: float) -> Stranger | None:
        """The connection as one more stranger, who has `seconds` to introduce himself; None if there is no room."""
        if not self._places.acquire(blocking=False):
            self._make_room()
            if not self._places.acquire(timeout=MAKE_ROOM_SECONDS):
                return None
        stranger = Stranger(self, connection, address, seconds)
        with self._lock:
            self._strangers[stranger] = None
        return stranger

    def leave(self, stranger: Stranger) -> None:
        """A stranger is none any more."""
        with self._lock:
            there = self._strangers.pop(stranger, self) is None
        if there:
            self._places.release()

    def _make_room(self) -> None:
        with self._lock:  # nobody is cut who has just been met
            counts = Counter(stranger.address for stranger in self._strangers)
            crowd = max(counts, key=lambda address: counts[address], default="")
            for stranger in self._strangers:
                if stranger.address == crowd:
                    with contextlib.suppress(OSError):
                        stranger.cut()
                    return
