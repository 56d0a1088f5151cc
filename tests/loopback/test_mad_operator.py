"""What a mad operator, or one that was restored from a backup, makes an agent say: by name, and bounded."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from devtools.fuzz.control import AgentWorld
from devtools.fuzz.samples import certificate
from devtools.fuzz.sockets import end_keeper, serve_keeper
from vfio_agent.receiver import DataServer
from vfio_api.errors import Reason
from vfio_api.types import Command, Failure, Goal, MigrationKey, Peer, Role, SessionDevice, SessionReport, SessionSpec

PATIENCE = 20.0
SPEC = SessionSpec((SessionDevice("gpu0", "mem0", "other"),))


@contextlib.asynccontextmanager
async def agent_at(path: Path) -> AsyncIterator[AgentWorld]:
    listener, thread = serve_keeper(path / "keeper.sock")
    server = DataServer("127.0.0.1", 0)
    with ThreadPoolExecutor(2) as arcs:
        world = AgentWorld(path, server, arcs)
        try:
            yield world
        finally:
            await world.close()
            server.close()
            end_keeper(listener, thread)


async def prepare(world: AgentWorld, uid: str, pinned: bytes, role: Role = Role.TARGET) -> SessionReport:
    """The outcome of a target's Prepared."""
    key, peer = MigrationKey(uid, "team", "move"), Peer("other", "127.0.0.1:1", pinned)
    world.agent.take(Command(key, role, Goal.PREPARED, 1, 1, 20_000, None, SPEC, (peer,)))
    async with asyncio.timeout(PATIENCE):
        while True:
            for told in await world.agent.next_reports():
                if told.migration_uid == uid and (told.failure is not None or told.reached is not None):
                    return told


def failure_of(told: SessionReport) -> Failure:
    assert told.failure is not None
    return told.failure


def test_a_peers_certificate_that_is_none_is_said_by_name(tmp_path: Path) -> None:
    async def run() -> None:
        async with agent_at(tmp_path) as world:
            for uid, pinned in (("empty", b""), ("text", b"certificate")):
                failure = failure_of(await prepare(world, uid, pinned))
                assert failure.reason is Reason.PEER_REFUSED
                assert f"certificate ({len(pinned)} bytes) is none" in failure.message
                await world._clear()

    asyncio.run(run())


def test_a_device_that_another_session_made_ready_is_said_by_name(tmp_path: Path) -> None:
    """A migration was deleted and made anew with its name, while the session of the first is still there."""

    async def run() -> None:
        async with agent_at(tmp_path) as world:
            assert (await prepare(world, "uid-1", certificate())).reached is Goal.PREPARED
            failure = failure_of(await prepare(world, "uid-2", certificate()))
            assert failure.reason is not Reason.INTERNAL_ERROR
            assert "its stream is another session's" in failure.message

    asyncio.run(run())


def test_what_was_said_of_sessions_that_never_were_is_not_kept(tmp_path: Path) -> None:
    async def run() -> None:
        async with agent_at(tmp_path) as world:
            for n in range(100):
                key = MigrationKey(f"never-{n}", "team", "move")
                world.agent.take(Command(key, Role.SOURCE, Goal.RUNNING, 1, 1, 1000))
                async with asyncio.timeout(PATIENCE):
                    (told,) = await world.agent.next_reports()
                assert failure_of(told).reason is Reason.COMMAND_REFUSED
                world.agent._told_at = 0.0  # as if long ago
            assert world.agent._sent == {}

    asyncio.run(run())
