"""What processes of pods get from the broker, which knows them by the kernel and not by what they say."""

import asyncio
import contextlib
import json
import os
import select
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from loopback import pods_world
from loopback.agents_world import (
    COMMIT,
    COUNT,
    SOURCE,
    TARGET,
    Node,
    Operator,
    RunningAgent,
    assert_sources_run,
    environment,
    play,
    replaced,
)
from loopback.moving_world import commit
from loopback.pods_world import SECONDS, Pod
from loopback.processes_world import eventually
from vfio_agent.broker import TAKERS, Broker
from vfio_agent.devices.simulated import SimulatedBackend
from vfio_agent.heirs import LOOKS, Heirs
from vfio_agent.holdings import Holdings
from vfio_api.device import DeviceState as S
from vfio_api.errors import DeviceError, Reason
from vfio_api.types import Goal, Workload

# says every answer that it gets, and of devices that run what is in them; ends when the broker hangs up
ASK = """
import json, socket, sys
from vfio_agent.devices.simulated import SimulatedBackend
path, request, simulator = sys.argv[1:]
opened, devices = None, {}
asked = json.loads(request)
if asked.get("fd") == "own":
    opened = SimulatedBackend(simulator).open(asked["adopt"])
    asked["fd"] = opened.fds()[0]
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as broker:
    broker.connect(path)
    broker.send(json.dumps(asked).encode())
    while True:
        raw, fds, _, _ = socket.recv_fds(broker, 4096, 8)
        if not raw:
            break
        said = json.loads(raw)
        if fds:
            address = said.get("address", asked.get("open"))
            devices[address] = SimulatedBackend(simulator).adopt(address, fds)
        marks = {a: d.read_region(0, 8).decode() for a, d in devices.items()} if "running" in said else {}
        print(json.dumps({**said, "fds": len(fds), "marks": marks}), flush=True)
print("over", flush=True)
sys.stdin.read()
"""
Said = dict[str, Any]


class Asker:
    """A process of a pod that has asked the broker for something."""

    def __init__(self, process: "subprocess.Popen[bytes]"):
        self._process = process

    def hears(self) -> Said | None:
        """The next answer; None when the broker has hung up."""
        assert self._process.stdout is not None
        assert select.select([self._process.stdout], [], [], SECONDS)[0], "no answer"
        line = self._process.stdout.readline()
        assert line, "it has ended"
        said: Said | None = None if line == b"over\n" else json.loads(line)
        return said

    async def answer(self) -> Said:
        """The next one, which must come."""
        said = await asyncio.to_thread(self.hears)
        assert said is not None
        return said

    def quiet(self) -> bool:
        """Whether nothing came so far."""
        assert self._process.stdout is not None
        return not select.select([self._process.stdout], [], [], 0.2)[0]

    def leave(self) -> None:
        """End it."""
        with self._process:
            self._process.kill()


@pytest.fixture
def pods() -> Iterator[tuple[Pod, Pod]]:
    with pods_world.pod() as first, pods_world.pod() as second:
        yield first, second


@contextlib.asynccontextmanager
async def brokered(agent: RunningAgent) -> AsyncIterator[Broker]:
    """A broker beside an agent, as `vfio_agent.__main__` puts them together."""
    path = broker_path(agent)
    broker = Broker(path, agent.holdings, agent.pods, lambda: None, agent.agent.busy, agent.agent.incoming)
    agent.on_reached.append(broker.stir)
    running = asyncio.create_task(broker.run())
    try:
        yield broker
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def broker_path(agent: RunningAgent) -> Path:
    return agent.node.directory / "broker.sock"


def ask(pod: Pod | None, agent: RunningAgent, request: object) -> Asker:
    """A process in the pod, or in none, that asks."""
    simulator = agent.node.directory / "sim.sock"
    command = [sys.executable, "-c", ASK, str(broker_path(agent)), json.dumps(request), str(simulator)]
    return Asker(pod.run(command, environment()) if pod is not None else outside(command))


