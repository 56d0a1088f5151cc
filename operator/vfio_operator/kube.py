"""What the operator asks of the API server. Thin: every method is one request, with a deadline."""

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
from kubernetes.aio import client, config
from kubernetes.aio.client.exceptions import ApiException

from vfio_api import API_GROUP, API_VERSION
from vfio_api.addresses import find_way_once
from vfio_api.names import CA_CONFIGMAP, CA_KEY, FINALIZER, FINISHED_LABEL, TOKEN_AUDIENCE
from vfio_api.types import MigrationKey, Outcome
from vfio_operator.fence import fence
from vfio_operator.observed import Observed
from vfio_operator.requester import Access, Requester

FIELD_MANAGER = "vfio-operator"
REQUEST_SECONDS = 10.0
APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who a token belongs to, as the API server says: the user name, and the node and pod it is bound to."""

    username: str
    node: str
    pod: str


# Requests under way at once: more do not come back sooner, and the Lease waits behind them in the API server.
AT_ONCE = 16
# What a request may end with; kubernetes.aio does not wrap what its transport raises.
API_ERRORS = (ApiException, aiohttp.ClientError, OSError, TimeoutError)


def now() -> str:
    """The time of day for people, RFC 3339 with microseconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def brief(error: BaseException) -> str:
    """An API or network error in one line, with the API server's own message."""
    body = getattr(error, "body", None)
    if isinstance(body, str) and body.startswith("{"):
        with contextlib.suppress(ValueError):
            body = json.loads(body).get("message", body)
    return str(body or error or type(error).__name__).strip().partition("\n")[0][:500]


class Gate(client.ApiClient):
    """A client with no more than AT_ONCE requests under way: what waits its turn is not in anybody's way.

    A request's deadline counts from when it is sent.
    """

    def __init__(self, settings: Any):
        super().__init__(settings)
        self._room = asyncio.Semaphore(AT_ONCE)

    async def call_api(self, *arguments: Any, **options: Any) -> Any:
        """See ApiClient."""
        async with self._room:
            return await super().call_api(*arguments, **options)


