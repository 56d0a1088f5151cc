"""The judge of these tests is not satisfied with whatever ends well: a broken agent is seen by the driver's log."""

import pytest

from devtools.mtty_workload import Fault
from kernel.safety import SafetyError
from kernel.trial import State, Trial

PASSES_ON_FAILURE = "mutants.agent_that_passes_on_failure"


@pytest.mark.parametrize(
    ("role", "arc"),
    [
        ("source", (State.PRE_COPY, State.PRE_COPY_P2P)),
        ("target", (State.STOP, State.RUNNING_P2P)),
    ],
)
def test_agent_that_passes_its_barrier_on_failure_is_seen(trial: Trial, role: str, arc: tuple[State, State]) -> None:
    """The migration succeeds, and the marks arrive; only the driver's log tells that the barrier did not hold."""
    node = trial.node(role)
    node.agent.kill()
    node.start_agent(module=PASSES_ON_FAILURE).wait_for('"connected"')
    try:
        trial.arm(role, arc, Fault.FAIL)
        # the next time it is slow, so that its peer is certainly faster
        node.workload.arm_fault(*arc, Fault.DELAY, device=trial.device(role, 1), delay_ms=500)
        trial.begin()
        found = trial.finished()
        trial.assert_fired()
        assert found["status"]["phase"] == "Succeeded", found["status"]
        with pytest.raises(SafetyError, match="barrier"):
            trial.judged(found)
    finally:
        node.agent.kill()  # another is started before the next test
