"""What a migration ends in when a step has had its time."""

import asyncio

import pytest

from vfio_api.errors import Reason
from vfio_api.models_status import Phase
from vfio_api.types import AgentHello, MigrationKey, Role
from vfio_operator.actions import Plan
from vfio_operator.channel import Agents, AgentStream
from vfio_operator.clockwork import Clockwork
from vfio_operator.deadlines import Deadlines
from vfio_operator.execute import Memory
from vfio_operator.history import History
from vfio_operator.metrics import OperatorMetrics
from vfio_operator.observed import Observed, Participant, Wish

KEY = MigrationKey("u", "default", "m")
CONVERGE = Plan("Converge", Phase.PRE_COPY, (), "")
BOTH = (Participant("a", Role.SOURCE, connected=True), Participant("b", Role.TARGET, connected=True))
EXPIRED = Observed(KEY, Wish(()), participants=BOTH, converge_expired=True)


def agents() -> tuple[Agents, AgentStream]:
    """Those of both nodes, and the target's stream."""
    made = Agents(lambda uid: None, OperatorMetrics("test"), History())
    hellos = [AgentHello(2, "test", "boot", f"instance-{node}", "127.0.0.1:1", 0) for node in "ab"]
    streams = [made.add(node, f"pod-{node}", hello) for node, hello in zip("ab", hellos, strict=True)]
    return made, streams[1]


@pytest.mark.parametrize(("ended", "reason"), [(False, Reason.CONVERGENCE_TIMEOUT), (True, Reason.AGENT_LOST)])
def test_who_is_away_when_pre_copy_has_had_its_time_is_asked_then(ended: bool, reason: Reason) -> None:
    """The stream of an agent that hangs is ended at some time: between the look at it and the deadline as well."""

    async def check() -> Memory:
        known, stream = agents()
        memory = Memory({})
        deadlines = Deadlines(memory, Clockwork(OperatorMetrics("test"), "u"), known)
        if ended:
            known.remove(stream)
        deadlines.check(EXPIRED, CONVERGE)
        return memory

    failure = asyncio.run(check()).failure
    assert failure is not None
    assert failure.reason is reason
    assert "the agents of b have not answered" in failure.message or not ended
