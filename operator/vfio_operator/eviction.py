"""Moves a pod that is to be evicted, so that `kubectl drain` empties a node without ending what has devices.

The first time that the eviction of a pod with migratable devices is asked for, a VFIOMigration is made for it; until
the pod is gone from its node the answer is no, and drain asks again. Any replica answers, by an object whose name
follows from the pod: making it is not leading.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from vfio_operator.evacuate import (
    MAX_ATTEMPTS,
    Creation,
    Unit,
    backoff_seconds,
    best_target,
    less,
    migration_name,
    node_is_left,
    nowhere,
    units_on,
)
from vfio_operator.evacuation import NodesThatTake, migration_of, outcome_of
from vfio_operator.kube import API_ERRORS, Json, brief
from vfio_operator.kube_evacuations import KubeEvacuations
from vfio_operator.kube_lists import Lists
from vfio_operator.kube_pods import KubePods
from vfio_operator.observed import DeviceRecord

log = structlog.get_logger()
ANSWER_SECONDS = 3.0  # below the webhook's timeoutSeconds, after which the API server evicts without having been told
LOOK_SECONDS = 1.0
# A migration that failed is kept for so long; when all are gone, the pod is tried again from the first.
KEEP_SECONDS = 900
Inventory = Mapping[tuple[str, str], DeviceRecord]


@dataclass(frozen=True, slots=True)
class Answer:
    """What is answered to an eviction: allowed, or not yet, with what is going on. warning: told to who is allowed."""

    allowed: bool
    message: str = ""
    warning: str = ""


ALLOWED = Answer(True)


@dataclass(frozen=True, slots=True)
class Sight:
    """What the watches show, of any replica.

    emptied: nodes that a VFIOEvacuation empties. moving: the unfinished VFIOMigration that moves a pod (namespace,
    name), or that brings it; None if there is none.
    """

    inventory: Inventory
    emptied: Callable[[], frozenset[str]]
    moving: Callable[[str, str], Mapping[str, Any] | None]


class Evictions:
    """Answers for the pods of this cluster's inventory. What it is given to write with must not ask who leads."""

    def __init__(
        self,
        kube: KubeEvacuations,
        pods: KubePods,
        lists: Lists,
        sight: Sight,
        answer_seconds: float = ANSWER_SECONDS,
    ):
        self._kube, self._pods, self._lists, self._sight = kube, pods, lists, sight
        self._answer_seconds = answer_seconds
        self._nodes = NodesThatTake(kube)
        self._promised: dict[str, tuple[Unit, str]] = {}  # migrations made here -> what they move, and where to
        self._knows = False

    def ready(self) -> str:
        """For /readyz, any thread: "" once the watches show what there was when this replica started; else why not."""
        return "" if self._knows else "it does not know yet which pods have VFIO devices"

    async def run(self) -> None:
        """Find out when the watches have caught up with what there is now, and end."""
        while True:
            self._knows = await self._caught_up()
            if self._knows:
                return
            await asyncio.sleep(LOOK_SECONDS)

    async def _caught_up(self) -> bool:
        try:
            there = {body["metadata"]["name"] async for body in self._lists.devices()}
        except API_ERRORS as error:
            log.warning("inventory is not known yet", error=brief(error))
            return False
        return there <= {device.object_name for device in self._sight.inventory.values()}

    async def answer(self, namespace: str, name: str, *, dry_run: bool) -> Answer:
        """Whether the pod may be evicted now. A pod with migratable devices is not, if that cannot be found out."""
        title = f"pod {namespace}/{name}"
        moving = self._sight.moving(namespace, name)
        if moving is not None:
            return _not_yet(f"{title} moves with its VFIO devices: {_standing(moving)}", dry_run)
        devices = [d for d in self._sight.inventory.values() if d.pod == f"{namespace}/{name}"]
        if not any(device.migratable for device in devices):
            if self._knows or devices:
                return ALLOWED
            return _not_yet(f"{title} waits for the operator, which has just started: {self.ready()}", dry_run)
        try:
            async with asyncio.timeout(self._answer_seconds):
                return await self._consider(namespace, name, title, devices, dry_run=dry_run)
        except API_ERRORS as error:
            late = f"no answer within {self._answer_seconds:g} s"
            said = late if isinstance(error, TimeoutError) else brief(error)
            log.warning("pod that is to be evicted cannot be moved", pod=f"{namespace}/{name}", error=said)
        except Exception as error:  # an answer that fails would be an eviction
            log.exception("pod that is to be evicted cannot be moved", pod=f"{namespace}/{name}")
            said = f"the operator fails: {error!r}; see its log"
        return _not_yet(f"{title} has VFIO devices, and cannot be moved for now: {said}", dry_run)

    async def _consider(
        self, namespace: str, name: str, title: str, devices: list[DeviceRecord], *, dry_run: bool
    ) -> Answer:
        pod = await self._pods.get(namespace, name)
        # what the inventory knows may be of an earlier pod of that name, or of a node that is no more
        devices = [d for d in devices if pod is not None and d.pod_uid == pod["metadata"]["uid"]]
        if pod is None or not any(device.migratable for device in devices) or _ends(pod):
            return ALLOWED
        node = devices[0].node
        found = await self._kube.node(node)
        if found is None or not node_is_left(pod, found):
            said = f"{title} is evicted, not moved: node {node} takes pods; `kubectl cordon {node}` before has it moved"
            return Answer(True, warning=f"{said} with its VFIO devices")
        if node in self._sight.emptied():
            return _not_yet(f"{title} moves with its VFIO devices: a VFIOEvacuation empties node {node}", dry_run)
        rigid = [device.address for device in devices if not device.migratable]
        if rigid:
            return _not_yet(_stuck(title, namespace, name, f"device {rigid[0]} of it cannot migrate"), dry_run)
        if dry_run:
            return _not_yet(f"{title} would be moved with its {len(devices)} VFIO devices", dry_run)
        (unit,) = (each for each in units_on(node, devices))
        return Answer(False, await self._move(unit, title))

    async def _move(self, unit: Unit, title: str) -> str:
        """Have the pod moved; what is going on. Which attempt it is follows from what is there."""
        (namespace, pod), last, before = unit.pod, "", ""
        for attempt in range(1, MAX_ATTEMPTS + 1):
            name = migration_name(unit.key, pod, unit.key, attempt)
            found = await self._kube.migration(namespace, name)
            if found is None:
                return await self._begin(unit, title, name, before)
            outcome = outcome_of(found)
            if not outcome.finished or outcome.succeeded:
                return f"{title} moves with its VFIO devices: {_standing(found)}"
            self._promised.pop(name, None)
            last = f"VFIOMigration {namespace}/{name} failed: {outcome.message}"
            before = found["spec"]["target"]["nodeName"]
            if attempt < MAX_ATTEMPTS and outcome.ended_seconds < backoff_seconds(attempt):
                return f"{title} is to be moved once more in a moment: {last}"
        return _stuck(title, namespace, pod, f"{MAX_ATTEMPTS} times; the last time: {last}")

    async def _begin(self, unit: Unit, title: str, name: str, before: str) -> str:
        self._promised.pop(name, None)  # it was made, and is gone
        free = await self._nodes.free(self._sight.inventory, self._sight.emptied() | {unit.devices[0].node})
        # nothing is awaited between looking and promising: drain asks for all pods of a node at once
        left = less(free, [promise for promise in self._promised.values() if self._holds(promise[0])])
        target = best_target(unit, left, before)
        if not target:
            return f"{title} has VFIO devices, and {nowhere(unit, left)}; it waits for that"
        self._promised[name] = unit, target
        body = migration_of({"spec": {}, "metadata": {}}, Creation(name, unit.pod[0], unit, target, ()))
        body["spec"]["ttlSecondsAfterFinished"] = KEEP_SECONDS
        try:
            await self._kube.create(body)
        except BaseException:
            del self._promised[name]
            raise
        log.info("pod that is to be evicted is moved", pod="/".join(unit.pod), target=target, migration=name)
        return f"{title} moves with its VFIO devices to node {target}: VFIOMigration {unit.pod[0]}/{name}"

    def _holds(self, promised: Unit) -> bool:
        """Whether it still waits for what it was promised: devices that are claimed are not shown as free any more."""
        now = [self._sight.inventory.get((device.node, device.address)) for device in promised.devices]
        return all(d is not None and d.pod_uid == promised.key and not d.claim_uid for d in now)


def _not_yet(message: str, dry_run: bool) -> Answer:
    """To who only tries it: that it would be, and what else they would be told. They would ask for ever."""
    return Answer(True, warning=message) if dry_run else Answer(False, message)


def _standing(migration: Mapping[str, Any]) -> str:
    metadata, status = migration["metadata"], migration.get("status", {})
    said = status.get("message") or "not taken up yet"
    return f"VFIOMigration {metadata['namespace']}/{metadata['name']} is {status.get('phase', 'Pending')}: {said}"


def _stuck(title: str, namespace: str, name: str, why: str) -> str:
    return (
        f"{title} could not be moved with its VFIO devices: {why}; move it by hand, or end it, which loses what they "
        f"hold: kubectl delete pod -n {namespace} {name}"
    )


def _ends(pod: Json) -> bool:
    return "deletionTimestamp" in pod["metadata"] or pod.get("status", {}).get("phase") in ("Succeeded", "Failed")
