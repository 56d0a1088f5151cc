"""Asks a pod to pause, save, load and resume by itself: HTTP on the pod's own address, four steps.

POST PATH/pause, /save, /load and /resume at http://ADDRESS:PORT; 200 or 204 means that it is so, and stays so until
the next step. What save answers, at most MAX_STATE bytes, is what load is given at the target; it says how long it is
(Content-Length, or chunks), so that a part of it is not taken for the whole. Every step may come again: it says what is
to be so. No redirect is followed. Blocking.
"""

import contextlib
import http.client
import socket
import threading
import time

from vfio_agent.pods import PodRef
from vfio_api.addresses import joined
from vfio_api.errors import Reason, WorkloadError
from vfio_api.types import Hook

MAX_STATE = 16 << 20
MAX_SHOWN = 200  # of what a hook says when it refuses
PAUSE, SAVE, LOAD, RESUME = "pause", "save", "load", "resume"
_DONE = (http.client.OK, http.client.NO_CONTENT)


def call(hook: Hook, pod: PodRef, step: str, body: bytes = b"", called_off: threading.Event | None = None) -> bytes:
    """Have the pod do a step; what it answers. called_off: once it is set the pod is not asked again.

    Raises WorkloadError after the last of its retries.
    """
    unwanted = called_off or threading.Event()
    for pause in (*hook.pauses, None):
        try:
            return _once(hook, pod, step, body)
        except WorkloadError as error:
            failure = error
        except (OSError, http.client.HTTPException, ValueError) as error:
            failure = _error(hook, pod, step, f"no answer of HTTP ({_shown(str(error) or type(error).__name__)})")
        if pause is None or unwanted.wait(pause):
            break
    raise failure


def _once(hook: Hook, pod: PodRef, step: str, body: bytes) -> bytes:
    seconds = hook.timeout_milliseconds / 1000
    deadline, late = time.monotonic() + seconds, threading.Event()
    with contextlib.closing(http.client.HTTPConnection(hook.address, hook.port, timeout=seconds)) as connection:
        connection.connect()
        # a timeout of a socket begins anew with every byte that comes: this one is of the whole
        left = max(0.0, deadline - time.monotonic())
        clock = threading.Timer(left, _cut, [connection.sock, late])
        clock.daemon = True
        clock.start()
        try:
            headers = {"Content-Type": "application/octet-stream", "User-Agent": "vfio-agent"}
            connection.request("POST", f"{hook.path}/{step}", body, headers)
            with connection.getresponse() as answer:
                if answer.status not in _DONE:
                    said = answer.read(MAX_SHOWN).decode(errors="replace")
                    raise _error(hook, pod, step, _shown(f"{answer.status} {answer.reason}: {said}"))
                return _content(hook, pod, step, answer)
        except (OSError, http.client.HTTPException, WorkloadError):
            if late.is_set():
                raise _error(hook, pod, step, "no whole answer by then") from None
            raise
        finally:
            clock.cancel()


def _cut(connection: socket.socket, late: threading.Event) -> None:
    late.set()
    with contextlib.suppress(OSError):  # it has ended by itself
        connection.shutdown(socket.SHUT_RDWR)


def _content(hook: Hook, pod: PodRef, step: str, answer: http.client.HTTPResponse) -> bytes:
    if step == SAVE and answer.length is None and not answer.chunked:
        raise _error(hook, pod, step, "an answer that does not say how long it is (Content-Length)")
    said = bytearray()
    while chunk := answer.read1(1 << 16):
        said += chunk
        if len(said) > MAX_STATE:
            raise _error(hook, pod, step, f"an answer of more than {MAX_STATE} bytes")
    if answer.length:
        raise _error(hook, pod, step, f"an answer that ends {answer.length} bytes too early")
    return bytes(said)


def _shown(text: str) -> str:
    """What a pod says, in one line that can be shown."""
    return "".join(each if each.isprintable() else " " for each in text[:MAX_SHOWN]).strip()


def _error(hook: Hook, pod: PodRef, step: str, found: str) -> WorkloadError:
    url = f"http://{joined(hook.address, hook.port)}{hook.path}/{step}"
    return WorkloadError(
        f"hook {step} of pod {pod}: expected 200 or 204 of {url} within {hook.timeout_milliseconds} ms, found {found}; "
        "look at the pod's log",
        reason=Reason.RESUME_FAILED if step == RESUME else Reason.PAUSE_FAILED,
    )
