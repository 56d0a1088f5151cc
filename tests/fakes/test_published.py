"""What an agent publishes of a device: no state on the way through a migration, but all that lasts or is wrong."""

import asyncio
from itertools import count
from typing import Any

import pytest

from vfio_agent import inventory
from vfio_agent.inventory import Inventory

HELD = {"driver": "d", "model": "m", "holder": "pod", "incarnation": "1", "state": "RUNNING", "stopCopyBytes": 7}
HELD |= {"migrationFlags": [], "migratable": True, "message": ""}


class Api:
    """Remembers what was published."""

    def __init__(self) -> None:
        self.published: list[tuple[str, str, bool]] = []

    async def apply_device(self, _name: str, _spec: Any, status: Any, *, known: bool = False) -> None:
        self.published.append((status["state"], status["holder"], known))


class Metrics:
    """Counts nothing."""

    def inventory(self, _found: Any) -> None: ...


def publish(*looks: dict[str, Any], in_use: str = "team/move", seconds: float = 0.0) -> list[tuple[str, str, bool]]:
    """What is published of a device that looks like this, one after the other. seconds: between two looks."""
    api: Any = Api()
    nothing: Any = None
    metrics: Any = Metrics()
    moments = count(1000.0, seconds)
    made = Inventory("a", {}, nothing, nothing, api, metrics, lambda _address: in_use, clock=lambda: next(moments))

    async def all_of_them() -> None:
        for look in looks:
            await made._publish({"sim0": ("Simulated", HELD | look)})

    asyncio.run(all_of_them())
    return api.published  # type: ignore[no-any-return]


def test_states_on_the_way_are_not_published_and_the_end_is() -> None:
    found = publish({}, {"state": "PRE_COPY"}, {"state": "STOP_COPY"}, {"state": "STOP_COPY", "holder": ""})
    assert found == [("RUNNING", "pod", False), ("STOP_COPY", "", True)]


def test_without_a_migration_every_state_is() -> None:
    assert [state for state, *_ in publish({}, {"state": "STOP"}, {}, in_use="")] == ["RUNNING", "STOP", "RUNNING"]


def test_an_error_is_published_at_once() -> None:
    assert publish({}, {"state": "ERROR"})[-1] == ("ERROR", "pod", True)


def test_what_changes_all_the_time_is_published_after_a_while() -> None:
    looks: list[dict[str, Any]] = [{"state": "RUNNING", "stopCopyBytes": n} for n in range(12)]
    found = publish(*looks, seconds=inventory.PASSING_SECONDS / 5)
    assert len(found) == 2


def test_a_state_that_was_left_and_comes_again_is_new() -> None:
    looks: list[dict[str, Any]] = [{}, {"state": "PRE_COPY"}, {}, {"state": "PRE_COPY"}, {}]
    assert len(publish(*looks, seconds=inventory.PASSING_SECONDS + 0.5)) == 1


def test_what_lasts_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory, "PASSING_SECONDS", 0.0)
    assert publish({}, {"state": "STOP_COPY"})[-1] == ("STOP_COPY", "pod", True)
