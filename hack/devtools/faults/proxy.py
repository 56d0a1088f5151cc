"""A TCP proxy on loopback that can do to a connection what networks do: cut, refuse, freeze, delay, corrupt."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

CHUNK = 64 * 1024
CONNECT_SECONDS = 5.0
Address = tuple[str, int]


@dataclass
class Weather:
    """What happens to bytes now. up: from who connected; down: back to them. Changed under the proxy's condition."""

    up_frozen: bool = False
    down_frozen: bool = False
    refusing: bool = False
    delay_seconds: float = 0.0
    corrupt_next_up: bool = False


class Proxy:
    """Listens on a port of its own and passes connections on to whatever `target()` says at that time."""

    def __init__(self, target: Callable[[], Address]):
        self._target = target
        self._weather = Weather()
        self._changed = threading.Condition()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self.corrupted = 0
        self.passed_down = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port listened on."""
        return int(self._listener.getsockname()[1])

    @property
    def connections(self) -> int:
        """How many connections go through it now."""
        with self._changed:
            return len(self._pairs)

    def freeze(self, *, up: bool = True, down: bool = True) -> None:
        """Pass nothing on in these directions; the connections stay as they are."""
        with self._changed:
            self._weather.up_frozen, self._weather.down_frozen = up, down

    def refuse(self) -> None:
        """Cut every connection and take no new one."""
        with self._changed:
            self._weather.refusing = True
        self.cut()

    def delay(self, seconds: float) -> None:
        """Have every chunk arrive that much later."""
        with self._changed:
            self._weather.delay_seconds = seconds

    def corrupt(self) -> None:
        """Flip one bit of the next bytes that come up; `corrupted` counts it when it is done."""
        with self._changed:
            self._weather.corrupt_next_up = True

    def cut(self) -> None:
        """End every connection."""
        with self._changed:
            pairs = list(self._pairs)
        for pair in pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        with self._changed:
            self._changed.notify_all()

    def clear(self) -> None:
        """Pass everything on again."""
        with self._changed:
            self._weather = Weather()
            self._changed.notify_all()

    def close(self) -> None:
        """Stop for good."""
        self.clear()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        with self._changed:
            refusing = self._weather.refusing
        try:
            if refusing:
                raise ConnectionRefusedError
            server = socket.create_connection(self._target(), timeout=CONNECT_SECONDS)
        except OSError:
            client.close()
            return
        server.settimeout(None)
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pair = client, server
        with self._changed:
            self._pairs.add(pair)
        down = threading.Thread(target=self._pump, args=(server, client, False), daemon=True)
        down.start()
        self._pump(client, server, True)
        down.join()
        with self._changed:
            self._pairs.discard(pair)
        for end in pair:
            end.close()

    def _pump(self, source: socket.socket, sink: socket.socket, up: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK):
                sink.sendall(self._through(data, up))
                if not up:
                    self.passed_down += len(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _through(self, data: bytes, up: bool) -> bytes:
        """What becomes of bytes on their way; waits for as long as they are held up."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._weather.up_frozen if up else self._weather.down_frozen))
            delay = self._weather.delay_seconds
            if up and self._weather.corrupt_next_up:
                self._weather.corrupt_next_up = False
                self.corrupted += 1
                middle = len(data) // 2
                data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        if delay:
            time.sleep(delay)
        return data
