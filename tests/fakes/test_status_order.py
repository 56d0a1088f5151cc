"""What a status records, such as the pairs, is never written over by what was offered before it was known."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from pure.plan_world import KEY, ONE_TO_ONE, World
from vfio_operator.metrics import OperatorMetrics
from vfio_operator.plan import plan
from vfio_operator.publish import Publisher
from vfio_operator.status import Measured

Json = dict[str, Any]


class Api:
    """Keeps the status as the API server does; each write takes until `go` is set."""

    def __init__(self) -> None:
        self.stored: list[Json] = []
        self.asked, self.go = asyncio.Event(), asyncio.Event()

    async def apply_status(self, _key: Any, status: Json) -> Json:
        self.asked.set()
        await self.go.wait()
        self.stored.append(status)
        return {"status": status}

    async def event(self, *_said: Any, **_more: Any) -> None: ...


async def scene(*, in_the_queue: bool) -> list[bool]:
    """Pairs are written while an older status is offered; whether each status that was stored has the pairs.

    in_the_queue: the offered one waits behind the write of the pairs already; else it is offered, and is due later.
    """
    api = Api()
    nothing: Any = api
    publisher = Publisher(nothing, OperatorMetrics("test"), KEY, {}, "", lambda: 0)
    before = World(ONE_TO_ONE).observe()
    old, new = replace(before, pairs=()), replace(before, pairs=ONE_TO_ONE, has_finalizer=True)
    api.go.set()
    publisher.offer(old, plan(old), Measured())
    await api.asked.wait()  # the first one is written at once
    publisher.offer(replace(old, generation=3), plan(old), Measured())
    if in_the_queue:
        api.go.clear()
    recorded = asyncio.create_task(publisher.write(new, plan(new), Measured()))
    while in_the_queue and publisher._offered is not None:  # noqa: ASYNC110 - it comes to its turn by a clock
        await asyncio.sleep(0.01)
    api.go.set()
    await recorded
    assert publisher._task is not None
    await publisher._task
    return [bool(status.get("pairs")) for status in api.stored]


@pytest.mark.parametrize("in_the_queue", [False, True])
def test_pairs_that_are_written_stay(in_the_queue: bool) -> None:
    assert asyncio.run(scene(in_the_queue=in_the_queue)) == [False, True]


def test_what_is_offered_later_is_written() -> None:
    async def later() -> list[bool]:
        api = Api()
        nothing: Any = api
        api.go.set()
        publisher = Publisher(nothing, OperatorMetrics("test"), KEY, {}, "", lambda: 0)
        seen = replace(World(ONE_TO_ONE).observe(), pairs=ONE_TO_ONE, has_finalizer=True)
        await publisher.write(seen, plan(seen), Measured())
        publisher.offer(replace(seen, generation=2), plan(seen), Measured())
        assert publisher._task is not None
        await publisher._task
        return [bool(status.get("pairs")) for status in api.stored]

    assert asyncio.run(later()) == [True, True]
