"""mode: Rehearse with real devices: a forecast, and sources that their driver never saw stop."""

from itertools import pairwise

from devtools.kernel_stack import KernelStack
from devtools.mtty_trace import Outcome
from kernel.figures import Figures
from kernel.sides import condition, migrate, sides, states

ROUND_TRIP = [("RUNNING", "PRE_COPY"), ("PRE_COPY", "RUNNING")]


def test_rehearsal_forecasts_and_never_stops_a_source(stack: KernelStack, path: str, figures: Figures) -> None:
    source, target = sides(stack)
    marks = source.mark(140)
    found = migrate(stack, source, target, mode="Rehearse")
    status = found["status"]
    assert status["phase"] == "Succeeded", status
    assert condition(found, "Succeeded")["status"] == "True", status
    assert status["predictedDowntimeMicroseconds"] > 0
    assert "downtimeMicroseconds" not in status

    stack.settled(source.ends, target.ends)  # nothing is claimed or held that was not before
    arcs = source.arcs()
    assert {arc.outcome for arc in arcs} == {Outcome.TAKEN}
    for device in source.devices:
        assert list(pairwise(states(arcs, device))) == ROUND_TRIP
    for arc in target.arcs():  # what was loaded is gone, and never ran
        assert (arc.old, arc.new, arc.outcome) not in (
            ("STOP", "RUNNING_P2P", Outcome.TAKEN),
            ("RUNNING_P2P", "RUNNING", Outcome.TAKEN),
        )
    assert source.read() == marks

    marks = source.mark(141)  # and the real one works, from these sources to these targets
    found = migrate(stack, source, target)
    assert found["status"]["phase"] == "Succeeded", found["status"]
    assert target.read() == marks
    figures.measured(path, "rehearsal's forecast", f"{status['predictedDowntimeMicroseconds'] / 1e3:.1f} ms")
    figures.same(
        path, "rehearsal's arcs", " and ".join(f"{old} -> {new}" for old, new in ROUND_TRIP) + " of each source"
    )
