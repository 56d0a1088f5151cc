"""The judge of the kernel tests can fail: logs of drivers that show what must never be, each refused for its reason."""

import itertools
from collections.abc import Iterable

import pytest

from devtools.mtty_trace import STATES, Arc, Outcome, parse_driver_trace
from kernel.safety import SafetyError, Verdict, judge

SOURCES, TARGETS = ("s0", "s1"), ("t0", "t1")


class Log:
    """A driver's log, written line by line as the kernel does."""

    def __init__(self) -> None:
        self._numbers = itertools.count(100)
        self._lines: list[str] = []

    def _line(self, device: str, text: str) -> None:
        number = next(self._numbers)
        self._lines.append(f"6,{number},{number * 1000},-;mtty {device}: mtty_step_state: {text}")

    def begin(self, device: str, old: str, new: str) -> "Log":
        self._line(device, f"{STATES.index(old)} -> {STATES.index(new)}")
        return self

    def done(self, device: str) -> "Log":
        self._line(device, "done")
        return self

    def failed(self, device: str, left: str, errno: int = -5) -> "Log":
        self._line(device, f"failed {errno} in {STATES.index(left)}")
        return self

    def reset(self, device: str, old: str) -> "Log":
        self._line(device, f"reset {STATES.index(old)} -> {STATES.index('RUNNING')}")
        return self

    def walk(self, devices: Iterable[str], *states: str) -> "Log":
        """All devices from state to state, each barrier kept."""
        for old, new in itertools.pairwise(states):
            for device in devices:
                self.begin(device, old, new)
            for device in devices:
                self.done(device)
        return self

    def arcs(self) -> list[Arc]:
        return parse_driver_trace("\n".join(self._lines))


def sent() -> Log:
    return Log().walk(SOURCES, "RUNNING", "PRE_COPY", "PRE_COPY_P2P", "STOP_COPY")


def voted() -> Log:
    return Log().walk(TARGETS, "RUNNING", "RUNNING_P2P", "STOP", "RESUMING", "STOP")


def verdict(source: Log, target: Log) -> Verdict:
    return judge(SOURCES, source.arcs(), TARGETS, target.arcs())


def refused(source: Log, target: Log, *words: str) -> None:
    with pytest.raises(SafetyError) as found:
        verdict(source, target)
    for word in words:
        assert word in str(found.value)


def test_a_migration_and_a_rollback_are_told_apart() -> None:
    there = verdict(sent().walk(SOURCES, "STOP_COPY", "STOP"), voted().walk(TARGETS, "STOP", "RUNNING_P2P", "RUNNING"))
    assert (there.at_source, there.at_target, there.lost()) == (False, True, [])
    back = verdict(
        sent().walk(SOURCES, "STOP_COPY", "STOP", "RUNNING_P2P", "RUNNING"),
        voted().reset("t0", "STOP").reset("t1", "STOP"),
    )
    assert (back.at_source, back.at_target, back.lost()) == (True, False, [])


def test_nobody_runs_between_the_sides() -> None:
    between = verdict(sent(), voted())
    assert (between.at_source, between.at_target) == (False, False)


def test_running_at_both_sides_is_refused() -> None:
    ran = voted().walk(TARGETS, "STOP", "RUNNING_P2P", "RUNNING")
    refused(sent().walk(SOURCES, "STOP_COPY", "STOP", "RUNNING_P2P"), ran, "both", "s0", "t0")
    refused(sent().begin("s1", "STOP_COPY", "STOP").done("s1").begin("s1", "STOP", "RUNNING_P2P"), ran, "both", "s1")
    refused(Log(), ran, "both", "not every source was stopped")


def test_a_source_stopped_before_its_peer_has_arrived_is_refused() -> None:
    early = Log().walk(SOURCES, "RUNNING", "PRE_COPY").walk(["s0"], "PRE_COPY", "PRE_COPY_P2P", "STOP_COPY")
    refused(early, Log(), "barrier", "s0 PRE_COPY_P2P -> STOP_COPY", "'s1': 'PRE_COPY'")


