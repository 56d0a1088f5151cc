"""The agent's end of the control channel against the operator's, on real gRPC: what is said beside commands."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from devtools.fuzz.control import AgentWorld
from devtools.fuzz.samples import certificate
from devtools.fuzz.sockets import end_keeper, serve_keeper
from loopback.test_control_tls import PATIENCE, Given, Leader, play
from vfio_agent.kube import Leader as Found
from vfio_agent.link import Link, hello
from vfio_agent.metrics import AgentMetrics
from vfio_agent.receiver import DataServer
from vfio_api.types import Command, Goal, MigrationKey, Peer, Role, SessionDevice, SessionSpec

UID = "uid-1"
SPEC = SessionSpec((SessionDevice("gpu0", "mem0", "other"),))


class Where:
    """The API server, which tells who leads."""

    def __init__(self, leader: Leader):
        self._leader = leader

    async def leader(self) -> Found:
        return Found(f"127.0.0.1:{self._leader.port}", self._leader.config_map.read(), 5)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def linked(leader: Leader, path: Path) -> AsyncIterator[tuple[AgentWorld, Link]]:
    """An agent whose link is connected. Its token, which is the node's name to this operator, is in path/token."""
    (path / "token").write_text("node-a")
    listener, thread = serve_keeper(path / "keeper.sock")
    server = DataServer("127.0.0.1", 0)
    with ThreadPoolExecutor(2) as arcs:
        world = AgentWorld(path, server, arcs)
        where: Any = Where(leader)
        said = hello("1", "boot-1", "i", "127.0.0.1:1")
        link = Link(world.agent, where, said, path / "token", AgentMetrics("test"), token_seconds=0.05)
        running = asyncio.create_task(link.run())
        try:
            await until(lambda: link.connected)
            yield world, link
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await world.close()
            server.close()
            end_keeper(listener, thread)


def prepare(role: Role = Role.TARGET) -> Command:
    peer = Peer("other", "127.0.0.1:1", certificate())
    return Command(MigrationKey(UID, "team", "move"), role, Goal.PREPARED, 5, 1, 20_000, None, SPEC, (peer,))


def release() -> Command:
    return Command(MigrationKey(UID, "team", "move"), Role.TARGET, Goal.RELEASED, 5, 2, 20_000)


def test_the_token_that_takes_the_place_of_the_first_is_shown(tmp_path: Path) -> None:
    async def scene(leader: Leader) -> None:
        async with linked(leader, tmp_path) as (_, link):
            stream = leader.agents.stream("node-a")
            assert stream is not None
            assert stream.token == "node-a"
            (tmp_path / "token").unlink()  # of no consequence
            (tmp_path / "token").write_text("another")
            await until(lambda: stream.token == "another")
            assert leader.agents.stream("node-a") is stream
            assert "another" not in repr(stream)
            assert link.connected

    play(Given(), scene)


def test_who_leaves_says_so_on_every_stream(tmp_path: Path) -> None:
    async def scene(leader: Leader) -> None:
        agents = leader.agents
        async with linked(leader, tmp_path) as (_, link):
            assert agents.leaving(PATIENCE) == frozenset()
            assert not link.unsaid
            link.leave()
            assert link.unsaid
            await until(lambda: agents.leaving(PATIENCE) == {"node-a"})
            assert not link.unsaid
            first = agents.stream("node-a")
            assert first is not None
            first.cancel()
            await until(lambda: (found := agents.stream("node-a")) is not None and found is not first and found.leaving)
        await until(lambda: agents.connected == frozenset())
        assert agents.leaving(PATIENCE) == {"node-a"}  # its successor is awaited
        assert agents.leaving(0.0) == frozenset()

    play(Given(), scene)


def test_its_successor_is_not_leaving(tmp_path: Path) -> None:
    async def scene(leader: Leader) -> None:
        async with linked(leader, tmp_path) as (_, link):
            link.leave()
            await until(lambda: leader.agents.leaving(PATIENCE) == {"node-a"})
        await until(lambda: leader.agents.connected == frozenset())
        async with leader.dial("node-a"):
            assert leader.agents.connected == {"node-a"}
            assert leader.agents.leaving(PATIENCE) == frozenset()

    play(Given(), scene)


def test_what_was_said_before_the_farewell_is_heard(tmp_path: Path) -> None:
    """How the last session ended is the last that the agent says, and nobody else can say it."""

    async def scene(leader: Leader) -> None:
        agents = leader.agents
        async with linked(leader, tmp_path) as (world, link):
            agents.send("node-a", prepare())
            await until(lambda: agents.report("node-a", UID, Role.TARGET) is not None)
            agents.send("node-a", release())
            async with asyncio.timeout(PATIENCE):
                while world.agent.work_left or link.unsaid:  # noqa: ASYNC110
                    await asyncio.sleep(0)  # no later than at the very moment: the report is on its way
            await link.farewell()
        await until(lambda: agents.connected == frozenset())
        found = agents.report("node-a", UID, Role.TARGET)
        assert found is not None
        assert found.reached is Goal.RELEASED

    play(Given(), scene)
