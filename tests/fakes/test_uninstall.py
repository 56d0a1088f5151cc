"""An uninstall lets go of what has finished, also while somebody changes it."""

import asyncio
from typing import Any

import pytest
from kubernetes.aio.client.exceptions import ApiException

from vfio_api.types import MigrationKey
from vfio_operator.uninstall import TRIES, _let_go

KEY = MigrationKey("uid-1", "team", "move")


class Api:
    """Answers in turn: a status that is refused with, or 200."""

    def __init__(self, *answers: int):
        self.answers = list(answers)

    async def finished(self, key: MigrationKey, *, switchover: bool) -> None:
        assert (key, switchover) == (KEY, False)
        if (answer := self.answers.pop(0)) != 200:
            raise ApiException(status=answer)


def let_go(*answers: int) -> list[int]:
    """What was not asked for."""
    api: Any = Api(*answers)
    asyncio.run(_let_go(api, KEY))
    return list(api.answers)


def test_one_that_is_changed_meanwhile_is_read_again() -> None:
    assert let_go(409, 409, 200) == []


def test_one_that_is_gone_needs_nothing() -> None:
    assert let_go(409, 404, 200) == [200]


@pytest.mark.parametrize("answers", [(500,), (409,) * TRIES], ids=["an error", "changed for ever"])
def test_what_does_not_let_go_is_said(answers: tuple[int, ...]) -> None:
    with pytest.raises(ApiException):
        let_go(*answers)
