"""What is asked of the API server beside the watches: finished migrations, and what is known by its UID only."""

from collections.abc import AsyncIterator, Mapping
from types import MappingProxyType
from typing import Any

from kubernetes.aio import client

from vfio_api import API_GROUP, API_VERSION
from vfio_api.names import FINISHED_LABEL
from vfio_api.types import MigrationKey
from vfio_operator.kube import FIELD_MANAGER, MERGE, REQUEST_SECONDS, Json, OperatorApi

_ANY: Mapping[str, str] = MappingProxyType({})


class Lists:
    """Lists and what follows from them. Errors are kubernetes.aio's ApiException and OSError."""

    def __init__(self, api: OperatorApi):
        self._api = api
        self._objects: Any = client.CustomObjectsApi(api.client)

    def finished_migrations(self) -> AsyncIterator[Json]:
        """Every VFIOMigration with the label of finished ones, from the API server's cache (seconds old)."""
        return self._pages("vfiomigrations", {"resource_version": "0"}, label_selector=FINISHED_LABEL)

    def migrations(self) -> AsyncIterator[Json]:
        """Every VFIOMigration."""
        return self._pages("vfiomigrations")

    def switchovers(self) -> AsyncIterator[Json]:
        """Every VFIOSwitchover."""
        return self._pages("vfioswitchovers")

    async def migration_of(self, uid: str) -> Json | None:
        """The VFIOMigration of which only the UID is known, None if there is none. Reads them all: for rare use."""
        async for body in self.migrations():
            if body["metadata"]["uid"] == uid:
                return body
        return None

    async def _pages(self, plural: str, start: Mapping[str, str] = _ANY, **options: str) -> AsyncIterator[Json]:
        """Page by page; `start` is for the first page only."""
        token = ""
        while True:
            page: Json = await self._objects.list_cluster_custom_object(
                API_GROUP,
                API_VERSION,
                plural,
                limit=500,
                _request_timeout=REQUEST_SECONDS,
                **options,
                **({"_continue": token} if token else start),
            )
            for item in page["items"]:
                yield item
            token = page["metadata"].get("continue", "")
            if not token:
                return

    async def switchover_of(self, uid: str) -> Json | None:
        """The VFIOSwitchover of a migration of which only the UID is known, None if there is none."""
        found: Json = await self._objects.list_cluster_custom_object(
            API_GROUP,
            API_VERSION,
            "vfioswitchovers",
            field_selector=f"metadata.name={uid}",
            _request_timeout=REQUEST_SECONDS,
        )
        return next(iter(found["items"]), None)

    async def delete_migration(self, body: Mapping[str, Any]) -> None:
        """Delete a VFIOMigration as it was read. ApiException 409 if it has changed since, 404 if it is gone."""
        self._api.may_write()
        metadata = body["metadata"]
        await self._objects.delete_namespaced_custom_object(
            API_GROUP,
            API_VERSION,
            metadata["namespace"],
            "vfiomigrations",
            metadata["name"],
            body={
                "preconditions": {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]},
                "propagationPolicy": "Background",
            },
            _request_timeout=REQUEST_SECONDS,
        )

    async def unlabel(self, key: MigrationKey) -> None:
        """Take the label of finished ones from an object that is not: the watch then sees it."""
        self._api.may_write()
        await self._objects.patch_namespaced_custom_object(
            API_GROUP,
            API_VERSION,
            key.namespace,
            "vfiomigrations",
            key.name,
            {"metadata": {"uid": key.uid, "labels": {FINISHED_LABEL: None}}},
            field_manager=FIELD_MANAGER,
            _content_type=MERGE,
            _request_timeout=REQUEST_SECONDS,
        )
