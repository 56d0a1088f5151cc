"""One task per active VFIOEvacuation: looks, decides by `evacuate`, writes down, and makes migrations."""

import asyncio
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import structlog
from kubernetes.aio.client.exceptions import ApiException

from vfio_api import API_GROUP, API_VERSION
from vfio_api.models_evacuation import EvacuationPhase, ItemPhase
from vfio_api.names import EVACUATION_LABEL, REQUESTER_ANNOTATION
from vfio_operator.channel import Agents
from vfio_operator.evacuate import Creation, Item, Outcome, Scene, Step, advance, phase_of, units_on
from vfio_operator.kube import API_ERRORS, Json, brief, now
from vfio_operator.kube_evacuations import KubeEvacuations
from vfio_operator.looking import Looking
from vfio_operator.observe import is_finished, persisted_pairs
from vfio_operator.observed import DeviceRecord
from vfio_operator.pairing import address_names

log = structlog.get_logger()
LOOK_SECONDS = 1.0
NODE_SECONDS = 10.0  # for how long it is believed what a node was found to be
LAST_BACKOFF = 10.0
REFUSED = (400, 403, 404, 422)  # what asking again does not change soon
FINISHED = (EvacuationPhase.SUCCEEDED, EvacuationPhase.FAILED, EvacuationPhase.CANCELLED)
Body = Mapping[str, Any]


def has_ended(body: Body) -> bool:
    """Whether the terminal status was written."""
    return body.get("status", {}).get("phase") in FINISHED


class NodesThatTake:
    """The nodes that may take more, looked at every NODE_SECONDS."""

    def __init__(self, kube: KubeEvacuations):
        self._kube = kube
        self._takes: dict[str, tuple[float, bool]] = {}

    async def free(
        self, inventory: Mapping[tuple[str, str], DeviceRecord], others: frozenset[str]
    ) -> dict[str, list[DeviceRecord]]:
        """The free migratable devices of each node that is ready and schedulable, but for these others."""
        free: dict[str, list[DeviceRecord]] = {}
        for node in sorted({node for node, _ in inventory} - others):
            if await self._may_take(node):
                devices = (d for (at, _), d in sorted(inventory.items()) if at == node)
                free[node] = [d for d in devices if d.migratable and not d.holder and not d.claim_uid]
        return free

    async def _may_take(self, node: str) -> bool:
        at, known = self._takes.get(node, (0.0, False))
        if not at or time.monotonic() - at > NODE_SECONDS:
            known = await self._kube.may_take(node)
            self._takes[node] = time.monotonic(), known
        return known


