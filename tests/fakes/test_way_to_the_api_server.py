"""A proxy is looked for once, as the environment says, and not with each request."""

import asyncio
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio import client

from vfio_api.addresses import find_way_once

SERVER, PROXY, OTHER = "https://10.0.0.1:6443", "http://proxy.example:3128", "http://other.example:3128"


def settings_for(host: str = SERVER, proxy: str | None = None) -> Any:
    settings: Any = client.Configuration(host=host)
    settings.proxy = proxy
    find_way_once(settings)
    return settings


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize(
    ("environment", "named", "found"),
    [
        ({}, None, None),
        ({"HTTPS_PROXY": PROXY}, None, PROXY),
        ({"HTTP_PROXY": PROXY}, None, None),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "10.0.0.1"}, None, None),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "10.0.0.2"}, None, PROXY),
        ({"HTTPS_PROXY": PROXY}, OTHER, OTHER),  # the kubeconfig's proxy-url
    ],
)
def test_the_proxy_that_the_environment_names_unless_the_kubeconfig_does(
    environment: dict[str, str], named: str | None, found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert settings_for(proxy=named).proxy == found


def test_requests_go_through_it_and_nothing_else_is_looked_for() -> None:
    async def scene() -> tuple[list[str], bool]:
        asked: list[str] = []

        async def answer(request: web.Request) -> web.Response:
            asked.append(f"{request.method} {request.url.host}")
            return web.json_response({})

        server = web.Server(answer)  # a proxy for plain HTTP is asked for the whole URL
        runner = web.ServerRunner(server)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        proxy = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            async with client.ApiClient(settings_for("http://api.example", proxy)) as made:
                objects: Any = client.CustomObjectsApi(made)
                await objects.get_cluster_custom_object("g", "v1", "things", "one")
                return asked, made.rest_client.pool_manager.trust_env
        finally:
            await runner.cleanup()

    assert asyncio.run(scene()) == (["GET api.example"], False)
