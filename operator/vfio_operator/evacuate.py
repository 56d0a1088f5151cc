"""What an evacuation does next: which items there are, where each goes, and what became of it. Pure.

An item moves as one: a pod with all its devices, or the devices that one workload without a pod has open. Its migration
is an ordinary VFIOMigration, whose name follows from the evacuation, the item and the attempt: an operator that crashed
finds it again, and never makes a second one. How many run at once is for their queue.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vfio_api.models_evacuation import EvacuationPhase, ItemPhase
from vfio_operator.observed import DeviceRecord
from vfio_operator.pairing import assign, kind

MAX_ATTEMPTS = 3
FIRST_BACKOFF_SECONDS = 5.0
NOWHERE_SECONDS = 30.0  # in which what moved last, or somebody else, may have freed devices
HASH_DIGITS = 10


@dataclass(frozen=True, slots=True)
class Unit:
    """What moves as one. key: tells it from others for good: the pod's UID, or the holder's name.

    pod: namespace and name, ("", "") if no pod uses the devices. trouble: why it cannot be moved, if so.
    """

    key: str
    name: str
    devices: tuple[DeviceRecord, ...]
    pod: tuple[str, str] = ("", "")
    trouble: str = ""

    @property
    def claimed(self) -> bool:
        """Whether a migration has reserved them."""
        return any(device.claim_uid for device in self.devices)

    @property
    def kinds(self) -> Counter[tuple[str, str, int]]:
        """How many devices of each kind it needs."""
        return Counter(kind(device) for device in self.devices)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a VFIOMigration of an item came to; absent: there is none.

    cancelled: it is, or is to be. queued: it waits for others to end. ended_seconds: how long ago it ended.
    """

    finished: bool = False
    succeeded: bool = False
    message: str = ""
    ended_seconds: float = 0.0
    absent: bool = False
    cancelled: bool = False
    queued: bool = False


_NONE = Outcome()


