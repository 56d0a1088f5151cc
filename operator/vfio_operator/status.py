"""The status that people and `kubectl wait` see: a pure function of what was observed, planned and measured."""

from dataclasses import dataclass
from typing import Any

from vfio_api.device import DeviceState, MigrationFlags
from vfio_api.errors import Reason
from vfio_api.models_migration import Mode
from vfio_api.models_status import Phase
from vfio_api.reasons import ConditionReason as C
from vfio_api.reasons import EventReason as E
from vfio_api.types import DeviceReport, Failure, Goal, Outcome, Role
from vfio_operator.actions import Finish, Plan
from vfio_operator.forecast import Forecast, not_acknowledged, planned, within_limit
from vfio_operator.observed import Observed, Strategy, has_reached

Json = dict[str, Any]
MAX_FEASIBILITY_MESSAGE = 256
UNCHECKED = (Reason.FORBIDDEN_DEVICE, Reason.FORBIDDEN_POD, Reason.REQUESTER_UNKNOWN)


@dataclass(frozen=True, slots=True)
class StepTiming:
    """How long a step took. start is a time of day (RFC 3339, for people); the duration is of one monotonic clock."""

    step: str
    start: str
    microseconds: int


@dataclass(frozen=True, slots=True)
class Measured:
    """What the migration's task has measured so far. earlier: the forecast's total as an earlier leader wrote it."""

    timings: tuple[StepTiming, ...] = ()
    downtime_microseconds: int | None = None
    forecast: Forecast | None = None
    decision_by: str = ""
    decision_time: str = ""
    earlier: int | None = None

    @property
    def predicted(self) -> int | None:
        """The newest forecast's total in microseconds."""
        return self.forecast.total if self.forecast is not None else self.earlier

    @property
    def left_bytes(self) -> int | None:
        """What the newest forecast says that is left to be sent by the node that takes longest for it."""
        return self.forecast.size_bytes if self.forecast is not None else None


def build(observed: Observed, plan: Plan, measured: Measured, now: str, before: Json, trace_id: str = "") -> Json:
    """The whole status. `now` is RFC 3339; `before` is the last status, for the transition times of conditions.

    trace_id: "" if the migration is not traced; one that was named stays named.
    """
    finish = next((a for a in plan.actions if isinstance(a, Finish)), None)
    phase = finish.phase if finish else plan.phase
    status: Json = {
        "observedGeneration": observed.generation,
        "phase": phase.value,
        "message": closing(observed, plan, measured)[:1024],
        "conditions": _conditions(observed, plan, measured, finish, now, before),
        "pairs": [
            {
                "name": p.name,
                "source": {"nodeName": p.source_node, "device": p.source_device},
                "target": {"nodeName": p.target_node, "device": p.target_device},
            }
            # what was only resolved is shown when all is over: persisted pairs mean that it has begun
            for p in observed.pairs or (plan.pairs if finish else ())
        ],
        "devices": _devices(observed),
        "timings": [
            {"step": t.step, "startTime": t.start, "durationMicroseconds": t.microseconds} for t in measured.timings
        ],
        "progress": _progress(observed, phase),
    }
    if observed.policy:
        status["policy"] = observed.policy
    if observed.pairs or finish:
        status["strategy"] = _strategy(observed.wish.strategy)
    if plan.step == "AwaitTurn" and observed.turn.waiting:
        status["queuePosition"] = observed.turn.position
    if (workload := _workload(observed, before)) is not None:
        status["workload"] = workload
    if observed.switchover.decision is not None:
        status["decision"] = {
            "outcome": observed.switchover.decision.value,
            "by": measured.decision_by,
            "time": measured.decision_time or now,
        }
    if observed.recorded is not None:
        status["failure"] = _failure(observed.recorded)
    if trace_id := trace_id or before.get("traceID", ""):
        status["traceID"] = trace_id
    if measured.downtime_microseconds is not None:
        status["downtimeMicroseconds"] = measured.downtime_microseconds
    predicted = planned(observed, plan.pairs).total if plan.step == "Planned" else measured.predicted
    if predicted is not None:
        status["predictedDowntimeMicroseconds"] = predicted
    if finish and observed.wish.mode is Mode.PLAN:
        status["feasibility"] = _feasibility(plan)
    return status


