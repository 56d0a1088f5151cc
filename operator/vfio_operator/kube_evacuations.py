"""What evacuations ask of the API server. Thin: every method is one request, or one list."""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from kubernetes.aio import client
from kubernetes.aio.client.exceptions import ApiException

from vfio_api import API_GROUP, API_VERSION
from vfio_operator.kube import APPLY, FIELD_MANAGER, MERGE, REQUEST_SECONDS, Json, OperatorApi


class KubeEvacuations:
    """The evacuations' part of the API server. Errors as of OperatorApi."""

    def __init__(self, api: OperatorApi):
        self._api = api
        self._objects: Any = client.CustomObjectsApi(api.client)
        self._core: Any = client.CoreV1Api(api.client)

    @property
    def namespace(self) -> str:
        """The operator's own."""
        return self._api.namespace

    async def get(self, name: str) -> Json | None:
        """The VFIOEvacuation as it is now; None if it is gone."""
        return await self._found(
            self._objects.get_cluster_custom_object(
                API_GROUP, API_VERSION, "vfioevacuations", name, _request_timeout=REQUEST_SECONDS
            )
        )

    async def migration(self, namespace: str, name: str) -> Json | None:
        """A VFIOMigration; None if there is none of this name."""
        return await self._found(
            self._objects.get_namespaced_custom_object(
                API_GROUP, API_VERSION, namespace, "vfiomigrations", name, _request_timeout=REQUEST_SECONDS
            )
        )

    async def node(self, name: str) -> Json | None:
        """A Node; None if there is none."""
        try:
            answer = await self._core.read_node_with_http_info(name, _request_timeout=REQUEST_SECONDS)
        except ApiException as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return None
            raise
        found: Json = json.loads(answer.raw_data)
        return found

    async def may_take(self, node: str) -> bool:
        """Whether a node is there, ready and not cordoned."""
        found = await self.node(node)
        if found is None:
            return False
        conditions = found.get("status", {}).get("conditions", ())
        ready = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
        return ready and not found.get("spec", {}).get("unschedulable", False)

    async def apply_status(self, body: Mapping[str, Any], status: Json) -> None:
        """Server-side apply of the whole status."""
        self._api.may_write()
        metadata = body["metadata"]
        await self._objects.patch_cluster_custom_object_status(
            API_GROUP,
            API_VERSION,
            "vfioevacuations",
            metadata["name"],
            {
                "apiVersion": f"{API_GROUP}/{API_VERSION}",
                "kind": "VFIOEvacuation",
                "metadata": {"name": metadata["name"], "uid": metadata["uid"]},
                "status": status,
            },
            field_manager=FIELD_MANAGER,
            force=True,
            _content_type=APPLY,
            _request_timeout=REQUEST_SECONDS,
        )

    async def create(self, body: Json) -> None:
        """Create a VFIOMigration; one of its name that is there is the one that was made before."""
        self._api.may_write()
        try:
            await self._objects.create_namespaced_custom_object(
                API_GROUP,
                API_VERSION,
                body["metadata"]["namespace"],
                "vfiomigrations",
                body,
                field_manager=FIELD_MANAGER,
                _request_timeout=REQUEST_SECONDS,
            )
        except ApiException as error:
            if error.status != HTTPStatus.CONFLICT:
                raise

    async def cancel(self, namespace: str, name: str) -> None:
        """Cancel a VFIOMigration; nothing happens if it is gone."""
        self._api.may_write()
        try:
            await self._objects.patch_namespaced_custom_object(
                API_GROUP,
                API_VERSION,
                namespace,
                "vfiomigrations",
                name,
                {"spec": {"cancel": True}},
                field_manager=FIELD_MANAGER,
                _content_type=MERGE,
                _request_timeout=REQUEST_SECONDS,
            )
        except ApiException as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise

    async def delete(self, name: str, uid: str) -> None:
        """Delete an evacuation, and what it made; nothing happens if it is gone."""
        self._api.may_write()
        try:
            await self._objects.delete_cluster_custom_object(
                API_GROUP,
                API_VERSION,
                "vfioevacuations",
                name,
                body={"preconditions": {"uid": uid}, "propagationPolicy": "Background"},
                _request_timeout=REQUEST_SECONDS,
            )
        except ApiException as error:
            if error.status not in (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT):
                raise

    async def _found(self, asked: Any) -> Json | None:
        try:
            found: Json = await asked
        except ApiException as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return None
            raise
        return found
