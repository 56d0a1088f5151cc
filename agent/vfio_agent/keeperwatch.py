"""Sees to it that the keeper holds whatever this agent holds, also when it is not the keeper it was."""

import asyncio
import time

import structlog

from vfio_agent.holdings import Holdings
from vfio_agent.keeper import KeeperError, KeeperGoneError
from vfio_agent.metrics import AgentMetrics

log = structlog.get_logger()
EVERY_SECONDS = 1.0


async def restore_from_keeper(holdings: Holdings, wait_seconds: float) -> None:
    """`Holdings.restore`, as soon as there is a keeper: pods of one node start in any order.

    wait_seconds: for how long to look for one. Raises KeeperError.
    """
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            return await asyncio.to_thread(holdings.restore)
        except KeeperGoneError as error:
            if time.monotonic() >= deadline:
                raise
            log.info("no keeper yet", error=str(error))
        await asyncio.sleep(EVERY_SECONDS)


async def watch_keeper(holdings: Holdings, metrics: AgentMetrics) -> None:
    """Until cancelled. While no keeper is there an agent that ends loses its devices, so that is said at once."""
    alive: bool | None = None
    while True:
        try:
            mended = await asyncio.to_thread(holdings.mend)
        except (KeeperError, OSError) as error:
            if alive is not False:
                log.error("no keeper: devices do not outlive this agent now", error=str(error))
            alive = False
        else:
            if mended:
                log.warning("devices given to the keeper again", devices=mended)
            alive = True
        metrics.keeper.set(int(alive))
        await asyncio.sleep(EVERY_SECONDS)
