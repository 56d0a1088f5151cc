"""Tables of devices, nodes and ended migrations: rows of text from objects. Pure."""

from collections.abc import Iterable, Sequence
from datetime import datetime

from vfio_api.models_status import ConditionType, Phase
from vfio_cli.fields import (
    Json,
    age_text,
    condition_of,
    ended_at,
    is_finished,
    moment,
    phase_of,
    route_of,
    size_text,
)
from vfio_cli.waterfall import duration_text

DEVICE_HEAD = ("NODE", "DEVICE", "DRIVER", "MODEL", "CAN", "USE", "STATE", "SIZE", "CLAIM", "MESSAGE")
NODE_HEAD = ("NODE", "READY", "AGENT", "DEVICES", "IN-USE", "FREE", "CLAIMED", "NOT-MIGRATABLE", "MODELS")
HISTORY_HEAD = ("NAME", "MODE", "OUTCOME", "REASON", "DOWNTIME", "PREDICTED", "BYTES", "ROUTE", "ENDED")
Row = tuple[str, ...]


def use_of(device: Json) -> str:
    """Who has the device, in one word or two: its holder, or that it is free or cannot migrate."""
    status = device.get("status") or {}
    if status.get("holder"):
        return str(status["holder"])
    return "free" if status.get("migratable") is not False else "not migratable"


def device_rows(devices: Iterable[Json]) -> list[Row]:
    """One row for each device, by node and address."""
    rows: list[Row] = []
    for device in sorted(devices, key=lambda d: (d["spec"]["nodeName"], d["spec"]["address"])):
        spec, status = device["spec"], device.get("status") or {}
        flags, size, claim = status.get("migrationFlags"), status.get("stopCopyBytes"), spec.get("claimRef")
        rows.append(
            (
                spec["nodeName"],
                spec["address"],
                status.get("driver", ""),
                status.get("model", ""),
                "?" if flags is None else ",".join(flags) or "-",
                use_of(device),
                status.get("state", ""),
                "" if size is None else size_text(size),
                f"{claim['namespace']}/{claim['name']}" if claim else "",
                status.get("message", ""),
            )
        )
    return rows


def node_facts(nodes: Iterable[Json], devices: Sequence[Json], agents: Sequence[Json] | None) -> list[Json]:
    """What is known of each node that has devices or an agent. agents: pods; None if they may not be read."""
    pods = {pod["spec"].get("nodeName"): pod for pod in agents or ()}
    found = {node["metadata"]["name"]: node for node in nodes}
    names = {d["spec"]["nodeName"] for d in devices} | {name for name in pods if name}
    facts: list[Json] = []
    for name in sorted(names):
        own = [d for d in devices if d["spec"]["nodeName"] == name]
        migratable = [d for d in own if (d.get("status") or {}).get("migratable") is not False]
        pod = pods.get(name)
        facts.append(
            {
                "node": name,
                "ready": is_ready(found[name]) if name in found else None,
                "agent": None if agents is None else is_ready(pod) if pod is not None else False,
                "devices": len(own),
                "inUse": sum(1 for d in migratable if (d.get("status") or {}).get("holder")),
                "free": sum(
                    1 for d in migratable if not (d.get("status") or {}).get("holder") and "claimRef" not in d["spec"]
                ),
                "claimed": sum(1 for d in own if "claimRef" in d["spec"]),
                "notMigratable": len(own) - len(migratable),
                "models": sorted({str((d.get("status") or {}).get("model", "?")) for d in own}),
            }
        )
    return facts


def node_rows(facts: Iterable[Json]) -> list[Row]:
    """One row for each node."""
    words = {True: "yes", False: "no", None: "?"}
    return [
        (
            fact["node"],
            "gone" if fact["ready"] is None else words[fact["ready"]],
            words[fact["agent"]],
            *(str(fact[key]) for key in ("devices", "inUse", "free", "claimed", "notMigratable")),
            ",".join(fact["models"]),
        )
        for fact in facts
    ]


def is_ready(found: Json) -> bool:
    """Whether a node or a pod says that it is Ready."""
    conditions = (found.get("status") or {}).get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def ended(bodies: Iterable[Json]) -> list[Json]:
    """The migrations that are finished, the last one to end first."""
    found = [body for body in bodies if is_finished(body)]
    return sorted(found, key=lambda body: ended_at(body) or moment(body["metadata"]["creationTimestamp"]), reverse=True)


def history_rows(bodies: Iterable[Json], now: datetime, arrow: str = "→") -> list[Row]:
    """One row for each ended migration; without the namespace."""
    rows: list[Row] = []
    for body in bodies:
        status, end = body["status"], ended_at(body)
        rows.append(
            (
                body["metadata"]["name"],
                body["spec"].get("mode", "Migrate"),
                phase_of(body),
                str(condition_of(body, ConditionType.SUCCEEDED)["reason"]),
                _duration(status.get("downtimeMicroseconds")),
                _duration(None if phase_of(body) == Phase.CANCELLED else status.get("predictedDowntimeMicroseconds")),
                size_text(status.get("progress", {}).get("bytes", 0)),
                route_of(body, arrow),
                age_text((now - end).total_seconds()) if end else "?",
            )
        )
    return rows


def _duration(microseconds: int | None) -> str:
    return "-" if microseconds is None else duration_text(microseconds)
