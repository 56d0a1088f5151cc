"""Gives up the devices of counterparts that are gone: who takes devices over did not open them, and cannot close them.

A device that a workload asked the agent to open stays open until somebody closes it, whatever becomes of that workload;
one that came with a pod is that pod's, as if the pod had opened it.
"""

import asyncio
from collections import Counter
from collections.abc import Callable

import structlog

from vfio_agent.holdings import Holdings
from vfio_agent.keeper import KeeperError
from vfio_agent.pods import Pods

log = structlog.get_logger()
LOOKS = 3  # in which a pod has no cgroup: then it is gone, not about to begin
LOOK_SECONDS = 5.0


class Heirs:
    """Looks after what pods have taken over. `busy(address)` names the migration that uses a device, "" if none does;
    `changed` is called when one was given up.
    """

    def __init__(self, holdings: Holdings, pods: Pods, busy: Callable[[str], str], changed: Callable[[], None]):
        self._holdings, self._pods, self._busy, self._changed = holdings, pods, busy, changed
        self._missed: Counter[str] = Counter()  # address -> how often its pod was not there

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if await asyncio.to_thread(self.look):
                self._changed()

    def look(self) -> list[str]:
        """Give up what belongs to pods that have been away for LOOKS looks; the addresses. Blocking."""
        given = []
        for address, held in self._holdings.all().items():
            try:
                gone = held.inherited and not self._busy(address) and self._pods.cgroup(held.pod) is None
                self._missed[address] = self._missed[address] + 1 if gone else 0
                if self._missed[address] < LOOKS:
                    continue
                self._holdings.release(address)
            except (KeeperError, OSError) as error:
                log.warning("device of a pod that is gone is not given up yet", device=address, error=str(error))
                continue
            log.info("device given up: the pod that took it over is gone", device=address, holder=held.holder)
            given.append(address)
        self._missed = +self._missed  # what is there is not remembered
        return given
