"""A decision outlives its migration for as long as an agent may have to ask for it, and no longer."""

import asyncio
from http import HTTPStatus
from typing import Any

import pytest
from aiohttp import web

from fakes.api_server import served
from vfio_api.names import FINALIZER
from vfio_api.types import AgentHello, Goal, MigrationKey, Role, SessionReport
from vfio_operator.channel import Agents
from vfio_operator.history import History
from vfio_operator.kept import Kept
from vfio_operator.metrics import OperatorMetrics

KEY = MigrationKey("uid-1", "team", "move")
Json = dict[str, Any]
FINISHED = {"conditions": [{"type": "Finished", "status": "True"}]}


class Server:
    """One VFIOSwitchover, its VFIOMigration if there is any, and Nodes; it goes as the API server would let it."""

    def __init__(self, migration: Json | None = None, nodes: tuple[str, ...] = ("node-a", "node-b")):
        self.migration, self.nodes = migration, nodes
        self.finalizers: list[str] = [FINALIZER]
        self.listed: list[str] = []

    def switchover(self) -> Json:
        metadata = {"name": KEY.uid, "namespace": KEY.namespace, "finalizers": self.finalizers}
        spec = {"migrationName": KEY.name, "sourceNodes": ["node-a"], "targetNodes": ["node-b"]}
        return {"metadata": metadata, "spec": spec}

    async def answer(self, request: web.Request) -> web.Response:
        kind, _, name = request.path.rpartition("/")
        if name == "broken":
            return web.json_response({}, status=HTTPStatus.INTERNAL_SERVER_ERROR)
        if name == "vfioswitchovers":
            self.listed.append(request.query["labelSelector"])
            return web.json_response({"metadata": {}, "items": [self.switchover()] if self.finalizers else []})
        if name == KEY.uid and request.method == "PATCH":
            metadata = (await request.json())["metadata"]
            assert metadata == {"finalizers": None, "labels": {"vfiomigration.io/finished": "true"}}
            self.finalizers = []
        found: Json | None = None
        if name == KEY.uid:
            found = self.switchover()
        elif name == KEY.name:
            found = self.migration
        elif kind.endswith("nodes") and name in self.nodes:
            found = {"metadata": {"name": name}}
        return web.json_response(found or {}, status=HTTPStatus.OK if found else HTTPStatus.NOT_FOUND)


def session(role: Role, reached: Goal = Goal.LOADED) -> SessionReport:
    return SessionReport(KEY.uid, role, 1, 1, reached=reached)


def let_go(
    server: Server, agents: dict[str, tuple[SessionReport, ...]], *, active: bool = False, told: bool = True
) -> bool:
    """Whether the switchover is let go. agents: the sessions of those that are connected. told: by whom it ended."""

    async def scene() -> bool:
        known = Agents(lambda _uid: None, OperatorMetrics("test"), History())
        for node, sessions in agents.items():
            known.add(node, "", AgentHello(1, "0", "boot", node, "127.0.0.1:1", 0, sessions))
        async with served(server.answer) as api:
            kept = Kept(api, known, lambda _uid: active)
            kept.keep(MigrationKey("broken", "team", "broken"))  # it keeps nobody else from being looked at
            if told:
                kept.keep(KEY)
            await kept.look()
            await kept.look()
        return not server.finalizers

    return asyncio.run(scene())


def body(uid: str = KEY.uid, **status: Any) -> Json:
    return {"metadata": {"uid": uid, "name": KEY.name, "namespace": KEY.namespace}, "status": status}


BOTH: dict[str, tuple[SessionReport, ...]] = {"node-a": (), "node-b": ()}


@pytest.mark.parametrize("told", [True, False], ids=["told", "of an earlier leader"])
@pytest.mark.parametrize("migration", [None, body(**FINISHED), body("another")], ids=["gone", "finished", "replaced"])
def test_it_goes_when_no_session_is_left(migration: Json | None, told: bool) -> None:
    server = Server(migration)
    assert let_go(server, BOTH, told=told)
    assert server.listed == ["!vfiomigration.io/finished"], "they are listed once"


def test_it_stays_while_an_agent_has_a_session() -> None:
    assert not let_go(Server(), {"node-a": (), "node-b": (session(Role.TARGET),)})
    assert let_go(Server(), {"node-a": (session(Role.SOURCE, Goal.RELEASED),), "node-b": ()})


def test_it_stays_while_an_agent_is_away_and_its_node_exists() -> None:
    assert not let_go(Server(), {"node-a": ()})
    assert let_go(Server(nodes=("node-a",)), {"node-a": ()})


def test_it_is_the_tasks_while_there_is_one() -> None:
    assert not let_go(Server(body(**FINISHED)), BOTH, active=True)


def test_that_of_a_migration_which_has_not_ended_stays() -> None:
    """The watch may show it later."""
    assert not let_go(Server(body()), BOTH, told=False)
