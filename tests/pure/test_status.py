"""The status that people and `kubectl wait` see, from one picture, one plan and what was measured."""

import json
from dataclasses import replace
from typing import Any

import pytest

from vfio_api.device import DeviceState, MigrationFlags
from vfio_api.errors import Reason
from vfio_api.models import MigrationStatus
from vfio_api.models_migration import Mode
from vfio_api.models_status import ConditionType, Phase
from vfio_api.types import DeviceReport, Failure, Goal, MigrationKey, Outcome, Role, SessionReport
from vfio_operator.actions import Finish, Plan
from vfio_operator.forecast import Forecast
from vfio_operator.observe import is_rehearsed
from vfio_operator.observed import Observed, Pair, Participant, Strategy, Switchover, Wish
from vfio_operator.plan import plan
from vfio_operator.status import Measured, StepTiming, build, outcome_label

NOW, LATER = "2026-05-01T12:00:00.000000Z", "2026-05-01T12:00:09.000000Z"
ALL = MigrationFlags.STOP_COPY | MigrationFlags.P2P | MigrationFlags.PRE_COPY
PAIRS = (Pair("gpu0", "a", "0000:3b:00.2", "c", "0000:5e:00.2"), Pair("gpu1", "b", "0000:3b:00.3", "d", "sim1"))
MEASURED = Measured(decision_by="operator vfio-operator-0", decision_time=NOW)
FORECAST = Forecast(30_000, 5_000, 4_000, 3_000, 8_000, 12 << 20, 410_000_000)
EVERY = {kind.value for kind in ConditionType}
FAILURE = Failure(Reason.ARC_FAILED, "device gpu0: arc failed", "gpu0", "RUNNING -> PRE_COPY", 5)


def participant(pair: Pair, role: Role, reached: Goal | None, state: DeviceState, **report: Any) -> Participant:
    node = pair.source_node if role is Role.SOURCE else pair.target_node
    device = DeviceReport(pair.name, "x", state, ALL, transferred_bytes=600, stop_copy_bytes=200, **report)
    return Participant(node, role, True, True, "", SessionReport("uid-1", role, 1, 1, reached, devices=(device,)))


def picture(
    source: Goal | None = None,
    target: Goal | None = None,
    state: DeviceState = DeviceState.PRE_COPY,
    switchover: Switchover | None = None,
    pairs: tuple[Pair, ...] = PAIRS,
    **report: Any,
) -> Observed:
    sides = [participant(p, Role.SOURCE, source, state, **report) for p in pairs]
    sides += [participant(p, Role.TARGET, target, DeviceState.RESUMING) for p in pairs]
    return Observed(
        key=MigrationKey("uid-1", "team", "move"),
        wish=Wish(pairs),
        has_finalizer=True,
        pairs=pairs,
        claims=frozenset(f"{p.source_node}{p.target_node}{end}" for p in pairs for end in "st"),
        participants=tuple(sides),
        switchover=switchover or Switchover(),
    )


def ended(phase: Phase, failure: Failure | None = None) -> Plan:
    return Plan("Finish", phase, (Finish(phase, failure),), failure.message if failure else "every device runs")


