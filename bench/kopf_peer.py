"""The peer of the control plane's scale: a bare kopf operator that only writes.

It has what a kopf operator of this kind cannot do without: a watch of VFIOMigrations and one of VFIODevices (for the
claims' compare-and-set), by event handlers and without persistence, like the product's. For each new VFIOMigration it
makes the writes that the product was seen to make, one after the other, and nothing else: it plans nothing, reads
nothing, asks nobody and talks to no agent. What agents publish of the devices meanwhile it writes as well, under
another user. kopf's workers run the objects beside each other, without a limit.

    python bench/kopf_peer.py --plan FILE.json
"""

import argparse
import asyncio
import json
import logging
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import kopf
from kubernetes.aio import client, config

from vfio_api import API_GROUP as GROUP
from vfio_api import API_VERSION as VERSION
from vfio_api.addresses import find_way_once
from vfio_api.models import device_object_name
from vfio_api.names import FINALIZER
from vfio_api.names import FINISHED_LABEL as FINISHED
from vfio_operator.handlers import NothingKept

KIND = "VFIOMigration"
MANAGER = "vfio-operator"
MERGE, APPLY = "application/merge-patch+json", "application/apply-patch+yaml"
Json = dict[str, Any]


class Writer:
    """Makes the writes. plan: how many status writes and Events a migration and its devices get, and what they bear.

    admin: for what agents write.
    """

    def __init__(self, api_client: client.ApiClient, admin: client.ApiClient, plan: Json):
        self._objects: Any = client.CustomObjectsApi(api_client)
        self._admin: Any = client.CustomObjectsApi(admin)
        self._events: Any = client.EventsV1Api(api_client)
        self._plan = plan
        self.versions: dict[str, str] = {}  # of VFIODevices

    async def write(self, body: Json) -> None:
        """All of one migration's, in the product's order."""
        meta, spec = body["metadata"], body["spec"]
        space, name, uid = meta["namespace"], meta["name"], meta["uid"]
        ends = [pair[end] for pair in spec["devices"] for end in ("source", "target")]
        devices = [device_object_name(end["nodeName"], end["device"]) for end in ends]
        events, statuses = self._plan["events"], self._plan["statuses"]
        await self._metadata(space, name, {"finalizers": [FINALIZER]})
        await self._status(meta, 0)
        claim = {"namespace": space, "name": name, "uid": uid}
        await asyncio.gather(*(self._claim(device, claim) for device in devices))
        for number in range(1, statuses - 1):
            await self._status(meta, number)
        for number in range(self._plan["device_statuses"]):
            await self._device_status(devices[number % len(devices)], number)
        for number in range(events - 1):
            await self._event(meta, number)
        await self._switchover(meta, spec)
        await asyncio.gather(*(self._claim(device, None) for device in devices))
        await self._status(meta, statuses)
        await self._objects.patch_namespaced_custom_object(
            GROUP, VERSION, space, "vfioswitchovers", uid, {"metadata": {"finalizers": None}}, _content_type=MERGE
        )
        await self._metadata(space, name, {"finalizers": [], "labels": {FINISHED: "true"}})
        if events:
            await self._event(meta, events)

    async def _metadata(self, space: str, name: str, metadata: Json) -> None:
        await self._objects.patch_namespaced_custom_object(
            GROUP, VERSION, space, "vfiomigrations", name, {"metadata": metadata}, _content_type=MERGE
        )

    async def _status(self, meta: Json, number: int) -> None:
        head = {key: meta[key] for key in ("name", "namespace", "uid")}
        status = {**self._plan["status"], "message": f"write {number}"}
        await self._objects.patch_namespaced_custom_object_status(
            GROUP,
            VERSION,
            meta["namespace"],
            "vfiomigrations",
            meta["name"],
            {"apiVersion": f"{GROUP}/{VERSION}", "kind": KIND, "metadata": head, "status": status},
            field_manager=MANAGER,
            force=True,
            _content_type=APPLY,
        )

    async def _claim(self, device: str, claim: Json | None) -> None:
        change = {"metadata": {"resourceVersion": self.versions[device]}, "spec": {"claimRef": claim}}
        stored = await self._objects.patch_cluster_custom_object(
            GROUP, VERSION, "vfiodevices", device, change, field_manager=MANAGER, _content_type=MERGE
        )
        self.versions[device] = stored["metadata"]["resourceVersion"]

    async def _device_status(self, name: str, number: int) -> None:
        status = {**self._plan["device_status"], "message": f"write {number}"}
        body = {"apiVersion": f"{GROUP}/{VERSION}", "kind": "VFIODevice", "metadata": {"name": name}, "status": status}
        stored = await self._admin.patch_cluster_custom_object_status(
            GROUP, VERSION, "vfiodevices", name, body, field_manager="vfio-agent", force=True, _content_type=APPLY
        )
        self.versions[name] = stored["metadata"]["resourceVersion"]

    async def _switchover(self, meta: Json, spec: Json) -> None:
        made = {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": "VFIOSwitchover",
            "metadata": {
                "name": meta["uid"],
                "namespace": meta["namespace"],
                "finalizers": [FINALIZER],
                "ownerReferences": [
                    {"apiVersion": f"{GROUP}/{VERSION}", "kind": KIND, "name": meta["name"], "uid": meta["uid"]}
                ],
            },
            "spec": {
                "migrationName": meta["name"],
                "migrationUID": meta["uid"],
                "epoch": 1,
                "sourceNodes": sorted({p["source"]["nodeName"] for p in spec["devices"]}),
                "targetNodes": sorted({p["target"]["nodeName"] for p in spec["devices"]}),
                "timeoutSeconds": 30,
            },
        }
        where = GROUP, VERSION, meta["namespace"], "vfioswitchovers"
        await self._objects.create_namespaced_custom_object(*where, made, field_manager=MANAGER)
        moment = datetime.now(UTC).isoformat()
        decision = {"outcome": "Commit", "by": "peer", "time": moment}
        await self._objects.patch_namespaced_custom_object_status(
            *where, meta["uid"], {"status": {"decision": decision}}, field_manager=MANAGER, _content_type=MERGE
        )

    async def _event(self, meta: Json, number: int) -> None:
        head = {key: meta[key] for key in ("name", "namespace", "uid")}
        await self._events.create_namespaced_event(
            meta["namespace"],
            {
                "apiVersion": "events.k8s.io/v1",
                "kind": "Event",
                "metadata": {"name": f"{meta['name']}.{time.time_ns():x}", "namespace": meta["namespace"]},
                "eventTime": datetime.now(UTC).isoformat(),  # with microseconds, as the API server wants them
                "reportingController": f"{GROUP}/peer",
                "reportingInstance": "peer",
                "action": "Migrate",
                "reason": "Written",
                "regarding": {"apiVersion": f"{GROUP}/{VERSION}", "kind": KIND, **head},
                "note": f"event {number}",
                "type": "Normal",
            },
        )


