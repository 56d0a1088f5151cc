"""The plan replayed from every interruption, against a small world that obeys the agents' own rules.

The world has a write-once store (etcd), agents that take commands through `vfio_agent.machine`, connections that lose
what is under way when they break, and a leader that forgets everything but what is stored. The promises I1 to I3 of
the design are checked after every single arc, also those within a round; I4 by every run having to end.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pure.plan_world import (
    LENGTHS,
    ONE_TO_ONE,
    ONE_TO_TWO,
    SHAPES,
    TWO_TO_ONE,
    TWO_TO_TWO,
    BrokenPromiseError,
    FakeDevice,
    World,
    at,
    every_shape,
    good_run,
    sweep,
)
from vfio_agent import machine
from vfio_api.device import RUNS
from vfio_api.errors import Reason
from vfio_api.models_status import Phase
from vfio_api.types import Failure, Goal, Outcome, Role
from vfio_operator import plan as planning
from vfio_operator.actions import (
    Finish,
    PersistFailure,
    Plan,
    Step,
)
from vfio_operator.observed import Limits, Observed, Strategy, Switchover, Wish
from vfio_operator.plan import plan
from vfio_operator.steps import FORWARD, ROLLBACK

# --- the good case


def test_one_source_node_and_one_target_node_need_no_barrier_message() -> None:
    """The agents run barriers A, C and D locally: BarrierA and BarrierC are passed by."""
    assert good_run(ONE_TO_ONE)[0] == [
        "Authorize",
        "AddFinalizer",
        "PersistPairs",
        "Claim",
        "PrepareSources",
        "PrepareTargets",
        "PreCopy",
        "BeginSwitchover",
        "BarrierB",
        "Vote",
        "Decide",
        "BarrierD",
        "ReleaseSources",
        "ReleaseTargets",
        "Unclaim",
        "Finish",
    ]


def test_two_source_nodes_and_two_target_nodes_pass_every_barrier() -> None:
    assert good_run(TWO_TO_TWO)[0] == [
        "Authorize",
        "AddFinalizer",
        "PersistPairs",
        "Claim",
        "PrepareSources",
        "PrepareTargets",
        "PreCopy",
        "BeginSwitchover",
        "BarrierA",
        "BarrierB",
        "Vote",
        "Decide",
        "BarrierC",
        "BarrierD",
        "ReleaseSources",
        "ReleaseTargets",
        "Unclaim",
        "Finish",
    ]


def test_only_the_side_over_several_nodes_needs_its_barriers() -> None:
    assert "BarrierA" in good_run(TWO_TO_ONE)[0]
    assert "BarrierC" not in good_run(TWO_TO_ONE)[0]
    assert "BarrierA" not in good_run(ONE_TO_TWO)[0]
    assert "BarrierC" in good_run(ONE_TO_TWO)[0]


# --- every interruption


@every_shape
def test_a_new_leader_at_any_moment_still_succeeds(shape: str) -> None:
    def attempt(world: World, moment: int) -> None:
        world.run(at(moment, world.elect))
        assert world.check_end() is Phase.SUCCEEDED

    assert sweep(shape, attempt) == {}


@every_shape
def test_a_new_leader_waits_for_an_agent_that_dials_late(shape: str) -> None:
    def attempt(world: World, moment: int) -> None:
        for late in world.agents:
            again = World(world.pairs)

            def elect(tick: int, world: World = again, late: str = late) -> None:
                if tick == moment:
                    world.elect(connected=[node for node in world.agents if node != late])
                if tick == moment + 30:
                    world.connect(late)

            again.run(elect, patience=moment + 31)
            assert again.check_end() is Phase.SUCCEEDED

    assert sweep(shape, attempt) == {}


def cancelled(world: World, moment: int) -> tuple[Phase, Phase]:
    """The end of a run that is cancelled at `moment`, and the end it should have."""
    committed = False

    def cancel() -> None:
        nonlocal committed
        committed = world.etcd.switchover.decision is Outcome.COMMIT
        world.cancel()

    world.run(at(moment, cancel))
    return world.check_end(), Phase.SUCCEEDED if committed else Phase.CANCELLED


@every_shape
def test_a_cancel_at_any_moment_ends_on_exactly_one_side(shape: str) -> None:
    def attempt(world: World, moment: int) -> None:
        found, expected = cancelled(world, moment)
        assert found is expected

    assert sweep(shape, attempt) == {}


@every_shape
def test_a_new_leader_during_the_rollback_of_a_cancelled_run_cancels_it_too(shape: str) -> None:
    def attempt(world: World, moment: int) -> None:
        for later in range(1, 40, 3):
            again = World(world.pairs)

            def interrupt(tick: int, world: World = again, later: int = later) -> None:
                if tick == moment:
                    world.cancel()
                if tick == moment + later:
                    world.elect()

            again.run(interrupt)
            assert again.check_end() in (Phase.CANCELLED, Phase.SUCCEEDED)

    assert sweep(shape, attempt, range(0, LENGTHS[shape], 3)) == {}


@every_shape
def test_a_new_leader_during_a_rollback_waits_for_an_agent_that_dials_late(shape: str) -> None:
    def attempt(world: World, moment: int) -> None:
        for late in {p.source_node for p in world.pairs}:
            again = World(world.pairs)

            def interrupt(tick: int, world: World = again, late: str = late) -> None:
                if tick == moment:
                    world.cancel()
                    world.elect(connected=[node for node in world.agents if node != late])
                if tick == moment + 60:
                    world.connect(late)

            again.run(interrupt, patience=moment + 61)
            assert again.check_end() in (Phase.CANCELLED, Phase.SUCCEEDED)

    assert sweep(shape, attempt) == {}


@every_shape
def test_a_timeout_of_the_operator_at_any_moment_rolls_back_unless_committed(shape: str) -> None:
    def attempt(world: World, moment: int) -> None:
        committed = False

        def expire() -> None:
            nonlocal committed
            committed = world.etcd.switchover.decision is Outcome.COMMIT
            world.expire()

        finish = world.run(at(moment, expire))
        assert world.check_end() is (Phase.SUCCEEDED if committed else Phase.FAILED)
        if not committed:
            assert finish.failure is not None
            assert finish.failure.reason is Reason.STEP_TIMEOUT

    assert sweep(shape, attempt) == {}


@every_shape
def test_a_device_that_fails_at_any_arc_ends_on_exactly_one_side(shape: str) -> None:
    """The arc fails once and the device stays where it was; after Commit the arc is tried again."""
    whole = World(SHAPES[shape])
    whole.run()
    assert whole.moves >= 2 * 6

    def attempt(_world: World, moment: int) -> None:
        world = World(SHAPES[shape], faults={moment})
        finish = world.run()
        if world.etcd.switchover.decision is Outcome.COMMIT:
            assert world.check_end() is Phase.SUCCEEDED
        else:
            assert world.check_end() is Phase.FAILED
            assert finish.failure is not None
            assert finish.failure.device in ("gpu0", "gpu1")
            assert finish.failure.errno == 5

    assert sweep(shape, attempt, range(1, whole.moves + 1)) == {}


@every_shape
def test_an_agent_restarted_at_any_moment_ends_on_exactly_one_side(shape: str) -> None:
    def attempt(world: World, moment: int) -> None:
        for node in world.agents:
            again = World(world.pairs)
            again.run(at(moment, partial(again.restart_agent, node)))
            assert again.check_end() in (Phase.SUCCEEDED, Phase.FAILED)

    assert sweep(shape, attempt) == {}


@every_shape
def test_a_connection_broken_at_any_moment_is_no_failure(shape: str) -> None:
    def attempt(world: World, moment: int) -> None:
        for node in world.agents:
            again = World(world.pairs)

            def redial(world: World = again, node: str = node) -> None:
                world.disconnect(node)
                world.connect(node)

            again.run(at(moment, redial))
            assert again.check_end() is Phase.SUCCEEDED

    assert sweep(shape, attempt) == {}


@every_shape
def test_a_connection_broken_just_before_a_cancel_is_no_failure(shape: str) -> None:
    """A command that got lost with its connection has touched nothing."""

    def attempt(world: World, moment: int) -> None:
        for node in world.agents:
            again = World(world.pairs)

            def redial(world: World = again, node: str = node) -> None:
                world.disconnect(node)
                world.connect(node)
                world.cancel()

            again.run(at(moment, redial))
            assert again.check_end() in (Phase.CANCELLED, Phase.SUCCEEDED)

    assert sweep(shape, attempt) == {}


def ends_with_a_device_in_error(role: Role) -> Iterator[tuple[World, Finish]]:
    """Runs in which a device of that side falls into ERROR before the decision."""
    for moment in range(1, 13):
        world = World(ONE_TO_ONE, faults={moment}, to_error=True)
        broken: list[FakeDevice] = []
        world.broke = broken.append
        finish = world.run()
        if world.etcd.switchover.decision is not Outcome.COMMIT and broken and broken[0].role is role:
            yield world, finish


def test_a_target_in_error_is_reset_and_the_sources_run_on() -> None:
    ends = list(ends_with_a_device_in_error(Role.TARGET))
    assert len(ends) >= 4
    for world, finish in ends:
        assert world.check_end() is Phase.FAILED
        assert finish.failure is not None
        assert finish.failure.reason in (Reason.ARC_FAILED, Reason.STATE_REFUSED)


def test_a_source_in_error_ends_with_the_reason_that_its_state_is_lost() -> None:
    ends = list(ends_with_a_device_in_error(Role.SOURCE))
    assert len(ends) >= 4
    reasons = set()
    for _, finish in ends:
        assert finish.phase is Phase.FAILED
        assert finish.failure is not None
        reasons.add(finish.failure.reason)
    assert reasons == {Reason.SOURCE_STATE_LOST}


# --- any order of anything


@dataclass(frozen=True)
class Story:
    """What happens to one run, by tick; and the order in which its parties move."""

    shape: str
    choices: tuple[int, ...]
    faults: frozenset[int]
    cancel: int | None
    elections: frozenset[int]
    restarts: frozenset[tuple[int, int]]
    redials: frozenset[tuple[int, int]]


ticks = st.integers(0, 150)
stories = st.builds(
    Story,
    shape=st.sampled_from(sorted(SHAPES)),
    choices=st.lists(st.integers(0, 7), max_size=150).map(tuple),
    faults=st.frozensets(st.integers(1, 30), max_size=2),
    cancel=st.none() | ticks,
    elections=st.frozensets(ticks, max_size=3),
    restarts=st.frozensets(st.tuples(ticks, st.integers(0, 3)), max_size=1),
    redials=st.frozensets(st.tuples(ticks, st.integers(0, 3)), max_size=2),
)


def play(story: Story, *, restarts_after_commit: bool) -> World:
    world = World(SHAPES[story.shape], story.faults)
    nodes = sorted(world.agents)

    def interrupt(tick: int) -> None:
        if tick == story.cancel:
            world.cancel()
        if world.etcd.switchover.decision is not None and not restarts_after_commit:
            return
        if tick in story.elections:
            world.elect()
        for number in [n for when, n in story.restarts if when == tick and n < len(nodes)]:
            world.restart_agent(nodes[number])

    def redial(tick: int) -> None:
        for number in [n for when, n in story.redials if when == tick and n < len(nodes)]:
            world.disconnect(nodes[number])
            world.connect(nodes[number])

    def both(tick: int) -> None:
        interrupt(tick)
        if restarts_after_commit:
            redial(tick)

    world.run(both, story.choices)
    return world


@settings(max_examples=120, deadline=None)
@given(story=stories)
def test_whatever_happens_before_the_decision_the_promises_hold_and_it_ends(story: Story) -> None:
    world = play(story, restarts_after_commit=False)
    phase = world.check_end()
    if world.etcd.switchover.decision is Outcome.COMMIT:
        assert phase is Phase.SUCCEEDED
    elif not (story.faults or story.restarts):
        assert phase is Phase.CANCELLED


@settings(max_examples=120, deadline=None)
@given(story=stories)
@example(story=Story("1-1", (), frozenset(), None, frozenset({52}), frozenset(), frozenset()))
def test_whatever_happens_at_any_time_the_promises_hold_and_it_ends(story: Story) -> None:
    assert play(story, restarts_after_commit=True).check_end()


# --- mutants: each safety check is able to fail


def without(ladder: tuple[Step, ...], name: str) -> tuple[Step, ...]:
    assert any(step.name == name for step in ladder)
    return tuple(step for step in ladder if step.name != name)


def moved_above(ladder: tuple[Step, ...], name: str, other: str) -> tuple[Step, ...]:
    rest = list(without(ladder, name))
    rest.insert([step.name for step in rest].index(other), next(step for step in ladder if step.name == name))
    return tuple(rest)


def cancelled_at_any_moment(shape: str) -> None:
    """Run through rollbacks from every moment; raises what the world finds broken."""
    for moment in range(LENGTHS[shape]):
        cancelled(World(SHAPES[shape]), moment)


def test_mutant_without_barrier_a_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "FORWARD", without(FORWARD, "BarrierA"))
    with pytest.raises(BrokenPromiseError, match=r"I3: Source gpu.: .* not quiescent"):
        World(TWO_TO_TWO).run()


def test_mutant_without_barrier_c_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "FORWARD", without(FORWARD, "BarrierC"))
    with pytest.raises(BrokenPromiseError, match=r"I3: Target gpu.: .* not in RUNNING_P2P"):
        World(TWO_TO_TWO).run()


def test_mutant_decide_above_vote_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "FORWARD", moved_above(FORWARD, "Decide", "Vote"))
    with pytest.raises(BrokenPromiseError, match=r"I1: Commit is written, but target gpu. has not voted"):
        World(ONE_TO_ONE).run(choices=[9] * 200)


def test_mutant_release_of_sources_above_barrier_d_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "FORWARD", moved_above(FORWARD, "ReleaseSources", "BarrierD"))
    with pytest.raises(BrokenPromiseError, match=r"I2: source gpu. is closed before every target runs"):
        World(ONE_TO_ONE).run()


def test_mutant_rollback_without_its_barrier_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "ROLLBACK", without(ROLLBACK, "RestoreP2P"))
    with pytest.raises(BrokenPromiseError, match=r"I3: Source gpu.: .* not in RUNNING_P2P"):
        cancelled_at_any_moment("2-2")


def test_mutant_rollback_without_a_written_abort_is_refused_by_the_agents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "ROLLBACK", without(ROLLBACK, "Abort"))
    with pytest.raises(AssertionError):
        cancelled_at_any_moment("1-1")


def test_mutant_agent_without_the_commit_rule_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator that starts targets before the decision is stopped by the agents' own rule, and only by it."""
    early = moved_above(moved_above(FORWARD, "BarrierD", "Decide"), "BarrierC", "BarrierD")
    monkeypatch.setattr(planning, "FORWARD", early)
    world = World(TWO_TO_TWO)
    world.run()
    assert not any(d.loaded and d.state in RUNS for d in world.side(Role.TARGET))
    monkeypatch.setattr(machine, "_admit_target", lambda *_: None)
    with pytest.raises(BrokenPromiseError, match=r"I1: Target gpu.: .* loaded, and the decision is None"):
        World(TWO_TO_TWO).run()