class EvacuationTask:
    """The task of one evacuation. emptied: nodes that are being emptied.

    unfinished: the VFIOMigration of a namespace and name as the watch has it; None: there is none, or it has ended.
    """

    def __init__(
        self,
        body: Body,
        kube: KubeEvacuations,
        inventory: Mapping[tuple[str, str], DeviceRecord],
        agents: Agents,
        emptied: Callable[[], frozenset[str]],
        unfinished: Callable[[str, str], Body | None],
    ):
        self.body = body
        self._kube, self._inventory = kube, inventory
        self._agents, self._emptied, self._unfinished = agents, emptied, unfinished
        self._looking = Looking(agents)
        self._refused: dict[str, tuple[float, str]] = {}  # migrations that the API server does not take: when, and why
        self._nodes = NodesThatTake(kube)
        self._written: Json = dict(body.get("status", {}))
        self._moved_at = time.monotonic()
        self._log = log.bind(evacuation=body["metadata"]["name"], node=body["spec"]["nodeName"])

    async def run(self) -> None:
        """Until it has ended, or is gone."""
        backoff = LOOK_SECONDS
        while True:
            try:
                if await self._look():
                    return
                backoff = LOOK_SECONDS
            except API_ERRORS as error:
                self._log.warning("API server refused or is away", error=brief(error))
                backoff = min(2 * backoff, LAST_BACKOFF)
            except Exception:  # a node would be taken for one that is being emptied for ever
                self._log.exception("evacuation fails; it is tried again")
                backoff = min(2 * backoff, LAST_BACKOFF)
            await asyncio.sleep(backoff)

    async def _look(self) -> bool:
        found = await self._kube.get(self.body["metadata"]["name"])
        if found is None or found["metadata"]["uid"] != self.body["metadata"]["uid"]:
            return True
        self.body = found
        if has_ended(found):
            return True
        self._written = dict(found.get("status", {}))
        items = items_of(found)
        scene = await self._scene(items)
        if not items and not self._looking.settled:
            # what there is to be moved is believed of an agent that has just looked, and of no other
            self._looking.ask({scene.node})
            return False
        step = advance(scene, items)
        if step.creations or any(item.phase is ItemPhase.MOVING for item in step.items):
            self._moved_at = time.monotonic()
        phase, message = phase_of(scene, step.items)
        await self._write(step, phase, message)  # what is to be made is known before it is
        for namespace, name in step.cancellations:
            await self._kube.cancel(namespace, name)
            self._log.info("item is cancelled before it has begun", migration=name)
        for creation in step.creations:
            await self._create(creation)
        if phase in FINISHED:
            self._log.info("finished", phase=phase.value, message=message)
        return phase in FINISHED

    async def _create(self, creation: Creation) -> None:
        """Make a migration; what is refused for good is that item's failure, and keeps no other from moving."""
        try:
            await self._kube.create(migration_of(self.body, creation))
        except ApiException as error:
            if error.status not in REFUSED:
                raise
            self._refused[creation.name] = time.monotonic(), f"its VFIOMigration was refused: {brief(error)}"
            self._log.warning("item is refused", item=creation.unit.name, error=brief(error))
            return
        self._log.info("item moves", item=creation.unit.name, target=creation.target, migration=creation.name)

    async def _outcome(self, item: Item) -> Outcome:
        """Of the watch, which shows all that are under way; the API server is asked of one that is not among them.

        And of every one when the evacuation is cancelled: one that has begun meanwhile is not to be.
        """
        at, why = self._refused.get(item.migration, (0.0, ""))
        if why:
            return Outcome(finished=True, message=why, ended_seconds=time.monotonic() - at)
        body = None if self._cancelled else self._unfinished(item.namespace, item.migration)
        if body is None:
            body = await self._kube.migration(item.namespace, item.migration)
        label = label_of(self.body["metadata"]["name"])
        ours = body is not None and (body["metadata"].get("labels") or {}).get(EVACUATION_LABEL) == label
        return outcome_of(body if ours else None)

    @property
    def _cancelled(self) -> bool:
        return self.body["spec"].get("cancel", False) or bool(self.body["metadata"].get("deletionTimestamp"))

    async def _scene(self, items: tuple[Item, ...]) -> Scene:
        spec, metadata = self.body["spec"], self.body["metadata"]
        made = [item for item in items if item.migration and not item.over]
        outcomes = {item.migration: await self._outcome(item) for item in made}
        units = units_on(spec["nodeName"], self._inventory.values())
        return Scene(
            uid=metadata["uid"],
            name=metadata["name"],
            node=spec["nodeName"],
            units=units,
            free=await self._free(),
            outcomes=outcomes,
            cancelled=self._cancelled,
            namespace=spec.get("deviceNamespace") or self._kube.namespace,
            idle_seconds=time.monotonic() - self._moved_at,
            absent=not units and not items and await self._kube.node(spec["nodeName"]) is None,
        )

    async def _free(self) -> dict[str, list[DeviceRecord]]:
        spec = self.body["spec"]
        wanted = set(spec.get("targetNodes") or ()) or {node for node, _ in self._inventory}
        others = frozenset(node for node, _ in self._inventory) - (wanted & self._agents.connected)
        return await self._nodes.free(self._inventory, others | self._emptied() | {spec["nodeName"]})

    async def _write(self, step: Step, phase: EvacuationPhase, message: str) -> None:
        made = status_of(self.body, step.items, phase, message, now())
        if made != self._written:
            await self._kube.apply_status(self.body, made)
            self._written = made


def outcome_of(body: Body | None) -> Outcome:
    """What a VFIOMigration came to; absent if there is none."""
    if body is None:
        return Outcome(absent=True)
    spec, status = body["spec"], body.get("status", {})
    if not is_finished(body):
        said, begun = status.get("message", "not taken up yet"), bool(persisted_pairs(body))
        return Outcome(message=said, cancelled=spec.get("cancel", False), queued=not begun)
    conditions = {c["type"]: c for c in status["conditions"]}
    ended = datetime.fromisoformat(conditions["Finished"]["lastTransitionTime"])
    return Outcome(
        finished=True,
        succeeded=conditions["Succeeded"]["status"] == "True",
        message=status.get("message", ""),
        cancelled=status.get("phase") == "Cancelled",
        ended_seconds=(datetime.now(UTC) - ended).total_seconds(),
    )


