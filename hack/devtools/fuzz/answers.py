"""What a pod's hook answers: an agent takes it for what it is, in the time that it has, whatever it is."""

import random
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from devtools.fuzz.base import Feed, insist
from devtools.fuzz.mutate import changed_bytes
from vfio_agent import hooks
from vfio_agent.pods import PodRef
from vfio_api.errors import WorkloadError
from vfio_api.types import Hook

POD = PodRef("a3949ec7-2bdc-4081-b0de-abc3065637b2", "team", "web")
BODY = b"what was saved"
LENGTH = b"Content-Length: 14\r\n"
LAST_CHUNK = b"0\r\n\r\n"  # how much of it comes says nothing about what was before
ANSWERS = (
    b"HTTP/1.1 200 OK\r\n" + LENGTH + b"\r\n" + BODY,
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\nwhat was\r\n6\r\n saved\r\n" + LAST_CHUNK,
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 200 OK\r\nConnection: keep-alive\r\n" + LENGTH + b"\r\n" + BODY,
)
REFUSALS = (
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 500 Oh\r\nContent-Length: 5\r\n\r\nstuck",
    b"HTTP/1.1 200 OK\r\n\r\n" + BODY,
)
STEPS = (hooks.PAUSE, hooks.SAVE, hooks.SAVE, hooks.LOAD, hooks.RESUME)
MILLISECONDS = 5_000  # nothing hangs here


class Pod:
    """Answers every request with `says`, and hangs up."""

    def __init__(self) -> None:
        self.says = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with suppress(OSError):  # it was closed
            while True:
                connection, _ = self._listener.accept()
                with connection, suppress(OSError):
                    self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        heard = b""
        while b"\r\n\r\n" not in heard:
            heard += connection.recv(65536)
        connection.sendall(self.says)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass

    def close(self) -> None:
        """It ends."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)


def ask(pod: Pod, step: str, says: bytes) -> bytes | None:
    """What the agent makes of it; None if it takes it for no."""
    pod.says = says
    hook = Hook("127.0.0.1", pod.port, "/vfio", MILLISECONDS, 0)
    try:
        found = hooks.call(hook, POD, step)
    except WorkloadError as error:
        insist(error.message.isprintable() and len(error.message) < 1000, f"it says {error.message!r}")
        insist("team/web" in error.message and str(pod.port) in error.message, f"of whom is not said: {error.message}")
        return None
    insist(len(found) <= hooks.MAX_STATE, f"{len(found)} bytes were taken")
    return found


@asynccontextmanager
async def answers(_scratch: Path) -> AsyncIterator[Feed]:
    """Answers of HTTP, whole, changed, cut and none."""
    pod = Pod()

    async def feed(rng: random.Random) -> int:
        step, kind = rng.choice(STEPS), rng.randrange(5)
        whole = rng.choice((*ANSWERS, *REFUSALS))
        if kind == 0:
            found = ask(pod, step, whole)
            good = whole in ANSWERS or whole == REFUSALS[0] or (step != hooks.SAVE and whole == REFUSALS[3])
            insist((found is not None) == good, f"{whole!r} is taken for {found!r}")
            insist(whole not in ANSWERS or found == BODY, f"{whole!r} is taken for {found!r}")
        elif kind == 1:
            cut = rng.choice(ANSWERS)
            found = ask(pod, hooks.SAVE, cut[: rng.randrange(len(cut) - len(LAST_CHUNK))])
            insist(found is None, f"a part was taken for the whole: {found!r}")
        else:
            for _ in range(kind - 1):
                whole = changed_bytes(rng, whole)
            ask(pod, step, whole)
        insist(threading.active_count() < 16, "threads are left behind")
        return 1

    try:
        yield feed
    finally:
        pod.close()
