"""Two agents in one process, on real simulated devices with real streams and keepers; the test is the operator."""

import errno
from collections.abc import Callable

import pytest

from loopback.agents_world import (
    ABORT,
    COMMIT,
    COUNT,
    NAMES,
    SOURCE,
    TARGET,
    Node,
    Operator,
    assert_nothing_lost,
    assert_sources_run,
    assert_targets_blank,
    play,
    replaced,
)
from vfio_agent import machine
from vfio_api.device import DeviceState as S
from vfio_api.errors import Reason
from vfio_api.types import (
    DeviceReport,
    Goal,
    Role,
)

# --- the good case


def test_a_whole_migration(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        await operator.until_voted()
        assert operator.source.states() == [S.STOP_COPY] * COUNT
        assert operator.target.states() == [S.STOP] * COUNT
        operator.decision = COMMIT
        running = await operator.tell(TARGET, Goal.RUNNING)
        assert running.failure is None
        assert operator.target.states() == [S.RUNNING] * COUNT
        assert [operator.target.device(f"sim{n}").read_region(0, 8) for n in range(COUNT)] == [
            b"marker 0",
            b"marker 1",
        ]
        stopped, ran = (side.agent.reports()[0].turned_microseconds for side in (operator.source, operator.target))
        assert stopped > ran > 0, "an earlier leader's downtime is known to the next one"
        registers = [operator.target.device(f"sim{n}").read_registers(0, 12) for n in range(COUNT)]
        assert registers == [b"\0\0\0\0set up 0", b"\0\0\0\0set up 1"]
        released = await operator.tell(SOURCE, Goal.RELEASED)
        assert [d.state for d in released.devices] == [S.STOP] * COUNT
        assert operator.source.holdings.all() == {}
        await operator.tell(TARGET, Goal.RELEASED)
        assert {h.holder for h in operator.target.holdings.all().values()} == {"keeper"}
        assert set(operator.target.keeper.held()) == {"sim0", "sim1"}
        assert operator.target.states() == [S.RUNNING] * COUNT
        assert_nothing_lost(operator, TARGET)
        assert operator.source.agent.reports() == operator.target.agent.reports() == ()
        assert operator.source.journal.sessions() == operator.target.journal.sessions() == []
        steps = {timing.step for timing in (*released.timings, *running.timings)}
        assert {"barrier_a", "barrier_b", "transfer", "barrier_c", "barrier_d", "load/gpu0", "load/gpu1"} <= steps

    play(nodes, scene)


def test_the_bytes_that_were_sent_are_the_bytes_that_were_loaded(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        await operator.until_voted()
        assert operator.target.agent.reports()[0].turned_microseconds == 0, "it does not run yet"
        sent, loaded = (operator.agent(role).reports[role].devices for role in (SOURCE, TARGET))
        assert [d.transferred_bytes for d in sent] == [d.transferred_bytes for d in loaded]
        assert all(d.transferred_bytes > 200_000 for d in sent)
        await operator.roll_back()

    play(nodes, scene)


# --- a failure of each arc


def arc_id(value: object) -> str:
    return "-".join(s.name for s in value) if isinstance(value, tuple) else str(value)


FORWARD_ARCS = [
    (SOURCE, (S.RUNNING, S.PRE_COPY)),
    (SOURCE, (S.PRE_COPY, S.PRE_COPY_P2P)),
    (SOURCE, (S.PRE_COPY_P2P, S.STOP_COPY)),
    (TARGET, (S.RUNNING, S.RUNNING_P2P)),
    (TARGET, (S.RUNNING_P2P, S.STOP)),
    (TARGET, (S.STOP, S.RESUMING)),
    (TARGET, (S.RESUMING, S.STOP)),
]


@pytest.mark.parametrize(("role", "arc"), FORWARD_ARCS, ids=arc_id)
@pytest.mark.parametrize("which", ["sim0", "sim1"])
def test_an_arc_that_fails_is_reported_and_the_rollback_leaves_every_source_running(
    nodes: tuple[Node, Node], role: Role, arc: tuple[S, S], which: str
) -> None:
    async def scene(operator: Operator) -> None:
        operator.agent(role).node.control.fault(which, arc=arc, error=errno.EIO)
        failed = None
        for side, goal in (
            (SOURCE, Goal.PREPARED),
            (TARGET, Goal.PREPARED),
            (SOURCE, Goal.PRE_COPY),
            (SOURCE, Goal.STOP_COPY),
        ):
            failed = (await operator.tell(side, goal)).failure
            if failed is not None:
                break
        if failed is None:
            failed = (await operator.target.until(TARGET, lambda r: r.failure is not None)).failure
        assert failed is not None
        name = NAMES[int(which[-1])]
        assert (failed.device, failed.errno) == (name, errno.EIO)
        assert failed.arc.split(" -> ")[0] in {s.name for s in S}
        assert failed.reason in (Reason.ARC_FAILED, Reason.STATE_REFUSED)
        await operator.roll_back()
        assert_sources_run(operator)
        assert_nothing_lost(operator, SOURCE)
        assert_targets_blank(operator)

    play(nodes, scene)


@pytest.mark.parametrize("op", ["read", "write"])
def test_a_stream_that_fails_at_a_device_is_rolled_back(nodes: tuple[Node, Node], op: str) -> None:
    async def scene(operator: Operator) -> None:
        role = SOURCE if op == "read" else TARGET
        await operator.prepare()
        operator.agent(role).node.control.fault("sim1", op, error=errno.EIO, after_bytes=100_000)
        await operator.tell(SOURCE, Goal.PRE_COPY)
        failed = (await operator.agent(role).until(role, lambda r: r.failure is not None)).failure
        assert failed is not None
        assert (failed.device, failed.errno) == ("gpu1", errno.EIO)
        await operator.roll_back()
        assert_sources_run(operator)
        assert_nothing_lost(operator, SOURCE)
        assert_targets_blank(operator)

    play(nodes, scene)


@pytest.mark.parametrize("moment", ["prepared", "pre-copy", "quiesced", "voted"])
def test_a_rollback_from_any_point_leaves_every_source_running(nodes: tuple[Node, Node], moment: str) -> None:
    async def scene(operator: Operator) -> None:
        if moment == "prepared":
            await operator.prepare()
        elif moment == "voted":
            await operator.until_voted()
        else:
            await operator.pre_copy()
        if moment == "quiesced":
            assert (await operator.tell(SOURCE, Goal.QUIESCED)).failure is None
        await operator.roll_back()
        assert_sources_run(operator)
        assert_nothing_lost(operator, SOURCE)
        assert_targets_blank(operator)
        again = operator.source.agent.reports(), operator.target.agent.reports()
        assert again == ((), ())

    play(nodes, scene)


def test_a_rollback_arc_that_fails_once_is_made_when_it_is_told_again(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        await operator.until_voted()
        nodes[0].control.fault("sim0", arc=(S.STOP, S.RUNNING_P2P), error=errno.EIO)
        operator.decision = ABORT
        failed = (await operator.tell(SOURCE, Goal.RUNNING_P2P)).failure
        assert failed is not None
        assert S.RUNNING not in operator.source.states()
        await operator.roll_back()
        assert_sources_run(operator)
        assert_nothing_lost(operator, SOURCE)

    play(nodes, scene)


def test_an_arc_that_lasts_beyond_its_deadline_is_no_running_source_in_disguise(nodes: tuple[Node, Node]) -> None:
    """The thread is still within the arc when the step is given up; the rollback must see where the device got to."""

    async def scene(operator: Operator) -> None:
        await operator.pre_copy()
        nodes[0].control.fault("sim0", arc=(S.PRE_COPY_P2P, S.STOP_COPY), delay_us=400_000)
        failed = (await operator.tell(SOURCE, Goal.STOP_COPY, deadline=100)).failure
        assert failed is not None
        assert failed.reason is Reason.STEP_TIMEOUT
        await operator.roll_back()
        assert_sources_run(operator)
        assert_nothing_lost(operator, SOURCE)

    play(nodes, scene)


def slow_writes(operator: Operator) -> None:
    """Writes are under way for much longer than it is from one to the next, so that some always are."""
    operator.source.node.control.configure(rate_per_second=3000, latency_us=20_000)


def test_writes_that_are_under_way_when_the_switchover_begins_arrive(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        slow_writes(operator)
        await operator.pre_copy()
        assert (await operator.tell(SOURCE, Goal.STOP_COPY)).failure is None
        await operator.roll_back()
        assert_nothing_lost(operator, SOURCE)

    play(nodes, scene)


def test_mutant_an_agent_that_stops_its_devices_one_by_one_loses_writes(
    nodes: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    def only(name: str) -> Callable[[machine.DeviceFacts, bool], S | None]:
        return lambda device, _wanted: S.STOP_COPY if device.name == name else None

    one_by_one = tuple((f"stop_{name}", only(name)) for name in NAMES)
    monkeypatch.setattr(machine, "WAYPOINTS", {**machine.WAYPOINTS, (SOURCE, Goal.STOP_COPY): one_by_one})

    async def scene(operator: Operator) -> None:
        slow_writes(operator)
        await operator.pre_copy()
        assert (await operator.tell(SOURCE, Goal.STOP_COPY)).failure is None
        await operator.roll_back()
        with pytest.raises(AssertionError):
            assert_nothing_lost(operator, SOURCE)

    play(nodes, scene)


def test_mutant_a_rollback_without_its_barrier_loses_writes(
    nodes: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(operator: Operator) -> None:
        await operator.pre_copy()
        await operator.tell(SOURCE, Goal.STOP_COPY)
        assert_nothing_lost(operator, SOURCE)
        goal = (SOURCE, Goal.RUNNING)
        monkeypatch.setattr(machine, "WAYPOINTS", {**machine.WAYPOINTS, goal: machine.WAYPOINTS[goal][-1:]})
        operator.source.node.control.fault("sim1", arc=(S.STOP_COPY, S.STOP), delay_us=50_000)
        await operator.tell(SOURCE, Goal.RUNNING, decision=ABORT)
        with pytest.raises(AssertionError):
            assert_nothing_lost(operator, SOURCE)

    play(nodes, scene)


# --- what an agent refuses


def test_a_loaded_target_does_not_run_without_commit(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        await operator.until_voted()
        for goal in (Goal.RUNNING_P2P, Goal.RUNNING):
            refused = (await operator.tell(TARGET, goal)).failure
            assert refused is not None
            assert refused.reason is Reason.COMMAND_REFUSED
            assert "no Commit is known" in refused.message
        refused = (await operator.tell(SOURCE, Goal.RUNNING)).failure
        assert refused is not None
        assert "no Abort is known" in refused.message
        assert operator.target.states() == [S.STOP] * COUNT
        assert operator.source.states() == [S.STOP_COPY] * COUNT
        await operator.roll_back()
        assert_sources_run(operator)

    play(nodes, scene)


def test_a_source_does_not_run_after_commit(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        await operator.until_voted()
        operator.decision = COMMIT
        for goal in (Goal.RUNNING_P2P, Goal.RUNNING):
            refused = (await operator.tell(SOURCE, goal)).failure
            assert refused is not None
            assert "the decision is Commit" in refused.message
        assert operator.source.states() == [S.STOP_COPY] * COUNT
        assert (await operator.tell(TARGET, Goal.RUNNING)).reached is Goal.RUNNING

    play(nodes, scene)


def test_a_command_of_an_older_epoch_is_refused(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        await operator.prepare()
        operator.epoch = 5
        assert (await operator.tell(SOURCE, Goal.PREPARED)).failure is None
        refused = (await operator.tell(SOURCE, Goal.PRE_COPY, epoch=4)).failure
        assert refused is not None
        assert refused.reason is Reason.STALE_EPOCH
        await operator.source.agent.raise_epoch(9)
        refused = (await operator.tell(SOURCE, Goal.PRE_COPY, epoch=8)).failure
        assert refused is not None
        assert refused.message.endswith("command of epoch 8, this node has seen 9")
        assert operator.source.states() == [S.RUNNING] * COUNT
        assert operator.source.journal.highest_epoch() == 9
        operator.epoch = 9
        assert (await operator.tell(SOURCE, Goal.PRE_COPY)).failure is None
        await operator.roll_back()

    play(nodes, scene)


def test_a_late_command_of_an_old_leader_does_not_unsay_how_a_session_ended(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        await operator.prepare()
        old = operator.command(SOURCE, Goal.PREPARED)
        operator.epoch = 5
        await operator.source.agent.raise_epoch(5)
        ended = await operator.roll_back()
        operator.source.agent.take(old)
        operator.source.agent.take(operator.command(TARGET, Goal.RELEASED))  # what is said of SOURCE comes first
        await operator.source.until(TARGET, lambda report: report.reached is Goal.RELEASED)
        assert ended.reached is Goal.RELEASED
        assert operator.source.reports[SOURCE] == ended

    play(nodes, scene)


def test_a_repeated_command_changes_nothing(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        async def twice(role: Role, goal: Goal) -> None:
            command = operator.command(role, goal)
            first = await operator.say(command)
            arcs = operator.agent(role).node.arcs()
            second = await operator.say(command)
            assert first.failure is second.failure is None
            assert second.reached is goal
            if goal is not Goal.RELEASED:
                assert [d.state for d in second.devices] == [d.state for d in first.devices]
            assert operator.agent(role).node.arcs() == arcs

        await operator.prepare()
        await twice(TARGET, Goal.PREPARED)
        await twice(SOURCE, Goal.PRE_COPY)
        await twice(SOURCE, Goal.QUIESCED)
        await twice(SOURCE, Goal.STOP_COPY)
        await operator.target.until(TARGET, lambda r: r.reached is Goal.LOADED)
        operator.decision = COMMIT
        await twice(TARGET, Goal.RUNNING_P2P)
        await twice(TARGET, Goal.RUNNING)
        await twice(SOURCE, Goal.RELEASED)
        await twice(TARGET, Goal.RELEASED)
        assert operator.target.states() == [S.RUNNING] * COUNT

    play(nodes, scene)


def test_a_command_without_a_session_is_refused(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        for role, goal in ((SOURCE, Goal.PRE_COPY), (TARGET, Goal.RUNNING)):
            refused = (await operator.tell(role, goal)).failure
            assert refused is not None
            assert "Prepared comes first" in refused.message
        released = await operator.tell(TARGET, Goal.RELEASED)
        assert (released.reached, released.failure) == (Goal.RELEASED, None)

    play(nodes, scene)


def test_a_target_in_use_is_refused_and_left_alone(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        held = operator.target.holdings.open("sim1", "somebody else")
        operator.target.device("sim1").write_region(0, b"precious")
        await operator.tell(SOURCE, Goal.PREPARED)
        refused = (await operator.tell(TARGET, Goal.PREPARED)).failure
        assert refused is not None
        assert (refused.reason, refused.device) == (Reason.TARGET_HAS_HOLDER, "gpu1")
        await operator.tell(TARGET, Goal.RELEASED)
        assert operator.target.device("sim1").read_region(0, 8) == b"precious"
        assert set(operator.target.holdings.all()) == {"sim1"}
        assert operator.target.holdings.get("sim1") is held

    play(nodes, scene)


def test_a_source_that_is_not_held_is_refused_and_can_be_given_up(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        operator.source.holdings.release("sim1")
        refused = (await operator.tell(SOURCE, Goal.PREPARED)).failure
        assert refused is not None
        assert (refused.reason, refused.device) == (Reason.SOURCE_NOT_HELD, "gpu1")
        for goal in (Goal.RUNNING, Goal.RELEASED):
            report = await operator.tell(SOURCE, goal)
            assert report.failure is None, report.failure
        assert operator.source.device("sim0").state() is S.RUNNING

    play(nodes, scene)


# --- an agent that was killed


@pytest.mark.parametrize("role", [SOURCE, TARGET])
def test_an_agent_killed_in_pre_copy_rolls_back(nodes: tuple[Node, Node], role: Role) -> None:
    async def scene(operator: Operator) -> None:
        await operator.pre_copy()
        agent = await replaced(operator, role)
        failed = agent.reports[role].failure
        assert failed is not None
        assert failed.reason is Reason.AGENT_RESTARTED
        await operator.roll_back()
        assert_sources_run(operator)
        assert_nothing_lost(operator, SOURCE)
        assert_targets_blank(operator)

    play(nodes, scene)


def test_a_target_killed_after_its_vote_keeps_it(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        await operator.until_voted()
        agent = await replaced(operator, TARGET)
        report = agent.reports[TARGET]
        assert (report.reached, report.failure) == (Goal.LOADED, None)
        assert agent.states() == [S.STOP] * COUNT
        operator.decision = COMMIT
        running = await operator.tell(TARGET, Goal.RUNNING)
        assert running.failure is None
        assert [agent.device(f"sim{n}").read_region(0, 8) for n in range(COUNT)] == [b"marker 0", b"marker 1"]
        assert_nothing_lost(operator, TARGET)
        assert (await operator.tell(SOURCE, Goal.RELEASED)).failure is None

    play(nodes, scene)


def test_a_source_killed_after_commit_is_released(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        await operator.until_voted()
        agent = await replaced(operator, SOURCE)
        operator.decision = COMMIT
        for goal in (Goal.RUNNING_P2P, Goal.RUNNING):
            refused = (await operator.tell(SOURCE, goal)).failure
            assert refused is not None
        assert agent.states() == [S.STOP_COPY] * COUNT
        assert (await operator.tell(TARGET, Goal.RUNNING)).failure is None
        released = await operator.tell(SOURCE, Goal.RELEASED)
        assert released.reached is Goal.RELEASED or (await agent.until(SOURCE, lambda r: r.reached is Goal.RELEASED))
        assert agent.holdings.all() == {}

    play(nodes, scene)


def test_reports_name_devices_by_their_name_and_address(nodes: tuple[Node, Node]) -> None:
    async def scene(operator: Operator) -> None:
        await operator.prepare()
        devices: tuple[DeviceReport, ...] = operator.source.reports[SOURCE].devices
        assert [(d.name, d.address, d.state) for d in devices] == [
            ("gpu0", "sim0", S.RUNNING),
            ("gpu1", "sim1", S.RUNNING),
        ]
        assert all(d.stop_copy_bytes > 200_000 and not d.size_unknown for d in devices)

    play(nodes, scene)
