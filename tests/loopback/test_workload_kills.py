"""Agents as processes that are killed while a pod is frozen, and broken agents, which are found out."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from loopback import pods_world
from loopback.agents_world import ABORT, COMMIT, COUNT, SOURCE, TARGET
from loopback.hook_world import PodServer, answer
from loopback.pods_world import Pod, Stubborn, hooked
from loopback.processes_world import Cluster, cluster, eventually
from vfio_agent import hooks
from vfio_api.names import AGENT_PREFIX
from vfio_api.types import Goal, Outcome, Role, Workload

RUNNING = ["RUNNING"] * COUNT
STATE = bytes(range(256)) * 1024
SHORT = {"switchover_timeout_milliseconds": 300}
PROMISES = {
    "before": "a device was touched before the pod was frozen",
    "thawed": "the pod runs again",
    "frozen": "the pod is frozen after the way back",
    "early": "the counterpart was resumed before its devices ran",
    "state": "the counterpart was not given what was saved",
}


async def quiesced(world: Cluster) -> None:
    """Barrier A is passed."""
    operator = world.operator
    await operator.pre_copy()
    report = await operator.tell(SOURCE, Goal.QUIESCED)
    assert report.failure is None, report.failure


async def voted(world: Cluster) -> None:
    """Everything is loaded."""
    await world.operator.until_voted()


MOMENTS: dict[str, Callable[[Cluster], Awaitable[None]]] = {"quiesced": quiesced, "voted": voted}


def freezes(world: Cluster, pod: Pod, **changes: bool) -> None:
    world.operator.workloads = {SOURCE: (pod.workload(**changes),)}


@pytest.mark.parametrize("moment", list(MOMENTS))
def test_an_agent_that_is_killed_while_its_pod_is_frozen_thaws_it_on_the_way_back(tmp_path: Path, moment: str) -> None:
    async def scene(pod: Pod) -> None:
        async with cluster(tmp_path) as world:
            freezes(world, pod)
            await MOMENTS[moment](world)
            pod.ask()
            await world.source.kill()
            assert pod.frozen
            assert pod.silent()
            await world.source.start()
            assert pod.frozen, "whether it goes back is not for an agent to say that has only just begun"
            await world.operator.roll_back()
            assert pod.answers()
            assert world.source.states() == RUNNING

    with pods_world.pod() as pod:
        asyncio.run(scene(pod))


@pytest.mark.parametrize("killed", [False, True], ids=["agent lives", "agent killed"])
@pytest.mark.parametrize("moment", list(MOMENTS))
def test_without_an_operator_the_source_asks_for_abort_and_its_pod_runs_on(
    tmp_path: Path, moment: str, killed: bool
) -> None:
    """Nobody ever comes back: nothing is decided, so what the source asks for comes true."""

    async def scene(pod: Pod) -> None:
        async with cluster(tmp_path) as world:
            freezes(world, pod)
            world.operator.spec = dict(SHORT)
            await MOMENTS[moment](world)
            pod.ask()
            await world.leave()
            if killed:
                await world.source.kill()
                await world.source.start(connects=False)
            assert await asyncio.to_thread(pod.answers)
            assert (world.api.decision, world.api.decided_by) == (Outcome.ABORT, f"{AGENT_PREFIX}a")
            await world.source.logs("finishing alone")

    with pods_world.pod() as pod:
        asyncio.run(scene(pod))


@pytest.mark.parametrize("killed", [False, True], ids=["agent lives", "agent killed"])
def test_without_an_operator_a_source_whose_state_went_away_stays_frozen(tmp_path: Path, killed: bool) -> None:
    """Commit had been written before its leader ended: the source asks, reads that, and never runs again."""

    async def scene(pod: Pod) -> None:
        async with cluster(tmp_path) as world:
            freezes(world, pod)
            world.operator.spec = dict(SHORT)
            await voted(world)
            pod.ask()
            world.api.decision = COMMIT
            await world.leave()
            if killed:
                await world.source.kill()
                await world.source.start(connects=False)
            await world.source.logs("decision read")
            await world.target.logs("finishing alone")
            await eventually(lambda: world.target.states() == RUNNING)
            assert pod.frozen
            assert pod.silent()
            assert "RUNNING" not in world.source.states()

    with pods_world.pod() as pod:
        asyncio.run(scene(pod))


# --- what is promised, and agents that break it


async def freeze_and_commit(folder: Path, module: str, role: Role) -> list[str]:
    """Promises that were broken by a migration whose pod is frozen."""
    with pods_world.pod() as pod:
        async with cluster(folder, {role: module}) as world:
            freezes(world, pod)
            await voted(world)
            pod.ask()
            operator = world.operator
            operator.decision = COMMIT
            assert (await operator.tell(TARGET, Goal.RUNNING)).failure is None
            kept = pod.frozen
            assert (await operator.tell(SOURCE, Goal.RELEASED)).failure is None
        return [] if kept and await asyncio.to_thread(pod.ended_silently) else ["thawed"]


async def freeze_and_go_back(folder: Path, module: str, role: Role) -> list[str]:
    """Promises that were broken by a migration that turned back."""
    with pods_world.pod() as pod:
        async with cluster(folder, {role: module}) as world:
            freezes(world, pod)
            await quiesced(world)
            await world.operator.roll_back()
        return ["frozen"] if pod.frozen else []


async def do_not_freeze(folder: Path, module: str, role: Role) -> list[str]:
    """Promises that were broken because the kernel does not say that a pod is frozen."""
    broken = []
    for version in (1, 2):
        here = folder / str(version)
        stubborn = Stubborn(here / "host", version)
        settings = {SOURCE: {"CGROUP_DIR": str(stubborn.folders.cgroups)}}
        async with cluster(here, {role: module}, settings) as world:
            workload: Workload = stubborn.workload(milliseconds=200)
            world.operator.workloads = {SOURCE: (workload,)}
            await world.operator.pre_copy()
            report = await world.operator.tell(SOURCE, Goal.STOP_COPY)
            if {"PRE_COPY_P2P", "STOP_COPY"} & set(world.arcs(SOURCE)):
                broken.append("before")
            else:
                assert report.failure is not None
            world.operator.decision = ABORT
    return sorted(set(broken))


async def save_and_load(folder: Path, module: str, role: Role) -> list[str]:
    """Promises that were broken by a migration whose pod is asked by its hook."""
    broken = []
    with PodServer({hooks.SAVE: answer("200 OK", STATE)}) as source, PodServer() as target:
        async with cluster(folder, {role: module}) as world:
            operator = world.operator
            operator.workloads = {SOURCE: (hooked(source.hook()),), TARGET: (hooked(target.hook()),)}

            def heard(step: str) -> None:
                if step == hooks.RESUME and world.target.states() != RUNNING:
                    broken.append("early")

            target.heard = heard
            await voted(world)
            if target.body(hooks.LOAD) != STATE:
                broken.append("state")
            operator.decision = COMMIT
            assert (await operator.tell(TARGET, Goal.RUNNING)).failure is None
            assert target.done[-1] == hooks.RESUME
            assert (await operator.tell(SOURCE, Goal.RELEASED)).failure is None
            if hooks.RESUME in source.done:
                broken.append("thawed")
    return sorted(set(broken))


TALES = (freeze_and_commit, freeze_and_go_back, do_not_freeze, save_and_load)
Tale = Callable[[Path, str, Role], Awaitable[list[str]]]


@pytest.mark.parametrize("tale", TALES, ids=lambda tale: tale.__name__)
def test_an_agent_keeps_every_promise(tmp_path: Path, tale: Tale) -> None:
    assert [PROMISES[broken] for broken in asyncio.run(run(tale, tmp_path, "vfio_agent", SOURCE))] == []


@pytest.mark.parametrize(
    ("module", "role", "tale", "broken"),
    [
        ("agent_that_trusts_the_freezer", SOURCE, do_not_freeze, "before"),
        ("agent_that_thaws_after_commit", SOURCE, freeze_and_commit, "thawed"),
        ("agent_that_thaws_after_commit", SOURCE, save_and_load, "thawed"),
        ("agent_that_does_not_thaw", SOURCE, freeze_and_go_back, "frozen"),
        ("agent_that_resumes_pods_early", TARGET, save_and_load, "early"),
        ("agent_that_forgets_what_was_saved", SOURCE, save_and_load, "state"),
    ],
)
def test_mutant_a_broken_agent_is_found_out(tmp_path: Path, module: str, role: Role, tale: Tale, broken: str) -> None:
    assert asyncio.run(run(tale, tmp_path, f"mutants.{module}", role)) == [broken]


async def run(tale: Tale, folder: Path, module: str, role: Role) -> list[str]:
    """What comes of a tale."""
    return await tale(folder, module, role)