def test_mutant_agent_without_its_local_barrier_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    goal = (Role.SOURCE, Goal.STOP_COPY)
    monkeypatch.setattr(machine, "WAYPOINTS", {**machine.WAYPOINTS, goal: machine.WAYPOINTS[goal][1:]})
    with pytest.raises(BrokenPromiseError, match=r"I3: Source gpu.: .* not quiescent"):
        World(ONE_TO_ONE).run()


# --- single decisions


def test_every_step_of_both_ladders_has_its_own_name() -> None:
    for ladder in (FORWARD, ROLLBACK):
        names = [step.name for step in ladder]
        assert len(names) == len(set(names))


def test_a_step_of_the_switchover_may_last_as_long_as_the_spec_says() -> None:
    world = World(TWO_TO_TWO)
    seen: dict[str, Plan] = {}

    def watch(_tick: int) -> None:
        planned = plan(replace(world.observe(), wish=Wish(TWO_TO_TWO, Strategy(switchover_timeout_seconds=7))))
        seen.setdefault(planned.step, planned)

    world.run(watch)
    assert {seen[step].timeout_seconds for step in ("BarrierA", "BarrierB", "Vote")} == {7.0}
    assert seen["PrepareSources"].timeout_seconds == Limits().prepare_seconds
    assert seen["BarrierA"].sentence == "barrier A: quiescing P2P on a, b"
    assert seen["BarrierD"].phase is Phase.STARTING


