"""So many requests are under way at once and no more; what is asked while a workload is down waits for none of them."""

import asyncio
from typing import Any

from aiohttp import web
from kubernetes.aio import client

from fakes.api_server import listening
from vfio_api.types import MigrationKey, Outcome
from vfio_operator.kube import AT_ONCE, Gate, OperatorApi

KEY = MigrationKey("uid", "team", "move")


class Server:
    """Answers nothing but switchovers until it is let go."""

    def __init__(self) -> None:
        self.there = 0
        self.full, self.go = asyncio.Event(), asyncio.Event()

    async def answer(self, request: web.Request) -> web.Response:
        if "vfioswitchovers" not in request.path:
            self.there += 1
            if self.there >= AT_ONCE:
                self.full.set()
            await self.go.wait()
        return web.json_response({"path": request.path})


async def scene() -> tuple[int, Any, int]:
    server = Server()
    async with listening(server.answer) as settings:
        api = OperatorApi(Gate(settings), "vfio-migration", "operator-0", client.ApiClient(settings))
        try:
            many = [asyncio.create_task(api.migration(KEY)) for _ in range(3 * AT_ONCE)]
            await server.full.wait()
            decided = await api.decide(KEY, Outcome.COMMIT)
            meanwhile = server.there
            server.go.set()
            await asyncio.gather(*many)
        finally:
            await api.close()
    return meanwhile, decided, server.there


def test_the_decision_passes_those_that_wait_for_their_turn() -> None:
    meanwhile, decided, after = asyncio.run(scene())
    assert meanwhile == AT_ONCE
    assert decided["path"].endswith("/vfioswitchovers/uid/status")
    assert after == 3 * AT_ONCE
