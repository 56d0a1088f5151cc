"""What tests of migrations with pods have in common."""

from collections.abc import Awaitable, Callable

from loopback.agents_world import (
    COMMIT,
    COUNT,
    SOURCE,
    TARGET,
    Node,
    Operator,
    assert_nothing_lost,
    assert_sources_run,
    assert_targets_blank,
)
from vfio_api.device import DeviceState as S
from vfio_api.errors import Reason
from vfio_api.types import Failure, Goal, SessionReport, Workload

STATE = bytes(range(256)) * 4096
SHORT_MILLISECONDS = 150
Go = Callable[[Operator], Awaitable[None]]


def move(operator: Operator, source: Workload, target: Workload | None = None) -> None:
    operator.workloads = {SOURCE: (source,), TARGET: (target,) if target else ()}


def arcs_after_pre_copy(node: Node, begun: int = 0) -> list[str]:
    """States that belong to the switchover, of arcs that were made."""
    return [state for _, state in node.arcs()[begun:] if state in ("PRE_COPY_P2P", "RUNNING_P2P", "STOP_COPY", "STOP")]


def failure_of(report: SessionReport) -> Failure:
    assert report.failure is not None
    return report.failure


def steps(report: SessionReport) -> dict[str, int]:
    return {timing.step: timing.microseconds for timing in report.timings}


async def commit(operator: Operator) -> SessionReport:
    """From the votes to running targets."""
    operator.decision = COMMIT
    running = await operator.tell(TARGET, Goal.RUNNING)
    assert running.failure is None, running.failure
    assert operator.target.states() == [S.RUNNING] * COUNT
    return running


async def undo(operator: Operator) -> None:
    await operator.roll_back()
    assert_sources_run(operator)
    assert_nothing_lost(operator, SOURCE)
    assert_targets_blank(operator)


async def quiesced(operator: Operator) -> None:
    await operator.pre_copy()
    assert (await operator.tell(SOURCE, Goal.QUIESCED)).failure is None


async def arc_fails(operator: Operator) -> None:
    """Not one device has left pre-copy, and the pod is frozen."""
    await operator.pre_copy()
    for n in range(COUNT):
        operator.source.node.control.fault(f"sim{n}", arc=(S.PRE_COPY, S.PRE_COPY_P2P), error=5)
    assert failure_of(await operator.tell(SOURCE, Goal.STOP_COPY)).reason is Reason.ARC_FAILED


GOING: dict[str, Go] = {"quiesced": quiesced, "arc failed": arc_fails, "voted": Operator.until_voted}
