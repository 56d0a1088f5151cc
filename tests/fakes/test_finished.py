"""Finished migrations are listed once and watched from there on; whoever is not to be looked at is not remembered."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio.client.exceptions import ApiException

from fakes.api_server import served
from vfio_api.types import MigrationKey
from vfio_operator import observe
from vfio_operator.kube_lists import Lists
from vfio_operator.sweeper import Sweeper

PATH = "/apis/vfiomigration.io/v1alpha1/vfiomigrations"
Json = dict[str, Any]
ENDED = datetime(2026, 1, 1, tzinfo=UTC)


def body(name: str, version: int = 1, **spec: Any) -> Json:
    condition = {"type": "Finished", "status": "True", "lastTransitionTime": ENDED.isoformat()}
    return {
        "metadata": {"name": name, "namespace": "team", "uid": name, "generation": 1, "resourceVersion": str(version)},
        "spec": spec,
        "status": {"conditions": [condition], "observedGeneration": 1},
    }


class Server:
    """Two pages of one object each; then each watch gets the next of `watches`: events, or an HTTP status."""

    def __init__(self, watches: list[list[tuple[str, Json]] | int]):
        self.watches, self.asked = watches, []  # type: ignore[var-annotated]

    async def answer(self, request: web.Request) -> web.StreamResponse:
        query = request.query
        assert query["labelSelector"] == "vfiomigration.io/finished"
        if "watch" not in query:
            first = "continue" not in query
            metadata = {"resourceVersion": "7", **({"continue": "more"} if first else {})}
            return web.json_response({"metadata": metadata, "items": [body("one" if first else "two")]})
        self.asked.append(query["resourceVersion"])
        events = self.watches.pop(0)
        if isinstance(events, int):
            return web.json_response({"kind": "Status"}, status=events)
        text = "".join(json.dumps({"type": kind, "object": found}) + "\n" for kind, found in events)
        return web.Response(text=text, content_type="application/json")


def run(server: Server, test: Callable[[Lists], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with served(server.answer) as api:
            await test(Lists(api))

    asyncio.run(main())


def test_they_are_listed_once_and_watched_from_where_the_last_watch_ended() -> None:
    gone: Json = {"kind": "Status", "code": 410}
    server = Server(
        [
            [("MODIFIED", body("one", 9)), ("BOOKMARK", {"metadata": {"resourceVersion": "12"}})],
            [("DELETED", body("two", 13)), ("ERROR", gone), ("ADDED", body("never", 14))],
        ]
    )

    async def test(lists: Lists) -> None:
        found = [(kind, each["metadata"]["name"]) async for kind, each in lists.follow_finished()]
        assert found == [("ADDED", "one"), ("ADDED", "two"), ("MODIFIED", "one"), ("DELETED", "two")]

    run(server, test)
    assert server.asked == ["7", "12"]


def test_a_watch_that_is_refused_is_an_error_not_an_end() -> None:
    async def test(lists: Lists) -> None:
        with pytest.raises(ApiException) as raised:
            async for _ in lists.follow_finished():
                pass
        assert raised.value.status == 429

    run(Server([429]), test)


def test_when_one_is_to_be_looked_at() -> None:
    assert observe.due_of(body("kept")) is None
    assert observe.due_of(body("expires", ttlSecondsAfterFinished=60)) == ENDED + timedelta(seconds=60)
    outdated = body("outdated", ttlSecondsAfterFinished=60)
    outdated["metadata"]["generation"] = 2
    assert observe.due_of(outdated) == observe.AT_ONCE
    copied = body("copied")
    del copied["status"]
    assert observe.due_of(copied) == observe.AT_ONCE
    going = body("going", ttlSecondsAfterFinished=60)
    going["metadata"]["deletionTimestamp"] = ENDED.isoformat()
    assert observe.due_of(going) is None


class Objects:
    """The API as the sweeper uses it: what is asked for is noted. on_read: called with each name that is read."""

    def __init__(self, *there: str, on_read: Callable[[str], object] = lambda _name: None):
        self.there, self.asked, self._on_read = set(there), list[str](), on_read
        self.client = None

    async def migration(self, key: MigrationKey) -> Json:
        self.asked.append(key.name)
        self._on_read(key.name)
        if key.name not in self.there:
            raise ApiException(status=404)
        raise ApiException(status=503)


def swept(objects: Objects, *, times: int, deletes: str = "") -> None:
    """Two that are due; with each read of another, `deletes` is seen to be deleted."""
    metrics: Any = None
    api: Any = objects

    async def act() -> None:
        sweeper = Sweeper(api, metrics, list)
        for name in ("one", "two"):
            sweeper.seen(body(name, ttlSecondsAfterFinished=60), deleted=False)
        if deletes:
            objects._on_read = lambda _name: sweeper.seen(body(deletes), deleted=True)
        for _ in range(times):
            await sweeper.sweep(ENDED + timedelta(hours=1))

    asyncio.run(act())


def test_one_that_is_deleted_while_others_are_looked_at_is_not_asked_for() -> None:
    objects = Objects("one")
    swept(objects, times=1, deletes="two")
    assert objects.asked == ["one"]


def test_one_that_is_not_there_is_asked_for_once_and_one_that_cannot_be_read_again() -> None:
    objects = Objects("one")
    swept(objects, times=3)
    assert objects.asked == ["one", "two", "one", "one"]
