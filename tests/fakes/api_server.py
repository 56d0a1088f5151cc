"""A stand-in for the API server on a port of its own: what it answers is each test's."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from aiohttp import web
from kubernetes.aio import client

from vfio_operator.kube import OperatorApi

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextlib.asynccontextmanager
async def listening(answer: Answer) -> AsyncIterator[Any]:
    """The configuration of a client of a server that answers every request by `answer`."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield client.Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}")
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def served(answer: Answer) -> AsyncIterator[OperatorApi]:
    """The operator's client of such a server."""
    async with listening(answer) as settings, client.ApiClient(settings) as made:
        yield OperatorApi(made, "vfio-migration", "operator-0")