class OperatorApi:
    """The API server as the operator uses it. Errors are kubernetes.aio's ApiException and OSError.

    urgent: the client for what is asked while a workload is down, or about to be: that waits for nothing else.
    may_write: called before every write; raises NotLeadingError on a replica that does not lead (any more).
    """

    def __init__(self, api_client: Any, namespace: str, instance: str, urgent: Any = None):
        self.client, self.namespace, self.instance = api_client, namespace, instance
        self._urgent_client = urgent or api_client
        self._urgent: Any = client.CustomObjectsApi(self._urgent_client)
        self.may_write: Callable[[], None] = lambda: None
        # Any: the client takes dicts and answers with optional everything
        self._objects: Any = client.CustomObjectsApi(api_client)
        self._core: Any = client.CoreV1Api(api_client)
        self._authn: Any = client.AuthenticationV1Api(self._urgent_client)  # an agent's devices may be down
        self._authz: Any = client.AuthorizationV1Api(api_client)
        self._events: Any = client.EventsV1Api(api_client)

    @classmethod
    async def connect(cls, kubeconfig: Path | None, namespace: str, instance: str) -> "OperatorApi":
        """From a kubeconfig, or from the pod's service account."""
        settings: Any = client.Configuration()
        if kubeconfig is not None:
            await config.load_kube_config(str(kubeconfig), client_configuration=settings)  # type: ignore[no-untyped-call]
        else:
            config.load_incluster_config(client_configuration=settings)  # type: ignore[no-untyped-call]
        find_way_once(settings)
        made: list[OperatorApi] = []
        settings.trace_configs = [fence(lambda: made[0].may_write())]
        made.append(cls(Gate(settings), namespace, instance, client.ApiClient(settings)))
        return made[0]

    async def apply_status(self, key: MigrationKey, status: Json) -> Json:
        """Server-side apply of a migration's whole status; returns the object as it is stored."""
        self.may_write()
        stored: Json = await self._objects.patch_namespaced_custom_object_status(
            API_GROUP,
            API_VERSION,
            key.namespace,
            "vfiomigrations",
            key.name,
            {
                "apiVersion": f"{API_GROUP}/{API_VERSION}",
                "kind": "VFIOMigration",
                "metadata": {"name": key.name, "namespace": key.namespace, "uid": key.uid},
                "status": status,
            },
            field_manager=FIELD_MANAGER,
            force=True,
            _content_type=APPLY,
            _request_timeout=REQUEST_SECONDS,
        )
        return stored

    async def migration(self, key: MigrationKey) -> Json:
        """The VFIOMigration as it is now."""
        found: Json = await self._objects.get_namespaced_custom_object(
            API_GROUP,
            API_VERSION,
            key.namespace,
            "vfiomigrations",
            key.name,
            _request_timeout=REQUEST_SECONDS,
        )
        return found

    async def migration_or_none(self, key: MigrationKey) -> Json | None:
        """The very VFIOMigration as it is now, None if it is gone; another one of its name is not it."""
        try:
            found = await self.migration(key)
        except ApiException as error:
            if error.status == 404:
                return None
            raise
        return found if found["metadata"]["uid"] == key.uid else None

    async def add_finalizer(self, key: MigrationKey, body: Mapping[str, Any]) -> None:
        """Add our finalizer, by compare-and-set on what was read."""
        metadata = body["metadata"]
        await self._patch_metadata(
            key,
            {
                "resourceVersion": metadata["resourceVersion"],
                "finalizers": [*metadata.get("finalizers", []), FINALIZER],
            },
        )

    async def finished(self, key: MigrationKey, *, switchover: bool, stored: Json | None = None) -> None:
        """Let the switchover go, drop our finalizer, and label the object so that the watch leaves it out.

        By compare-and-set on the object as it was `stored` last, or as it is read. ApiException 409 if it has changed.
        """
        if switchover:
            await self.release_switchover(key)
        metadata = (stored or await self.migration(key))["metadata"]
        await self._patch_metadata(
            key,
            {
                "resourceVersion": metadata["resourceVersion"],
                "finalizers": [f for f in metadata.get("finalizers", []) if f != FINALIZER],
                "labels": {FINISHED_LABEL: "true"},
            },
        )

    async def release_switchover(self, key: MigrationKey) -> None:
        """Let the VFIOSwitchover go: drop our finalizer from it, and label it. That it is gone is as good."""
        self.may_write()
        try:
            await self._objects.patch_namespaced_custom_object(
                API_GROUP,
                API_VERSION,
                key.namespace,
                "vfioswitchovers",
                key.uid,
                {"metadata": {"finalizers": None, "labels": {FINISHED_LABEL: "true"}}},
                field_manager=FIELD_MANAGER,
                _content_type=MERGE,
                _request_timeout=REQUEST_SECONDS,
            )
        except ApiException as error:
            if error.status != 404:
                raise

    async def _patch_metadata(self, key: MigrationKey, metadata: Json) -> None:
        self.may_write()
        await self._objects.patch_namespaced_custom_object(
            API_GROUP,
            API_VERSION,
            key.namespace,
            "vfiomigrations",
            key.name,
            {"metadata": {"uid": key.uid, **metadata}},
            field_manager=FIELD_MANAGER,
            _content_type=MERGE,
            _request_timeout=REQUEST_SECONDS,
        )

    async def create_switchover(self, observed: Observed, epoch: int) -> None:
        """The durable intent. ApiException 409 if it exists already, which is as good."""
        self.may_write()
        key = observed.key
        owner = {
            "apiVersion": f"{API_GROUP}/{API_VERSION}",
            "kind": "VFIOMigration",
            "name": key.name,
            "uid": key.uid,
            "controller": True,
            "blockOwnerDeletion": False,  # nobody who deletes the migration waits for what is kept beyond its end
        }
        await self._urgent.create_namespaced_custom_object(
            API_GROUP,
            API_VERSION,
            key.namespace,
            "vfioswitchovers",
            {
                "apiVersion": f"{API_GROUP}/{API_VERSION}",
                "kind": "VFIOSwitchover",
                "metadata": {
                    "name": key.uid,
                    "namespace": key.namespace,
                    "ownerReferences": [owner],
                    # a foreground deletion of the migration must not take the decision away
                    "finalizers": [FINALIZER],
                },
                "spec": {
                    "migrationName": key.name,
                    "migrationUID": key.uid,
                    "epoch": epoch,
                    "sourceNodes": sorted({p.source_node for p in observed.pairs}),
                    "targetNodes": sorted({p.target_node for p in observed.pairs}),
                    "timeoutSeconds": observed.wish.strategy.switchover_timeout_seconds,
                },
            },
            field_manager=FIELD_MANAGER,
            _request_timeout=REQUEST_SECONDS,
        )

    async def switchover(self, key: MigrationKey) -> Json | None:
        """The VFIOSwitchover as it is now, None if there is none."""
        try:
            found: Json = await self._urgent.get_namespaced_custom_object(
                API_GROUP,
                API_VERSION,
                key.namespace,
                "vfioswitchovers",
                key.uid,
                _request_timeout=REQUEST_SECONDS,
            )
        except ApiException as error:
            if error.status == 404:
                return None
            raise
        return found

    async def decide(self, key: MigrationKey, outcome: Outcome) -> Json:
        """Write the decision; returns the object as it is stored. Any error means doubt: read it back."""
        self.may_write()
        stored: Json = await self._urgent.patch_namespaced_custom_object_status(
            API_GROUP,
            API_VERSION,
            key.namespace,
            "vfioswitchovers",
            key.uid,
            {"status": {"decision": {"outcome": outcome.value, "by": self.instance, "time": now()}}},
            field_manager=FIELD_MANAGER,
            _content_type=MERGE,
            _request_timeout=REQUEST_SECONDS,
        )
        return stored

    async def namespace_labels(self, name: str) -> dict[str, str]:
        """The labels of a namespace; one that is gone has none."""
        try:
            found = await self._core.read_namespace(name, _request_timeout=REQUEST_SECONDS)
        except ApiException as error:
            if error.status == 404:
                return {}
            raise
        return dict(found.metadata.labels or {})

    async def node_exists(self, name: str) -> bool:
        """Whether there is a Node of that name."""
        try:
            await self._core.read_node(name, _request_timeout=REQUEST_SECONDS)
        except ApiException as error:
            if error.status == 404:
                return False
            raise
        return True

    async def review_token(self, token: str) -> Caller | None:
        """Who `token` (for our audience) belongs to; None if it is not valid."""
        review = await self._authn.create_token_review(
            {
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenReview",
                "spec": {"token": token, "audiences": [TOKEN_AUDIENCE]},
            },
            _request_timeout=REQUEST_SECONDS,
        )
        status = review.status
        if not status.authenticated or TOKEN_AUDIENCE not in (status.audiences or []):
            return None
        extra = status.user.extra or {}
        prefix = "authentication.kubernetes.io/"
        return Caller(
            status.user.username,
            next(iter(extra.get(prefix + "node-name", [])), ""),
            next(iter(extra.get(prefix + "pod-name", [])), ""),
        )

    async def access(
        self, requester: Requester, verb: str, group: str, resource: str, name: str = "", namespace: str = ""
    ) -> Access:
        """Whether the requester may do `verb` to the object, or without a name to all of them (SubjectAccessReview)."""
        what = {"verb": verb, "group": group, "resource": resource, "name": name, "namespace": namespace}
        spec = {
            "user": requester.username,
            "uid": requester.uid,
            "groups": list(requester.groups),
            "extra": {key: list(values) for key, values in requester.extra},
            "resourceAttributes": {"version": "*", **what},
        }
        review = await self._authz.create_subject_access_review(
            {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec},
            _request_timeout=REQUEST_SECONDS,
        )
        # an authorizer that is in doubt does not allow; denied is a no that no other authorizer may overrule
        answer = review.status
        note = (answer.evaluation_error or "").strip().partition("\n")[0][:200]
        return Access(bool(answer.allowed) and not answer.denied, note)

    async def publish_ca(self, authorities: Sequence[bytes], keep: bool) -> None:
        """Have agents trust these (PEM), the newest first; `keep`: and the one that was the newest before."""
        self.may_write()
        bundle = b"".join(authorities).decode()
        if keep:
            bundle += await self._newest_authority(besides=bundle)
        await self._core.patch_namespaced_config_map(
            CA_CONFIGMAP,
            self.namespace,
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": CA_CONFIGMAP, "namespace": self.namespace},
                "data": {CA_KEY: bundle},
            },
            field_manager=FIELD_MANAGER,
            force=True,
            _content_type=APPLY,
            _request_timeout=REQUEST_SECONDS,
        )

    async def _newest_authority(self, besides: str) -> str:
        try:
            found = await self._core.read_namespaced_config_map(
                CA_CONFIGMAP, self.namespace, _request_timeout=REQUEST_SECONDS
            )
        except ApiException as error:
            if error.status != 404:
                raise
            return ""
        newest, end, _ = (found.data or {}).get(CA_KEY, "").partition("-----END CERTIFICATE-----\n")
        return newest + end if end and newest + end not in besides else ""

    async def event(self, key: MigrationKey, reason: str, message: str, *, warning: bool = False) -> None:
        """An Event about a migration."""
        self.may_write()
        stamp = now()
        regarding = {
            "apiVersion": f"{API_GROUP}/{API_VERSION}",
            "kind": "VFIOMigration",
            "name": key.name,
            "namespace": key.namespace,
            "uid": key.uid,
        }
        await self._events.create_namespaced_event(
            key.namespace,
            {
                "apiVersion": "events.k8s.io/v1",
                "kind": "Event",
                "metadata": {"name": f"{key.name[:200]}.{time.time_ns():x}", "namespace": key.namespace},
                "eventTime": stamp,
                "reportingController": f"{API_GROUP}/operator",
                "reportingInstance": self.instance[:128],
                "action": "Migrate",
                "reason": reason[:128],
                "regarding": regarding,
                "note": message[:1024],
                "type": "Warning" if warning else "Normal",
            },
            _request_timeout=REQUEST_SECONDS,
        )

    async def close(self) -> None:
        """Close connections."""
        await self.client.close()
        await self._urgent_client.close()
