"""A device is given free by who has it; one that another has, or that is gone, is left alone and is no error."""

import asyncio
from http import HTTPStatus

import pytest
from aiohttp import web
from kubernetes.aio.client.exceptions import ApiException

from fakes.api_server import served
from vfio_operator.kube_claims import KubeClaims


class Devices:
    """VFIODevices by name and whose they are; a JSON patch as the API server takes it (RFC 6902, test and remove)."""

    def __init__(self, **owners: str):
        self.owners = owners

    async def answer(self, request: web.Request) -> web.Response:
        name = request.path.rpartition("/")[2]
        test, remove = await request.json()
        assert (test["op"], test["path"], remove["op"], remove["path"]) == (
            "test",
            "/spec/claimRef/uid",
            "remove",
            "/spec/claimRef",
        )
        if name == "broken":
            return web.json_response({}, status=HTTPStatus.INTERNAL_SERVER_ERROR)
        if name not in self.owners:
            return web.json_response({}, status=HTTPStatus.NOT_FOUND)
        if self.owners[name] != test["value"]:
            return web.json_response({}, status=HTTPStatus.UNPROCESSABLE_ENTITY)
        self.owners[name] = ""
        return web.json_response({})


async def dropped(devices: Devices, name: str) -> bool:
    async with served(devices.answer) as api:
        return await KubeClaims(api).drop_claim(name, "mine")


@pytest.mark.parametrize(("name", "had"), [("a", True), ("b", False), ("free", False), ("gone", False)])
def test_only_what_is_its_own_is_given_free(name: str, had: bool) -> None:
    devices = Devices(a="mine", b="another", free="")
    assert asyncio.run(dropped(devices, name)) is had
    assert devices.owners == {"a": "" if name == "a" else "mine", "b": "another", "free": ""}


def test_what_the_server_cannot_do_is_an_error() -> None:
    with pytest.raises(ApiException) as raised:
        asyncio.run(dropped(Devices(), "broken"))
    assert raised.value.status == HTTPStatus.INTERNAL_SERVER_ERROR
