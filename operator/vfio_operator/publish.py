"""Writes status and Events of one migration: the newest wins, off the critical path, Events after the status."""

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from vfio_api.reasons import EventReason
from vfio_api.types import MigrationKey
from vfio_operator import status
from vfio_operator.actions import Finish, Plan
from vfio_operator.kube import API_ERRORS, OperatorApi, brief, now
from vfio_operator.metrics import OperatorMetrics
from vfio_operator.observed import Observed
from vfio_operator.status import Json, Measured

log = structlog.get_logger()
PROGRESS_SECONDS = 0.5
EACH_SECONDS = 0.05  # times how many run: all together they tell of their progress so often
QUEUED_SECONDS = 0.05  # times how many wait: all together they write that often where they stand
# In these steps the workload is down: nothing is written that can wait.
QUIET_STEPS = frozenset({"BarrierA", "BarrierB", "Vote", "Decide", "BarrierC", "BarrierD"})
ANNOUNCED: dict[str, tuple[EventReason, str]] = {
    "PrepareSources": (EventReason.PREPARING, "devices are reserved"),
    "Converge": (EventReason.PRE_COPY_STARTED, "device state is copied while the devices run"),
    "BeginSwitchover": (EventReason.CONVERGED, "initial bytes are loaded and the switchover may begin"),
    "BarrierA": (EventReason.SWITCHOVER_STARTED, "the workload's devices are being stopped"),
    "BarrierB": (EventReason.SWITCHOVER_STARTED, "the workload's devices are being stopped"),
    "BarrierD": (EventReason.COMMITTED, "every target has loaded its state and the decision is Commit"),
    "ReleaseSources": (EventReason.SWITCHED, "every device runs at its target"),
    "RestoreP2P": (EventReason.ROLLING_BACK, "{sentence}"),
    "Restore": (EventReason.ROLLING_BACK, "{sentence}"),
}


class Publisher:
    """The status and Events of `key`. running: how many migrations run, who all want to tell of their progress."""

    def __init__(
        self,
        api: OperatorApi,
        metrics: OperatorMetrics,
        key: MigrationKey,
        body: Mapping[str, Any],
        trace_id: str,
        running: Callable[[], int],
    ):
        self._api, self._metrics, self._key, self._trace_id = api, metrics, key, trace_id
        self._running = running
        self._written: Json = dict(body.get("status", {}))
        self._offered: tuple[int, Observed, Plan, Measured] | None = None
        self._turns, self._newest = itertools.count(1), 0
        self._announced: set[str] = set()
        self._hurry = asyncio.Event()  # what is offered is no place in the queue
        self._due: list[tuple[str, str]] = []
        self._task: asyncio.Task[None] | None = None
        self._writing = asyncio.Lock()
        self._closed = False

    def offer(self, observed: Observed, planned: Plan, measured: Measured) -> None:
        """Have the status written soon; only the newest offer is. In the switchover nothing is."""
        if planned.step in QUIET_STEPS or self._closed:
            return
        self._offered = next(self._turns), observed, planned, measured
        if not observed.turn.waiting:
            self._hurry.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._drain())

    def stop(self) -> None:
        """Write nothing more of what was offered."""
        self._offered = None
        if self._task is not None:
            self._task.cancel()

    def written(self, body: Mapping[str, Any]) -> None:
        """The status that is there now, whoever wrote it."""
        self._written = dict(body.get("status", {}))

    def close(self) -> None:
        """The object is gone: there is nothing to write to any more."""
        self._closed = True
        self._offered = None

    async def quiet(self) -> None:
        """Drop what was offered and wait for a write that is under way."""
        self._offered = None
        async with self._writing:
            return

    async def write_last(self, observed: Observed, planned: Plan, measured: Measured) -> Json | None:
        """The terminal status: nothing that was offered before may be written after it.

        Returns the object as it is stored; None if this very status was written before.
        """
        self._closed = True
        return await self._write(next(self._turns), observed, planned, measured)

    async def _drain(self) -> None:
        if (pace := self._pace()) > PROGRESS_SECONDS:  # among many, most of this is superseded soon
            await asyncio.sleep(pace)
        while self._offered is not None:
            (turn, observed, planned, measured), self._offered = self._offered, None
            try:
                if not self._closed:
                    await self._write(turn, observed, planned, measured)
            except API_ERRORS as error:
                log.warning("status not written", migration=str(self._key), error=brief(error))
            await asyncio.sleep(self._pace())
            self._hurry.clear()
            if observed.turn.waiting and (self._offered is None or self._offered[1].turn.waiting):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._hurry.wait(), observed.turn.waiting * QUEUED_SECONDS)

    def _pace(self) -> float:
        """Seconds between two writes of what can wait."""
        return max(PROGRESS_SECONDS, self._running() * EACH_SECONDS)

    async def write(self, observed: Observed, planned: Plan, measured: Measured) -> None:
        """Write the status now if it differs from the last one written; not after the last one.

        What was offered before is never written after it: that may not know the pairs or the failure that this records.
        """
        if not self._closed:
            await self._write(next(self._turns), observed, planned, measured)

    async def _write(self, turn: int, observed: Observed, planned: Plan, measured: Measured) -> Json | None:
        stored = None
        # the lock makes a write that is under way end before the next one begins
        async with self._writing:
            if turn < self._newest:
                return None  # a newer one was written meanwhile, with what was decided since
            self._newest = turn
            made = status.build(observed, planned, measured, now(), self._written, self._trace_id)
            if made != self._written:
                stored = await self._api.apply_status(self._key, made)
                self._metrics.api_writes.labels("status").inc()
                self._written = made
            due, self._due = self._due, []
        for reason, message in due:
            await self._event(reason, message, warning=reason == EventReason.ROLLING_BACK)
        return stored

    def milestone(self, planned: Plan) -> None:
        """The plan has come to another step: its Event, if it has one, goes out after the next status write."""
        event = ANNOUNCED.get(planned.step)
        if event is not None and event[0] not in self._announced:
            self._announced.add(event[0])
            self._due.append((event[0], event[1].format(sentence=planned.sentence)))

    async def finished(self, observed: Observed, planned: Plan, finish: Finish, measured: Measured) -> None:
        """The last Event, after the terminal status was written."""
        _, reason = status.outcome_label(observed, finish)
        message = status.closing(observed, planned, measured)
        await self._event(reason, message, warning=finish.failure is not None)

    async def _event(self, reason: str, message: str, *, warning: bool) -> None:
        try:
            await self._api.event(self._key, reason, message, warning=warning)
            self._metrics.api_writes.labels("event").inc()
        except API_ERRORS as error:  # an Event is a courtesy
            log.warning("event not posted", migration=str(self._key), error=brief(error))
