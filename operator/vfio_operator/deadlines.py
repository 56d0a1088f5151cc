"""A step that lasts too long fails the migration; past the point of return it is given up or waited for."""

import asyncio

from vfio_api.errors import Reason
from vfio_api.types import Failure
from vfio_operator.actions import Plan
from vfio_operator.channel import Agents
from vfio_operator.clockwork import Clockwork
from vfio_operator.conditions import target_pod_late
from vfio_operator.execute import Memory
from vfio_operator.observed import Observed
from vfio_operator.plan import not_converged, rolls_back

SILENT_SECONDS = 3.0  # an agent that answers no ping for so long is not to be counted on


class Deadlines:
    """Of one migration: what they end in is written into its `memory`. To be used on the event loop."""

    def __init__(self, memory: Memory, clockwork: Clockwork, agents: Agents):
        self._memory, self._clockwork, self._agents = memory, clockwork, agents
        self._away_since: float | None = None
        self._all_there_since = 0.0

    def check(self, observed: Observed, planned: Plan) -> None:
        """Whether the step at which the plan is has had its time."""
        memory = self._memory
        if planned.step == "Converge":
            if memory.failure is None:
                memory.failure = self._not_converged(observed)
            return
        away = [p.node for p in observed.participants if not p.connected and (p.touched or memory.inherited)]
        moment = asyncio.get_running_loop().time()
        self._all_there_since = moment if away else self._all_there_since
        if not planned.timeout_seconds or self._clockwork.step_seconds() < planned.timeout_seconds:
            return
        if not rolls_back(observed) and observed.switchover.decision is None and memory.failure is None:
            memory.failure = _late(observed, planned, away)
        elif moment - self._all_there_since >= planned.timeout_seconds:  # an agent that was away has its time, too
            memory.exhausted = True

    def _not_converged(self, observed: Observed) -> Failure | None:
        """Pre-copy ends when its time is over, and earlier if an agent stays away."""
        # as it is now: a silent agent's stream may have been ended since it was observed, and is then silent no more
        answering = self._agents.connected - self._agents.silent_for(SILENT_SECONDS)
        away = [p.node for p in observed.participants if p.node not in answering]
        moment = asyncio.get_running_loop().time()
        self._away_since = (self._away_since or moment) if away else None
        if self._away_since is not None:
            seconds = moment - self._away_since
            if seconds > observed.limits.prepare_seconds or observed.converge_expired:
                return Failure(
                    Reason.AGENT_LOST,
                    f"the agents of {', '.join(away)} have not answered for {seconds:.0f} s during pre-copy; look at "
                    "their pods and logs",
                )
        return not_converged(observed) if observed.converge_expired else None


def _late(observed: Observed, planned: Plan, away: list[str]) -> Failure:
    if planned.step == "TargetPod":
        return target_pod_late(observed)
    reason = Reason.AGENT_LOST if away else Reason.STEP_TIMEOUT
    who = f"; no connection to the agents of {', '.join(away)}" if away else ""
    return Failure(reason, f"step {planned.step} was not done within {planned.timeout_seconds:g} s{who}")
