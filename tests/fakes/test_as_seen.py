"""A finalizer is put only on the object as it was seen, which is the proof that nobody has begun with it."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio import client

from fakes.api_server import listening
from vfio_api.names import FINALIZER
from vfio_api.types import MigrationKey
from vfio_operator import observe
from vfio_operator.actions import AddFinalizer, Authorize, Claim, Look, Plan
from vfio_operator.execute import Executor, Memory
from vfio_operator.kube import OperatorApi

Json = dict[str, Any]
KEY = MigrationKey("uid", "team", "move")


def body(version: int, **more: Any) -> Json:
    return {"metadata": {"name": "move", "namespace": "team", "uid": "uid", "resourceVersion": str(version)}, **more}


class Server:
    """One object, at version 2; as the API server it refuses a patch that names another version."""

    def __init__(self) -> None:
        self.stored = body(2)

    async def answer(self, request: web.Request) -> web.Response:
        change = (await request.json())["metadata"]
        if change.pop("resourceVersion", "2") != "2":
            return web.json_response({"kind": "Status", "reason": "Conflict"}, status=409)
        self.stored["metadata"] |= change
        return web.json_response(self.stored)


class Careless(OperatorApi):
    """Names no version."""

    async def add_finalizer(self, key: MigrationKey, _body: Mapping[str, Any]) -> None:
        await self._patch_metadata(key, {"finalizers": [FINALIZER]})


async def scene(seen: Json, kind: type[OperatorApi]) -> tuple[bool, bool, bool]:
    server = Server()
    nothing: Any = None
    observed: Any = type("Seen", (), {"key": KEY})
    async with listening(server.answer) as settings, client.ApiClient(settings) as made:
        memory, api = Memory(seen), kind(made, "vfio-migration", "operator-0")
        executor = Executor(api, nothing, nothing, {}, nothing, nothing, memory, nothing)
        added = await executor.add_finalizer(observed, AddFinalizer())
    return added, memory.has_finalizer, "finalizers" in server.stored["metadata"]


@pytest.mark.parametrize(
    ("seen", "kind", "expected"),
    [
        (body(2), OperatorApi, (True, True, True)),
        (body(1), OperatorApi, (False, False, False)),
        (body(1), Careless, (True, True, True)),  # what the case above it is there to find
    ],
    ids=["as it is", "old", "old, and no version is named"],
)
def test_it_is_put_on_the_object_as_it_was_seen(
    seen: Json, kind: type[OperatorApi], expected: tuple[bool, bool, bool]
) -> None:
    assert asyncio.run(scene(seen, kind)) == expected


@pytest.mark.parametrize(
    ("seen", "untouched"),
    [
        (body(1), True),
        (body(1, status={}), True),
        (body(1, status={"phase": "Pending"}), False),
        ({"metadata": body(1)["metadata"] | {"finalizers": ["another"]}}, True),
        ({"metadata": body(1)["metadata"] | {"finalizers": [FINALIZER]}}, False),
        ({"metadata": body(1)["metadata"] | {"deletionTimestamp": "now"}}, False),
    ],
)
def test_who_has_seen_nothing_of_an_operator_need_not_ask(seen: Json, untouched: bool) -> None:
    assert observe.is_untouched(seen) is untouched


def test_only_what_changes_nothing_or_proves_itself_is_done_as_seen() -> None:
    def holds(*actions: Any) -> bool:
        plan: Any = Plan("step", None, actions, "")  # type: ignore[arg-type]
        return bool(plan.holds_as_seen)

    assert holds(AddFinalizer())
    assert holds(Authorize(()), Look(frozenset()))
    assert not holds()
    assert not holds(AddFinalizer(), Claim(()))
