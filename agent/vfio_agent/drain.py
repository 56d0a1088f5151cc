"""How an agent ends: after SIGTERM it goes on until its sessions have ended, its time is over, or it is told again.

Its pod's successor is started only when it is gone (a DaemonSet without surge), and the keeper holds the devices all
the while. So to end between two migrations costs nothing, and to end in the middle of one costs that migration: a
switchover is never cut for a roll-out.
"""

import asyncio
import signal
import time
from dataclasses import dataclass
from enum import StrEnum

import structlog

from vfio_agent.agent import Agent
from vfio_agent.link import Link

log = structlog.get_logger()
LOOK_SECONDS = 0.1


class Verdict(StrEnum):
    """What an agent that is to end does now."""

    STAY = "sessions have not ended"
    TELL = "what has ended is still to be reported"
    DONE = "nothing is left to do"
    OVERDUE = "the time for it is over"
    URGED = "it was told a second time"


GOES_ON = (Verdict.STAY, Verdict.TELL)


@dataclass(frozen=True, slots=True)
class Standing:
    """How an agent that is to end stands. signals: how often it was told. work_left: of sessions and commands.

    unsaid: something waits to be sent. connected: there is an operator to send it to.
    """

    signals: int
    waited_seconds: float
    work_left: int
    unsaid: bool
    connected: bool


def verdict(standing: Standing, drain_seconds: float) -> Verdict:
    """Whether it goes on. Pure."""
    if standing.signals > 1:
        return Verdict.URGED
    if standing.waited_seconds >= drain_seconds:
        return Verdict.OVERDUE
    if standing.work_left:
        return Verdict.STAY
    # the next agent cannot say how these have ended; without an operator there is nobody to tell
    return Verdict.TELL if standing.unsaid and standing.connected else Verdict.DONE


class Drain:
    """Waits for SIGTERM or SIGINT, then until `verdict` lets the agent go."""

    def __init__(self, agent: Agent, link: Link, drain_seconds: float):
        self._agent, self._link, self._drain_seconds = agent, link, drain_seconds
        self._signals = 0
        self._told = asyncio.Event()

    def listen(self) -> None:
        """Take the signals over; on the event loop."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._tell)

    def _tell(self) -> None:
        self._signals += 1
        self._told.set()

    def ready(self) -> str:
        """For /readyz: "" while the agent serves an operator that leads, else why not.

        A roll-out may wait for it, also when operator and agents are rolled together: who waits for whom is no circle.
        Agents are ready when a leader serves them; replicas of the operator are ready without any agent, and an old
        leader serves new agents as a new one serves old ones (version N serves N-1). Where no operator leads, agents
        are not ready and their roll-out stops: to go on would replace agents by such that nobody has seen at work.
        """
        if self._signals:
            return "it is to end, and finishes what it has"
        return "" if self._link.connected else "not connected to an operator that leads; its log says why"

    async def wait(self) -> None:
        """Until the agent may end."""
        await self._told.wait()
        began = time.monotonic()
        self._link.leave()
        if self._drain_seconds > 0:
            log.info("draining", work_left=self._agent.work_left, seconds=self._drain_seconds)
        while (found := self._verdict(time.monotonic() - began)) in GOES_ON:  # noqa: ASYNC110 - much may change it
            await asyncio.sleep(LOOK_SECONDS)
        left = self._agent.work_left
        (log.warning if left else log.info)("ending", why=found.value, work_left=left)
        if found is Verdict.DONE:
            await self._link.farewell()

    def _verdict(self, waited_seconds: float) -> Verdict:
        agent = self._agent
        standing = Standing(self._signals, waited_seconds, agent.work_left, self._link.unsaid, self._link.connected)
        return verdict(standing, self._drain_seconds)
