"""A keeper that ends takes nothing with it: the agent gives its devices to the next one."""

import asyncio
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import structlog

from loopback.test_keeper import KeeperProcess
from vfio_agent.devices.protocol import DeviceInfo
from vfio_agent.holdings import Holdings
from vfio_agent.keeper import KeeperClient, KeeperGoneError
from vfio_agent.keeperwatch import restore_from_keeper
from vfio_api.device import DeviceState, MigrationFlags


class Pipe:
    """A device that is an fd and nothing else."""

    def __init__(self, address: str, fd: int):
        self.address, self._fd = address, fd

    def fds(self) -> tuple[int, ...]:
        return (self._fd,)

    def flags(self) -> MigrationFlags:
        return MigrationFlags.STOP_COPY

    def state(self) -> DeviceState:
        return DeviceState.RUNNING

    def reset(self) -> None:
        pass

    def close(self) -> None:
        os.close(self._fd)


class Pipes:
    name = "pipes"

    def list(self) -> list[DeviceInfo]:
        return [DeviceInfo("a", "pipe", "pipe", ""), DeviceInfo("b", "pipe", "pipe", "")]

    def open(self, address: str) -> Pipe:
        reader, writer = os.pipe()
        os.close(reader)
        return Pipe(address, writer)

    def adopt(self, address: str, fds: Sequence[int]) -> Pipe:
        return Pipe(address, fds[0])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keeper.sock"


@pytest.fixture
def holdings(path: Path) -> Iterator[Holdings]:
    made = Holdings({"pipes": Pipes()}, KeeperClient(path), "boot")  # type: ignore[dict-item]
    yield made
    for address in made.all():
        made.release(address)


def test_the_next_keeper_is_given_what_is_held_as_it_is_now(path: Path, holdings: Holdings) -> None:
    first = KeeperProcess(path)
    for address in ("a", "b"):
        holdings.open(address, "workload test")
    assert holdings.mend() == []
    first.process.kill()
    first.end()
    with pytest.raises(KeeperGoneError, match=r"no keeper serves .*start vfio-keeper"):
        holdings.mend()
    holdings.set_holder("a", "keeper")
    second = KeeperProcess(path)
    assert sorted(holdings.mend()) == ["a", "b"]
    meta, fds = second.client.take("a")
    os.close(fds[0])
    assert meta["holder"] == "keeper"
    assert holdings.mend() == []
    second.end()


def test_what_is_given_up_while_no_keeper_is_there_is_not_stored_again(path: Path, holdings: Holdings) -> None:
    first = KeeperProcess(path)
    holdings.open("a", "workload test")
    first.process.kill()
    first.end()
    holdings.release("a")
    second = KeeperProcess(path)
    assert holdings.mend() == []
    assert second.client.held() == []
    second.end()


def test_a_note_that_a_keeper_did_not_take_is_told_again(path: Path, holdings: Holdings) -> None:
    first = KeeperProcess(path)
    holdings.open("a", "migration team/move")
    first.process.kill()
    first.end()
    holdings.set_holder("a", "keeper")
    second = KeeperProcess(path)
    second.client.store("a", {"backend": "pipes", "incarnation": "x", "holder": "migration team/move"}, [1])
    assert holdings.mend() == ["a"]
    meta, fds = second.client.take("a")
    os.close(fds[0])
    assert meta["holder"] == "keeper"
    second.end()


def test_an_agent_that_starts_before_its_keeper_waits_for_it(path: Path, holdings: Holdings) -> None:
    async def first_the_agent() -> KeeperProcess:
        restoring = asyncio.create_task(restore_from_keeper(holdings, 60.0))
        while not any(entry["event"] == "no keeper yet" for entry in said):  # noqa: ASYNC110 - all that is seen of it
            await asyncio.sleep(0)
        assert not restoring.done()
        keeper = await asyncio.to_thread(KeeperProcess, path)
        await restoring
        return keeper

    with structlog.testing.capture_logs() as said:
        asyncio.run(first_the_agent()).end()


def test_an_agent_does_not_wait_for_ever_for_its_keeper(holdings: Holdings) -> None:
    with pytest.raises(KeeperGoneError, match="start vfio-keeper"):
        asyncio.run(restore_from_keeper(holdings, 0.0))
