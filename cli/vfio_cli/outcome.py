"""What a plan, a rehearsal or a migration came to, in lines for people. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass

from vfio_api.models_migration import Mode
from vfio_api.models_status import ConditionType, Phase
from vfio_api.models_strategy import PreCopy
from vfio_cli.fields import (
    Json,
    condition_of,
    counterpart_of,
    downtime_limit,
    has_succeeded,
    moved_pod,
    pairs_of,
    phase_of,
    size_text,
    word_of,
)
from vfio_cli.waterfall import duration_text


@dataclass(frozen=True, slots=True)
class Line:
    """One line: good (None: neither good nor bad), what it is about, and what is to be said."""

    good: bool | None
    label: str
    text: str


def end_text(end: Json) -> str:
    """node/device."""
    return f"{end['nodeName']}/{end['device']}"


def outcome(body: Json, arrow: str = "→") -> Iterator[Line]:
    """The whole account of a finished migration: pairs, forecast, result."""
    status = body.get("status", {})
    against = {row["name"]: row for row in status.get("feasibility", [])}
    if moved_pod(body):
        yield Line(None if not has_succeeded(body) else True, "pod", pod_text(body, arrow))
    for pair in pairs_of(body):
        row = against.get(pair["name"])
        route = f"{end_text(pair['source'])} {arrow} {end_text(pair['target'])}"
        if row is not None and not row["feasible"]:
            yield Line(False, pair["name"], f"{route}: {row.get('reason')}: {row.get('message', '')}")
        elif body["spec"].get("mode") == Mode.PLAN:
            # without a row nobody looked: what is said of the whole comes below
            yield Line(True if row is not None else None, pair["name"], route)
    yield from _forecast(body)
    yield from _result(body)


def pod_text(body: Json, arrow: str = "→") -> str:
    """The pod, where it runs, with how many devices, and who takes its place."""
    pods, spec = body.get("status", {}).get("workload", {}), body.get("spec", {})
    source, target, pairs = pods.get("sourcePod", {}), pods.get("targetPod", {}), pairs_of(body)
    place = f" on {source['nodeName']}" if source.get("nodeName") else ""
    count = f" with {len(pairs)} device{'s' if len(pairs) != 1 else ''}" if pairs else ""
    name = counterpart_of(body)
    node = target.get("nodeName") or spec.get("target", {}).get("nodeName", "")
    # its name follows from the migration's UID: of a plan, nobody will ever have it
    taker = f"pod {name}" if name else "a counterpart"
    return f"{moved_pod(body)}{place}{count} {arrow} {taker}{f' on {node}' if node else ''}"


def _forecast(body: Json) -> Iterator[Line]:
    status = body.get("status", {})
    predicted, was = status.get("predictedDowntimeMicroseconds"), status.get("downtimeMicroseconds")
    limit = downtime_limit(body)
    bound = f"limit {limit} ms" if limit is not None else "no limit"
    if phase_of(body) == Phase.CANCELLED:
        return
    if was is not None:
        forecast = f"forecast {duration_text(predicted)}, " if predicted is not None else ""
        # the limit is kept by forecast: a miss is worth a look but no failure
        within = limit is None or was <= 1000 * limit
        yield Line(True if within else None, "downtime", f"{duration_text(was)} ({forecast}{bound})")
    elif predicted is not None:
        within = limit is None or predicted <= 1000 * limit
        text = f"{duration_text(predicted)} of downtime, {'within' if within else 'over'} the {bound}"
        yield Line(True if within else None, "forecast", text if within else text + at_worst(body))
    progress = status.get("progress", {})
    if progress.get("bytes"):
        rate = f" at {size_text(progress['bytesPerSecond'])}/s" if progress.get("bytesPerSecond") else ""
        yield Line(True, "copied", f"{size_text(progress['bytes'])}{rate}")


def at_worst(body: Json) -> str:
    """What has to be said of a forecast over the limit that pre-copy brings down; empty of any other."""
    spec = body["spec"]
    if spec.get("mode") != Mode.PLAN or spec.get("strategy", {}).get("preCopy") == PreCopy.DISABLED:
        return ""
    return ", if all state were sent while stopped; pre-copy sends most of it before: kubectl vfio rehearse measures it"


def _result(body: Json) -> Iterator[Line]:
    found, good = condition_of(body, ConditionType.SUCCEEDED), has_succeeded(body)
    status = body.get("status", {})
    # the condition has device, arc and errno besides; the message of a success has the figure
    said = str(status.get("message", "") if good else found["message"] or status.get("message", ""))
    phase, reason = phase_of(body), str(found["reason"])
    # who gave it up wanted that: neither good nor bad
    result = None if phase == Phase.CANCELLED else good
    yield Line(result, phase, said if good or reason == phase else f"{reason}: {said}")


def next_step_of(body: Json) -> str:
    """What to do after its end, by the reason for it."""
    word = word_of(str(condition_of(body, ConditionType.SUCCEEDED)["reason"]))
    return "" if word is None else word.next_step
