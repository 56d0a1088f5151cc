"""What is read of a VFIOMigration as the API server returns it, and how its figures are written. Pure."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from vfio_api.errors import Reason
from vfio_api.models_status import ConditionType
from vfio_api.reasons import ConditionReason, EventReason, Word

Json = Mapping[str, Any]
_UNKNOWN: Json = {"status": "Unknown", "reason": "", "message": ""}
_STEPS = ((86_400, "d"), (3_600, "h"), (60, "m"), (1, "s"))


def condition_of(body: Json, kind: str) -> Json:
    """One condition; Unknown, without a reason, if it is not there yet."""
    conditions = body.get("status", {}).get("conditions", [])
    return next((c for c in conditions if c["type"] == kind), _UNKNOWN)


def condition(body: Json, kind: str) -> str:
    """The status of a condition: "True", "False" or "Unknown"."""
    return str(condition_of(body, kind)["status"])


def downtime_limit(body: Json) -> int | None:
    """In milliseconds: as it was resolved, or as it is asked for before that; None if neither says it."""
    resolved = body.get("status", {}).get("strategy", {})
    asked = body["spec"].get("strategy", {})
    found: int | None = resolved.get("downtimeLimitMilliseconds", asked.get("downtimeLimitMilliseconds"))
    return found


def is_finished(body: Json) -> bool:
    """Whether the migration has ended, one way or the other."""
    return condition(body, ConditionType.FINISHED) == "True"


def has_succeeded(body: Json) -> bool:
    """Whether it has done what was asked for."""
    return condition(body, ConditionType.SUCCEEDED) == "True"


def is_committed(body: Json) -> bool:
    """Whether it has passed the point up to which it can be cancelled, as far as its status says."""
    decided = body.get("status", {}).get("decision", {}).get("outcome") == "Commit"
    return decided or condition(body, ConditionType.COMMITTED) == "True"


def full_name(body: Json) -> str:
    """namespace/name."""
    return f"{body['metadata']['namespace']}/{body['metadata']['name']}"


def phase_of(body: Json) -> str:
    """status.phase; Pending until the operator has seen it."""
    return str(body.get("status", {}).get("phase", "Pending"))


def pairs_of(body: Json) -> list[Json]:
    """The pairs: as resolved, else as they are in the spec (none with the shorthand)."""
    return list(body.get("status", {}).get("pairs") or body.get("spec", {}).get("devices") or [])


def route_of(body: Json, arrow: str = "→") -> str:
    """From which nodes to which, such as "node-a → node-b"."""
    pairs, spec = pairs_of(body), body.get("spec", {})
    if not pairs:
        return f" {arrow} ".join(_place(spec.get(side, {})) for side in ("source", "target"))
    sides = (sorted({pair[side]["nodeName"] for pair in pairs}) for side in ("source", "target"))
    return f" {arrow} ".join(", ".join(side) for side in sides)


def _place(end: Json) -> str:
    """A node, or a pod, as the shorthand names it."""
    return str(end.get("nodeName") or f"pod {end.get('podName', '?')}")


def moved_pod(body: Json) -> str:
    """Name of the pod that is to move with its devices; "" if none is."""
    return str(body.get("spec", {}).get("source", {}).get("podName", ""))


def counterpart_of(body: Json) -> str:
    """Name of the pod that takes its place, once it is known; ""."""
    status, spec = body.get("status", {}), body.get("spec", {})
    made = status.get("workload", {}).get("targetPod", {}).get("name")
    return str(made or spec.get("target", {}).get("podName", ""))


def queue_position(status: Json) -> int:
    """Which of those that wait for others to end it is, the next one being 1; 0 if it does not wait."""
    return int(status.get("queuePosition", 0))


def ended_at(body: Json) -> datetime | None:
    """When it was finished."""
    found = condition_of(body, ConditionType.FINISHED)
    return moment(found["lastTransitionTime"]) if found["status"] == "True" else None


def moment(text: str) -> datetime:
    """A time as the API server writes it."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def size_text(count: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def age_text(seconds: float) -> str:
    """A span as kubectl writes it: its two largest units, the second one only while the first is small."""
    left = max(0, int(seconds))
    for place, (size, unit) in enumerate(_STEPS):
        if left >= size or unit == "s":
            whole, rest = divmod(left, size)
            small = rest // _STEPS[place + 1][0] if place + 1 < len(_STEPS) else 0
            return f"{whole}{unit}{small}{_STEPS[place + 1][1]}" if small and whole < 10 else f"{whole}{unit}"
    raise AssertionError("every span has seconds")


def word_of(reason: str) -> Word | None:
    """What vfio_api says of a reason, None if it does not know it; of failures first, as only they can be confused."""
    for words in (Reason, ConditionReason, EventReason):
        if reason in set(words):
            return words(reason)
    return None


def columns(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    """Lines of a table as kubectl prints them: padded, without rules, empty cells as they are."""
    widths = [max(len(row[n]) for row in (head, *rows)) for n in range(len(head))]
    for row in (head, *rows):
        yield "   ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
