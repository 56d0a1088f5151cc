"""A migration as the API server returns it at several moments, for tests of what the plugin makes of it."""

from typing import Any

Json = dict[str, Any]
UID = "8a6f"
CREATED, ENDED = "2026-11-26T01:00:00Z", "2026-11-26T01:00:30Z"
ALL = ("Validated", "Prepared", "Converged", "Quiesced", "Committed")


def condition(kind: str, status: str, reason: str = "NotReached", message: str = "") -> Json:
    return {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": ENDED}


def conditions(passed: int, *others: Json) -> list[Json]:
    """The first so many milestones are True; others replace or add."""
    made = {kind: condition(kind, "True" if n < passed else "False") for n, kind in enumerate(ALL)}
    made |= {"Finished": condition("Finished", "False", "PreCopy"), "Succeeded": condition("Succeeded", "Unknown")}
    return list((made | {c["type"]: c for c in others}).values())


def pair(n: int) -> Json:
    return {
        "name": f"gpu{n}",
        "source": {"nodeName": "node-a", "device": f"sim{n}"},
        "target": {"nodeName": "node-b", "device": f"sim{n}"},
    }


def migration(status: Json | None, *, mode: str = "Migrate", limit: int = 100) -> Json:
    return {
        "metadata": {"name": "m", "namespace": "lab", "uid": UID, "creationTimestamp": CREATED},
        "spec": {
            "mode": mode,
            "devices": [pair(0), pair(1)],
            "strategy": {"downtimeLimitMilliseconds": limit},
        },
        **({"status": status} if status is not None else {}),
    }


COPYING: Json = {
    "phase": "PreCopy",
    "message": "pre-copy until the downtime limit can be kept",
    "conditions": conditions(2, condition("Converged", "False", "Forecast", "forecast 900 ms")),
    "pairs": [pair(0), pair(1)],
    "devices": [
        {"name": "gpu0", "bytes": 30 << 20, "sourceState": "PRE_COPY", "targetState": "RESUMING"},
        {"name": "gpu1", "bytes": 60 << 20, "sourceState": "PRE_COPY", "targetState": "RESUMING"},
    ],
    "progress": {"percent": 45, "bytes": 90 << 20, "bytesPerSecond": 200 << 20, "etaSeconds": 3},
    "predictedDowntimeMicroseconds": 900_000,
    "timings": [{"step": "Claim", "durationMicroseconds": 50_000}],
}
SUCCEEDED: Json = COPYING | {
    "phase": "Succeeded",
    "message": "every device runs at its target; downtime 21.0 ms",
    "conditions": conditions(
        5,
        condition("Finished", "True", "Succeeded"),
        condition("Succeeded", "True", "Succeeded", "every device runs at its target"),
    ),
    "progress": {"percent": 100, "bytes": 200 << 20},
    "predictedDowntimeMicroseconds": 21_700,
    "downtimeMicroseconds": 21_011,
    "decision": {"outcome": "Commit", "by": "operator-0", "time": ENDED},
}
ARC = "PRE_COPY_P2P -> STOP_COPY"
FAILED: Json = COPYING | {
    "phase": "Failed",
    "message": "device sim1 failed",
    "conditions": conditions(
        3,
        condition("Finished", "True", "Failed"),
        condition("Succeeded", "False", "ArcFailed", "device sim1: arc failed; errno=5"),
    ),
    "failure": {"reason": "ArcFailed", "message": "device sim1: arc failed", "device": "gpu1", "arc": ARC, "errno": 5},
    "decision": {"outcome": "Abort", "by": "operator-0", "time": ENDED},
}


def switchover(outcome: str = "") -> Json:
    status = {"status": {"decision": {"outcome": outcome, "by": "vfio-agent/node-a", "time": ENDED}}} if outcome else {}
    return {"spec": {"epoch": 3, "timeoutSeconds": 30}, **status}


def device(node: str, address: str, **status: Any) -> Json:
    return {"spec": {"nodeName": node, "address": address}, "status": status}


def event(reason: str, note: str, at: str, *, uid: str = UID) -> Json:
    return {
        "metadata": {"creationTimestamp": at},
        "eventTime": at,
        "type": "Normal",
        "reason": reason,
        "note": note,
        "regarding": {"uid": uid, "name": "m"},
    }
