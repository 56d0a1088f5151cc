"""What a mad operator, or one that was restored from a backup, makes an agent say: by name, and bounded."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from devtools.fuzz.control import AgentWorld
from devtools.fuzz.samples import certificate
from devtools.fuzz.sockets import end_keeper, serve_keeper
from vfio_agent.agent import MAX_COMMANDS
from vfio_agent.receiver import DataServer
from vfio_api.errors import CommandError, Reason
from vfio_api.types import Command, Failure, Goal, MigrationKey, Peer, Role, SessionDevice, SessionReport, SessionSpec
from vfio_api.v1 import agent_pb2 as pb

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


def unreadable(uid: str, role: str = Role.TARGET) -> pb.OperatorMessage:
    """A command with a goal that no version knows."""
    command = pb.Command(migration=pb.MigrationKey(uid=uid, namespace="team", name="move"), role=role, goal="Paint")
    return pb.OperatorMessage(command=command)


def test_a_command_that_cannot_be_read_is_refused_alone(tmp_path: Path) -> None:
    """The stream lives on, and so do the sessions of it: another one, and the one that it was for."""

    async def run() -> None:
        async with agent_at(tmp_path) as world:
            assert (await prepare(world, "uid-1", certificate())).reached is Goal.PREPARED
            for uid, kept in (("uid-1", Goal.PREPARED), ("uid-2", None)):
                await world.link._incoming(unreadable(uid), None, "nowhere")
                world.agent._told_at = 0.0  # as if long ago
                async with asyncio.timeout(PATIENCE):
                    (told,) = await world.agent.next_reports()
                failure = failure_of(told)
                assert (told.migration_uid, told.reached) == (uid, kept)
                assert failure.reason is Reason.COMMAND_REFUSED
                assert "a command cannot be read: 'Paint' is not a valid Goal" in failure.message
            assert [session.key.uid for session in world.agent.sessions()] == ["uid-1"]

    asyncio.run(run())


def test_a_command_of_nobody_is_refused_and_nothing_said_of_it(tmp_path: Path) -> None:
    async def run() -> None:
        async with agent_at(tmp_path) as world:
            for said in (unreadable("no uid!"), unreadable("uid-1", "Painter")):
                await world.link._incoming(said, None, "nowhere")
            assert not world.agent.unsaid

    asyncio.run(run())


def test_nonsense_without_an_end_ends_the_stream(tmp_path: Path) -> None:
    async def run() -> None:
        async with agent_at(tmp_path) as world:
            for n in range(MAX_COMMANDS):
                await world.link._incoming(unreadable(f"uid-{n}"), None, "nowhere")
            with pytest.raises(CommandError, match="the operator says nonsense without an end"):
                await world.link._incoming(unreadable("uid"), None, "nowhere")

    asyncio.run(run())


def test_a_node_takes_no_more_devices_than_its_hello_can_tell_of(tmp_path: Path) -> None:
    """Four sessions of 256 devices; none of them has been opened."""

    async def run() -> None:
        async with agent_at(tmp_path) as world:
            refused = []
            for n in range(5):
                spec = SessionSpec(tuple(SessionDevice(f"d{d}", f"none{n}-{d}", "other") for d in range(256)))
                key = MigrationKey(f"u-{n}", "team", "move")
                world.agent.take(Command(key, Role.SOURCE, Goal.PREPARED, 1, 1, 20_000, None, spec))
            async with asyncio.timeout(PATIENCE):
                while not refused:
                    told = await world.agent.next_reports()
                    refused = [f for f in (r.failure for r in told) if f and f.reason is Reason.COMMAND_REFUSED]
            assert "sessions of this node would have 1280 devices, at most 1024 are allowed" in refused[0].message

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