@dataclass(frozen=True, slots=True)
class Item:
    """An item as it was written down last."""

    key: str
    name: str
    devices: int
    phase: ItemPhase = ItemPhase.WAITING
    target: str = ""
    migration: str = ""
    namespace: str = ""
    attempts: int = 0
    message: str = ""

    @property
    def over(self) -> bool:
        """Whether nothing more is done for it."""
        return self.phase in (ItemPhase.MOVED, ItemPhase.FAILED, ItemPhase.CANCELLED)


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything that the plan looks at.

    free: of each node that may be a target, its free migratable devices. outcomes: by the name of the migration.
    idle_seconds: for how long nothing has been moving. absent: there is no such node.
    """

    uid: str
    name: str
    node: str
    units: tuple[Unit, ...]
    free: Mapping[str, Sequence[DeviceRecord]]
    outcomes: Mapping[str, Outcome]
    cancelled: bool = False
    namespace: str = ""
    idle_seconds: float = 0.0
    absent: bool = False


@dataclass(frozen=True, slots=True)
class Creation:
    """A VFIOMigration to be made. targets: the devices on the target node, in the order of the unit's."""

    name: str
    namespace: str
    unit: Unit
    target: str
    targets: tuple[DeviceRecord, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """The items as they are now, the migrations to be made for them, and those to be cancelled (namespace, name)."""

    items: tuple[Item, ...]
    creations: tuple[Creation, ...] = ()
    cancellations: tuple[tuple[str, str], ...] = ()


def units_on(node: str, inventory: Iterable[DeviceRecord]) -> tuple[Unit, ...]:
    """What is in use on a node and can migrate, in the order of the names."""
    groups: dict[str, list[DeviceRecord]] = {}
    for device in sorted(inventory, key=lambda d: d.address):
        if device.node == node and device.migratable and device.holder:
            # whom the keeper holds a device for is not known: each is on its own
            anyone = f"{device.holder} {device.address}" if device.holder == "keeper" else device.holder
            groups.setdefault(device.pod_uid or anyone, []).append(device)
    units = []
    for key, devices in groups.items():
        uid, (namespace, _, name) = devices[0].pod_uid, devices[0].pod.partition("/")
        if not uid:
            units.append(Unit(key, f"device {devices[0].address}", tuple(devices)))
        elif name:
            units.append(Unit(key, f"pod {devices[0].pod}", tuple(devices), (namespace, name)))
        else:
            why = f"the agent on node {node} finds no name of it in /var/log/pods: the kubelet's podLogsDir is another"
            units.append(Unit(key, f"pod {uid}", tuple(devices), trouble=why))
    return tuple(sorted(units, key=lambda unit: unit.name))


def advance(scene: Scene, items: Sequence[Item]) -> Step:
    """What became of the items, and what is to be made for those that wait. items: none at the beginning."""
    units = {unit.key: unit for unit in scene.units}
    if not items:
        items = [Item(unit.key, unit.name, len(unit.devices)) for unit in scene.units]
    settled = [_settle(scene, item, item.key in units) for item in items]
    left = {node: list(devices) for node, devices in scene.free.items()}
    made: list[Item] = []
    creations: list[Creation] = []
    for number, item in enumerate(settled):
        # what is claimed already is not shown as free any more
        if item.phase is ItemPhase.MOVING and item.key in units and not units[item.key].claimed:
            given = _promise(left, units[item.key], item.target)
            if not scene.outcomes.get(item.migration, _NONE).absent:
                continue
            # it was written down, and the operator ended before it was made
            if len(given) == len(units[item.key].devices):
                creations.append(Creation(item.migration, item.namespace, units[item.key], item.target, given))
            else:  # what it was to get there is another's by now
                settled[number] = replace(item, phase=ItemPhase.WAITING)
    for item in settled:
        unit = units.get(item.key)
        if item.phase is not ItemPhase.WAITING or unit is None or _rests(scene, item):
            made.append(item)
            continue
        item, creation = _begin(scene, item, unit, left)
        made.append(item)
        creations += [creation] if creation is not None else []
    return Step(tuple(made), tuple(creations), _cancellations(scene, made))


def _cancellations(scene: Scene, items: Iterable[Item]) -> tuple[tuple[str, str], ...]:
    """Migrations that wait for others to end, of an evacuation that is cancelled."""
    outcomes = [(item, scene.outcomes.get(item.migration, _NONE)) for item in items if item.phase is ItemPhase.MOVING]
    return tuple(
        (item.namespace, item.migration)
        for item, outcome in outcomes
        if scene.cancelled and outcome.queued and not outcome.cancelled
    )


def _begin(
    scene: Scene, item: Item, unit: Unit, left: Mapping[str, list[DeviceRecord]]
) -> tuple[Item, Creation | None]:
    if unit.trouble:
        return replace(item, phase=ItemPhase.FAILED, message=unit.trouble), None
    if unit.claimed:
        return replace(item, message="another migration moves it"), None
    target = best_target(unit, left, item.target)
    if not target:
        lost = scene.idle_seconds >= NOWHERE_SECONDS
        phase = ItemPhase.FAILED if lost else ItemPhase.WAITING
        return replace(item, phase=phase, message=nowhere(unit, scene.free)), None
    chosen = _promise(left, unit, target)
    name = migration_name(scene.uid, scene.name, item.key, item.attempts + 1)
    namespace = unit.pod[0] or scene.namespace
    began = replace(
        item,
        phase=ItemPhase.MOVING,
        target=target,
        migration=name,
        namespace=namespace,
        attempts=item.attempts + 1,
        message="",
    )
    return began, Creation(name, namespace, unit, target, chosen)


def less(
    free: Mapping[str, Sequence[DeviceRecord]], promised: Iterable[tuple[Unit, str]]
) -> dict[str, list[DeviceRecord]]:
    """What is free on each node, but for what units get that were promised a node."""
    left = {node: list(devices) for node, devices in free.items()}
    for unit, node in promised:
        if node in left:
            _promise(left, unit, node)
    return left


def _promise(left: Mapping[str, list[DeviceRecord]], unit: Unit, node: str) -> tuple[DeviceRecord, ...]:
    """Take what a unit gets on a node out of what is left there."""
    given = assign(unit.devices, left.get(node, ()))
    for device in given.values():
        left[node].remove(device)
    return tuple(given[device.address] for device in unit.devices if device.address in given)


def _settle(scene: Scene, item: Item, there: bool) -> Item:
    outcome = scene.outcomes.get(item.migration, _NONE) if item.migration else _NONE
    if item.phase is ItemPhase.MOVING and outcome.finished:
        if outcome.succeeded:
            return replace(item, phase=ItemPhase.MOVED, message="")
        if outcome.cancelled:
            return replace(item, phase=ItemPhase.CANCELLED, message=outcome.message)
        last = item.attempts >= MAX_ATTEMPTS
        item = replace(item, phase=ItemPhase.FAILED if last else ItemPhase.WAITING, message=outcome.message)
    elif item.phase is ItemPhase.MOVING:
        item = replace(item, message=outcome.message if outcome.queued else "")
    begun = item.phase is ItemPhase.MOVING and not outcome.absent
    if not begun and not item.over and not there:
        return replace(item, phase=ItemPhase.MOVED, message="it is not there any more")
    if not begun and not item.over and scene.cancelled:
        return replace(item, phase=ItemPhase.CANCELLED)
    return item


def _rests(scene: Scene, item: Item) -> bool:
    """Whether it is too early for another attempt."""
    if not item.attempts:
        return False
    outcome = scene.outcomes.get(item.migration, _NONE)
    return not outcome.absent and outcome.ended_seconds < backoff_seconds(item.attempts)


def backoff_seconds(attempts: int) -> float:
    """How long to rest after so many attempts."""
    backoff: float = FIRST_BACKOFF_SECONDS * 2 ** (attempts - 1)
    return backoff


def best_target(unit: Unit, left: Mapping[str, Sequence[DeviceRecord]], before: str) -> str:
    """The node with the most devices left for it, another than before if there is one; "" if none has enough."""
    wanted = set(map(kind, unit.devices))
    fitting = [node for node, free in left.items() if len(assign(unit.devices, free)) == len(unit.devices)]
    spare = {node: sum(kind(device) in wanted for device in left[node]) for node in fitting}
    return min(fitting, key=lambda node: (node == before, -spare[node], node), default="")


def nowhere(unit: Unit, free: Mapping[str, Sequence[DeviceRecord]]) -> str:
    """That no node has what a unit needs, for people."""
    needs = ", ".join(f"{count} x {driver} {model}" for (driver, model, _), count in sorted(unit.kinds.items()))
    nodes = ", ".join(sorted(free)) or "none"
    return f"no node has {needs} free; looked at: {nodes}"


def node_is_left(pod: Mapping[str, Any], node: Mapping[str, Any]) -> bool:
    """Whether a node is being emptied, as a pod on it sees it: it is cordoned, or would not take the pod again.

    pod, node: as the API server writes them. Who scales down or upgrades a node cordons it, or taints it.
    """
    spec = node.get("spec", {})
    tolerations = pod["spec"].get("tolerations", ())
    taints = [taint for taint in spec.get("taints", ()) if taint.get("effect") in ("NoSchedule", "NoExecute")]
    return spec.get("unschedulable", False) or not all(
        any(_tolerates(toleration, taint) for toleration in tolerations) for taint in taints
    )


def _tolerates(toleration: Mapping[str, Any], taint: Mapping[str, Any]) -> bool:
    """As the scheduler has it: no key with Exists is any key, no effect is any effect."""
    key, operator = toleration.get("key", ""), toleration.get("operator") or "Equal"
    if toleration.get("effect") not in (None, "", taint["effect"]) or key not in ("", taint["key"]):
        return False
    return operator == "Exists" or bool(key and toleration.get("value", "") == taint.get("value", ""))


def migration_name(uid: str, base: str, key: str, attempt: int) -> str:
    """Always the same for an attempt at an item of what has this UID; it begins with `base`."""
    digest = hashlib.sha256(f"{uid}\0{key}\0{attempt}".encode()).hexdigest()[:HASH_DIGITS]
    return f"{base[: 63 - HASH_DIGITS - 1].rstrip('-.')}-{digest}"


def phase_of(scene: Scene, items: Sequence[Item]) -> tuple[EvacuationPhase, str]:
    """Where the evacuation is, and one sentence."""
    if not items and scene.absent:
        return EvacuationPhase.FAILED, f"there is no node {scene.node}: look at spec.nodeName"
    counts = Counter(item.phase for item in items)
    moved, total = counts[ItemPhase.MOVED], len(items)
    stuck = [i for i in items if i.phase is ItemPhase.WAITING and i.message and not counts[ItemPhase.MOVING]]
    if not all(item.over for item in items):
        queued = sum(item.phase is ItemPhase.MOVING and bool(item.message) for item in items)
        waits = f"; {stuck[0].name} waits: {stuck[0].message}" if stuck else ""
        moving = f"{counts[ItemPhase.MOVING] - queued} moving" + (f", {queued} queued" if queued else "")
        return EvacuationPhase.RUNNING, f"{moved} of {total} moved, {moving}{waits}"
    if counts[ItemPhase.CANCELLED]:
        return EvacuationPhase.CANCELLED, f"cancelled: {moved} of {total} moved, the others stay on node {scene.node}"
    failed = [item for item in items if item.phase is ItemPhase.FAILED]
    if failed:
        first = f"{failed[0].name}: {failed[0].message}"
        return EvacuationPhase.FAILED, f"{len(failed)} of {total} could not be moved: {first}"
    return EvacuationPhase.SUCCEEDED, f"{moved} of {total} moved: nothing migratable is in use on node {scene.node}"
