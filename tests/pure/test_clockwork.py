"""What the operator's clock tells of a switchover: who was waited for, what it was made of, and how it compares."""

import time
from dataclasses import replace

import pytest

from vfio_api.models_status import Phase
from vfio_api.types import Goal, MigrationKey, Outcome, Role, SessionReport, Timing
from vfio_operator.actions import Plan
from vfio_operator.clockwork import Clockwork
from vfio_operator.execute import Memory
from vfio_operator.metrics import OperatorMetrics
from vfio_operator.observed import Observed, Participant, Switchover, Wish

KEY = MigrationKey("u", "default", "m")
TIMINGS = (
    Timing("transfer", 10**9),
    Timing("barrier_a", 10**9),
    Timing("load/gpu0", 10**9),
    Timing("barrier_c", 10**9),
)


def observed(*, committed: bool = False, **reached: Goal) -> Observed:
    """Two source nodes and one target node; what is not given has reached nothing."""
    roles = {"a": Role.SOURCE, "b": Role.SOURCE, "c": Role.TARGET}
    reports = {node: SessionReport("u", role, 1, 1, reached.get(node), timings=TIMINGS) for node, role in roles.items()}
    participants = tuple(Participant(node, role, report=reports[node]) for node, role in roles.items())
    decision = Outcome.COMMIT if committed else None
    return Observed(KEY, Wish(()), participants=participants, switchover=Switchover(True, decision))


def go(clock: Clockwork, step: str, seen: Observed, phase: Phase = Phase.SWITCHOVER) -> None:
    clock.track(Plan(step, phase, (), ""), seen)


def value(metrics: OperatorMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_the_slowest_at_a_barrier_is_who_had_not_passed_when_it_was_looked_at_last() -> None:
    metrics = OperatorMetrics("1")
    clock = Clockwork(metrics, "u")
    go(clock, "BarrierA", observed())
    go(clock, "BarrierA", observed(a=Goal.QUIESCED))
    go(clock, "BarrierB", observed(a=Goal.QUIESCED, b=Goal.QUIESCED))
    go(clock, "BarrierB", observed(a=Goal.QUIESCED, b=Goal.STOP_COPY))
    go(clock, "Vote", observed(a=Goal.STOP_COPY, b=Goal.STOP_COPY))
    slowest = {
        (barrier, node): value(metrics, "vfio_migration_barrier_slowest_seconds_count", barrier=barrier, node=node)
        for barrier in ("BarrierA", "BarrierB")
        for node in ("a", "b")
    }
    assert slowest == {("BarrierA", "a"): None, ("BarrierA", "b"): 1, ("BarrierB", "a"): 1, ("BarrierB", "b"): None}


def test_the_parts_add_up_to_the_downtime_and_a_reload_after_commit_is_downtime() -> None:
    metrics = OperatorMetrics("1")
    clock = Clockwork(metrics, "u")
    for step in ("BarrierA", "BarrierB", "Vote", "Decide"):
        go(clock, step, observed())
    for step in ("ReloadTargets", "ResendSources", "BarrierC", "BarrierD"):
        go(clock, step, observed(committed=True), Phase.STARTING)
        assert value(metrics, "vfio_migration_downtime_seconds_count") == 0
    go(clock, "ReleaseSources", observed(committed=True), Phase.STARTING)
    assert value(metrics, "vfio_migration_downtime_seconds_count") == 1
    parts = [
        sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "vfio_migration_downtime_step_seconds_sum"
    ]
    total = value(metrics, "vfio_migration_downtime_seconds_sum")
    assert total is not None
    assert sum(parts) == pytest.approx(total, abs=1e-5)  # each step is cut to whole microseconds


def test_a_task_that_ends_in_any_way_leaves_nothing_under_way() -> None:
    metrics = OperatorMetrics("1")
    clock = Clockwork(metrics, "u")
    go(clock, "PreCopy", observed(), Phase.PRE_COPY)
    assert value(metrics, "vfio_migrations_in_progress", phase="PreCopy") == 1
    clock.close()
    assert value(metrics, "vfio_migrations_in_progress", phase="PreCopy") == 0


def test_no_participant_was_waited_for_when_there_is_none() -> None:
    metrics = OperatorMetrics("1")
    clock = Clockwork(metrics, "u")
    nobody = replace(observed(), participants=())
    go(clock, "BarrierD", nobody)
    go(clock, "ReleaseSources", nobody)
    assert value(metrics, "vfio_migration_barrier_wait_seconds_count", barrier="BarrierD") == 1
    samples = [s for f in metrics.registry.collect() for s in f.samples if "barrier_slowest" in s.name]
    assert samples == []


def turned(seen: Observed, **at: float) -> Observed:
    """The agents said in their Hello when they began to stop, or ran again."""
    return replace(seen, participants=tuple(replace(p, turned=at.get(p.node)) for p in seen.participants))


def downtime(clock: Clockwork, seen: Observed) -> int | None:
    return clock.measured(Memory({}), seen).downtime_microseconds


def test_a_leader_that_comes_within_the_downtime_measures_it_from_what_agents_say() -> None:
    metrics = OperatorMetrics("1")
    clock = Clockwork(metrics, "u")
    stopped = time.monotonic() - 7
    seen = turned(observed(committed=True), a=stopped + 0.5, b=stopped)
    go(clock, "BarrierC", seen, Phase.STARTING)
    go(clock, "BarrierD", seen, Phase.STARTING)
    assert downtime(clock, seen) is None
    go(clock, "ReleaseSources", seen, Phase.STARTING)
    found = downtime(clock, seen)
    assert found is not None
    assert 7e6 <= found <= (time.monotonic() - stopped) * 1e6
    assert value(metrics, "vfio_migration_downtime_step_seconds_sum", step="Failover") == pytest.approx(7, abs=0.5)


def test_a_leader_that_comes_after_the_downtime_measures_it_from_what_agents_say() -> None:
    metrics = OperatorMetrics("1")
    clock = Clockwork(metrics, "u")
    stopped = time.monotonic() - 60
    seen = turned(observed(committed=True), a=stopped, b=stopped + 1, c=stopped + 2)
    go(clock, "ReleaseSources", seen, Phase.STARTING)
    assert downtime(clock, seen) == pytest.approx(2e6, abs=1)
    assert value(metrics, "vfio_migration_downtime_step_seconds_sum", step="Failover") == pytest.approx(2, abs=1e-5)


def test_nobody_knows_when_the_downtime_began_if_all_agents_began_anew() -> None:
    clock = Clockwork(OperatorMetrics("1"), "u")
    for step in ("BarrierD", "ReleaseSources"):
        go(clock, step, observed(committed=True), Phase.STARTING)
    assert downtime(clock, observed(committed=True)) is None
