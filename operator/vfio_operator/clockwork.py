"""How long steps, phases and the downtime took, on this process's monotonic clock."""

import time
from collections.abc import Mapping
from typing import Any

from vfio_api.models_status import Phase
from vfio_api.types import Goal, Outcome, Role
from vfio_operator.actions import Finish, Plan
from vfio_operator.breakdown import breakdown
from vfio_operator.execute import Memory
from vfio_operator.forecast import Forecast, forecast, within_limit
from vfio_operator.kube import now
from vfio_operator.metrics import BARRIERS, OperatorMetrics
from vfio_operator.observed import Observed, has_reached
from vfio_operator.status import Measured, StepTiming, outcome_label, reports

STARTING = ("Decide", "ReloadTargets", "ResendSources", "BarrierC", "BarrierD")
DOWN = ("BarrierA", "BarrierB")
# How long pre-copy goes on within the limit for the sake of a still shorter downtime.
LINGER_SECONDS = 2.0
MAX_REMEMBERED = 32
# Where the forecast is made anew; what it was at the beginning of the switchover is kept.
FORECAST_STEPS = ("Converge", "Rehearsed", "BeginSwitchover")
# Who passes a barrier, and by reaching what.
PASSING = {
    "BarrierA": (Role.SOURCE, Goal.QUIESCED),
    "BarrierB": (Role.SOURCE, Goal.STOP_COPY),
    "Vote": (Role.TARGET, Goal.LOADED),
    "BarrierC": (Role.TARGET, Goal.RUNNING_P2P),
    "BarrierD": (Role.TARGET, Goal.RUNNING),
    "RestoreP2P": (Role.SOURCE, Goal.RUNNING_P2P),
}
# What agents time themselves, in the order in which it happens, and how it is called in the status.
AGENT_STEPS = {
    "pause": "Pause",
    "barrier_a": "BarrierA",
    "barrier_b": "BarrierB",
    "transfer": "Transfer",
    "load": "Load",
    "barrier_c": "BarrierC",
    "barrier_d": "BarrierD",
    "resume": "Resume",
}


