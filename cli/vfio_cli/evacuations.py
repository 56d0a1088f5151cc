"""What is made and said of evacuations: objects from flags, lines for people from objects. Pure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from vfio_api import API_GROUP, API_VERSION
from vfio_api.models_evacuation import EvacuationPhase, ItemPhase
from vfio_cli.fields import is_finished, phase_of
from vfio_cli.outcome import Line

Json = dict[str, Any]
MAX_BASE = 40  # of a node's name in that of its evacuation


def build(
    node: str, targets: Sequence[str], strategy: Mapping[str, Any], priority: int | None, ttl: int | None
) -> Json:
    """The VFIOEvacuation of a node, with only what was said; the API server makes up the rest of its name."""
    given = {key: value for key, value in strategy.items() if value is not None}
    more = {"targetNodes": list(targets), "strategy": given, "priority": priority, "ttlSecondsAfterFinished": ttl}
    return {
        "apiVersion": f"{API_GROUP}/{API_VERSION}",
        "kind": "VFIOEvacuation",
        "metadata": {"generateName": f"{node[:MAX_BASE].rstrip('-.')}-"},
        "spec": {"nodeName": node} | {key: value for key, value in more.items() if value not in (None, [], {})},
    }


def under_way(evacuations: Iterable[Json], node: str) -> Json | None:
    """The evacuation of a node that has not ended: the oldest, if there are two; None if there is none."""
    found = [e for e in evacuations if e["spec"]["nodeName"] == node and not is_finished(e)]
    return min(found, key=lambda e: str(e["metadata"]["creationTimestamp"]), default=None)


def changes(before: Json, after: Json) -> Iterator[str]:
    """One line for each item that is somewhere else now, or has another reason to wait; from its status before."""
    was = {item["key"]: item for item in before.get("items", [])}
    for item in after.get("items", []):
        if _told(item) != _told(was.get(item["key"], {"phase": ""})):
            yield f"{item['name']}: {item_text(item)}"


def _told(item: Json) -> tuple[str, str, str]:
    return item["phase"], item.get("migration", ""), item.get("message", "")


def item_text(item: Json, arrow: str = "→") -> str:
    """Where an item is, where it goes and by which migration, and why if something is wrong."""
    devices = f"{item.get('devices', 0)} device{'s' if item.get('devices') != 1 else ''}"
    parts = [f"{item['phase']}, {devices}"]
    if item.get("targetNode") and item["phase"] not in (ItemPhase.WAITING, ItemPhase.CANCELLED):
        parts.append(f"{arrow} {item['targetNode']}")
    if item.get("migration"):
        parts.append(f"(vfm {item['migration']} -n {item.get('namespace', '')})")
    return " ".join(parts) + (f": {item['message']}" if item.get("message") else "")


def outcome(body: Json, arrow: str = "→") -> Iterator[Line]:
    """What became of each item, and of the whole."""
    goods = {ItemPhase.MOVED: True, ItemPhase.FAILED: False}
    status = body.get("status", {})
    for item in status.get("items", []):
        yield Line(goods.get(ItemPhase(item["phase"])), item["name"], item_text(item, arrow))
    phase = phase_of(body)
    good = {EvacuationPhase.SUCCEEDED.value: True, EvacuationPhase.FAILED.value: False}.get(phase)
    yield Line(good, phase, str(status.get("message", "")))


def next_step(body: Json) -> str:
    """What to do when it has ended."""
    node, phase = body["spec"]["nodeName"], phase_of(body)
    if phase == EvacuationPhase.SUCCEEDED:
        return f"kubectl drain {node} --ignore-daemonsets"
    failed = [i for i in body.get("status", {}).get("items", []) if i["phase"] == ItemPhase.FAILED and "migration" in i]
    if failed:
        return f"kubectl vfio explain {failed[0]['migration']} -n {failed[0]['namespace']}"
    return f"kubectl vfio devices {node} shows what is left there"
