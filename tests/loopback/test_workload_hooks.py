"""Pods pause, save, load and resume by themselves, each step in its place: asked by real HTTP."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

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
from loopback.hook_world import Answer, Asked, PodServer, answer, in_turn, raw
from loopback.moving_world import (
    GOING,
    SHORT_MILLISECONDS,
    STATE,
    arcs_after_pre_copy,
    commit,
    failure_of,
    move,
    steps,
    undo,
)
from loopback.pods_world import hooked
from vfio_agent import hooks
from vfio_agent.devices.protocol import DataStream
from vfio_agent.podstate import POD
from vfio_agent.sender import Sender
from vfio_api.device import DeviceState as S
from vfio_api.errors import Reason
from vfio_api.types import Goal, Outcome, Role, SessionSpec


@pytest.fixture
def pair() -> Iterator[tuple[PodServer, PodServer]]:
    """A pod with a hook and its counterpart."""
    with PodServer({hooks.SAVE: answer("200 OK", STATE)}) as source, PodServer() as target:
        yield source, target


def test_a_pod_that_opens_another_device_while_it_is_paused_is_not_stopped(
    nodes: tuple[Node, Node], pair: tuple[PodServer, PodServer]
) -> None:
    source, target = pair

    async def scene(operator: Operator) -> None:
        workload = hooked(source.hook())
        for role, pod in ((SOURCE, workload), (TARGET, hooked(target.hook(), "web-moved"))):
            spec = SessionSpec((DEVICES[0],), workloads=(pod,))
            assert (await operator.tell(role, Goal.PREPARED, spec=spec)).failure is None
        assert (await operator.tell(SOURCE, Goal.PRE_COPY)).failure is None
        begun, holdings = len(nodes[0].arcs()), operator.source.holdings

        def opens(step: str) -> None:
            if step == hooks.PAUSE:
                holdings.release("sim1")
                holdings.open("sim1", "pod team/web", workload.pod_uid)

        source.heard = opens
        failed = await operator.tell(SOURCE, Goal.STOP_COPY)
        assert failure_of(failed).reason is Reason.POD_DEVICES_SPLIT
        assert arcs_after_pre_copy(nodes[0], begun) == []
        await operator.roll_back()
        assert source.done == [hooks.PAUSE, hooks.RESUME]

    play(nodes, scene)


def test_what_a_pod_saves_is_loaded_by_its_counterpart(
    nodes: tuple[Node, Node], pair: tuple[PodServer, PodServer]
) -> None:
    """Paused before barrier A, saved when all sources are stopped, loaded before the vote, resumed after barrier D."""
    source, target = pair

    async def scene(operator: Operator) -> None:
        seen: dict[str, object] = {}
        move(operator, hooked(source.hook()), hooked(target.hook(), "web-moved"))
        await operator.pre_copy()
        begun = len(nodes[0].arcs()), len(nodes[1].arcs())
        (loading,) = operator.target.agent.sessions()
        source.heard = lambda step: seen.setdefault(step, arcs_after_pre_copy(nodes[0], begun[0]))
        target.heard = lambda step: seen.setdefault(f"target's {step}", (nodes[1].arcs()[begun[1] :], loading.reached))
        assert (await operator.tell(SOURCE, Goal.STOP_COPY)).failure is None
        await operator.target.until(TARGET, lambda r: r.reached is Goal.LOADED)
        assert (source.done, target.done) == ([hooks.PAUSE, hooks.SAVE], [hooks.LOAD])
        assert seen[hooks.PAUSE] == []
        assert seen[hooks.SAVE] == ["PRE_COPY_P2P"] * COUNT + ["STOP_COPY"] * COUNT
        assert target.body(hooks.LOAD) == STATE
        running = await commit(operator)
        assert target.done == [hooks.LOAD, hooks.RESUME]
        arcs, reached = seen["target's resume"]  # type: ignore[misc]
        assert [state for _, state in arcs][-COUNT:] == ["RUNNING"] * COUNT
        assert reached is not Goal.RUNNING, "it is told when the pod runs, too"
        assert seen["target's load"][1] is not Goal.LOADED  # type: ignore[index]
        released = await operator.tell(SOURCE, Goal.RELEASED)
        assert source.done == [hooks.PAUSE, hooks.SAVE], "it is not resumed: it would run twice"
        assert {"pause", "save"} <= steps(released).keys()
        assert {"load/pod", "resume"} <= steps(running).keys()
        stopped, ran = (side.agent.reports() for side in (operator.source, operator.target))
        assert stopped == ()
        assert ran[0].turned_microseconds > 0

    play(nodes, scene)


def test_an_empty_state_is_handed_over_as_well(nodes: tuple[Node, Node], pair: tuple[PodServer, PodServer]) -> None:
    source, target = pair
    source.steps[hooks.SAVE] = answer()

    async def scene(operator: Operator) -> None:
        move(operator, hooked(source.hook()), hooked(target.hook()))
        await operator.until_voted()
        assert target.body(hooks.LOAD) == b""
        await undo(operator)

    play(nodes, scene)


BAD: dict[str, Callable[[PodServer], Answer]] = {
    "500": lambda _pod: answer("500 Internal Server Error", b"stuck"),
    "hangs": lambda pod: pod.hang,
    "no HTTP": lambda _pod: raw(b"hello"),
}


@pytest.mark.parametrize("how", list(BAD))
def test_a_hook_that_does_not_pause_ends_it_before_any_device_is_touched(
    nodes: tuple[Node, Node], pair: tuple[PodServer, PodServer], how: str
) -> None:
    """All of its steps fail, also the one that takes the pause back: it never said that it was paused."""
    source, target = pair
    source.steps = dict.fromkeys((hooks.PAUSE, hooks.RESUME), BAD[how](source))

    async def scene(operator: Operator) -> None:
        move(operator, hooked(source.hook(milliseconds=SHORT_MILLISECONDS)), hooked(target.hook()))
        await operator.pre_copy()
        begun = len(nodes[0].arcs())
        failure = failure_of(await operator.tell(SOURCE, Goal.STOP_COPY))
        assert failure.reason is Reason.PAUSE_FAILED
        assert failure.message.startswith("hook pause of pod team/web: expected 200 or 204")
        assert arcs_after_pre_copy(nodes[0], begun) == []
        await undo(operator)
        assert source.done == [hooks.PAUSE, hooks.RESUME]
        assert target.done == []

    play(nodes, scene)


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (answer("500 Oh"), "500 Oh"),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nabc"), "96 bytes too early"),
        (answer("200 OK", bytes(hooks.MAX_STATE + 1)), "more than 16777216 bytes"),
    ],
    ids=["500", "cut", "too much"],
)
def test_what_cannot_be_saved_is_rolled_back(
    nodes: tuple[Node, Node], pair: tuple[PodServer, PodServer], said: Answer, found: str
) -> None:
    source, target = pair
    source.steps[hooks.SAVE] = said

    async def scene(operator: Operator) -> None:
        move(operator, hooked(source.hook()), hooked(target.hook()))
        await operator.pre_copy()
        failure = failure_of(await operator.tell(SOURCE, Goal.STOP_COPY))
        assert failure.message.startswith("hook save of pod team/web: ")
        assert found in failure.message
        await undo(operator)
        assert source.done == [hooks.PAUSE, hooks.SAVE, hooks.RESUME]
        assert target.done == []

    play(nodes, scene)


@pytest.mark.parametrize("how", list(BAD))
def test_there_is_no_vote_for_what_the_counterpart_does_not_load(
    nodes: tuple[Node, Node], pair: tuple[PodServer, PodServer], how: str
) -> None:
    source, target = pair
    target.steps[hooks.LOAD] = BAD[how](target)

    async def scene(operator: Operator) -> None:
        move(operator, hooked(source.hook()), hooked(target.hook(milliseconds=SHORT_MILLISECONDS), "web-moved"))
        await operator.pre_copy()
        assert (await operator.tell(SOURCE, Goal.STOP_COPY)).failure is None
        report = await operator.target.until(TARGET, lambda r: r.failure is not None)
        assert failure_of(report).message.startswith("hook load of pod team/web-moved: ")
        assert report.reached is Goal.PREPARED
        await undo(operator)
        assert source.done[-1] == hooks.RESUME
        assert target.done == [hooks.LOAD], "a counterpart that is not to run is not resumed"

    play(nodes, scene)


@pytest.mark.parametrize("killed", [False, True], ids=["same agent", "agent killed"])
@pytest.mark.parametrize("go", list(GOING))
def test_every_way_back_resumes(
    nodes: tuple[Node, Node], pair: tuple[PodServer, PodServer], go: str, killed: bool
) -> None:
    source, target = pair

    async def scene(operator: Operator) -> None:
        move(operator, hooked(source.hook()), hooked(target.hook()))
        await GOING[go](operator)
        assert hooks.RESUME not in source.done
        if killed:
            await replaced(operator, SOURCE)
        await undo(operator)
        assert source.done.count(hooks.RESUME) == 1
        assert source.done[-1] == hooks.RESUME
        assert hooks.RESUME not in target.done

    play(nodes, scene)


@pytest.mark.parametrize("moment", ["prepared", "pre-copy"])
def test_before_the_switchover_a_pod_is_not_disturbed(
    nodes: tuple[Node, Node], pair: tuple[PodServer, PodServer], moment: str
) -> None:
    source, target = pair

    async def scene(operator: Operator) -> None:
        move(operator, hooked(source.hook()), hooked(target.hook()))
        await (operator.prepare() if moment == "prepared" else operator.pre_copy())
        await undo(operator)
        assert source.done == target.done == []

    play(nodes, scene)


async def decided_and_not_resumed(
    operator: Operator, pair: tuple[PodServer, PodServer], role: Role, decision: Outcome
) -> None:
    """The pod of that side refuses the first time that it is to run."""
    pair[role is TARGET].steps[hooks.RESUME] = in_turn(answer("500 Not now"), answer())
    move(operator, *(hooked(pod.hook()) for pod in pair))
    await operator.until_voted()
    operator.decision = decision
    report = await operator.tell(role, Goal.RUNNING)
    assert failure_of(report).reason is Reason.RESUME_FAILED
    assert report.reached is not Goal.RUNNING


def test_a_pod_that_is_paused_and_does_not_resume_is_no_way_back(
    nodes: tuple[Node, Node], pair: tuple[PodServer, PodServer]
) -> None:
    """Its devices run, it does not: that is said until it does."""
    source, _ = pair

    async def scene(operator: Operator) -> None:
        await decided_and_not_resumed(operator, pair, SOURCE, ABORT)
        assert operator.source.states() == [S.RUNNING] * COUNT
        await undo(operator)
        assert source.done == [hooks.PAUSE, hooks.SAVE, hooks.RESUME, hooks.RESUME]

    play(nodes, scene)


def test_a_counterpart_that_does_not_resume_is_told_again(
    nodes: tuple[Node, Node], pair: tuple[PodServer, PodServer]
) -> None:
    source, _ = pair

    async def scene(operator: Operator) -> None:
        await decided_and_not_resumed(operator, pair, TARGET, COMMIT)
        await commit(operator)
        assert (await operator.tell(SOURCE, Goal.RELEASED)).failure is None
        assert hooks.RESUME not in source.done

    play(nodes, scene)


def test_an_agent_that_ends_before_its_counterpart_resumed_is_told_again(
    nodes: tuple[Node, Node], pair: tuple[PodServer, PodServer]
) -> None:
    """Its devices run, which is written down; that the pod does not is known by nobody."""
    _, target = pair

    async def scene(operator: Operator) -> None:
        await decided_and_not_resumed(operator, pair, TARGET, COMMIT)
        agent = await replaced(operator, TARGET)
        assert agent.reports[TARGET].reached is Goal.RUNNING_P2P
        begun = len(agent.node.arcs())
        await commit(operator)
        assert target.done[-2:] == [hooks.RESUME, hooks.RESUME]
        assert agent.node.arcs()[begun:] == [], "no device is moved again"
        again = await replaced(operator, TARGET)
        assert again.reports[TARGET].reached is Goal.RUNNING, "and it is not told again once it has said that it runs"

    play(nodes, scene)


def test_a_hook_that_outlasts_its_command_is_over_before_it_is_taken_back(
    nodes: tuple[Node, Node], pair: tuple[PodServer, PodServer]
) -> None:
    """What was said last is what the pod is: that it runs. It is not asked to pause again."""
    source, target = pair
    over, in_order = threading.Event(), []

    def pauses(connection: socket.socket, _asked: Asked) -> None:
        connection.recv(1)  # until who asks gives up
        over.set()

    source.steps[hooks.PAUSE] = pauses
    # far less than what was left of the pause when it was called off
    source.heard = lambda step: in_order.append(over.wait(1.5)) if step == hooks.RESUME else None

    async def scene(operator: Operator) -> None:
        move(operator, hooked(source.hook(milliseconds=4_000, retries=5)), hooked(target.hook()))
        await operator.pre_copy()
        failure = failure_of(await operator.tell(SOURCE, Goal.STOP_COPY, deadline=SHORT_MILLISECONDS))
        assert failure.reason is Reason.STEP_TIMEOUT
        await undo(operator)
        assert source.done == [hooks.PAUSE, hooks.RESUME]
        assert in_order == [True]

    play(nodes, scene)


def test_hooks_that_hang_leave_the_arcs_their_threads(
    nodes: tuple[Node, Node], pair: tuple[PodServer, PodServer]
) -> None:
    source, target = pair
    source.steps[hooks.PAUSE] = source.hang

    async def scene(operator: Operator) -> None:
        move(operator, hooked(source.hook()), hooked(target.hook()))
        await operator.pre_copy()
        asked = asyncio.Event()
        loop = asyncio.get_running_loop()
        source.heard = lambda _step: loop.call_soon_threadsafe(asked.set)
        operator.source.agent.take(operator.command(SOURCE, Goal.STOP_COPY))
        await asked.wait()
        assert operator.source.arcs._work_queue.qsize() == 0
        idle = operator.source.arcs._idle_semaphore._value
        assert idle == len(operator.source.arcs._threads), "no arc's thread waits for the pod"
        source.let_go.set()
        await operator.source.until(SOURCE, lambda r: r.failure is not None)
        await undo(operator)

    play(nodes, scene)


def test_both_sides_turn_when_their_pods_do(nodes: tuple[Node, Node], pair: tuple[PodServer, PodServer]) -> None:
    """An earlier leader's downtime, as the next one learns it, has the pause and the resume in it."""
    source, target = pair

    async def scene(operator: Operator) -> None:
        turned: dict[str, float | None] = {}
        move(operator, hooked(source.hook()), hooked(target.hook()))
        await operator.pre_copy()
        (stops,), (runs,) = operator.source.agent.sessions(), operator.target.agent.sessions()
        source.heard = lambda step: turned.setdefault(step, stops._turned)
        target.heard = lambda step: turned.setdefault(step, runs._turned)
        assert (await operator.tell(SOURCE, Goal.STOP_COPY)).failure is None
        await operator.target.until(TARGET, lambda r: r.reached is Goal.LOADED)
        assert turned[hooks.PAUSE] is not None
        assert turned[hooks.PAUSE] == stops._turned, "it is down from the pause on"
        await commit(operator)
        assert turned[hooks.RESUME] is not None
        assert runs._turned is not None
        assert runs._turned > turned[hooks.RESUME], "and until its counterpart runs"
        assert (await operator.tell(SOURCE, Goal.RELEASED)).failure is None

    play(nodes, scene)


def test_a_pod_that_takes_its_time_to_save_keeps_no_thread_busy(
    nodes: tuple[Node, Node], pair: tuple[PodServer, PodServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its stream is to be ended before there is anything in it: it waits for that, and does not keep looking."""
    source, target = pair
    looks: list[str] = []
    wait = Sender._wait

    def counted(self: Sender, *, idle: bool) -> tuple[DataStream | None, bool]:
        looks.append(self._device)
        return wait(self, idle=idle)

    monkeypatch.setattr(Sender, "_wait", counted)
    source.heard = lambda step: time.sleep(0.2) if step == hooks.SAVE else None

    async def scene(operator: Operator) -> None:
        move(operator, hooked(source.hook()), hooked(target.hook()))
        await operator.until_voted()
        assert looks.count(POD) < 10
        await undo(operator)

    play(nodes, scene)
