"""The status that people and `kubectl wait` see: a pure function of what was observed, planned and measured."""

from dataclasses import dataclass
from typing import Any

from vfio_api.device import DeviceState, MigrationFlags
from vfio_api.models_status import Phase
from vfio_api.types import DeviceReport, Failure, Goal, Outcome, Role
from vfio_operator.actions import Finish, Plan
from vfio_operator.forecast import converged, predicted_downtime_microseconds
from vfio_operator.observed import Observed, has_reached

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class StepTiming:
    """How long a step took. start is a time of day (RFC 3339, for people); the duration is of one monotonic clock."""

    step: str
    start: str
    microseconds: int


@dataclass(frozen=True, slots=True)
class Measured:
    """What the migration's task has measured so far."""

    timings: tuple[StepTiming, ...] = ()
    downtime_microseconds: int | None = None
    predicted_microseconds: int | None = None
    decision_by: str = ""
    decision_time: str = ""


def build(observed: Observed, plan: Plan, measured: Measured, now: str, before: Json) -> Json:
    """The whole status. `now` is RFC 3339; `before` is the last status, for the transition times of conditions."""
    finish = next((a for a in plan.actions if isinstance(a, Finish)), None)
    phase = finish.phase if finish else plan.phase
    status: Json = {
        "observedGeneration": observed.generation,
        "phase": phase.value,
        "message": plan.sentence[:1024],
        "conditions": _conditions(observed, plan, finish, now, before),
        "pairs": [
            {
                "name": p.name,
                "source": {"nodeName": p.source_node, "device": p.source_device},
                "target": {"nodeName": p.target_node, "device": p.target_device},
            }
            for p in observed.pairs
        ],
        "devices": _devices(observed),
        "timings": [
            {"step": t.step, "startTime": t.start, "durationMicroseconds": t.microseconds} for t in measured.timings
        ],
        "progress": _progress(observed, phase),
    }
    if observed.switchover.decision is not None:
        status["decision"] = {
            "outcome": observed.switchover.decision.value,
            "by": measured.decision_by,
            "time": measured.decision_time or now,
        }
    if measured.downtime_microseconds is not None:
        status["downtimeMicroseconds"] = measured.downtime_microseconds
    predicted = measured.predicted_microseconds
    if predicted is not None:
        status["predictedDowntimeMicroseconds"] = predicted
    return status


def _conditions(observed: Observed, plan: Plan, finish: Finish | None, now: str, before: Json) -> list[Json]:
    old = {c["type"]: c for c in before.get("conditions", [])}
    made = []
    for kind, (value, reason, message) in _facts(observed, plan, finish).items():
        was = old.get(kind, {})
        # what once was true stays so when the session that showed it is gone
        if value == "False" and was.get("status") == "True" and kind not in ("Finished", "Succeeded"):
            value, reason, message = "True", was["reason"], was["message"]
        same = was.get("status") == value
        made.append(
            {
                "type": kind,
                "status": value,
                "reason": reason,
                "message": message[:1024],
                "lastTransitionTime": was["lastTransitionTime"] if same else now,
                "observedGeneration": observed.generation,
            }
        )
    return made


def _facts(observed: Observed, plan: Plan, finish: Finish | None) -> dict[str, tuple[str, str, str]]:
    """Every condition, always all of them: type -> (status, reason, message)."""
    targets, sources = observed.side(Role.TARGET), observed.side(Role.SOURCE)
    committed = observed.switchover.decision is Outcome.COMMIT
    prepared = committed or (bool(targets) and all(has_reached(p, Goal.PREPARED) for p in (*targets, *sources)))
    quiesced = committed or (bool(sources) and all(has_reached(p, Goal.QUIESCED) for p in sources))
    failure = finish.failure if finish else None
    detail = _detail(failure) if failure else plan.sentence
    succeeded = "Unknown" if finish is None else str(finish.phase is Phase.SUCCEEDED)
    reason = failure.reason.value if failure else (finish.phase.value if finish else "InProgress")
    if plan.step == "Refused" and failure is not None:
        validated = ("False", failure.reason.value, detail)
    elif observed.pairs:
        validated = ("True", "Validated", f"{len(observed.pairs)} pairs exist, are free and fit")
    else:
        validated = ("Unknown", "Checking", plan.sentence)
    return {
        "Validated": validated,
        "Prepared": _fact(prepared, "DevicesPrepared", "sources are held, targets are RESUMING"),
        "Converged": _fact(committed or converged(observed), "WithinLimit", _forecast(observed)),
        "Quiesced": _fact(quiesced, "BarrierPassed", "every source device was P2P quiescent before any was stopped"),
        "Committed": _fact(committed, "Commit", "every target had loaded and validated its state"),
        "Finished": (str(finish is not None), plan.phase.value if finish is None else finish.phase.value, detail),
        "Succeeded": (succeeded, reason, detail),
    }


def _fact(holds: bool, reason: str, message: str) -> tuple[str, str, str]:
    return (str(holds), reason, message) if holds else ("False", "NotReached", "")


def _forecast(observed: Observed) -> str:
    predicted, limit = predicted_downtime_microseconds(observed), observed.wish.strategy.downtime_limit_milliseconds
    if predicted is None:
        return f"downtimeLimitMilliseconds is {limit}"
    return f"initial bytes are loaded, {predicted / 1000:.0f} ms are forecast, downtimeLimitMilliseconds is {limit}"


def _detail(failure: Failure) -> str:
    parts = [failure.message]
    if failure.device:
        parts.append(f"device={failure.device}")
    if failure.arc:
        parts.append(f"arc={failure.arc}")
    if failure.errno:
        parts.append(f"errno={failure.errno}")
    return "; ".join(parts)


def reports(observed: Observed, role: Role) -> dict[str, DeviceReport]:
    """Device name -> the newest report of one side."""
    return {
        device.name: device
        for participant in observed.side(role)
        if participant.report is not None
        for device in participant.report.devices
    }


def _devices(observed: Observed) -> list[Json]:
    sources, targets = reports(observed, Role.SOURCE), reports(observed, Role.TARGET)
    rows = []
    for pair in observed.pairs:
        source, target = sources.get(pair.name), targets.get(pair.name)
        row: Json = {"name": pair.name}
        if source is not None:
            row["sourceState"] = source.state.name
        if target is not None:
            row["targetState"] = target.state.name
        row["bytes"] = max(source.transferred_bytes if source else 0, target.transferred_bytes if target else 0)
        rows.append(row)
    return rows


def _progress(observed: Observed, phase: Phase) -> Json:
    """Percent of what is known to have to be sent; bytes, their rate, and the seconds left at that rate."""
    sources = reports(observed, Role.SOURCE)
    sent = sum(d.transferred_bytes for d in sources.values())
    left = sum(d.initial_bytes + d.dirty_bytes if _copying(d) else d.stop_copy_bytes for d in sources.values())
    rate = sum(d.bytes_per_second for d in sources.values())
    percent = min(99, 100 * sent // (sent + left)) if sent + left else 0
    percent = 100 if phase is Phase.SUCCEEDED else percent
    progress = {"percent": percent, "bytes": sent, "bytesPerSecond": rate}
    if rate and left:
        progress["etaSeconds"] = -(-left // rate)
    return progress


def _copying(device: DeviceReport) -> bool:
    return device.state is DeviceState.PRE_COPY and MigrationFlags.PRE_COPY in device.flags and device.drained


def outcome_label(finish: Finish) -> tuple[str, str]:
    """(result, reason) for metrics and Events."""
    return finish.phase.value, finish.failure.reason.value if finish.failure else "Succeeded"
