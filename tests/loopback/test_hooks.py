"""The hook of a pod, asked by real HTTP: what is taken for a yes, what is not, and how long is waited for it."""

import socket
import threading
from collections.abc import Iterator

import pytest

from loopback.hook_world import Answer, PodServer, answer, in_turn, raw
from vfio_agent import hooks
from vfio_agent.pods import PodRef
from vfio_api.errors import Reason, WorkloadError
from vfio_api.types import Hook

POD = PodRef("0d4f1f3c-9a0e-4a53-8c1f-5f6f0e1c2a3b", "team", "web-0")
SHORT_MILLISECONDS = 150
LATE = ("no whole answer by then", "no answer of HTTP (timed out)")
CUT = raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")


@pytest.fixture
def pod() -> Iterator[PodServer]:
    with PodServer() as server:
        yield server


def refused(hook: Hook, step: str, body: bytes = b"") -> str:
    """What is said of a step that failed: always by pod, step and URL, with what to look at."""
    with pytest.raises(WorkloadError) as raised:
        hooks.call(hook, POD, step, body)
    message = raised.value.message
    assert message.startswith(
        f"hook {step} of pod team/web-0: expected 200 or 204 of http://127.0.0.1:{hook.port}/vfio/"
    )
    assert f"/{step} within {hook.timeout_milliseconds} ms, found " in message
    assert message.endswith("; look at the pod's log")
    assert len(message) < 600
    assert message.isprintable()
    assert raised.value.reason is (Reason.RESUME_FAILED if step == hooks.RESUME else Reason.PAUSE_FAILED)
    return message.partition(" ms, found ")[2].removesuffix("; look at the pod's log")


@pytest.mark.parametrize("said", [answer(), answer("200 OK", b"it is so")])
@pytest.mark.parametrize("step", [hooks.PAUSE, hooks.LOAD, hooks.RESUME])
def test_a_step_is_done_when_the_pod_says_so(pod: PodServer, step: str, said: Answer) -> None:
    pod.steps[step] = said
    hooks.call(pod.hook(), POD, step, b"state")
    assert [(asked.line, asked.body) for asked in pod.asked] == [(f"POST /vfio/{step} HTTP/1.1", b"state")]


@pytest.mark.parametrize("size", [0, 1, 1 << 20, hooks.MAX_STATE])
def test_what_is_saved_comes_whole(pod: PodServer, size: int) -> None:
    state = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    pod.steps[hooks.SAVE] = answer("200 OK", state)
    assert hooks.call(pod.hook(), POD, hooks.SAVE) == state


def test_what_is_saved_may_come_in_chunks_or_not_at_all(pod: PodServer) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    pod.steps[hooks.SAVE] = in_turn(raw(head + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"), answer())
    assert hooks.call(pod.hook(), POD, hooks.SAVE) == b"abcde"
    assert hooks.call(pod.hook(), POD, hooks.SAVE) == b""


@pytest.mark.parametrize(
    ("said", "found"),
    [
        pytest.param(
            raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"), "an answer that ends 6 bytes too early", id="cut"
        ),
        pytest.param(
            raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc"), "IncompleteRead", id="chunk cut"
        ),
        pytest.param(
            raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"), "IncompleteRead", id="no last"
        ),
        pytest.param(
            raw(b"HTTP/1.0 200 OK\r\n\r\nabc"), "an answer that does not say how long it is", id="length unknown"
        ),
    ],
)
def test_a_part_of_what_is_saved_is_not_taken_for_the_whole(pod: PodServer, said: Answer, found: str) -> None:
    pod.steps[hooks.SAVE] = said
    assert found in refused(pod.hook(), hooks.SAVE)


@pytest.mark.parametrize("chunked", [False, True])
def test_more_than_a_pod_may_save_is_refused(pod: PodServer, chunked: bool) -> None:
    size = hooks.MAX_STATE + 1
    head = f"HTTP/1.1 200 OK\r\n{'Transfer-Encoding: chunked' if chunked else f'Content-Length: {size}'}\r\n\r\n"
    piece = b"%x\r\n" % size if chunked else b""
    pod.steps[hooks.SAVE] = raw(head.encode() + piece + bytes(size) + b"\r\n0\r\n\r\n")
    assert refused(pod.hook(), hooks.SAVE) == "an answer of more than 16777216 bytes"


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (answer("500 Internal Server Error", b"it\nis stuck"), "500 Internal Server Error: it is stuck"),
        (answer("404 Not Found", b"\x00\xff" * 4000), "404 Not Found: "),
        (answer("202 Accepted"), "202 Accepted:"),
        (answer("301 Moved Permanently", b"", "Location: /vfio/elsewhere"), "301 Moved Permanently:"),
        (answer("307 Temporary Redirect", b"", "Location: http://127.0.0.1:1/"), "307 Temporary Redirect:"),
        (raw(b"SSH-2.0-OpenSSH_9.6\r\n"), "no answer of HTTP (SSH-2.0-OpenSSH_9.6)"),
        (raw(b"\x16\x03\x01\x00\x05hello"), "no answer of HTTP ("),
        (raw(b""), "no answer of HTTP (Remote end closed connection without response)"),
        (raw(b"HTTP/1.1 200 " + b"x" * 70_000), "no answer of HTTP ("),
    ],
)
def test_any_other_answer_is_no(pod: PodServer, said: Answer, found: str) -> None:
    pod.steps[hooks.PAUSE] = said
    assert refused(pod.hook(), hooks.PAUSE).startswith(found)
    assert pod.done == [hooks.PAUSE], "a redirect is not followed"


