"""What a session does by itself when nobody tells it anything in the middle of a switchover.

A source that has heard nothing for switchoverTimeoutSeconds latches: it takes no command any more but with the
decision, and asks for Abort. A target that has voted asks what was decided. Both obey only what is read back from the
VFIOSwitchover; who cannot ask holds still, says so, and goes on asking. A side that lies on this node alone then
finishes by itself: no leader is needed for a barrier within one node.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from functools import partial

import structlog

from vfio_agent import machine
from vfio_agent.kube import API_ERRORS, AgentApi, Decided
from vfio_agent.machine import Inquiry
from vfio_agent.metrics import AgentMetrics
from vfio_agent.session import Session
from vfio_api.errors import VFIOMigrationError
from vfio_api.types import Command, Role

log = structlog.get_logger()
LOOK_SECONDS = 0.25
FIRST_BACKOFF, LAST_BACKOFF = 0.2, 5.0
GOAL_SECONDS = 60
ATTEMPTS = 6  # of a side that finishes alone; then a leader is waited for


class Latch:
    """Looks after the silent ones of `sessions()`. carry_out: makes a command true, as if a leader had sent it."""

    def __init__(
        self,
        sessions: Callable[[], Iterable[Session]],
        carry_out: Callable[[Session, Command], Awaitable[None]],
        api: AgentApi,
        node: str,
        metrics: AgentMetrics,
    ):
        self._sessions, self._carry_out = sessions, carry_out
        self._api, self._node, self._metrics = api, node, metrics
        self._asking: dict[Session, asyncio.Task[None]] = {}
        self._held: set[Session] = set()

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                for session in self._sessions():
                    if session not in self._asking and session.silent():
                        task = self._asking[session] = asyncio.create_task(self._ask(session))
                        task.add_done_callback(partial(self._asked, session))
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            for task in self._asking.values():
                task.cancel()

    def _asked(self, session: Session, _task: asyncio.Task[None]) -> None:
        self._asking.pop(session, None)

    async def _ask(self, session: Session) -> None:
        said = log.bind(migration=str(session.key), uid=session.key.uid, role=session.facts.role.value)
        decided = session.facts.decision
        said.warning("nothing was heard of the switchover", asks=machine.inquiry(session.facts).value, decision=decided)
        backoff = FIRST_BACKOFF
        try:
            while session.silent():
                try:
                    found = await self._inquire(session)
                    if found.decision is not None:
                        await session.learn(found.decision)
                        said.info("decision read", decision=found.decision.value)
                        await self._finish(session, found)
                        return
                    why = "nothing is decided yet"
                except API_ERRORS as error:
                    why = str(error).strip().partition("\n")[0] or type(error).__name__
                self._hold(session, held=True)
                said.error("held: the decision cannot be learned; asking again", why=why, seconds=backoff)
                await asyncio.sleep(backoff)
                backoff = min(2 * backoff, LAST_BACKOFF)
        finally:
            self._hold(session, held=False)

    async def _inquire(self, session: Session) -> Decided:
        if machine.inquiry(session.facts) is Inquiry.ABORT:
            await session.latch()  # durable before it is asked for: what is asked for may come true
            try:
                await self._api.ask_abort(session.key, self._node)
            except API_ERRORS as error:  # refused, lost or done: only what is read back tells
                log.info("abort in doubt, reading it back", error=str(error).strip().partition("\n")[0])
        return await self._api.switchover(session.key)

    async def _finish(self, session: Session, found: Decided) -> None:
        """Bring a side that lies on this node alone to where the decision wants it."""
        side = found.source_nodes if session.facts.role is Role.SOURCE else found.target_nodes
        backoff = FIRST_BACKOFF
        for _ in range(ATTEMPTS):
            goal = machine.alone(session.facts)
            if goal is None or session.ended or side != {self._node} or session.reached is goal:
                return
            facts = session.facts
            log.info("finishing alone", migration=str(session.key), role=facts.role.value, goal=goal.value)
            hooks = (pod.hook.longest_seconds for pod in session.spec.workloads if pod.hook is not None)
            milliseconds = int((GOAL_SECONDS + max(hooks, default=0)) * 1000)
            command = Command(session.key, facts.role, goal, facts.epoch, facts.sequence, milliseconds, facts.decision)
            try:
                await self._carry_out(session, command)
            except VFIOMigrationError as error:
                log.warning("cannot finish alone", migration=str(session.key), error=error.message)
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, LAST_BACKOFF)

    def _hold(self, session: Session, *, held: bool) -> None:
        (self._held.add if held else self._held.discard)(session)
        for role in Role:
            self._metrics.held.labels(role.value).set(sum(1 for s in self._held if s.facts.role is role))