def _strategy(strategy: Strategy) -> Json:
    made: Json = {
        "downtimeLimitMilliseconds": strategy.downtime_limit_milliseconds,
        "preCopy": strategy.pre_copy,
        "convergenceTimeoutSeconds": strategy.convergence_timeout_seconds,
        "onConvergenceTimeout": "Switchover" if strategy.switch_over_on_timeout else "Abort",
        "switchoverAck": strategy.switchover_ack,
        "switchoverTimeoutSeconds": strategy.switchover_timeout_seconds,
    }
    limit = strategy.bandwidth_limit_bytes_per_second
    return made | ({"bandwidthLimitBytesPerSecond": limit} if limit else {})


def _workload(observed: Observed, before: Json) -> Json | None:
    """The pods as they are known; what was known of one that has gone stays."""
    if not observed.wish.moves_pod:
        return None
    said: Json = before.get("workload") or {}
    move = observed.move
    made: Json = {}
    for key, pod in (("sourcePod", move.source), ("targetPod", move.target)):
        if pod is not None:
            made[key] = {"name": pod.name, "uid": pod.uid} | ({"nodeName": pod.node} if pod.node else {})
        elif key in said:
            made[key] = said[key]
    if observed.pairs and move.counterpart and "targetPod" not in made:
        made["targetPod"] = {"name": move.counterpart}  # before it is made: who leads next finds it by that
    return made if "sourcePod" in made else None


def _feasibility(plan: Plan) -> list[Json]:
    """Each pair and what speaks against it, if anything does: the first reason."""
    if plan.findings and plan.findings[0].reason in UNCHECKED:
        return []  # whoever may not use the devices is not told of them
    against: dict[str, Failure] = {}
    for failure in plan.findings:
        against.setdefault(failure.device, failure)
    whole = against.get("")  # something that is not about one pair
    rows = []
    for pair in plan.pairs:
        speaks = against.get(pair.name, whole)
        row: Json = {"name": pair.name, "feasible": speaks is None}
        if speaks is not None:
            row |= {"reason": speaks.reason.value, "message": speaks.message[:MAX_FEASIBILITY_MESSAGE]}
        rows.append(row)
    return rows


def _conditions(
    observed: Observed, plan: Plan, measured: Measured, finish: Finish | None, now: str, before: Json
) -> list[Json]:
    old = {c["type"]: c for c in before.get("conditions", [])}
    made = []
    for kind, (value, reason, message) in _facts(observed, plan, measured, finish).items():
        was = old.get(kind, {})
        # what once was true stays so when the session that showed it is gone
        if value == "False" and was.get("status") == "True" and _kept(observed, kind):
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


def _kept(observed: Observed, kind: str) -> bool:
    """Whether a condition that was True stays so; a forecast may rise again until the switchover begins."""
    if kind == "Converged":
        return observed.switchover.exists
    return kind not in ("Finished", "Succeeded")


def _facts(
    observed: Observed, plan: Plan, measured: Measured, finish: Finish | None
) -> dict[str, tuple[str, str, str]]:
    """Every condition, always all of them: type -> (status, reason, message)."""
    targets, sources = observed.side(Role.TARGET), observed.side(Role.SOURCE)
    committed = observed.switchover.decision is Outcome.COMMIT
    prepared = committed or (bool(targets) and all(has_reached(p, Goal.PREPARED) for p in (*targets, *sources)))
    quiesced = committed or (bool(sources) and all(has_reached(p, Goal.QUIESCED) for p in sources))
    failure = finish.failure if finish else None
    detail = _detail(failure) if failure else plan.sentence
    succeeded = "Unknown" if finish is None else str(finish.phase is Phase.SUCCEEDED)
    reason = failure.reason.value if failure else _reason(observed, finish)
    if plan.step == "Refused" and failure is not None:
        validated = ("False", failure.reason.value, detail)
    elif observed.pairs or plan.step == "Planned":
        count = len(observed.pairs or plan.pairs)
        validated = ("True", C.VALIDATED, f"{count} pairs exist, are free and fit, and may be used")
    else:
        validated = ("Unknown", C.CHECKING, plan.sentence)
    return {
        "Validated": validated,
        "Prepared": _fact(prepared, C.DEVICES_PREPARED, "sources are held, targets are RESUMING"),
        "Converged": _converged(observed, plan, measured, committed=committed),
        "Quiesced": _fact(quiesced, C.BARRIER_PASSED, "every source device was P2P quiescent before any was stopped"),
        "Committed": _fact(committed, C.COMMIT, "every target had loaded and validated its state"),
        "Finished": (str(finish is not None), plan.phase.value if finish is None else finish.phase.value, detail),
        "Succeeded": (succeeded, reason, detail),
    }