def items_of(body: Body) -> tuple[Item, ...]:
    """The items as they were written down."""
    return tuple(
        Item(
            key=found["key"],
            name=found["name"],
            devices=found["devices"],
            phase=ItemPhase(found["phase"]),
            target=found.get("targetNode", ""),
            migration=found.get("migration", ""),
            namespace=found.get("namespace", ""),
            attempts=found.get("attempts", 0),
            message=found.get("message", ""),
        )
        for found in body.get("status", {}).get("items", ())
    )


def status_of(body: Body, items: tuple[Item, ...], phase: EvacuationPhase, message: str, moment: str) -> Json:
    """The whole status; `moment` is RFC 3339."""
    rows = []
    for item in items:
        row: Json = {"key": item.key, "name": item.name, "phase": item.phase.value, "devices": item.devices}
        said = {"targetNode": item.target, "migration": item.migration, "namespace": item.namespace}
        row |= {name: value for name, value in said.items() if value}
        row |= {"attempts": item.attempts} | ({"message": item.message[:1024]} if item.message else {})
        rows.append(row)
    ended, generation = phase in FINISHED, body["metadata"].get("generation", 1)
    succeeded = "Unknown" if not ended else str(phase is EvacuationPhase.SUCCEEDED)
    before = {c["type"]: c for c in body.get("status", {}).get("conditions", ())}
    conditions = []
    for kind, value, reason in (("Finished", str(ended), phase.value), ("Succeeded", succeeded, phase.value)):
        was = before.get(kind, {})
        conditions.append(
            {
                "type": kind,
                "status": value,
                "reason": reason,
                "message": message[:1024],
                "lastTransitionTime": was["lastTransitionTime"] if was.get("status") == value else moment,
                "observedGeneration": generation,
            }
        )
    return {
        "observedGeneration": generation,
        "phase": phase.value,
        "conditions": conditions,
        "items": rows,
        "total": len(items),
        "moved": sum(item.phase is ItemPhase.MOVED for item in items),
        "failed": sum(item.phase is ItemPhase.FAILED for item in items),
        "message": message[:1024],
    }


def migration_of(body: Body, creation: Creation) -> Json:
    """The VFIOMigration of an item."""
    spec, metadata, unit = body["spec"], body["metadata"], creation.unit
    made: Json = {name: spec[name] for name in ("strategy", "priority") if name in spec}
    if unit.pod[1]:
        made |= {"source": {"podName": unit.pod[1]}, "target": {"nodeName": creation.target}}
    else:
        names = address_names([device.address for device in unit.devices])
        made["devices"] = [
            {
                "name": names[device.address],
                "source": {"nodeName": device.node, "device": device.address},
                "target": {"nodeName": creation.target, "device": target.address},
            }
            for device, target in zip(unit.devices, creation.targets, strict=True)
        ]
    return {
        "apiVersion": f"{API_GROUP}/{API_VERSION}",
        "kind": "VFIOMigration",
        "metadata": {
            "name": creation.name,
            "namespace": creation.namespace,
            **(_owned(metadata) if metadata else {}),
        },
        "spec": made,
    }


def label_of(name: str) -> str:
    """An evacuation's name as the value of a label: of long ones, the beginning."""
    return name[:63].rstrip("-.")


def _owned(metadata: Body) -> Json:
    owner = {
        "apiVersion": f"{API_GROUP}/{API_VERSION}",
        "kind": "VFIOEvacuation",
        "name": metadata["name"],
        "uid": metadata["uid"],
        "controller": True,
        "blockOwnerDeletion": False,
    }
    # its migrations are for who asked for it, and reviewed as theirs; "" is nobody, and is refused
    stamp = (metadata.get("annotations") or {}).get(REQUESTER_ANNOTATION, "")
    return {
        "labels": {EVACUATION_LABEL: label_of(metadata["name"])},
        "annotations": {REQUESTER_ANNOTATION: stamp},
        "ownerReferences": [owner],
    }