def test_a_switchover_begins_only_when_the_forecast_keeps_the_limit() -> None:
    world = World(ONE_TO_ONE)
    world.run(at(10**6, lambda: None))
    world = World(ONE_TO_ONE)
    held: list[Observed] = []
    world.run(lambda _tick: held.append(world.observe()))
    ready = next(o for o in held if plan(o).step == "BeginSwitchover")
    (source,) = ready.side(Role.SOURCE)
    assert source.report is not None
    big = tuple(replace(d, stop_copy_bytes=1 << 40) for d in source.report.devices)
    slow = replace(source, report=replace(source.report, devices=big))
    late = replace(ready, participants=(slow, *ready.side(Role.TARGET)))
    assert plan(late).step == "Converge"
    assert plan(replace(late, converge_expired=True)).step == "Converge"
    insists = replace(late.wish, strategy=Strategy(switch_over_on_timeout=True))
    assert plan(replace(late, converge_expired=True, wish=insists)).step == "BeginSwitchover"
    unacknowledged = tuple(replace(d, initial_acknowledged=False) for d in source.report.devices)
    waits = replace(source, report=replace(source.report, devices=unacknowledged))
    assert plan(replace(ready, participants=(waits, *ready.side(Role.TARGET)))).step == "Converge"


def test_a_target_that_cannot_be_blanked_does_not_hide_what_the_migration_failed_of() -> None:
    """Its sources run again: nothing is incomplete for the workload."""
    world = World(TWO_TO_ONE)
    seen: list[Observed] = []

    def interrupt(tick: int) -> None:
        if tick == LENGTHS["2-1"] // 3:
            world.cancel()
        seen.append(world.observe())

    world.run(interrupt)
    restored = next(o for o in seen if plan(o).step == "BlankTargets")
    cause = Failure(Reason.CONVERGENCE_TIMEOUT, "too slow")
    planned = plan(replace(restored, exhausted=True, failure=cause))
    assert planned.actions == (Finish(Phase.FAILED, cause),)


