"""The program in docs/guide/connect-a-workload.md, as it is printed there, against agents with simulated devices."""

import asyncio
import contextlib
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from loopback.agents_world import COMMIT, SOURCE, TARGET, Node, Operator, RunningAgent, play
from vfio_agent.broker import Broker
from vfio_api.types import Goal

PAGE = Path(__file__).resolve().parents[2] / "docs/guide/connect-a-workload.md"


def printed(language: str) -> str:
    """The only block of that language on the page."""
    (text,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    return str(text)


@contextlib.asynccontextmanager
async def socket_of(agent: RunningAgent) -> AsyncIterator[Path]:
    path = agent.node.directory / "broker.sock"
    broker = Broker(path, agent.holdings, agent.pods, lambda: None, agent.agent.busy, agent.agent.incoming)
    running = asyncio.create_task(broker.run())
    try:
        yield path
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def run(program: Path, broker: Path, *arguments: str) -> tuple[str, str]:
    """What the example wrote to stdout and stderr. It finds no package of this project, nor any other."""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-I", "-S", str(program), *arguments],
        env={**os.environ, "VFIO_BROKER": str(broker)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode == 0) == (done.stderr == ""), done.stderr
    return done.stdout.strip(), done.stderr.strip()


def holder(agent: RunningAgent, address: str) -> str:
    held = agent.holdings.get(address)
    return held.holder if held is not None else ""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "workload.py"
    path.write_text(printed("python"))
    return path


def test_a_workload_opens_and_closes_its_device(nodes: tuple[Node, Node], program: Path) -> None:
    async def scene(operator: Operator) -> None:
        agent = operator.target
        async with socket_of(agent) as broker:
            opened = "sim0 is open: simulated, 1 file descriptors"
            assert await run(program, broker, "open", "sim0", "nic") == (opened, "")
            assert holder(agent, "sim0") == "workload nic"
            agent.device("sim0").write_region(0, b"kept")
            assert await run(program, broker, "open", "sim0", "again") == (opened, "")
            assert holder(agent, "sim0") == "workload nic"
            assert agent.device("sim0").read_region(0, 4) == b"kept"
            assert await run(program, broker, "close", "sim0") == ("sim0 is free", "")
            assert agent.holdings.all() == {}
            _, refused = await run(program, broker, "open", "sim9", "nic")
            assert refused.startswith("workload: UnknownDevice: no VFIO device sim9 on this node")

    play(nodes, scene)


def test_a_workload_takes_its_device_over_at_the_target(nodes: tuple[Node, Node], program: Path) -> None:
    async def scene(operator: Operator) -> None:
        source, target = operator.source, operator.target
        async with socket_of(source) as here, socket_of(target) as there:
            await operator.until_voted()
            _, refused = await run(program, there, "open", "sim0", "nic")
            assert refused.startswith("workload: ArcFailed: device sim0 is being loaded by migration")
            _, refused = await run(program, here, "close", "sim0")
            assert refused.startswith("workload: ArcFailed: device sim0 is part of migration")
            operator.decision = COMMIT
            for role, goal in ((TARGET, Goal.RUNNING), (SOURCE, Goal.RELEASED), (TARGET, Goal.RELEASED)):
                assert (await operator.tell(role, goal)).failure is None
            assert source.holdings.all() == {}
            taken, _ = await run(program, there, "open", "sim0", "nic")
            assert taken.startswith("sim0 is open")
            assert holder(target, "sim0") == "keeper"
            assert target.device("sim0").read_region(0, 8) == b"marker 0"

    play(nodes, scene)


def test_the_keepers_device_is_freed_by_the_printed_command(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        async with socket_of(operator.source) as broker:
            command = printed("sh").replace("/run/vfio-agent/broker.sock", str(broker))
            command = command.replace("python3", sys.executable)
            done = await asyncio.to_thread(
                subprocess.run, ["sh", "-c", command], capture_output=True, text=True, check=False
            )
            assert (done.stdout, done.stderr) == ("{}\n", "")
            assert list(operator.source.holdings.all()) == ["sim1"]

    play(nodes, scene)
