"""What is asked of the API server for the claims on VFIODevices. Thin: every method is one request."""

from http import HTTPStatus
from typing import Any

from kubernetes.aio import client
from kubernetes.aio.client.exceptions import ApiException

from vfio_api import API_GROUP, API_VERSION
from vfio_operator.kube import FIELD_MANAGER, MERGE, REQUEST_SECONDS, Json, OperatorApi

JSON_PATCH = "application/json-patch+json"


class KubeClaims:
    """The claims' part of the API server. Errors as of OperatorApi."""

    def __init__(self, api: OperatorApi):
        self._api = api
        self._objects: Any = client.CustomObjectsApi(api.client)

    async def device(self, object_name: str) -> Json:
        """A VFIODevice as it is now."""
        found: Json = await self._objects.get_cluster_custom_object(
            API_GROUP, API_VERSION, "vfiodevices", object_name, _request_timeout=REQUEST_SECONDS
        )
        return found

    async def set_claim(self, object_name: str, resource_version: str, claim: Json | None) -> None:
        """Reserve a device or give it free, by compare-and-set: ApiException 409 if it changed since it was read."""
        self._api.may_write()
        await self._objects.patch_cluster_custom_object(
            API_GROUP,
            API_VERSION,
            "vfiodevices",
            object_name,
            {"metadata": {"resourceVersion": resource_version}, "spec": {"claimRef": claim}},
            field_manager=FIELD_MANAGER,
            _content_type=MERGE,
            _request_timeout=REQUEST_SECONDS,
        )

    async def drop_claim(self, object_name: str, uid: str) -> bool:
        """Give a device free if the migration with this UID has it, whatever else of it has changed; whether it had.

        A device that is not there any more is nobody's.
        """
        self._api.may_write()
        changes = [
            {"op": "test", "path": "/spec/claimRef/uid", "value": uid},
            {"op": "remove", "path": "/spec/claimRef"},
        ]
        try:
            await self._objects.patch_cluster_custom_object(
                API_GROUP,
                API_VERSION,
                "vfiodevices",
                object_name,
                changes,
                field_manager=FIELD_MANAGER,
                _content_type=JSON_PATCH,
                _request_timeout=REQUEST_SECONDS,
            )
        except ApiException as error:
            # it is there and the test fails, or it is not there
            if error.status not in (HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.NOT_FOUND):
                raise
            return False
        return True
