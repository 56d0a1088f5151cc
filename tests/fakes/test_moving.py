"""The two pods of a move, against an API server with a memory: what others do to them meanwhile is not lost."""

import asyncio
import copy
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from http import HTTPStatus
from typing import Any

from aiohttp import web

from fakes.api_server import served
from vfio_api.errors import Reason
from vfio_api.names import HERITAGE_ANNOTATION, MIGRATION_LABEL
from vfio_api.types import MigrationKey, PauseMethod
from vfio_operator.actions import KeepPod, StartTargetPod, SwitchPods
from vfio_operator.conditions import pod_kept, pods_failure
from vfio_operator.counterpart import counterpart
from vfio_operator.kube_pods import KubePods
from vfio_operator.moving import Mover
from vfio_operator.observed import Observed, Pair, Pausing, Shorthand, Wish

Json = dict[str, Any]
KEY = MigrationKey("uid-1", "team", "move")
MINE = Shorthand("", "", "web", "mine")
OURS = Shorthand("", "node-b", "web")


def pod(name: str, uid: str, node: str, **labels: str) -> Json:
    ran = {"name": "c", "image": "i", "imageID": "i", "ready": True, "restartCount": 0, "state": {"running": {}}}
    return {
        "metadata": {"namespace": "team", "name": name, "uid": uid, "labels": labels, "annotations": {}},
        "spec": {"nodeName": node, "containers": [{"name": "c"}]},
        "status": {"phase": "Running", "containerStatuses": [ran]},
    }


class Pods:
    """Pods by name; a merge patch names the UID, a deletion has it as its precondition."""

    def __init__(self, *bodies: Json):
        self.there = {body["metadata"]["name"]: body for body in bodies}
        self.asked: list[str] = []

    async def answer(self, request: web.Request) -> web.Response:
        name = request.path.rpartition("/")[2]
        self.asked.append(f"{request.method} {name}")
        if request.method == "POST":
            body = await request.json()
            body["metadata"]["uid"] = "uid-of-" + body["metadata"]["name"]
            self.there[body["metadata"]["name"]] = body
            return web.json_response(body)
        if name not in self.there:
            return web.json_response({}, status=HTTPStatus.NOT_FOUND)
        uid = self.there[name]["metadata"]["uid"]
        asked = await request.json() if request.method != "GET" else {}
        wanted = asked.get("metadata", asked.get("preconditions", {})).get("uid", uid)
        if wanted != uid:
            return web.json_response({}, status=HTTPStatus.CONFLICT)
        if request.method == "DELETE":
            del self.there[name]
        elif request.method == "PATCH":
            merge(self.there[name], asked)
        return web.json_response(self.there.get(name, {}))


def merge(into: Json, patch: Json) -> None:
    """RFC 7396."""
    for name, value in patch.items():
        if isinstance(value, dict):
            merge(into.setdefault(name, {}), value)
        elif value is None:
            into.pop(name, None)
        else:
            into[name] = value


def play(pods: Pods, scene: Callable[[Mover], Awaitable[None]]) -> None:
    async def run() -> None:
        async with served(pods.answer) as api:
            await scene(Mover(KubePods(api), KEY))

    asyncio.run(run())


def seen(moved: Mover, short: Shorthand) -> Observed:
    wish = Wish((), shorthand=short, pausing=Pausing(PauseMethod.FREEZE))
    return Observed(KEY, wish, pairs=(Pair("gpu0", "node-a", "a", "node-b", "b"),), move=moved.move)


def world() -> Pods:
    """The source, and the counterpart that the operator has made of it."""
    source = pod("web", "uid-a", "node-a", app="web")
    made = counterpart(source, KEY, "node-b")
    made["metadata"] |= {"uid": "uid-b", "name": "web-1"}
    return Pods(source, made | {"status": source["status"]})


NOTED = {"workload": {"sourcePod": {"name": "web", "uid": "uid-a"}, "targetPod": {"name": "web-1", "uid": "uid-b"}}}


