"""What the agent asks of the API server: the leader's address, and this node's VFIODevices.

Agents have no right on VFIOMigrations. Every call has a deadline.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp
from kubernetes.aio import client, config
from kubernetes.aio.client.exceptions import ApiException

from vfio_api import API_GROUP, API_VERSION
from vfio_api.addresses import find_way_once
from vfio_api.names import ADDRESS_ANNOTATION, AGENT_PREFIX, CA_CONFIGMAP, CA_KEY, EPOCH_ANNOTATION, LEASE_NAME
from vfio_api.types import MigrationKey, Outcome

FIELD_MANAGER = "vfio-agent"
REQUEST_SECONDS = 10.0
# What a request may end with; kubernetes.aio does not wrap what its transport raises.
API_ERRORS = (ApiException, aiohttp.ClientError, OSError, TimeoutError)
APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"


@dataclass(frozen=True, slots=True)
class Decided:
    """What a VFIOSwitchover says: its decision, if there is one, and the nodes of either side."""

    decision: Outcome | None
    source_nodes: frozenset[str]
    target_nodes: frozenset[str]


@dataclass(frozen=True, slots=True)
class Leader:
    """Where the leader listens ("host:port"), the CA bundle (PEM) that it published, and the epoch of the Lease."""

    address: str
    ca: bytes
    epoch: int = 0


class AgentApi:
    """The API server as this agent sees it."""

    def __init__(self, api_client: Any, namespace: str):
        self._client, self._namespace = api_client, namespace
        # Any: the client takes dicts and answers with optional everything
        self._objects: Any = client.CustomObjectsApi(api_client)
        self._leases: Any = client.CoordinationV1Api(api_client)
        self._core: Any = client.CoreV1Api(api_client)

    @classmethod
    async def connect(cls, kubeconfig: Path | None, namespace: str) -> "AgentApi":
        """From a kubeconfig, or from the pod's service account."""
        settings: Any = client.Configuration()
        if kubeconfig is not None:
            await config.load_kube_config(str(kubeconfig), client_configuration=settings)  # type: ignore[no-untyped-call]
        else:
            config.load_incluster_config(client_configuration=settings)  # type: ignore[no-untyped-call]
        find_way_once(settings)
        return cls(client.ApiClient(settings), namespace)

    async def close(self) -> None:
        """Close connections."""
        await self._client.close()

    async def leader(self) -> Leader | None:
        """Who leads now; None while nobody does."""
        lease = await self._leases.read_namespaced_lease(LEASE_NAME, self._namespace, _request_timeout=REQUEST_SECONDS)
        bundle = await self._core.read_namespaced_config_map(
            CA_CONFIGMAP, self._namespace, _request_timeout=REQUEST_SECONDS
        )
        address = (lease.metadata.annotations or {}).get(ADDRESS_ANNOTATION, "")
        ca = (bundle.data or {}).get(CA_KEY, "")
        if not address or not ca or not lease.spec.holder_identity:
            return None
        epoch = (lease.metadata.annotations or {}).get(EPOCH_ANNOTATION, "0")
        return Leader(address, ca.encode(), int(epoch) if epoch.isdecimal() else 0)

    async def ask_abort(self, key: MigrationKey, node: str) -> None:
        """Write Abort, if nothing is decided yet. Whatever this ends with says nothing: read back what is stored."""
        moment = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        decision = {"outcome": Outcome.ABORT.value, "by": f"{AGENT_PREFIX}{node}", "time": moment}
        await self._objects.patch_namespaced_custom_object_status(
            API_GROUP,
            API_VERSION,
            key.namespace,
            "vfioswitchovers",
            key.uid,
            {"status": {"decision": decision}},
            field_manager=FIELD_MANAGER,
            _content_type=MERGE,
            _request_timeout=REQUEST_SECONDS,
        )

    async def switchover(self, key: MigrationKey) -> Decided:
        """The VFIOSwitchover of a migration as it is stored. Raises API_ERRORS, also if it is not there."""
        found = await self._objects.get_namespaced_custom_object(
            API_GROUP, API_VERSION, key.namespace, "vfioswitchovers", key.uid, _request_timeout=REQUEST_SECONDS
        )
        outcome = found.get("status", {}).get("decision", {}).get("outcome")
        spec = found["spec"]
        return Decided(
            Outcome(outcome) if outcome else None, frozenset(spec["sourceNodes"]), frozenset(spec["targetNodes"])
        )

    async def apply_device(
        self, name: str, spec: dict[str, Any], status: dict[str, Any], *, known: bool = False
    ) -> None:
        """Publish one device of this node: its identity, then its status. known: its identity was published before."""
        head = {"apiVersion": f"{API_GROUP}/{API_VERSION}", "kind": "VFIODevice", "metadata": {"name": name}}
        options = {
            "field_manager": FIELD_MANAGER,
            "force": True,
            "_content_type": APPLY,
            "_request_timeout": REQUEST_SECONDS,
        }
        status_of = self._objects.patch_cluster_custom_object_status
        said = API_GROUP, API_VERSION, "vfiodevices", name
        if known:
            try:
                await status_of(*said, {**head, "status": status}, **options)
            except ApiException as error:
                if error.status != HTTPStatus.NOT_FOUND:
                    raise
            else:
                return
        await self._objects.patch_cluster_custom_object(*said, {**head, "spec": spec}, **options)
        await status_of(*said, {**head, "status": status}, **options)
