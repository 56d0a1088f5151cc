"""Rehearse: everything up to convergence, then back, whatever happens; Plan: nothing at all."""

from dataclasses import replace

import pytest

from pure.plan_world import ONE_TO_ONE, SHAPES, TWO_TO_TWO, World, at, every_shape, sweep
from vfio_api.device import DeviceState
from vfio_api.errors import Reason
from vfio_api.models_migration import Mode
from vfio_api.models_status import Phase
from vfio_api.types import Failure, Role
from vfio_operator.actions import Finish
from vfio_operator.observed import Known, Observed, Wish
from vfio_operator.plan import plan

S = DeviceState


def rehearse(world: World) -> None:
    world.run()
    assert world.check_end() is Phase.SUCCEEDED


@pytest.mark.parametrize("shape", SHAPES)
def test_a_rehearsal_leaves_neither_running_nor_pre_copy_and_decides_nothing(shape: str) -> None:
    world = World(SHAPES[shape], mode=Mode.REHEARSE)
    rehearse(world)
    assert world.seen[Role.SOURCE] == {S.PRE_COPY, S.RUNNING}
    assert not world.etcd.switchover.exists
    assert S.STOP_COPY not in world.seen[Role.TARGET]


def test_its_steps_are_those_of_a_migration_up_to_the_turning_point() -> None:
    world = World(ONE_TO_ONE, mode=Mode.REHEARSE)
    rehearse(world)
    assert world.steps == [
        "Authorize",
        "AddFinalizer",
        "PersistPairs",
        "Claim",
        "PrepareSources",
        "PrepareTargets",
        "PreCopy",
        "Rehearsed",
        "LeavePreCopy",
        "BlankTargets",
        "EndSources",
        "Unclaim",
        "Finish",
    ]


@every_shape
def test_a_new_leader_at_any_moment_still_ends_it_well(shape: str) -> None:
    def attempt(world: World, moment: int) -> None:
        world.run(at(moment, world.elect))
        assert world.check_end() is Phase.SUCCEEDED
        assert world.seen[Role.SOURCE] <= {S.PRE_COPY, S.RUNNING}

    assert sweep(shape, attempt, mode=Mode.REHEARSE) == {}


@every_shape
def test_cancelled_at_any_moment_it_ends_with_the_sources_running(shape: str) -> None:
    def attempt(world: World, moment: int) -> None:
        world.run(at(moment, world.cancel))
        assert world.check_end() in (Phase.CANCELLED, Phase.SUCCEEDED)
        assert world.seen[Role.SOURCE] <= {S.PRE_COPY, S.RUNNING}

    assert sweep(shape, attempt, mode=Mode.REHEARSE) == {}


@every_shape
def test_an_agent_that_restarts_at_any_moment_does_not_leave_anything_behind(shape: str) -> None:
    def attempt(world: World, moment: int) -> None:
        world.run(at(moment, lambda: world.restart_agent("a")))
        assert world.check_end() in (Phase.FAILED, Phase.SUCCEEDED)

    assert sweep(shape, attempt, mode=Mode.REHEARSE) == {}


@pytest.mark.parametrize("fault", range(1, 5))
def test_an_arc_that_fails_ends_it_as_failed_with_the_sources_running(fault: int) -> None:
    world = World(TWO_TO_TWO, faults=[fault], mode=Mode.REHEARSE)
    finish = world.run()
    assert world.check_end() is Phase.FAILED
    assert finish.failure is not None
    assert finish.failure.reason is Reason.ARC_FAILED


@pytest.mark.parametrize(("role", "ends"), [(Role.TARGET, Phase.SUCCEEDED), (Role.SOURCE, Phase.FAILED)])
def test_after_the_turning_point_a_target_whose_stream_was_closed_is_no_failure(role: Role, ends: Phase) -> None:
    """The sources close their streams when they leave pre-copy; a stream that breaks at a source is one."""
    world = World(ONE_TO_ONE, mode=Mode.REHEARSE)
    broken = Failure(Reason.STREAM_BROKEN, "the source closed the data stream before its end", "gpu0")

    def breaks(_tick: int) -> None:
        if world.etcd.rehearsed:
            session = world.agents["a" if role is Role.SOURCE else "c"].sessions.get(role)
            if session is not None and not session.facts.backward and session.failure is None:
                session.failure = broken
                world.leader.reports["a" if role is Role.SOURCE else "c", role] = session.report()

    world.run(breaks)
    assert world.check_end() is ends


