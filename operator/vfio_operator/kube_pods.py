"""Pods as a migration needs them: read, marked, created, adopted, deleted. Thin: every method is few requests."""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from kubernetes.aio import client
from kubernetes.aio.client.exceptions import ApiException

from vfio_api.names import COST_ANNOTATION, HERITAGE_ANNOTATION, MIGRATION_LABEL
from vfio_api.types import MigrationKey
from vfio_operator.counterpart import (
    DELETION_COST,
    HIGHEST_COST,
    LOWEST_COST,
    Claim,
    adoption,
    claims_of,
    is_counterpart,
    own_cost,
)
from vfio_operator.kube import FIELD_MANAGER, MERGE, REQUEST_SECONDS, Json, OperatorApi

GRACE_SECONDS = 1  # of a source that was moved: it is frozen, or has handed over everything


class PodNameTakenError(Exception):
    """Another pod has the name that the counterpart is to have; `body` is that pod."""

    def __init__(self, body: Json):
        super().__init__(f"pod {body['metadata']['namespace']}/{body['metadata']['name']} is another's")
        self.body = body


class KubePods:
    """The pods' part of the API server. Errors as of OperatorApi."""

    def __init__(self, api: OperatorApi):
        self._api = api
        self._core: Any = client.CoreV1Api(api.client)

    async def get(self, namespace: str, name: str) -> Json | None:
        """A Pod; None if there is none."""
        try:
            return await self._plain(self._core.read_namespaced_pod_with_http_info, name, namespace)
        except ApiException as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return None
            raise

    async def claims(self, pod: Json) -> tuple[Claim, ...]:
        """The PersistentVolumeClaims that a pod mounts."""
        found, read = [], self._core.read_namespaced_persistent_volume_claim_with_http_info
        for name in claims_of(pod):
            try:
                claim = await self._plain(read, name, pod["metadata"]["namespace"])
                found.append(Claim(name, tuple(claim["spec"].get("accessModes", ()))))
            except ApiException as error:
                if error.status != HTTPStatus.NOT_FOUND:
                    raise
                found.append(Claim(name, ()))
        return tuple(found)

    async def mark(self, pod: Mapping[str, Any], migration: str) -> bool:
        """As `label`; and its ReplicaSet prefers to lose this pod. What it cost before is noted on it."""
        metadata = pod["metadata"]
        cost = {DELETION_COST: LOWEST_COST, COST_ANNOTATION: own_cost(pod)}
        marks = {"labels": {MIGRATION_LABEL: migration}, "annotations": cost}
        return await self._mark(metadata["namespace"], metadata["name"], metadata["uid"], marks)

    async def unmark(self, namespace: str, name: str, uid: str) -> None:
        """The pod is in no migration any more, and costs what it did. Nothing happens if it is gone."""
        self._api.may_write()
        there = await self.get(namespace, name)
        if there is not None:
            cost = {DELETION_COST: own_cost(there), COST_ANNOTATION: None}
            await self._mark(namespace, name, uid, {"labels": {MIGRATION_LABEL: None}, "annotations": cost})

    async def disown(self, namespace: str, name: str, uid: str, heritage: str | None = None) -> bool:
        """The counterpart is nobody's; False: it is gone, or another by now. heritage: what it is to have instead."""
        annotations = {"annotations": {HERITAGE_ANNOTATION: heritage}} if heritage is not None else {}
        return await self._mark(namespace, name, uid, {"ownerReferences": [], **annotations})

    async def label(self, namespace: str, name: str, uid: str, migration: str | None) -> bool:
        """Say on a pod which migration (its UID) it is in, so that the watch shows it; None: in none any more.

        False: the pod is gone, or another by now, which is left alone.
        """
        return await self._mark(namespace, name, uid, {"labels": {MIGRATION_LABEL: migration}})

    async def _mark(self, namespace: str, name: str, uid: str, metadata: Json) -> bool:
        try:
            await self._patch(namespace, name, {"metadata": {"uid": uid, **metadata}})
        except ApiException as error:
            if error.status not in (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT):
                raise
            there = await self.get(namespace, name)
            if there is not None and there["metadata"]["uid"] == uid:
                raise
            return False
        return True

    async def create(self, key: MigrationKey, body: Json) -> Json:
        """Create the counterpart; the one that is there if it was created before.

        Raises PodNameTakenError if another has its name.
        """
        self._api.may_write()
        namespace, name = body["metadata"]["namespace"], body["metadata"]["name"]
        try:
            return await self._plain(
                self._core.create_namespaced_pod_with_http_info, namespace, body, field_manager=FIELD_MANAGER
            )
        except ApiException as error:
            if error.status != HTTPStatus.CONFLICT:
                raise
        found = await self.get(namespace, name)
        if found is None:
            raise TimeoutError(f"pod {namespace}/{name} was there, and is not: creating it again")
        if not is_counterpart(found, key):
            raise PodNameTakenError(found)
        return found

    async def adopt(self, target: Json, latest: str | None = None) -> None:
        """Make the counterpart what the source was, by what that left last. Nothing happens if it is."""
        await self._patch(target["metadata"]["namespace"], target["metadata"]["name"], adoption(target, latest))

    async def settle(self, namespace: str, name: str, uid: str) -> None:
        """The counterpart is its owner's only one now: it costs what it did. Nothing happens if it is gone."""
        self._api.may_write()
        there = await self.get(namespace, name)
        annotations = there["metadata"].get("annotations", {}) if there is not None else {}
        if annotations.get(DELETION_COST) == HIGHEST_COST:
            cost = {DELETION_COST: annotations.get(COST_ANNOTATION), COST_ANNOTATION: None}
            await self._mark(namespace, name, uid, {"annotations": cost})

    async def delete(self, namespace: str, name: str, uid: str, grace_seconds: int | None = None) -> None:
        """Delete this very pod; nothing happens if it is gone, or another by now."""
        self._api.may_write()
        body: Json = {"preconditions": {"uid": uid}}
        if grace_seconds is not None:
            body["gracePeriodSeconds"] = grace_seconds
        try:
            await self._core.delete_namespaced_pod(name, namespace, body=body, _request_timeout=REQUEST_SECONDS)
        except ApiException as error:
            if error.status not in (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT):
                raise

    async def _patch(self, namespace: str, name: str, body: Json) -> None:
        self._api.may_write()
        await self._core.patch_namespaced_pod(
            name,
            namespace,
            body,
            field_manager=FIELD_MANAGER,
            _content_type=MERGE,
            _request_timeout=REQUEST_SECONDS,
        )

    async def _plain(self, call: Any, *arguments: object, **options: object) -> Json:
        """What a call answers, as the API server wrote it: the client's models rename fields, and drop what is new."""
        answer = await call(*arguments, _request_timeout=REQUEST_SECONDS, **options)
        found: Json = json.loads(answer.raw_data)
        return found