def conditions(status: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {c["type"]: c for c in status["conditions"]}


def made(observed: Observed, planned: Plan | None = None, before: dict[str, Any] | None = None) -> dict[str, Any]:
    status = build(replace(observed, generation=3), planned or plan(observed), MEASURED, NOW, before or {})
    MigrationStatus.model_validate(status)
    return status


COMMITTED = Switchover(True, Outcome.COMMIT)
PICTURES: dict[str, tuple[Observed, Plan | None]] = {
    "nothing known": (replace(picture(), pairs=(), claims=frozenset(), participants=()), None),
    "preparing": (picture(), None),
    "pre-copy": (picture(Goal.PRE_COPY, Goal.PREPARED), None),
    "quiesced": (picture(Goal.QUIESCED, Goal.PREPARED, switchover=Switchover(True)), None),
    "committed": (picture(Goal.STOP_COPY, Goal.LOADED, switchover=COMMITTED), None),
    "rolling back": (replace(picture(Goal.QUIESCED, Goal.PREPARED), failure=FAILURE), None),
    "succeeded": (picture(Goal.RELEASED, Goal.RELEASED, switchover=COMMITTED), ended(Phase.SUCCEEDED)),
    "failed": (replace(picture(Goal.RUNNING, Goal.RELEASED), failure=FAILURE), ended(Phase.FAILED, FAILURE)),
    "failed without a cause": (picture(Goal.RUNNING, Goal.RELEASED), ended(Phase.FAILED)),
    "cancelled": (
        picture(Goal.RUNNING),
        ended(Phase.CANCELLED, Failure(Reason.CANCELLED, "spec.cancel was set")),
    ),
}
every_picture = pytest.mark.parametrize("name", PICTURES)


@every_picture
def test_every_condition_is_always_there_and_of_this_generation(name: str) -> None:
    status = made(*PICTURES[name])
    assert set(conditions(status)) == EVERY
    assert len(status["conditions"]) == len(EVERY)
    assert {c["observedGeneration"] for c in status["conditions"]} == {status["observedGeneration"]} == {3}


@every_picture
def test_succeeded_is_unknown_until_finished(name: str) -> None:
    found = conditions(made(*PICTURES[name]))
    finished, succeeded = found["Finished"]["status"], found["Succeeded"]["status"]
    assert (finished == "False") == (succeeded == "Unknown")
    assert (succeeded == "True") == (name == "succeeded")


@pytest.mark.parametrize("name", ["failed", "cancelled", "failed without a cause"])
def test_a_migration_that_did_not_succeed_never_says_succeeded_as_its_reason(name: str) -> None:
    assert conditions(made(*PICTURES[name]))["Succeeded"]["reason"] != "Succeeded"


def test_a_failure_names_reason_device_arc_and_errno() -> None:
    status = made(*PICTURES["failed"])
    succeeded = conditions(status)["Succeeded"]
    assert (succeeded["status"], succeeded["reason"]) == ("False", "ArcFailed")
    assert succeeded["message"] == ("device gpu0: arc failed; device=gpu0; arc=RUNNING -> PRE_COPY; errno=5")
    assert conditions(status)["Finished"]["message"] == succeeded["message"]
    assert status["phase"] == "Failed"


def test_a_refusal_makes_validated_false_with_its_reason() -> None:
    observed = replace(picture(), pairs=(), claims=frozenset(), participants=())
    status = made(replace(observed, wish=Wish(PAIRS, unsupported="spec.mode is Plan")))
    validated = conditions(status)["Validated"]
    assert (validated["status"], validated["reason"]) == ("False", "UnsupportedSpec")
    assert (status["phase"], status["message"]) == ("Failed", "spec.mode is Plan")


@pytest.mark.parametrize(
    ("observed", "true"),
    [
        (picture(), {"Validated"}),
        (picture(Goal.PREPARED, Goal.PREPARED), {"Validated", "Prepared"}),
        (
            picture(Goal.PRE_COPY, Goal.PREPARED, initial_acknowledged=True),
            {"Validated", "Prepared", "Converged"},
        ),
        (
            picture(Goal.QUIESCED, Goal.PREPARED, initial_acknowledged=True, switchover=Switchover(True)),
            {"Validated", "Prepared", "Converged", "Quiesced"},
        ),
        (
            picture(Goal.STOP_COPY, Goal.LOADED, switchover=COMMITTED),
            {"Validated", "Prepared", "Converged", "Quiesced", "Committed"},
        ),
    ],
    ids=["validated", "prepared", "converged", "quiesced", "committed"],
)
def test_conditions_turn_true_one_after_the_other(observed: Observed, true: set[str]) -> None:
    found = conditions(made(observed))
    assert {kind for kind, c in found.items() if c["status"] == "True"} == true


def test_what_was_true_once_stays_true_and_keeps_its_time() -> None:
    first = made(picture(Goal.QUIESCED, Goal.PREPARED, initial_acknowledged=True, switchover=Switchover(True)))
    gone = replace(picture(), participants=(), switchover=Switchover(True), generation=4)
    second = build(gone, plan(gone), Measured(), LATER, first)
    before, after = conditions(first), conditions(second)
    for kind in ("Prepared", "Converged", "Quiesced"):
        assert after[kind] == {**before[kind], "observedGeneration": 4}
    assert after["Succeeded"]["lastTransitionTime"] == NOW
    finished = build(gone, ended(Phase.FAILED, FAILURE), Measured(), LATER, second)
    assert conditions(finished)["Finished"]["lastTransitionTime"] == LATER
    assert conditions(finished)["Quiesced"]["status"] == "True"


def test_the_decision_and_the_measured_times_are_copied() -> None:
    measured = Measured(
        (StepTiming("BarrierA", NOW, 1234),), 56_789, FORECAST, "vfio-operator-0", "2026-05-01T11:59:59Z"
    )
    observed = picture(Goal.STOP_COPY, Goal.LOADED, switchover=COMMITTED)
    status = build(observed, plan(observed), measured, NOW, {})
    found = MigrationStatus.model_validate(status)
    assert found.decision is not None
    assert (found.decision.outcome, found.decision.by) == (Outcome.COMMIT, "vfio-operator-0")
    assert (found.downtime_microseconds, found.predicted_downtime_microseconds) == (56_789, 50_000)
    assert [(t.step, t.duration_microseconds) for t in found.timings] == [("BarrierA", 1234)]


def test_no_decision_is_shown_before_there_is_one() -> None:
    assert "decision" not in made(picture(Goal.STOP_COPY, Goal.LOADED, switchover=Switchover(True)))


def test_pairs_and_device_states_are_shown() -> None:
    status = made(picture(Goal.PRE_COPY, Goal.PREPARED))
    assert status["pairs"][0] == {
        "name": "gpu0",
        "source": {"nodeName": "a", "device": "0000:3b:00.2"},
        "target": {"nodeName": "c", "device": "0000:5e:00.2"},
    }
    assert status["devices"] == [
        {"name": name, "sourceState": "PRE_COPY", "targetState": "RESUMING", "bytes": 600} for name in ("gpu0", "gpu1")
    ]


def test_progress_tells_percent_rate_and_what_is_left() -> None:
    status = made(picture(Goal.PRE_COPY, Goal.PREPARED, bytes_per_second=100))
    assert status["progress"] == {"percent": 75, "bytes": 1200, "bytesPerSecond": 200, "etaSeconds": 2}
    done = made(*PICTURES["succeeded"])
    assert done["progress"]["percent"] == 100


def test_progress_is_never_complete_before_success() -> None:
    observed = picture(Goal.STOP_COPY, Goal.LOADED, DeviceState.STOP_COPY, COMMITTED)
    everything = tuple(
        replace(p, report=replace(p.report, devices=tuple(replace(d, stop_copy_bytes=0) for d in p.report.devices)))
        for p in observed.participants
        if p.report is not None
    )
    assert made(replace(observed, participants=everything))["progress"]["percent"] == 99


def test_256_pairs_with_long_names_stay_below_200_kib() -> None:
    pairs = tuple(
        Pair(
            f"gpu-{n:03}-of-a-team-with-a-long-name",
            f"node-{n:03}.rack-17.datacenter-2.example.internal",
            f"0000:{n:02x}:00.2",
            f"node-{n:03}.rack-18.datacenter-2.example.internal",
            f"0000:{n:02x}:00.3",
        )
        for n in range(256)
    )
    big: dict[str, Any] = {"bytes_per_second": 10**11, "dirty_bytes": 10**15}
    observed = picture(Goal.PRE_COPY, Goal.PREPARED, pairs=pairs, **big)
    failed = replace(observed, failure=replace(FAILURE, message="x" * 4096))
    measured = Measured(tuple(StepTiming(f"Step{n}", NOW, 10**9) for n in range(40)))
    for planned in (plan(observed), plan(failed), ended(Phase.FAILED, failed.failure)):
        status = build(failed, planned, measured, NOW, {})
        MigrationStatus.model_validate(status)
        assert len(json.dumps(status)) < 200 * 1024


def test_a_sentence_is_cut_to_what_the_schema_takes() -> None:
    status = made(*PICTURES["failed"][:1], ended(Phase.FAILED, replace(FAILURE, message="y" * 100_000)))
    assert len(status["message"]) <= 4096


@pytest.mark.parametrize(
    ("mode", "finish", "label"),
    [
        (Mode.MIGRATE, Finish(Phase.SUCCEEDED), ("Succeeded", "Succeeded")),
        (Mode.PLAN, Finish(Phase.SUCCEEDED), ("Succeeded", "Planned")),
        (Mode.REHEARSE, Finish(Phase.SUCCEEDED), ("Succeeded", "Rehearsed")),
        (Mode.REHEARSE, Finish(Phase.FAILED, FAILURE), ("Failed", "ArcFailed")),
    ],
)
def test_the_labels_of_the_outcome_metric(mode: Mode, finish: Finish, label: tuple[str, str]) -> None:
    assert outcome_label(replace(picture(), wish=Wish(PAIRS, mode=mode)), finish) == label


def rehearsed(forecast: Forecast) -> dict[str, Any]:
    observed = replace(picture(Goal.PRE_COPY, Goal.PREPARED), wish=Wish(PAIRS, mode=Mode.REHEARSE), rehearsed=True)
    before = build(picture(Goal.PRE_COPY, Goal.PREPARED), plan(observed), MEASURED, NOW, {})
    return build(observed, plan(observed), replace(MEASURED, forecast=forecast), LATER, before)


def test_the_turning_point_of_a_rehearsal_is_told_by_the_reason_of_converged_whatever_the_forecast() -> None:
    for forecast, holds in ((FORECAST, "True"), (replace(FORECAST, transfer=10**9), "False")):
        found = conditions(rehearsed(forecast))["Converged"]
        assert (found["status"], found["reason"]) == (holds, "Rehearsed")
        assert is_rehearsed({"status": rehearsed(forecast)})
    assert not is_rehearsed({"status": made(*PICTURES["pre-copy"])})


def test_the_converged_condition_says_what_the_forecast_is_made_of() -> None:
    observed = picture(Goal.PRE_COPY, Goal.PREPARED, initial_acknowledged=True)
    slow = replace(FORECAST, transfer=900_000)
    at_converge = Plan("Converge", Phase.PRE_COPY, (), "pre-copy")
    status = build(
        replace(observed, wish=replace(observed.wish, strategy=Strategy(downtime_limit_milliseconds=1))),
        at_converge,
        replace(MEASURED, forecast=slow),
        NOW,
        {},
    )
    found = conditions(status)["Converged"]
    assert (found["status"], found["reason"]) == ("False", "Forecast")
    assert found["message"] == (
        "the forecast is 920 ms = transfer 900 (12.6 MB at 410 MB/s) + arcs 5 + load 4 + messages 3 + decision 8; "
        "downtimeLimitMilliseconds is 1"
    )


def test_what_is_not_loaded_yet_is_named() -> None:
    observed = picture(Goal.PRE_COPY, Goal.PREPARED, initial_acknowledged=False)
    found = conditions(made(observed))["Converged"]
    assert (found["reason"], found["message"]) == (
        "NotAcknowledged",
        "initial bytes of gpu0, gpu1 are not loaded at the target yet",
    )


def test_a_plan_shows_for_each_pair_what_speaks_against_it() -> None:
    observed = replace(picture(), pairs=(), claims=frozenset(), participants=(), wish=Wish(PAIRS, mode=Mode.PLAN))
    failure = Failure(Reason.DEVICE_CLAIMED, "pair gpu1: taken", "gpu1")
    planned = Plan("Refused", Phase.FAILED, (Finish(Phase.FAILED, failure),), "no", pairs=PAIRS, findings=(failure,))
    assert made(observed, planned)["feasibility"] == [
        {"name": "gpu0", "feasible": True},
        {"name": "gpu1", "feasible": False, "reason": "DeviceClaimed", "message": "pair gpu1: taken"},
    ]
    assert [p["name"] for p in made(observed, planned)["pairs"]] == ["gpu0", "gpu1"]


def test_pairs_that_are_only_resolved_are_not_written_before_the_end() -> None:
    """Persisted pairs mean that a migration has begun: a new leader goes by them."""
    observed = replace(picture(), pairs=(), claims=frozenset(), participants=())
    assert made(observed, Plan("AwaitInventory", Phase.PENDING, (), "waiting", pairs=PAIRS))["pairs"] == []