def _fact(holds: bool, reason: str, message: str) -> tuple[str, str, str]:
    return (str(holds), reason, message) if holds else ("False", C.NOT_REACHED, "")


def _reason(observed: Observed, finish: Finish | None) -> str:
    """Reason of Succeeded when nothing failed."""
    if finish is None:
        return C.IN_PROGRESS
    if finish.phase is Phase.SUCCEEDED and observed.wish.mode is not Mode.MIGRATE:
        return C.PLANNED if observed.wish.mode is Mode.PLAN else C.REHEARSED
    return finish.phase.value


def _converged(observed: Observed, plan: Plan, measured: Measured, *, committed: bool) -> tuple[str, str, str]:
    """With the newest forecast as its message; its reason marks the turning point of a rehearsal, durably."""
    limit = observed.wish.strategy.downtime_limit_milliseconds
    told = f"the forecast is {measured.forecast}; downtimeLimitMilliseconds is {limit}" if measured.forecast else ""
    holds = committed or within_limit(observed)
    if observed.rehearsed:
        within = measured.predicted is not None and measured.predicted <= limit * 1000
        return str(within), C.REHEARSED, told or f"the forecast was {_milliseconds(measured.predicted)}"
    if holds:
        return "True", C.WITHIN_LIMIT, told
    if plan.step == "Converge":
        waiting = not_acknowledged(observed)
        if waiting:
            names = ", ".join(d.name for d in waiting[:5])
            return "False", C.NOT_ACKNOWLEDGED, f"initial bytes of {names} are not loaded at the target yet"
        return "False", C.FORECAST, told
    return "False", C.NOT_REACHED, ""


def _failure(failure: Failure) -> Json:
    made: Json = {"reason": failure.reason.value, "message": failure.message[:4096]}
    if failure.device:
        made["device"] = failure.device[:63]
    if failure.arc:
        made["arc"] = failure.arc[:64]
    if failure.errno:
        made["errno"] = failure.errno
    return made


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
    # what the streams of a node carry together; what each carried while it was busy adds up to more
    rate = sum(p.report.link_bytes_per_second for p in observed.side(Role.SOURCE) if p.report is not None)
    rate = rate or sum(d.bytes_per_second for d in sources.values())
    percent = min(99, 100 * sent // (sent + left)) if sent + left else 0
    percent = 100 if phase is Phase.SUCCEEDED else percent
    progress = {"percent": percent, "bytes": sent, "bytesPerSecond": rate}
    if rate and left:
        progress["etaSeconds"] = -(-left // rate)
    return progress


def _copying(device: DeviceReport) -> bool:
    return device.state is DeviceState.PRE_COPY and MigrationFlags.PRE_COPY in device.flags and device.drained


def _milliseconds(microseconds: int | None) -> str:
    return "unknown" if microseconds is None else f"{microseconds / 1000:.0f} ms"


def closing(observed: Observed, plan: Plan, measured: Measured) -> str:
    """The plan's sentence; when a migration has ended, with the figure that it was about."""
    if plan.phase is not Phase.SUCCEEDED:
        return plan.sentence
    if observed.wish.mode is Mode.REHEARSE and measured.predicted is not None:
        return f"{plan.sentence}; forecast downtime {measured.forecast or _milliseconds(measured.predicted)}"
    if measured.downtime_microseconds is not None:
        return f"{plan.sentence}; downtime {measured.downtime_microseconds / 1000:.1f} ms"
    return plan.sentence


def outcome_label(observed: Observed, finish: Finish) -> tuple[str, str]:
    """(result, reason) for metrics and the last Event."""
    if finish.failure is not None:
        return finish.phase.value, finish.failure.reason.value
    return finish.phase.value, ENDS[observed.wish.mode]


# The reason of a migration that did what was asked for.
ENDS = {Mode.MIGRATE: E.SUCCEEDED, Mode.PLAN: E.PLANNED, Mode.REHEARSE: E.REHEARSED}
