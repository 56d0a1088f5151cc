"""The spans of one migration as its leader sees it: phases, steps, commands, writes to the API server, the downtime.

Recording one costs two readings of the clock. They are handed over while the devices run, never in a switchover or on
the way back.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from vfio_api.models_status import Phase
from vfio_api.names import TRACEPARENT_ANNOTATION
from vfio_api.spans import (
    ROOT,
    Attributes,
    Identity,
    Link,
    Sink,
    Span,
    SpanKind,
    command_identity,
    lasted,
    link_of,
    phase_identity,
    short,
    trace_id,
)
from vfio_api.types import Goal, MigrationKey, Role
from vfio_operator.actions import Finish, Plan, Send
from vfio_operator.conditions import stopped
from vfio_operator.observed import Observed, has_reached

MAX_SPANS = 4096  # kept at once; what is more is counted and lost
# Entering one of these, the devices run, and what was recorded is handed over.
CALM = (Phase.PREPARING, Phase.PRE_COPY)
ENDS = (Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED)


@dataclass(slots=True)
class _Open:
    """A phase or step under way."""

    identity: Identity
    name: str
    began: float
    parent: Identity


@dataclass(slots=True)
class _Told:
    """A command that is not yet known to be carried out."""

    action: Send
    number: tuple[int, int]
    began: float
    step: Identity


class Trail:
    """Of the migration `key` under the leader with `epoch`. Without a sink, or if the sampler leaves it out, nothing.

    Lives on the event loop.
    """

    def __init__(self, sink: Sink | None, key: MigrationKey, epoch: int, body: Mapping[str, Any]):
        self._sink = sink if sink is not None and sink.covers(key.uid) else None
        self._key, self._epoch, self._body = key, epoch, body
        self._began = time.perf_counter()
        self._spans: list[Span] = []
        self._dropped = self._number = 0
        self._phase: _Open | None = None
        self._step: _Open | None = None
        self._seen: dict[Phase, int] = {}
        self._told: dict[tuple[str, Role], _Told] = {}

    @property
    def trace_id(self) -> str:
        """Of the migration's trace; "" if it has none."""
        return trace_id(self._key.uid) if self._sink is not None else ""

    def follow(self, planned: Plan, observed: Observed) -> None:
        """The plan as it was just made."""
        if self._sink is None:
            return
        moment = time.perf_counter()
        self._answered(observed, moment)
        if self._step is not None and self._step.name == planned.step:
            return
        self._close_step(moment)
        if self._phase is None or self._phase.name != planned.phase.value:
            self._enter(planned.phase, moment)
        self._number += 1
        parent = self._phase.identity if self._phase is not None else ROOT
        # the beginning is part of it: a task that is started again for the same epoch counts anew
        identity = ("step", self._epoch, planned.step, self._number, time.time_ns())
        self._step = _Open(identity, planned.step, moment, parent)

    def told(self, action: Send, number: tuple[int, int]) -> None:
        """A command was given; number: its epoch and sequence."""
        if self._sink is None:
            return
        moment, to = time.perf_counter(), (action.node, action.role)
        if (before := self._told.get(to)) is not None:
            self._say(before, moment, "it was told something else before it had answered")
        self._told[to] = _Told(action, number, moment, self._here())

    def wrote(self, what: str, began: float, error: str = "") -> None:
        """A write to the API server, from `began` (time.perf_counter) until now."""
        if self._sink is not None:
            identity = (*self._here(), what, len(self._spans))
            self._add(identity, self._here(), what, began, time.perf_counter(), kind=SpanKind.CLIENT, error=error)

    def finished(
        self, observed: Observed, finish: Finish, downtime: int | None, began: float | None, *, inherited: bool
    ) -> None:
        """The migration has ended. downtime: microseconds, None if there was none; from `began` (time.monotonic) on.

        inherited: an earlier leader had it first, so its beginning is known from the API server only.
        """
        if self._sink is None:
            return
        moment = time.perf_counter()
        self._close(moment, "it was not answered")
        if downtime is not None and began is not None:
            self._add(("downtime",), ROOT, "downtime", began, began + downtime / 1e6)
        failure = finish.failure
        attributes: dict[str, str | int | bool] = {
            "k8s.namespace.name": self._key.namespace,
            "vfio.migration.name": self._key.name,
            "vfio.migration.uid": self._key.uid,
            "vfio.migration.mode": observed.wish.mode.value,
            "vfio.migration.pairs": len(observed.pairs),
            "vfio.migration.result": finish.phase.value,
            "vfio.epoch": self._epoch,
        }
        if failure is not None:
            attributes["vfio.migration.reason"] = failure.reason.value
        if downtime is not None:
            attributes["vfio.downtime_microseconds"] = downtime
        if self._dropped:
            attributes["vfio.dropped_spans"] = self._dropped
        start, duration = lasted(self._began, moment, time.perf_counter(), time.time_ns())
        if inherited and (created := self._created()) is not None:
            start, duration = created, max(0, start + duration - created)
        error = short(failure.message) if failure is not None else ""
        name = f"migration {self._key}"
        self._spans.append(
            Span(ROOT, None, name, start, duration, attributes=attributes, error=error, link=self._link())
        )
        self._hand_over()

    def stop(self) -> None:
        """The task ends, perhaps in the middle: another leader goes on. After `finished` there is nothing more."""
        if self._sink is not None and (self._step is not None or self._spans):
            self._close(time.perf_counter(), "its leader ended before it was answered")
            self._hand_over()

    def _here(self) -> Identity:
        return self._step.identity if self._step is not None else ROOT

    def _enter(self, phase: Phase, moment: float) -> None:
        self._close_phase(moment)
        if phase in ENDS:
            return
        count = self._seen.get(phase, 0)
        self._seen[phase] = count + 1
        self._phase = _Open(phase_identity(self._epoch, phase.value, count), phase.value, moment, ROOT)
        if phase in CALM:
            self._hand_over()

    def _answered(self, observed: Observed, moment: float) -> None:
        for participant in observed.participants if self._told else ():
            told = self._told.get((participant.node, participant.role))
            if told is None:
                continue
            report = participant.report
            heard = report is not None and (report.epoch, report.sequence) >= told.number
            if heard and report is not None and report.failure is not None:
                self._say(told, moment, report.failure.message)
            elif (heard and has_reached(participant, told.action.goal)) or (
                told.action.goal is Goal.STOP_COPY and stopped(observed)  # told by the votes, before its own report
            ):
                self._say(told, moment, "")
            else:
                continue
            del self._told[participant.node, participant.role]

    def _say(self, told: _Told, moment: float, error: str) -> None:
        node, role, goal = told.action.node, told.action.role, told.action.goal
        attributes: Attributes = {"k8s.node.name": node, "vfio.role": role.value, "vfio.goal": goal.value}
        self._add(
            command_identity(*told.number, node, role),
            told.step,
            f"{role.value} {goal.value} on {node}",
            told.began,
            moment,
            kind=SpanKind.CLIENT,
            attributes=attributes,
            error=error,
        )

    def _close(self, moment: float, unanswered: str) -> None:
        for told in self._told.values():
            self._say(told, moment, unanswered)
        self._told.clear()
        self._close_step(moment)
        self._close_phase(moment)

    def _close_step(self, moment: float) -> None:
        if (step := self._step) is not None:
            self._add(step.identity, step.parent, step.name, step.began, moment)
        self._step = None

    def _close_phase(self, moment: float) -> None:
        if (phase := self._phase) is not None:
            self._add(phase.identity, phase.parent, phase.name, phase.began, moment)
        self._phase = None

    def _add(
        self,
        identity: Identity,
        parent: Identity,
        name: str,
        began: float,
        ended: float,
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes | None = None,
        error: str = "",
    ) -> None:
        if len(self._spans) >= MAX_SPANS:
            self._dropped += 1
            return
        start, duration = lasted(began, ended, time.perf_counter(), time.time_ns())
        self._spans.append(Span(identity, parent, name, start, duration, kind, attributes or {}, short(error)))

    def _hand_over(self) -> None:
        if self._sink is not None:
            self._sink.export(self._key.uid, self._spans)
        self._spans = []

    def _created(self) -> int | None:
        """Nanoseconds since 1970, by the API server's clock."""
        told = self._body["metadata"].get("creationTimestamp")
        return int(datetime.fromisoformat(told).astimezone(UTC).timestamp() * 1e9) if told else None

    def _link(self) -> Link | None:
        return link_of(str(self._body["metadata"].get("annotations", {}).get(TRACEPARENT_ANNOTATION, "")))
