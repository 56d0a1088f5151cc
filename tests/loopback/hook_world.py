"""A pod that pauses, saves, loads and resumes when it is asked: a real HTTP server with a memory."""

import contextlib
import itertools
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Self

from vfio_api.types import Hook

SECONDS = 30.0  # a test that waits longer has failed
Answer = Callable[[socket.socket, "Asked"], None]


@dataclass(frozen=True)
class Asked:
    """One request as it came."""

    number: int  # of its step, from 1 on
    line: str
    body: bytes

    @property
    def step(self) -> str:
        """The last part of its path."""
        return self.line.split()[1].rpartition("/")[2]


def answer(status: str = "204 No Content", body: bytes = b"", *headers: str) -> Answer:
    """What a server says that says what it has to."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers, "", ""]
    return raw("\r\n".join(lines).encode() + body)


def raw(content: bytes) -> Answer:
    """Any bytes, and then the end."""
    return lambda connection, _asked: connection.sendall(content)


@dataclass
class PodServer:
    """Answers `steps[step]`, 204 to a step that is not in it. asked: every request, in order."""

    steps: dict[str, Answer] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    heard: Callable[[str], None] = lambda _step: None  # called before a step is answered

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self.let_go = threading.Event()  # what hangs goes on
        self._threads: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def hook(self, *, milliseconds: int = 20_000, retries: int = 0, path: str = "/vfio") -> Hook:
        """This pod as an agent is told of it."""
        return Hook("127.0.0.1", self.port, path, milliseconds, retries)

    def hang(self, connection: socket.socket, _asked: Asked) -> None:
        """No answer before the test ends."""
        self.let_go.wait(SECONDS)

    def trickle(self, piece: bytes) -> Answer:
        """The head of an answer, and then a piece again and again: every single one comes in time."""

        def say(connection: socket.socket, _asked: Asked) -> None:
            connection.sendall(b"HTTP/1.1 200 OK\r\n")
            while not self.let_go.wait(0.02):
                connection.sendall(piece)

        return say

    @property
    def done(self) -> list[str]:
        """The steps that were asked for, in order."""
        return [asked.step for asked in self.asked]

    def body(self, step: str) -> bytes:
        """What came with the last request for a step."""
        return next(asked.body for asked in reversed(self.asked) if asked.step == step)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # it was closed
            while True:
                connection, _ = self._listener.accept()
                thread = threading.Thread(target=self._serve, args=[connection], daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):  # who asked has gone
            connection.settimeout(SECONDS)
            asked = self._read(connection)
            if asked is None:
                return
            self.asked.append(asked)
            self.heard(asked.step)
            self.steps.get(asked.step, answer())(connection, asked)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(1 << 16):  # so that no reset overtakes what was said
                pass

    def _read(self, connection: socket.socket) -> Asked | None:
        with connection.makefile("rb") as file:
            line = file.readline().decode().strip()
            if not line:
                return None  # who connected has said nothing
            headers = dict(h.decode().lower().strip().split(": ", 1) for h in iter(file.readline, b"\r\n"))
            body = file.read(int(headers.get("content-length", "0")))
        step = line.split()[1].rpartition("/")[2]
        return Asked(self.done.count(step) + 1, line, body)

    def close(self) -> None:
        """Let go of whoever waits."""
        self.let_go.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in (self._thread, *self._threads):
            thread.join(SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def in_turn(*answers: Answer) -> Answer:
    """One answer after the other; the last one again and again."""
    left: Iterator[Answer] = itertools.chain(answers, itertools.repeat(answers[-1]))
    return lambda connection, asked: next(left)(connection, asked)