def test_the_counterpart_gets_what_the_source_has_then() -> None:
    """Labels change: who leads, say, which a Service goes by."""
    pods = world()

    async def scene(moved: Mover) -> None:
        await moved.recall(NOTED, OURS)
        pods.there["web"]["metadata"]["labels"] = {"app": "web", "role": "leader", MIGRATION_LABEL: KEY.uid}
        await moved.carry_out(seen(moved, OURS), KeepPod())
        left = pods.there["web-1"]["metadata"]["annotations"][HERITAGE_ANNOTATION]
        assert json.loads(left)["labels"] == {"app": "web", "role": "leader"}
        pods.there["web"]["metadata"]["labels"]["role"] = "follower"
        await moved.carry_out(seen(moved, OURS), SwitchPods())
        assert list(pods.there) == ["web-1"]
        assert pods.there["web-1"]["metadata"]["labels"] == {"app": "web", "role": "follower"}

    play(pods, scene)


def test_of_another_of_its_name_it_gets_nothing() -> None:
    pods = world()

    async def scene(moved: Mover) -> None:
        await moved.recall(NOTED, OURS)
        pods.there["web"] = pod("web", "uid-z", "node-a", app="another")
        await moved.carry_out(seen(moved, OURS), KeepPod())
        await moved.carry_out(seen(moved, OURS), SwitchPods())
        assert pods.there["web-1"]["metadata"]["labels"] == {"app": "web"}
        assert pods.there["web"]["metadata"]["uid"] == "uid-z", "it is not deleted"

    play(pods, scene)


def test_a_counterpart_is_kept_once_whatever_the_watch_has_shown_before() -> None:
    pods = world()

    async def scene(moved: Mover) -> None:
        await moved.recall(NOTED, OURS)
        moved.seen(copy.deepcopy(pods.there["web-1"]), deleted=False)
        assert not pod_kept(seen(moved, OURS))
        await moved.carry_out(seen(moved, OURS), KeepPod())
        assert pod_kept(seen(moved, OURS))

    play(pods, scene)


def test_a_source_that_has_lost_our_label_is_deleted_all_the_same() -> None:
    """The watch shows it as gone. Its agent ends it, and the kubelet would start it again."""
    pods = world()

    async def scene(moved: Mover) -> None:
        await moved.recall(NOTED, OURS)
        moved.seen(copy.deepcopy(pods.there["web"]), deleted=True)
        await moved.carry_out(seen(moved, OURS), SwitchPods())
        assert list(pods.there) == ["web-1"]

    play(pods, scene)


MINE_NOTED = {"workload": {**NOTED["workload"], "targetPod": {"name": "mine", "uid": "uid-m"}}}


def test_a_target_pod_that_went_while_nobody_led_ends_the_migration() -> None:
    for there in ((), (pod("mine", "uid-other", "node-b"),)):

        async def scene(moved: Mover) -> None:
            await moved.recall(MINE_NOTED, MINE)
            failure = pods_failure(seen(moved, MINE))
            assert failure is not None
            assert failure.reason is Reason.TARGET_POD_FAILED

        play(Pods(pod("web", "uid-a", "node-a"), *there), scene)


def test_a_target_pod_that_is_there_is_taken_up_again() -> None:
    async def scene(moved: Mover) -> None:
        await moved.recall(MINE_NOTED, MINE)
        assert moved.move.target is not None
        assert pods_failure(seen(moved, MINE)) is None

    play(Pods(pod("web", "uid-a", "node-a"), pod("mine", "uid-m", "node-b")), scene)


def test_a_target_pod_that_goes_before_it_is_marked_ends_the_migration() -> None:
    pods = Pods(pod("web", "uid-a", "node-a"), pod("mine", "uid-m", "node-b"))

    async def scene(moved: Mover) -> None:
        await moved.find(MINE, "")
        del pods.there["mine"]
        moved.move = replace(moved.move, target=None)  # as a leader finds it that was elected meanwhile
        await moved.carry_out(seen(moved, MINE), StartTargetPod())
        assert pods_failure(seen(moved, MINE)) is not None

    play(pods, scene)
