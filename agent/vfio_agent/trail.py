"""The spans of one session: commands, their rounds, the devices' arcs, pre-copy and load of each device, the vote.

They are recorded from timings that are taken anyway, and handed over while the devices run or when the session has
ended, never within a switchover. Their parents are derived from what the command says, see `vfio_api.spans`.
"""

import time
from collections.abc import Callable

from vfio_api.device import DeviceState
from vfio_api.models_status import Phase
from vfio_api.spans import (
    ROOT,
    Attributes,
    Identity,
    Sink,
    Span,
    SpanKind,
    carried_out,
    command_identity,
    lasted,
    phase_identity,
    short,
)
from vfio_api.types import Command, Goal, Role

MAX_SPANS = 4096  # kept at once; what is more is lost
# When these are reached, no device of the session is down.
CALM = (Goal.PREPARED, Goal.PRE_COPY, Goal.RELEASED)
_COPYING = (DeviceState.PRE_COPY, DeviceState.PRE_COPY_P2P)
_VALIDATED = (DeviceState.RESUMING, DeviceState.STOP)
_UNASKED = ("load", "vote")  # no command tells a target to


class Trail:
    """Of the session of the migration with `uid` in `role`. Without a sink, or if the sampler leaves it out, nothing.

    epoch: of the newest leader that this node has seen, which may have told the session nothing yet.
    `arc` and `timed` may be called from any thread, `enter` in that which goes through the rounds of the last command,
    everything else on the event loop.
    """

    def __init__(self, sink: Sink | None, uid: str, role: Role, epoch: Callable[[], int]):
        self._sink = sink if sink is not None and sink.covers(uid) else None
        self._uid, self._role, self._epoch = uid, role, epoch
        self._node = sink.instance if sink is not None else ""
        self._spans: list[Span] = []
        self._command: Command | None = None  # the last one
        self._round = ""  # the round under way
        self._copying: dict[str, tuple[float, int]] = {}  # device in pre-copy -> since when, which epoch

    def told(self, command: Command) -> None:
        """A command begins to be carried out."""
        self._command, self._round = command, ""

    def enter(self, step: str) -> None:
        """A round begins: arcs belong to it."""
        self._round = step

    def arc(self, device: str, old: DeviceState, new: DeviceState, began: float, error: str = "") -> None:
        """A device has taken an arc, or failed to, from `began` (time.perf_counter) until now."""
        if self._sink is None:
            return
        moment, name, attributes = time.perf_counter(), f"{device}: {old.name} -> {new.name}", {"vfio.device": device}
        within = f"load/{device}" if (old, new) == _VALIDATED else self._round
        self._add(name, self._own(within) if within else self._whole(), began, moment, attributes, error)
        if not error and new is DeviceState.PRE_COPY:
            self._copying.setdefault(device, (moment, self._epoch()))
        elif new not in _COPYING and (copying := self._copying.pop(device, None)) is not None:
            since, epoch = copying
            self._add(f"pre-copy/{device}", phase_identity(epoch, Phase.PRE_COPY.value), since, began, attributes)

    def timed(self, step: str, began: float, ended: float, error: str = "") -> None:
        """A step of the session: a round, the transfer, a load/DEVICE, the vote. By time.perf_counter."""
        if self._sink is None:
            return
        what, _, device = step.partition("/")
        parent = self._whole()
        if what in _UNASKED:
            again = self._command is not None and bool(self._command.again)
            parent = phase_identity(self._epoch(), (Phase.STARTING if again else Phase.SWITCHOVER).value)
        self._add(step, parent, began, ended, {"vfio.device": device} if device else {}, error)

    def done(self, command: Command, began: float, error: str = "") -> None:
        """A command was carried out, or failed; what was recorded is handed over if no device is down."""
        if self._sink is None:
            return
        parent = command_identity(command.epoch, command.sequence, self._node, self._role)
        attributes: Attributes = {"vfio.role": self._role.value, "vfio.goal": command.goal.value}
        self._add(self._called(command), parent, began, time.perf_counter(), attributes, error, SpanKind.SERVER)
        if command.goal in CALM and not command.again:
            self.hand_over()

    def hand_over(self) -> None:
        """Have everything exported that was recorded so far."""
        spans, self._spans = self._spans, []
        if self._sink is not None and spans:
            self._sink.export(self._uid, spans)

    def _own(self, what: str) -> Identity:
        command = self._command
        if command is None:  # of an earlier agent: what it was told is not known
            return ROOT
        return carried_out(command.epoch, command.sequence, self._node, self._role, what)

    def _whole(self) -> Identity:
        """The command under way."""
        return self._own(self._called(self._command)) if self._command is not None else ROOT

    def _called(self, command: Command) -> str:
        return f"{self._role.value} {command.goal.value}"

    def _add(
        self,
        what: str,
        parent: Identity,
        began: float,
        ended: float,
        attributes: Attributes,
        error: str = "",
        kind: SpanKind = SpanKind.INTERNAL,
    ) -> None:
        if len(self._spans) < MAX_SPANS and self._command is not None:
            start, duration = lasted(began, ended, time.perf_counter(), time.time_ns())
            self._spans.append(Span(self._own(what), parent, what, start, duration, kind, attributes, short(error)))
