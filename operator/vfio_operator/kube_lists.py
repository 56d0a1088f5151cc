"""What is asked of the API server beside the watches: finished migrations, and what is known by its UID only."""

import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from http import HTTPStatus
from typing import Any

from kubernetes.aio import client
from kubernetes.aio.client.exceptions import ApiException

from vfio_api import API_GROUP, API_VERSION
from vfio_api.names import FINISHED_LABEL
from vfio_api.types import MigrationKey
from vfio_operator.kube import FIELD_MANAGER, MERGE, REQUEST_SECONDS, Json, OperatorApi

WATCH_SECONDS = 300


DELETED = "DELETED"  # the event of a watch


class Lists:
    """Lists and what follows from them. Errors are kubernetes.aio's ApiException and OSError."""

    def __init__(self, api: OperatorApi):
        self._api = api
        self._objects: Any = client.CustomObjectsApi(api.client)

    async def follow_finished(self) -> AsyncIterator[tuple[str, Json]]:
        """Every VFIOMigration with the label of finished ones as ADDED, then what becomes of them and which come.

        Listed once and watched from there on; ends when the API server does not remember that far back, or says so.
        """
        version = ""
        async for page in self._each_page("vfiomigrations", label_selector=FINISHED_LABEL):
            version = page["metadata"]["resourceVersion"]
            for item in page["items"]:
                yield "ADDED", item
        while True:
            async for kind, body in self._watch("vfiomigrations", version, label_selector=FINISHED_LABEL):
                if kind == "ERROR":
                    return
                version = body["metadata"]["resourceVersion"]
                if kind != "BOOKMARK":
                    yield kind, body

    async def _watch(self, plural: str, version: str, **options: str) -> AsyncIterator[tuple[str, Json]]:
        """Events of a watch until its time is over, which the API server is asked to end it at."""
        response = await self._objects.list_cluster_custom_object_without_preload_content(
            API_GROUP,
            API_VERSION,
            plural,
            watch=True,
            allow_watch_bookmarks=True,
            resource_version=version,
            timeout_seconds=WATCH_SECONDS,
            _request_timeout=WATCH_SECONDS + REQUEST_SECONDS,
            **options,
        )
        with contextlib.closing(response):
            if response.status != HTTPStatus.OK:  # which the client does not look at if it is to stream
                raise ApiException(status=response.status, reason=response.reason)
            while line := await response.content.readline():
                event = json.loads(line)
                yield event["type"], event["object"]

    def migrations(self) -> AsyncIterator[Json]:
        """Every VFIOMigration."""
        return self._pages("vfiomigrations")

    def policies(self) -> AsyncIterator[Json]:
        """Every VFIOMigrationPolicy."""
        return self._pages("vfiomigrationpolicies")

    def evacuations(self) -> AsyncIterator[Json]:
        """Every VFIOEvacuation."""
        return self._pages("vfioevacuations")

    def switchovers(self, *, ended: bool = True) -> AsyncIterator[Json]:
        """Every VFIOSwitchover; ended=False: without those that were let go."""
        return self._pages("vfioswitchovers", **({} if ended else {"label_selector": f"!{FINISHED_LABEL}"}))

    def devices(self) -> AsyncIterator[Json]:
        """Every VFIODevice."""
        return self._pages("vfiodevices")

    async def migration_of(self, uid: str) -> Json | None:
        """The VFIOMigration of which only the UID is known, None if there is none. Reads them all: for rare use."""
        async for body in self.migrations():
            if body["metadata"]["uid"] == uid:
                return body
        return None

    async def _pages(self, plural: str, **options: str) -> AsyncIterator[Json]:
        """Every object."""
        async for page in self._each_page(plural, **options):
            for item in page["items"]:
                yield item

    async def _each_page(self, plural: str, **options: str) -> AsyncIterator[Json]:
        token = ""
        while True:
            page: Json = await self._objects.list_cluster_custom_object(
                API_GROUP,
                API_VERSION,
                plural,
                limit=500,
                _request_timeout=REQUEST_SECONDS,
                **options,
                **({"_continue": token} if token else {}),
            )
            yield page
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