def test_that_a_state_was_lost_is_recorded_over_what_it_was_lost_of() -> None:
    world = World(ONE_TO_ONE)
    seen: list[Observed] = []

    def interrupt(tick: int) -> None:
        if tick == LENGTHS["1-1"] // 3:
            world.cancel()
        seen.append(world.observe())

    world.run(interrupt)
    restored = next(o for o in seen if plan(o).step == "BlankTargets")
    cause, loss = Failure(Reason.DEVICE_LOST, "keeper killed"), Failure(Reason.SOURCE_STATE_LOST, "gone")
    planned = plan(replace(restored, failure=loss, recorded=cause))
    assert planned.actions == (PersistFailure(loss),)
    assert plan(replace(restored, failure=loss, recorded=loss)).step == "BlankTargets"
    assert plan(replace(restored, failure=cause, recorded=loss)).step == "BlankTargets"


def test_what_was_given_up_says_which_side_may_have_lost_something() -> None:
    observed = replace(World(ONE_TO_ONE).observe(), has_finalizer=True, pairs=ONE_TO_ONE, exhausted=True)
    failed = replace(observed, failure=Failure(Reason.ARC_FAILED, "arc failed", "gpu0", "STOP -> RUNNING", 5))
    for switchover, reason in (
        (Switchover(True, Outcome.COMMIT), Reason.TARGET_LOST_AFTER_COMMIT),
        (Switchover(True, Outcome.ABORT), Reason.ROLLBACK_INCOMPLETE),
    ):
        (finish,) = plan(replace(failed, switchover=switchover)).actions
        assert isinstance(finish, Finish)
        assert finish.failure == Failure(
            reason, "given up after repeated failures: arc failed", "gpu0", "STOP -> RUNNING", 5
        )