class Clockwork:
    """Times one migration."""

    def __init__(self, metrics: OperatorMetrics, uid: str):
        self._metrics, self._uid = metrics, uid
        self._step, self._step_began, self._step_start = "", time.monotonic(), now()
        self._phase: Phase | None = None
        self._phase_began = self._step_began
        self._converge_began: float | None = None
        self._down_began: float | None = None
        self._within_since: float | None = None
        self._timings: list[StepTiming] = []
        self._downtime: int | None = None
        self._forecast: Forecast | None = None
        self._earlier: int | None = None
        self._awaited: tuple[str, ...] = ()  # nodes that had not passed the barrier when it was looked at last

    def remember(self, body: Mapping[str, Any]) -> None:
        """What an earlier leader measured, from the status that it wrote."""
        status = body.get("status", {})
        self._timings = [
            StepTiming(t["step"], t.get("startTime", self._step_start), t["durationMicroseconds"])
            for t in status.get("timings", ())
        ][:MAX_REMEMBERED]
        self._downtime = status.get("downtimeMicroseconds")
        self._earlier = status.get("predictedDowntimeMicroseconds")

    def track(self, planned: Plan, observed: Observed) -> bool:
        """Note where the plan is; True if it is at another step than before."""
        if planned.step in FORECAST_STEPS:
            self._forecast = forecast(observed) or self._forecast
            self._within_since = (self._within_since or time.monotonic()) if within_limit(observed) else None
        if planned.step == self._step:
            self._awaited = _awaited(self._step, observed) or self._awaited
            return False
        moment = time.monotonic()
        if self._step:
            self._close_step(moment)
        if planned.step == "Converge" and self._converge_began is None:
            self._converge_began = moment
        if planned.step in DOWN and self._down_began is None:
            self._down_began = moment
        if stopped := _turned(observed, Role.SOURCE):  # before this leader was there, or before an agent came back
            self._down_began = min(stopped) if self._down_began is None else min(self._down_began, *stopped)
        committed = observed.switchover.decision is Outcome.COMMIT
        if committed and planned.step not in STARTING and self._down_began is not None and self._downtime is None:
            ended = _ran_again(observed, moment)
            self._downtime = int((ended - self._down_began) * 1e6)
            self._tell_downtime(self._downtime, observed, seen=ended == moment)
        self._step, self._step_began, self._step_start = planned.step, moment, now()
        self._awaited = _awaited(planned.step, observed)
        self._metrics.underway.at(self._uid, planned.phase, planned.step)
        self._enter(planned.phase, moment)
        return True

    def _close_step(self, moment: float) -> None:
        seconds = moment - self._step_began
        self._timings.append(StepTiming(self._step, self._step_start, int(seconds * 1e6)))
        self._metrics.steps.labels(self._step).observe(seconds)
        if self._step in BARRIERS:
            self._metrics.barrier(self._step, seconds, next(iter(self._awaited), ""))

    def _tell_downtime(self, microseconds: int, observed: Observed, *, seen: bool) -> None:
        """Of what the workload was down for; after it runs again. seen: its end was under this leader."""
        began = next((i for i, timing in enumerate(self._timings) if timing.step in DOWN), 0)
        steps: dict[str, int] = {}
        for timing in self._timings[began:] if seen else ():
            steps[timing.step] = steps.get(timing.step, 0) + timing.microseconds
        parts = breakdown(steps, self._slowest(observed), microseconds)
        predicted = self._forecast.total if self._forecast is not None else self._earlier
        self._metrics.measured_downtime(microseconds / 1e6, self._uid, parts, predicted)

    def _enter(self, phase: Phase, moment: float) -> None:
        if phase is self._phase:
            return
        if self._phase is not None:
            self._metrics.phases.labels(self._phase.value).observe(moment - self._phase_began)
        self._phase, self._phase_began = phase, moment

    def step_seconds(self) -> float:
        """How long the current step has lasted."""
        return time.monotonic() - self._step_began

    def converge_expired(self, limit_seconds: float) -> bool:
        """Whether pre-copy has lasted its limit."""
        return self._converge_began is not None and time.monotonic() - self._converge_began > limit_seconds

    @property
    def down_began(self) -> float | None:
        """time.monotonic at which the sources began to stop; None if they have not, or nobody knows."""
        return self._down_began

    @property
    def lingered(self) -> bool:
        """Whether the forecast has been within the limit for LINGER_SECONDS."""
        return self._within_since is not None and time.monotonic() - self._within_since > LINGER_SECONDS

    def measured(self, memory: Memory, observed: Observed | None = None) -> Measured:
        """What has been measured so far; with `observed`, the agents' own timings are added (at the end)."""
        timings = tuple(self._timings)
        if observed is not None:
            timings += self._agent_timings(observed)
        decided = memory.decision_by, memory.decision_time
        return Measured(timings, self._downtime, self._forecast, *decided, earlier=self._earlier)

    def _agent_timings(self, observed: Observed) -> tuple[StepTiming, ...]:
        """The slowest agent's time of each step within the switchover, named Agent/STEP."""
        slowest = self._slowest(observed)
        start = next((t.start for t in self._timings if t.step in DOWN), self._step_start)
        return tuple(
            StepTiming(f"Agent/{step}", start, slowest[step]) for step in AGENT_STEPS.values() if step in slowest
        )

    @staticmethod
    def _slowest(observed: Observed) -> dict[str, int]:
        """Microseconds of the slowest agent at each step that agents time themselves, as the status calls it."""
        slowest: dict[str, int] = {}
        for participant in observed.participants:
            for timing in participant.report.timings if participant.report else ():
                step = AGENT_STEPS.get(timing.step.partition("/")[0])
                if step is not None:
                    slowest[step] = max(slowest.get(step, 0), timing.microseconds)
        return slowest

    def finished(self, observed: Observed, finish: Finish) -> None:
        """Count the outcome."""
        self._metrics.ended(*outcome_label(observed, finish), self._uid)
        moved = sum(d.transferred_bytes for d in reports(observed, Role.TARGET).values())
        self._metrics.bytes.inc(moved)

    def close(self) -> None:
        """The migration's task has ended, in whatever way."""
        self._metrics.underway.gone(self._uid)


def _turned(observed: Observed, role: Role) -> list[float]:
    """When the agents of a side began to stop, or ran again, of those that had before they connected."""
    return [p.turned for p in observed.side(role) if p.turned is not None]


def _ran_again(observed: Observed, moment: float) -> float:
    """When all targets ran again: `moment`, at which it is seen, unless all did before this leader was there."""
    ran = _turned(observed, Role.TARGET)
    return min(moment, max(ran)) if len(ran) == len(observed.side(Role.TARGET)) else moment


def _awaited(step: str, observed: Observed) -> tuple[str, ...]:
    """Nodes that have not passed the barrier that a step is; none if it is no barrier."""
    role, goal = PASSING.get(step, (None, None))
    if role is None or goal is None:
        return ()
    return tuple(p.node for p in observed.side(role) if not has_reached(p, goal))