def registry_of(writer: Writer) -> kopf.OperatorRegistry:
    """The handlers of the peer."""
    registry = kopf.OperatorRegistry()
    seen: set[str] = set()

    @kopf.on.login(registry=registry)
    def login(**kwargs: Any) -> Any:
        return kopf.login_with_kubeconfig(**kwargs)

    @kopf.on.event(GROUP, VERSION, "vfiodevices", registry=registry)
    async def device(event: kopf.RawEvent, **_: Any) -> None:
        meta = event["object"]["metadata"]
        writer.versions.setdefault(meta["name"], meta["resourceVersion"])  # later ones are its own

    @kopf.on.event(GROUP, VERSION, "vfiomigrations", registry=registry)
    async def migration(event: kopf.RawEvent, **_: Any) -> None:
        body: Any = event["object"]
        uid = body["metadata"]["uid"]
        if event["type"] == "DELETED" or uid in seen:
            return
        seen.add(uid)
        await writer.write(body)
        print("peer finished", file=sys.stderr, flush=True)

    return registry


def settings() -> kopf.OperatorSettings:
    """As the product's: see vfio_operator.handlers."""
    made = kopf.OperatorSettings()
    made.posting.enabled = False
    made.posting.loggers = False
    made.scanning.disabled = True
    made.persistence.diffbase_storage = NothingKept()
    made.watching.chunk_size = 500
    made.watching.label_selectors[GROUP, VERSION, "vfiomigrations"] = f"!{FINISHED}"
    made.queueing.idle_timeout = 0.5
    made.queueing.exit_timeout = 0.5
    return made


async def _configuration(kubeconfig: str) -> Any:
    made: Any = client.Configuration()
    await config.load_kube_config(kubeconfig, client_configuration=made)  # type: ignore[no-untyped-call]
    find_way_once(made)  # as kopf's own requests are made
    return made


async def main() -> None:
    """Run until it is ended."""
    logging.basicConfig(level=logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plan", type=Path, required=True)
    plan = json.loads(parser.parse_args().plan.read_text())
    own, admin = await _configuration(os.environ["KUBECONFIG"]), await _configuration(plan["admin"])
    async with client.ApiClient(own) as api_client, client.ApiClient(admin) as admin_client:
        writer = Writer(api_client, admin_client, plan)
        running = asyncio.create_task(
            kopf.operator(registry=registry_of(writer), settings=settings(), clusterwide=True, standalone=True)
        )
        while len(writer.versions) < plan["devices"]:  # noqa: ASYNC110 - kopf's handlers fill it
            await asyncio.sleep(0.1)
        print("peer ready", file=sys.stderr, flush=True)
        await running


if __name__ == "__main__":
    asyncio.run(main())
