"""Sees to it that the keeper holds whatever this agent holds, also when it is not the keeper it was."""

import asyncio

import structlog

from vfio_agent.holdings import Holdings
from vfio_agent.keeper import KeeperError
from vfio_agent.metrics import AgentMetrics

log = structlog.get_logger()
EVERY_SECONDS = 1.0


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