@pytest.mark.parametrize("step", [hooks.PAUSE, hooks.SAVE, hooks.RESUME])
def test_a_pod_that_hangs_is_given_up_in_time(pod: PodServer, step: str) -> None:
    pod.steps[step] = pod.hang
    assert refused(pod.hook(milliseconds=SHORT_MILLISECONDS), step) in LATE


@pytest.mark.parametrize("piece", [b"X-Wait: 1\r\n", b"Content-Length: 1000000\r\n\r\n"], ids=["header", "body"])
def test_a_pod_that_says_a_little_at_a_time_is_given_up_as_well(pod: PodServer, piece: bytes) -> None:
    """Each piece comes long before the time is over; together they would never end."""
    pod.steps[hooks.SAVE] = pod.trickle(piece)
    found = refused(pod.hook(milliseconds=SHORT_MILLISECONDS), hooks.SAVE)
    assert found in ("no whole answer by then", "no answer of HTTP (got more than 100 headers)")


def test_a_pod_that_takes_nothing_of_what_is_loaded_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        hook = Hook("127.0.0.1", deaf.getsockname()[1], "/vfio", SHORT_MILLISECONDS, 0)
        assert refused(hook, hooks.LOAD, bytes(hooks.MAX_STATE)) in LATE


def test_nobody_there_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    found = refused(Hook("127.0.0.1", port, "/vfio", 20_000, 1), hooks.PAUSE)
    assert found == "no answer of HTTP ([Errno 111] Connection refused)"


@pytest.mark.parametrize("failing", [answer("503 Service Unavailable"), raw(b""), CUT], ids=["503", "nothing", "cut"])
def test_a_step_is_asked_for_again(pod: PodServer, failing: Answer) -> None:
    pod.steps[hooks.SAVE] = in_turn(failing, failing, answer("200 OK", b"state"))
    assert hooks.call(pod.hook(retries=2), POD, hooks.SAVE) == b"state"
    assert pod.done == [hooks.SAVE] * 3


def test_retries_have_an_end(pod: PodServer) -> None:
    pod.steps[hooks.PAUSE] = in_turn(answer("500 Oh"), answer("500 Ah"), answer("503 At last"))
    assert refused(pod.hook(retries=2), hooks.PAUSE) == "503 At last:"
    assert pod.done == [hooks.PAUSE] * 3


def test_what_was_called_off_is_not_asked_for_again(pod: PodServer) -> None:
    called_off = threading.Event()
    pod.steps[hooks.PAUSE] = answer("500 Not yet")
    pod.heard = lambda _step: called_off.set()
    with pytest.raises(WorkloadError, match="500 Not yet"):
        hooks.call(pod.hook(retries=10), POD, hooks.PAUSE, called_off=called_off)
    assert pod.done == [hooks.PAUSE]


@pytest.mark.parametrize("path", ["/a b", "/\u00e9", "/x\r\nHost: y"])
def test_a_path_that_cannot_be_asked_for_is_an_answer_too(pod: PodServer, path: str) -> None:
    with pytest.raises(WorkloadError, match="no answer of HTTP"):
        hooks.call(pod.hook(path=path), POD, hooks.PAUSE)
    assert pod.done == []
