"""No write leaves this process once its Lease may be another's: asked again when a request is about to be sent."""

from collections.abc import Callable
from typing import Any

import aiohttp

_UNFENCED = frozenset({"leases", "tokenreviews", "subjectaccessreviews"})


class NotLeadingError(ConnectionError):
    """This replica's lease is not fresh by its own clock: it must not write, whatever it was about to do."""


def fence(insist: Callable[[], None]) -> aiohttp.TraceConfig:
    """Asks once more when a request has its connection, just before it is sent: getting one may have taken long.

    The Lease itself is written by who does not lead yet, and reviews change nothing.
    """
    trace = aiohttp.TraceConfig()

    async def begun(_session: Any, context: Any, request: aiohttp.TraceRequestStartParams) -> None:
        parts = request.url.path.split("/")
        context.writes = request.method not in ("GET", "HEAD") and not _UNFENCED.intersection(parts)

    async def connected(_session: Any, context: Any, _parameters: Any) -> None:
        if context.writes:
            insist()

    trace.on_request_start.append(begun)
    trace.on_connection_create_end.append(connected)
    trace.on_connection_reuseconn.append(connected)
    return trace