def test_an_arc_under_way_has_not_arrived() -> None:
    """What began before is not enough: the peer must have come to its end."""
    log = Log().walk(SOURCES, "RUNNING", "PRE_COPY")
    log.begin("s1", "PRE_COPY", "PRE_COPY_P2P").walk(["s0"], "PRE_COPY", "PRE_COPY_P2P", "STOP_COPY").done("s1")
    refused(log, Log(), "barrier", "s0 PRE_COPY_P2P -> STOP_COPY")


@pytest.mark.parametrize("left", ["PRE_COPY", "ERROR"])
def test_a_barrier_passed_on_failure_is_refused(left: str) -> None:
    log = Log().walk(SOURCES, "RUNNING", "PRE_COPY").begin("s1", "PRE_COPY", "PRE_COPY_P2P").failed("s1", left)
    refused(log.walk(["s0"], "PRE_COPY", "PRE_COPY_P2P", "STOP_COPY"), Log(), "barrier", left)


def test_a_peer_that_fails_in_the_round_behind_the_barrier_had_arrived() -> None:
    """Arcs of one round go side by side: what becomes of one there says nothing of the barrier before."""
    log = Log().walk(SOURCES, "RUNNING", "PRE_COPY", "PRE_COPY_P2P")
    log.begin("s1", "PRE_COPY_P2P", "STOP_COPY").failed("s1", "ERROR").walk(["s0"], "PRE_COPY_P2P", "STOP_COPY")
    verdict(log, Log())


def test_a_target_that_runs_before_its_peer_is_quiescent_is_refused() -> None:
    refused(sent(), voted().walk(["t0"], "STOP", "RUNNING_P2P", "RUNNING"), "barrier", "t0", "'t1': 'STOP'")


def test_a_target_that_leaves_stop_before_every_vote_is_refused() -> None:
    half = Log().walk(TARGETS, "RUNNING", "RUNNING_P2P", "STOP", "RESUMING").walk(["t0"], "RESUMING", "STOP")
    refused(sent(), half.begin("t0", "STOP", "RUNNING_P2P"), "t0 leaves STOP before every target is loaded")


def test_a_source_that_runs_on_before_its_peer_is_back_is_refused() -> None:
    refused(sent().walk(["s0"], "STOP_COPY", "STOP", "RUNNING_P2P", "RUNNING"), Log(), "barrier", "'s1': 'STOP_COPY'")


def test_a_reset_that_costs_a_state_is_refused() -> None:
    refused(sent().reset("s0", "STOP_COPY"), Log(), "s0", "reset that could have gone on")


def test_a_source_in_error_is_reset_only_behind_the_barrier() -> None:
    log = Log().walk(SOURCES, "RUNNING", "PRE_COPY", "PRE_COPY_P2P")
    log.begin("s1", "PRE_COPY_P2P", "STOP_COPY").failed("s1", "ERROR")
    refused(log.reset("s1", "ERROR"), Log(), "barrier", "'s0': 'PRE_COPY_P2P'")


def test_a_hole_in_the_log_is_found() -> None:
    refused(Log().walk(["s0"], "PRE_COPY", "PRE_COPY_P2P"), Log(), "hole", "s0")


def test_trace_tells_how_an_arc_ended() -> None:
    log = Log().begin("s0", "RUNNING", "PRE_COPY").begin("s1", "RUNNING", "PRE_COPY").failed("s0", "ERROR", -4)
    first, second = log.arcs()
    assert (first.outcome, first.left, first.after, first.begun, first.ended) == (
        Outcome.FAILED, "ERROR", "ERROR", 100, 102,
    )  # fmt: skip
    assert (second.outcome, second.begun, second.ended) == (Outcome.TAKEN, 101, None)