def test_claims_that_cannot_be_dropped_do_not_make_a_rehearsal_fail() -> None:
    world = World(ONE_TO_ONE, mode=Mode.REHEARSE)
    last: list[Observed] = []
    world.run(lambda _tick: last.append(world.observe()))
    stuck = next(o for o in last if plan(o).step == "Unclaim")
    planned = plan(replace(stuck, exhausted=True))
    assert (planned.step, planned.phase) == ("GiveUp", Phase.SUCCEEDED)
    assert plan(stuck).timeout_seconds > 0


def test_rights_that_cannot_be_asked_for_end_it_in_time() -> None:
    observed = World(ONE_TO_ONE).observe()
    assert plan(observed).timeout_seconds > 0
    late = Failure(Reason.STEP_TIMEOUT, "step Authorize was not done")
    assert plan(replace(observed, failure=late)).actions == (Finish(Phase.FAILED, late),)


# --- rights


def test_who_may_not_use_a_device_is_not_told_who_else_uses_it() -> None:
    """Rights are asked before anything of the inventory could show in a message."""
    observed = World(ONE_TO_ONE).observe()
    taken = {key: replace(r, holder="workload of another team") for key, r in observed.inventory.items()}
    assert plan(replace(observed, inventory=taken)).step == "Authorize"
    denied = Failure(Reason.FORBIDDEN_DEVICE, "no", "gpu0")
    refused = plan(replace(observed, inventory=taken, authorized=ONE_TO_ONE, forbidden=denied))
    assert (refused.step, refused.sentence, refused.findings) == ("Refused", "no", (denied,))


# --- Plan


def test_a_plan_touches_nothing_and_tells_the_forecast() -> None:
    world = World(TWO_TO_TWO, mode=Mode.PLAN)
    world.run()
    assert world.steps == ["Authorize", "Planned"]
    assert (world.etcd.finalizer, world.etcd.claims, world.etcd.pairs) == (False, set(), ())
    assert not any(agent.sessions for agent in world.agents.values())
    planned = plan(replace(world.observe(), known=Known()))
    assert planned.sentence.startswith("2 pairs can migrate; forecast downtime ")
    assert planned.pairs == TWO_TO_TWO
    alone = World(ONE_TO_ONE[:1], mode=Mode.PLAN)
    alone.run()
    assert plan(replace(alone.observe(), known=Known())).sentence.startswith("1 pair can migrate; forecast downtime ")


def test_a_plan_that_cannot_be_done_says_all_that_speaks_against_it() -> None:
    observed = World(TWO_TO_TWO, mode=Mode.PLAN).observe()
    gone = {key: record for key, record in observed.inventory.items() if key[0] in "ab"}
    planned = plan(replace(observed, inventory=gone, authorized=TWO_TO_TWO))
    (finish,) = planned.actions
    assert isinstance(finish, Finish)
    assert finish.phase is Phase.FAILED
    assert [(f.device, f.reason) for f in planned.findings] == [
        ("gpu0", Reason.UNKNOWN_DEVICE),
        ("gpu1", Reason.UNKNOWN_DEVICE),
    ]


def test_who_may_not_use_a_device_is_refused_before_anything() -> None:
    world = World(ONE_TO_ONE)
    observed = world.observe()
    denied = Failure(Reason.FORBIDDEN_DEVICE, "no", "gpu0")
    planned = plan(replace(observed, authorized=ONE_TO_ONE, forbidden=denied))
    assert (planned.step, planned.actions) == ("Refused", (Finish(Phase.FAILED, denied),))


def test_cancelled_before_it_is_checked_it_is_cancelled_and_not_refused() -> None:
    observed = replace(World(ONE_TO_ONE).observe(), wish=Wish((), unsupported="no", cancel=True))
    planned = plan(observed)
    assert planned.phase is Phase.CANCELLED