def outside(command: list[str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment())


def moves_to(operator: Operator, pod: Pod) -> None:
    operator.workloads = {TARGET: (Workload(pod.uid, "team", "web", moved=True),)}


# --- take


def test_a_counterpart_gets_its_devices_when_they_load_and_hears_when_they_run(
    nodes: tuple[Node, Node], pods: tuple[Pod, Pod]
) -> None:
    pod, stranger = pods

    async def scene(operator: Operator) -> None:
        moves_to(operator, pod)
        async with brokered(operator.target):
            taker, other = (ask(each, operator.target, {"take": True}) for each in (pod, stranger))
            assert taker.quiet(), "there is nothing yet"
            await operator.prepare()
            first, second = await taker.answer(), await taker.answer()
            assert [(d["device"], d["address"], d["backend"], d["left"], d["fds"]) for d in (first, second)] == [
                ("gpu0", "sim0", "simulated", 1, 1),
                ("gpu1", "sim1", "simulated", 0, 1),
            ]
            assert (await operator.tell(SOURCE, Goal.PRE_COPY)).failure is None
            assert (await operator.tell(SOURCE, Goal.STOP_COPY)).failure is None
            await operator.target.until(TARGET, lambda r: r.reached is Goal.LOADED)
            assert taker.quiet(), "loaded, but nothing is decided"
            operator.decision = COMMIT
            assert (await operator.tell(TARGET, Goal.RUNNING)).failure is None
            running = await taker.answer()
            assert running["running"] is True
            assert running["marks"] == {"sim0": "marker 0", "sim1": "marker 1"}
            assert taker.hears() is None
            assert other.quiet(), "another pod gets nothing of it"
            for role in (SOURCE, TARGET):
                assert (await operator.tell(role, Goal.RELEASED)).failure is None
            assert {(h.holder, h.pod) for h in operator.target.holdings.all().values()} == {("pod team/web", pod.uid)}
            again = ask(pod, operator.target, {"take": True})  # one of its containers begins anew
            told = [await again.answer() for _ in range(COUNT + 1)]
            assert sorted(d["address"] for d in told[:COUNT]) == ["sim0", "sim1"]
            assert told[COUNT]["running"] is True

    play(nodes, scene)


def test_what_a_counterpart_took_over_is_given_up_once_it_is_gone(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        agent, pod = operator.target, Pod()
        with contextlib.ExitStack() as closing:
            closing.callback(pod.close)
            moves_to(operator, pod)
            heirs = Heirs(agent.holdings, agent.pods, agent.agent.busy, lambda: None)
            await operator.until_voted()
            await commit(operator)
            for role in (SOURCE, TARGET):
                assert (await operator.tell(role, Goal.RELEASED)).failure is None
            assert [heirs.look() for _ in range(2 * LOOKS)] == [[]] * 2 * LOOKS, "it is there, whatever it does"
        assert [sorted(heirs.look()) for _ in range(LOOKS)] == [[], [], ["sim0", "sim1"]]
        assert agent.holdings.all() == {}
        assert heirs.look() == []

    play(nodes, scene)


def test_a_device_in_a_migration_is_not_given_up(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        agent = operator.source
        for address in ("sim0", "sim1"):
            agent.holdings.set_holder(address, "pod team/web", str(uuid.uuid4()), inherited=True)
        await operator.prepare()
        heirs = Heirs(agent.holdings, agent.pods, agent.agent.busy, lambda: None)
        assert [heirs.look() for _ in range(2 * LOOKS)] == [[]] * 2 * LOOKS

    play(nodes, scene)


def test_what_was_opened_for_a_workload_stays_open(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        agent = operator.source
        agent.holdings.set_holder("sim0", "pod team/web", str(uuid.uuid4()))
        heirs = Heirs(agent.holdings, agent.pods, agent.agent.busy, lambda: None)
        assert [heirs.look() for _ in range(2 * LOOKS)] == [[]] * 2 * LOOKS

    play(nodes, scene)


def test_a_counterpart_that_waits_is_told_that_its_migration_was_rolled_back(
    nodes: tuple[Node, Node], pods: tuple[Pod, Pod]
) -> None:
    pod, _ = pods

    async def scene(operator: Operator) -> None:
        moves_to(operator, pod)
        async with brokered(operator.target):
            taker = ask(pod, operator.target, {"take": True})
            await operator.until_voted()
            assert [(await taker.answer())["left"] for _ in range(COUNT)] == [1, 0]
            await operator.roll_back()
            refused = await taker.answer()
            assert refused["reason"] == Reason.CANCELLED
            assert refused["error"].startswith(f"pod {pod.uid} takes nothing over: its migration was rolled back")
            assert "kubectl get vfm" in refused["error"]
            assert taker.hears() is None
            assert_sources_run(operator)

    play(nodes, scene)


def test_two_processes_of_a_pod_get_the_same_and_more_than_a_few_are_refused(
    nodes: tuple[Node, Node], pods: tuple[Pod, Pod]
) -> None:
    pod, other = pods

    async def scene(operator: Operator) -> None:
        moves_to(operator, pod)
        async with brokered(operator.target) as broker:
            takers = [ask(pod, operator.target, {"take": True}) for _ in range(TAKERS)]
            await eventually(lambda: broker._takers[pod.uid] == TAKERS)
            refused = await ask(pod, operator.target, {"take": True}).answer()
            assert refused["reason"] == Reason.COMMAND_REFUSED
            assert "4 of its processes wait for its devices already" in refused["error"]
            also = ask(other, operator.target, {"take": True})
            await eventually(lambda: broker._takers[other.uid] == 1)
            for taker in takers[2:]:
                taker.leave()
            also.leave()
            await eventually(lambda: broker._takers == {pod.uid: 2})
            await operator.prepare()
            for taker in takers[:2]:
                assert [(await taker.answer())["address"] for _ in range(COUNT)] == ["sim0", "sim1"]
            await operator.roll_back()
            for taker in takers[:2]:
                assert (await taker.answer())["reason"] == Reason.CANCELLED
            await eventually(lambda: not broker._takers)

    play(nodes, scene)


def test_a_process_that_is_in_no_pod_takes_nothing(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        async with brokered(operator.target):
            asker = ask(None, operator.target, {"take": True})
            refused = await asker.answer()
            asker.leave()
            assert refused["reason"] == Reason.COMMAND_REFUSED
            assert "is in no pod of this node" in refused["error"]

    play(nodes, scene)


# --- whose device it is


def test_a_pod_decides_nothing_about_a_device_of_another_that_runs(
    nodes: tuple[Node, Node], pods: tuple[Pod, Pod]
) -> None:
    owner, other = pods

    async def scene(operator: Operator) -> None:
        agent = operator.target
        async with brokered(agent):
            opener = ask(owner, agent, {"open": "sim0", "workload": "w"})
            assert (await opener.answer())["fds"] == 1
            held = agent.holdings.get("sim0")
            assert held is not None
            assert (held.holder, held.pod) == (f"pod {owner.uid}", owner.uid)
            for request in ({"open": "sim0"}, {"close": "sim0"}):
                refused = await ask(other, agent, request).answer()
                assert refused["reason"] == Reason.TARGET_HAS_HOLDER, request
                assert refused["error"] == (
                    f"device sim0 is used by pod {owner.uid}, which runs: have that close it first"
                )
                assert refused["fds"] == 0
            assert (await ask(owner, agent, {"open": "sim0"}).answer())["fds"] == 1, "one of its containers begins anew"
            owner.close()
            assert (await ask(other, agent, {"open": "sim0"}).answer())["fds"] == 1, "whoever had it has ended"
            assert "error" not in await ask(other, agent, {"close": "sim0"}).answer()
            assert agent.holdings.get("sim0") is None

    play(nodes, scene)


# --- adopt


def test_a_process_has_its_device_held_by_the_node(nodes: tuple[Node, Node], pods: tuple[Pod, Pod]) -> None:
    pod, _ = pods

    async def scene(operator: Operator) -> None:
        agent = operator.source
        agent.holdings.release("sim1")
        async with brokered(agent):
            adopted = await ask(pod, agent, {"adopt": "sim1", "fd": "own"}).answer()
            held = agent.holdings.get("sim1")
            assert held is not None
            assert adopted["incarnation"] == held.incarnation
            assert (held.holder, held.pod, held.borrowed) == (f"pod {pod.uid}", pod.uid, False)
            assert "sim1" in agent.keeper.held()
            assert (await operator.tell(SOURCE, Goal.PREPARED)).failure is None, "it is a legal source"
            refused = await ask(pod, agent, {"close": "sim1"}).answer()
            assert "is part of migration team/move" in refused["error"]
            await operator.roll_back()
            assert agent.device("sim1").state() is S.RUNNING

    play(nodes, scene)


@pytest.mark.parametrize(
    ("request_", "found"),
    [
        ({"adopt": "sim1", "fd": 0}, "the open file of pod"),
        ({"adopt": "sim1", "fd": 999}, "which asks, could not be duplicated: [Errno 9] pidfd_getfd of fd 999"),
        ({"adopt": "none", "fd": 0}, "no VFIO device none on this node"),
        ({"adopt": "sim0", "fd": 0}, "device sim0 is held here already"),
    ],
)
def test_what_is_not_that_device_is_not_adopted(
    nodes: tuple[Node, Node], pods: tuple[Pod, Pod], request_: dict[str, object], found: str
) -> None:
    async def scene(operator: Operator) -> None:
        agent = operator.source
        agent.holdings.release("sim1")
        async with brokered(agent):
            files = len(os.listdir("/proc/self/fd"))
            asker = ask(pods[0], agent, request_)
            refused = await asker.answer()
            assert found in refused["error"]
            assert set(agent.holdings.all()) == {"sim0"}
            assert asker.hears() is None
            await eventually(lambda: len(os.listdir("/proc/self/fd")) <= files + 2)  # of the asker itself

    play(nodes, scene)


# --- borrowed: the fd of a process that needs no change


@contextlib.contextmanager
def borrowed(agent: RunningAgent, pod: Pod) -> Iterator[Any]:
    """sim1 open in a process of its own, so to speak, and adopted from there for a migration."""
    agent.holdings.release("sim1")
    with SimulatedBackend(agent.node.directory / "sim.sock").open("sim1") as device:
        device.write_region(0, b"marker 1")
        agent.holdings.adopt("sim1", os.dup(device.fds()[0]), "pod team/web", pod.uid, borrowed=True)
        yield device


@pytest.mark.parametrize("killed", [False, True], ids=["same agent", "agent killed"])
@pytest.mark.parametrize("moment", ["prepared", "voted"])
def test_a_borrowed_device_is_given_back_on_the_way_back(
    nodes: tuple[Node, Node], pods: tuple[Pod, Pod], moment: str, killed: bool
) -> None:
    async def scene(operator: Operator) -> None:
        with borrowed(operator.source, pods[0]) as device:
            await (operator.prepare() if moment == "prepared" else operator.until_voted())
            if killed:
                await replaced(operator, SOURCE)
                held = operator.source.holdings.get("sim1")
                assert held is not None
                assert (held.borrowed, held.pod) == (True, pods[0].uid)
            await operator.roll_back()
            assert operator.source.holdings.get("sim1") is None
            assert operator.source.keeper.held() == ["sim0"]
            assert device.state() is S.RUNNING
            assert device.read_region(0, 8) == b"marker 1", "its process has noticed nothing"

    play(nodes, scene)


def test_a_borrowed_device_is_given_up_after_commit(nodes: tuple[Node, Node], pods: tuple[Pod, Pod]) -> None:
    async def scene(operator: Operator) -> None:
        with borrowed(operator.source, pods[0]) as device:
            await operator.until_voted()
            operator.decision = COMMIT
            assert (await operator.tell(TARGET, Goal.RUNNING)).failure is None
            assert (await operator.tell(SOURCE, Goal.RELEASED)).failure is None
            assert operator.source.holdings.all() == {}
            assert device.state() is S.STOP

    play(nodes, scene)


def test_what_was_borrowed_for_nobody_is_given_back(nodes: tuple[Node, Node], pods: tuple[Pod, Pod]) -> None:
    """The agent was killed before it had recorded for which migration."""

    async def scene(operator: Operator) -> None:
        with borrowed(operator.source, pods[0]) as device:
            await replaced(operator, SOURCE)
            assert set(operator.source.holdings.all()) == {"sim0"}
            assert device.state() is S.RUNNING

    play(nodes, scene)


def test_a_file_that_is_not_the_device_is_closed(tmp_path: Path) -> None:
    class Nothing(SimulatedBackend):
        """A backend whose device is there, and is not what is given."""

        def list(self) -> Any:
            """One device."""
            return [type("Info", (), {"address": "sim1"})()]

    holdings = Holdings({"simulated": Nothing(tmp_path / "none")}, None, "boot")  # type: ignore[arg-type]
    with (tmp_path / "file").open("wb") as file:
        for address in ("sim1", "sim2"):
            fd = os.dup(file.fileno())
            with pytest.raises(DeviceError):
                holdings.adopt(address, fd, "pod team/web", "uid", borrowed=True)
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(fd)
