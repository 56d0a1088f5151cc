"""A stream is served for as long as its token is good, and goes on while nobody can tell."""

import asyncio
from typing import Any

import pytest

from vfio_operator.callers import Callers
from vfio_operator.kube import Caller

KNOWN = Caller("system:serviceaccount:agents:vfio-agent", "node-a", "pod-a")


class Reviews:
    """The API server: what it answers, in turn, and which tokens it was asked of."""

    def __init__(self, *answers: Caller | Exception | None):
        self.answers, self.asked = list(answers), list[str]()

    async def review_token(self, token: str) -> Caller | None:
        self.asked.append(token)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def watched(*answers: Caller | Exception | None, tokens: tuple[str, ...] = ("t",) * 9) -> tuple[str, list[str]]:
    """Why the stream ends, and the tokens that were reviewed."""
    reviews: Any = Reviews(*answers)
    shown = iter(tokens)
    with pytest.raises(PermissionError) as caught:
        asyncio.run(Callers(reviews, "agents", 0.0).watch(KNOWN, lambda: next(shown)))
    return str(caught.value), reviews.asked


def test_it_ends_when_the_token_is_nobodys() -> None:
    said, asked = watched(KNOWN, KNOWN, None, None, None)
    assert said == "the token of pod pod-a on node node-a is now that of nobody"
    assert len(asked) == 5


@pytest.mark.parametrize("other", [Caller(KNOWN.username, "node-b", "pod-a"), Caller("eve", "node-a", "pod-a")])
def test_it_ends_when_the_token_is_somebody_elses(other: Caller) -> None:
    said, _ = watched(KNOWN, other)
    assert f"is now that of {other.username} on node {other.node}" in said


def test_it_goes_on_while_the_api_server_is_away() -> None:
    _, asked = watched(OSError("away"), TimeoutError(), KNOWN, None, None, None)
    assert len(asked) == 6


def test_the_newest_token_is_reviewed() -> None:
    other = Caller("eve", "node-a", "pod-a")
    assert watched(KNOWN, other, tokens=("first", "second"))[1] == ["first", "second"]


def test_nobody_is_believed_only_when_it_is_said_again_and_again() -> None:
    """An API server that has just started, or cannot reach its etcd, knows no pod."""
    _, asked = watched(None, KNOWN, None, None, KNOWN, None, OSError("away"), None, None)
    assert len(asked) == 9
