"""Pods are frozen before any device is touched, and thawed on every way back, and on no other: by real cgroups."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from loopback import pods_world
from loopback.agents_world import (
    ABORT,
    COMMIT,
    COUNT,
    DEVICES,
    SOURCE,
    TARGET,
    Node,
    Operator,
    play,
    replaced,
)
from loopback.moving_world import (
    GOING,
    SHORT_MILLISECONDS,
    arcs_after_pre_copy,
    commit,
    failure_of,
    move,
    quiesced,
    steps,
    undo,
)
from loopback.pods_world import Pod, Stubborn
from vfio_agent.devices.openers import Node as DeviceNode
from vfio_agent.whole import Surveyed, raise_unless_whole
from vfio_api.device import DeviceState as S
from vfio_api.errors import DeviceError, Reason
from vfio_api.types import Goal, PauseMethod, SessionSpec, Workload


@pytest.fixture
def pod() -> Iterator[Pod]:
    with pods_world.pod() as made:
        yield made


@pytest.mark.parametrize("goal", [Goal.QUIESCED, Goal.STOP_COPY])
def test_a_pod_is_frozen_before_the_first_device_is_quiesced(nodes: tuple[Node, Node], pod: Pod, goal: Goal) -> None:
    async def scene(operator: Operator) -> None:
        move(operator, pod.workload())
        await operator.pre_copy()
        assert pod.runs
        control = operator.source.node.control
        control.fault("sim0", arc=(S.PRE_COPY, S.PRE_COPY_P2P), hold=True)
        command = operator.command(SOURCE, goal)
        operator.source.agent.take(command)
        assert await asyncio.to_thread(control.await_hold, "sim0", 30.0)
        assert pod.frozen
        control.release("sim0")
        report = await operator.source.until(SOURCE, lambda r: r.reached is goal)
        assert steps(report)["pause"] > 0
        await undo(operator)
        assert pod.runs

    play(nodes, scene)


def _of_one_device(pod: Pod) -> SessionSpec:
    """A migration of the pod with its first device."""
    return SessionSpec((DEVICES[0],), workloads=(pod.workload(),))


def _opens_the_other(operator: Operator, pod: Pod) -> None:
    holdings = operator.source.holdings
    holdings.release("sim1")
    holdings.open("sim1", f"pod {pod.uid}", pod.uid)


def test_a_pod_that_has_another_device_is_not_prepared_to_be_moved(nodes: tuple[Node, Node], pod: Pod) -> None:
    async def scene(operator: Operator) -> None:
        _opens_the_other(operator, pod)
        failed = await operator.tell(SOURCE, Goal.PREPARED, spec=_of_one_device(pod))
        assert failure_of(failed).reason is Reason.POD_DEVICES_SPLIT
        assert failure_of(failed).message.startswith("pod team/web has device sim1 open as well, which is not in this ")

    play(nodes, scene)


@pytest.mark.parametrize("goal", [Goal.QUIESCED, Goal.STOP_COPY])
def test_a_pod_that_has_opened_another_device_since_is_not_stopped(
    nodes: tuple[Node, Node], pod: Pod, goal: Goal
) -> None:
    async def scene(operator: Operator) -> None:
        spec = _of_one_device(pod)
        for role in (SOURCE, TARGET):
            assert (await operator.tell(role, Goal.PREPARED, spec=spec)).failure is None
        assert (await operator.tell(SOURCE, Goal.PRE_COPY)).failure is None
        begun = len(operator.source.node.arcs())
        _opens_the_other(operator, pod)
        failed = await operator.tell(SOURCE, goal)
        assert failure_of(failed).reason is Reason.POD_DEVICES_SPLIT
        assert "pause" not in steps(failed), "it is seen before the pod stands still"
        assert arcs_after_pre_copy(operator.source.node, begun) == []
        await operator.roll_back()
        assert pod.runs
        assert operator.source.device("sim0").state() is S.RUNNING

    play(nodes, scene)


def test_a_process_that_the_pod_has_forked_before_it_was_paused_is_looked_at(
    nodes: tuple[Node, Node], pod: Pod, tmp_path: Path
) -> None:
    async def scene(operator: Operator) -> None:
        assert (await operator.tell(SOURCE, Goal.PREPARED, spec=_of_one_device(pod))).failure is None
        (session,) = operator.source.agent.sessions()
        surveyed = Surveyed({pod.uid: (pod.process.pid,)}, (DeviceNode("nic", "vfio7", ""),))
        await asyncio.to_thread(raise_unless_whole, session, surveyed)
        path = tmp_path / "vfio/devices/vfio7"
        path.parent.mkdir(parents=True)
        path.touch()
        forked = pod.run(["sh", "-c", 'exec 9<"$1"; echo opened; exec cat', "sh", str(path)])
        assert forked.stdout is not None
        assert forked.stdout.readline() == b"opened\n"
        with pytest.raises(DeviceError, match="team/web has device nic open as well"):
            await asyncio.to_thread(raise_unless_whole, session, surveyed)
        await operator.tell(SOURCE, Goal.RELEASED)

    play(nodes, scene)


def test_a_pod_that_moved_is_ended_without_having_run_again(nodes: tuple[Node, Node], pod: Pod) -> None:
    async def scene(operator: Operator) -> None:
        move(operator, pod.workload())
        await operator.until_voted()
        pod.ask()
        await commit(operator)
        assert pod.frozen
        assert (await operator.tell(SOURCE, Goal.RELEASED)).failure is None
        assert pod.ended_silently()

    play(nodes, scene)


def test_a_pod_that_only_gave_its_devices_away_runs_on_once_they_run_elsewhere(
    nodes: tuple[Node, Node], pod: Pod
) -> None:
    async def scene(operator: Operator) -> None:
        move(operator, pod.workload(moved=False))
        await operator.until_voted()
        await commit(operator)
        assert pod.frozen
        assert (await operator.tell(SOURCE, Goal.RELEASED)).failure is None
        assert pod.runs

    play(nodes, scene)


def test_after_commit_nothing_thaws_a_source(nodes: tuple[Node, Node], pod: Pod) -> None:
    """It would run twice: neither a command to go back does, nor another agent; the release ends it."""

    async def scene(operator: Operator) -> None:
        move(operator, pod.workload())
        await operator.until_voted()
        pod.ask()
        operator.decision = COMMIT
        for goal in (Goal.RUNNING_P2P, Goal.RUNNING):
            assert "the decision is Commit" in failure_of(await operator.tell(SOURCE, goal)).message
            assert pod.frozen
        await replaced(operator, SOURCE)
        assert "the decision is Commit" in failure_of(await operator.tell(SOURCE, Goal.RUNNING)).message
        await commit(operator)
        assert (await operator.tell(SOURCE, Goal.RELEASED)).reached is Goal.RELEASED
        assert operator.source.agent.reports() == ()
        assert pod.ended_silently()

    play(nodes, scene)


@pytest.mark.parametrize("killed", [False, True], ids=["same agent", "agent killed"])
@pytest.mark.parametrize("go", list(GOING))
def test_every_way_back_thaws(nodes: tuple[Node, Node], pod: Pod, go: str, killed: bool) -> None:
    async def scene(operator: Operator) -> None:
        move(operator, pod.workload())
        await GOING[go](operator)
        assert pod.frozen
        if killed:
            await replaced(operator, SOURCE)
        await undo(operator)
        assert pod.runs

    play(nodes, scene)


def test_a_release_thaws_what_its_agent_has_not_resumed(nodes: tuple[Node, Node], pod: Pod) -> None:
    """The devices run again and the agent was replaced before it could say so: the next one is only told to release."""

    async def scene(operator: Operator) -> None:
        move(operator, pod.workload())
        await quiesced(operator)
        operator.decision = ABORT
        operator.source.agent.take(operator.command(SOURCE, Goal.RUNNING_P2P))
        await operator.source.until(SOURCE, lambda r: r.reached is Goal.RUNNING_P2P)
        (session,) = operator.source.agent._sessions.values()
        for n in range(COUNT):
            await asyncio.to_thread(session.set_state, f"gpu{n}", S.RUNNING)
        await replaced(operator, SOURCE)
        assert pod.frozen
        operator.source.agent.take(operator.command(SOURCE, Goal.RELEASED))
        await operator.source.until(SOURCE, lambda r: r.reached is Goal.RELEASED)
        assert pod.runs
        assert (await operator.tell(TARGET, Goal.RELEASED)).reached is Goal.RELEASED

    play(nodes, scene)


@pytest.mark.parametrize("version", [1, 2])
def test_a_pod_that_does_not_freeze_ends_it_before_any_device_is_touched(
    nodes: tuple[Node, Node], tmp_path: Path, version: int
) -> None:
    stubborn = Stubborn(tmp_path, version)

    async def scene(operator: Operator) -> None:
        move(operator, stubborn.workload(milliseconds=SHORT_MILLISECONDS))
        await operator.pre_copy()
        begun = len(nodes[0].arcs())
        failure = failure_of(await operator.tell(SOURCE, Goal.STOP_COPY))
        assert failure.reason is Reason.PAUSE_FAILED
        assert failure.message.startswith("pod team/stubborn was not frozen within 0.15 s")
        assert arcs_after_pre_copy(nodes[0], begun) == []
        await undo(operator)
        assert version == 1 or stubborn.asked == "0"

    play(nodes, scene, stubborn.folders)


def test_a_pod_that_has_ended_is_found_out_before_anything_is_copied(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        move(operator, Workload("0d4f1f3c-9a0e-4a53-8c1f-5f6f0e1c2a3b", "team", "gone", PauseMethod.FREEZE))
        failure = failure_of(await operator.tell(SOURCE, Goal.PREPARED))
        assert (failure.reason, failure.message.partition(":")[0]) == (
            Reason.POD_GONE,
            "pod team/gone has no cgroup on this node",
        )

    play(nodes, scene)


def test_a_freeze_that_outlasts_its_command_does_not_outlast_the_way_back(
    nodes: tuple[Node, Node], tmp_path: Path
) -> None:
    """Its thread is still at it when the pod is thawed: who goes back waits until it has ended, then thaws."""
    stubborn = Stubborn(tmp_path, 2)

    async def scene(operator: Operator) -> None:
        move(operator, stubborn.workload(milliseconds=600_000))
        await operator.pre_copy()
        failure = failure_of(await operator.tell(SOURCE, Goal.STOP_COPY, deadline=SHORT_MILLISECONDS))
        assert failure.reason is Reason.STEP_TIMEOUT
        assert stubborn.asked == "1"
        await undo(operator)
        assert stubborn.asked == "0"

    play(nodes, scene, stubborn.folders)


def test_a_pod_that_is_not_to_be_paused_is_left_alone(nodes: tuple[Node, Node], pod: Pod) -> None:
    async def scene(operator: Operator) -> None:
        move(operator, Workload(pod.uid, "team", "web", PauseMethod.NONE, moved=True))
        await operator.until_voted()
        assert pod.runs
        running = await commit(operator)
        released = await operator.tell(SOURCE, Goal.RELEASED)
        assert released.failure is None
        assert not {"pause", "save", "resume"} & {**steps(running), **steps(released)}.keys()
        assert pod.runs

    play(nodes, scene)
