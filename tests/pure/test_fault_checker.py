"""Every rule of the checker lets good stories pass and catches the bad one that it is there for."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devtools.faults.checker import RULES, check
from devtools.faults.story import Decision, Story, View
from pure.fault_tales import PAIRS, Tale, aborted, committed, moved, until_the_vote

MOVED = ("Succeeded", "Succeeded")


def broken(story: Story) -> set[str]:
    """Names of the rules that a story breaks."""
    return {rule.__name__ for _, rule in RULES if list(rule(View(story)))}


def resent() -> Tale:
    """A target fell into ERROR when it was to start, and was loaded once more."""
    tale = committed()
    tale.arc(tale.target(1), "RUNNING_P2P", error=True)
    tale.take("reset", tale.target(1))
    tale.arcs([tale.target(1)], "RUNNING_P2P", "STOP", "RESUMING")
    tale.arcs([tale.source(1)], "STOP", "STOP_COPY")
    tale.arc(tale.target(1), "STOP")
    tale.arc(tale.target(1), "RUNNING_P2P")
    tale.arcs([tale.target(0), tale.target(2)], "RUNNING_P2P")
    tale.arcs(tale.targets, "RUNNING")
    tale.release()
    return tale


def source_in_error() -> Tale:
    """A source fell into ERROR in barrier B; its peers run on."""
    tale = Tale()
    tale.prepare()
    tale.arcs(tale.sources, "PRE_COPY_P2P")
    tale.arc(tale.source(0), "STOP_COPY", error=True)
    tale.arcs([tale.source(1), tale.source(2)], "STOP_COPY")
    tale.decide("Abort")
    tale.arcs([tale.source(1), tale.source(2)], "STOP", "RUNNING_P2P", "RUNNING")
    tale.take("reset", tale.source(0))
    tale.blank()
    return tale


def early_end() -> Tale:
    """Cancelled in pre-copy: nothing was quiesced, so everything leaves it by itself."""
    tale = Tale()
    tale.prepare()
    tale.arcs(tale.sources, "RUNNING")
    tale.blank()
    return tale


def failed_at_barrier_a() -> Tale:
    """One arc into the barrier failed; what runs is quiesced on the way back."""
    tale = Tale()
    tale.prepare()
    tale.arc(tale.source(1), "PRE_COPY_P2P", errno=5)
    tale.arcs([tale.source(0), tale.source(2)], "PRE_COPY_P2P")
    tale.decide("Abort")
    tale.arcs([tale.source(1)], "PRE_COPY_P2P")
    tale.arcs(tale.sources, "RUNNING_P2P", "RUNNING")
    tale.blank()
    return tale


def lost_with_its_node() -> Tale:
    """Agent and keeper of a source node were killed before the vote: its devices are closed, and that is said."""
    tale = Tale()
    tale.prepare()
    tale.save()
    tale.take("close", tale.source(2))
    tale.closed.add(tale.source(2))
    tale.decide("Abort")
    tale.arcs([tale.source(0), tale.source(1)], "STOP", "RUNNING_P2P", "RUNNING")
    tale.blank()
    return tale


def target_lost() -> Tale:
    """Agent and keeper of a target node were killed when its devices had left STOP."""
    tale = committed()
    tale.arcs(tale.targets, "RUNNING_P2P")
    tale.take("close", tale.target(0))
    tale.closed.add(tale.target(0))
    tale.arcs([tale.target(1), tale.target(2)], "RUNNING")
    tale.release()
    return tale


def target_in_error() -> Tale:
    """A target fell into ERROR in barrier D; what is left runs on without it, and it is blanked."""
    tale = committed()
    tale.arcs([tale.target(0), tale.target(1)], "RUNNING_P2P")
    tale.arc(tale.target(2), "RUNNING_P2P", error=True)
    tale.arcs([tale.target(0), tale.target(1)], "RUNNING")
    tale.take("reset", tale.target(2))
    tale.take("close", tale.target(2))
    tale.release()
    return tale


def one_without_p2p() -> Tale:
    """A single device may be stopped without a barrier."""
    tale = Tale(PAIRS[:1])
    tale.prepare()
    tale.arcs(tale.sources, "RUNNING", "STOP", "STOP_COPY")
    tale.load()
    tale.decide("Commit")
    tale.arcs(tale.targets, "RUNNING")
    tale.release()
    return tale


GOOD = {
    "moved": moved().story(*MOVED),
    "one pair": moved(PAIRS[:1]).story(*MOVED),
    "one without P2P": one_without_p2p().story(*MOVED),
    "aborted": aborted().story("Failed", "VoteTimeout"),
    "deleted": aborted().story("Deleted"),
    "cancelled in pre-copy": early_end().story("Cancelled", "Cancelled"),
    "failed at barrier A": failed_at_barrier_a().story("Failed", "ArcFailed"),
    "sent again": resent().story(*MOVED, lost=3),
    "a source in ERROR": source_in_error().story("Failed", "SourceStateLost", lost=3, missing=2),
    "a source closed by the fault": lost_with_its_node().story("Failed", "SourceStateLost", missing=9),
    "a target closed by the fault": target_lost().story("Failed", "TargetLostAfterCommit", missing=9),
    "a target in ERROR": target_in_error().story("Failed", "TargetLostAfterCommit", missing=9),
    "nothing touched": Tale().story("Failed", "UnknownDevice"),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_story_breaks_no_rule(name: str) -> None:
    assert [str(violation) for violation in check(GOOD[name])] == []


def both_run() -> Story:
    tale = committed()
    tale.arcs(tale.sources, "STOP", "RUNNING_P2P")
    tale.start()
    return tale.story(*MOVED)


def started_before_commit() -> Story:
    tale = until_the_vote()
    tale.start()
    tale.decide("Commit")
    tale.release()
    return tale.story(*MOVED)


def started_while_commit_was_made() -> Story:
    """The arc ended after it, but began before."""
    tale = committed()
    tale.arc(tale.target(0), "RUNNING_P2P", took=1.5)
    return tale.story("Starting")


def source_ran_after_commit() -> Story:
    tale = committed()
    tale.back()
    return tale.story("Succeeded")


def source_resumed_by_itself() -> Story:
    tale = until_the_vote()
    tale.back()
    tale.blank()
    return tale.story("Failed", "SwitchoverTimeout")


def source_resumed_before_abort() -> Story:
    tale = until_the_vote()
    tale.back()
    tale.decide("Abort")
    tale.blank()
    return tale.story("Failed", "SwitchoverTimeout")


def loaded_with_another() -> Story:
    tale = until_the_vote()
    story = tale.story("Starting")
    events = [
        replace(e, port=1) if e.end == tale.target(0) and (e.old, e.new) == ("RESUMING", "STOP") else e
        for e in story.events
    ]
    return replace(story, events=tuple(events))


def loaded_again_after_it_ran() -> Story:
    tale = committed()
    tale.start()
    tale.take("close", tale.target(0))
    tale.closed.add(tale.target(0))
    tale.take("open", tale.target(0))
    tale.arcs([tale.target(0)], "RUNNING_P2P", "STOP", "RESUMING", "STOP", "RUNNING_P2P", "RUNNING")
    tale.release()
    return tale.story(*MOVED)


def decided_twice() -> Story:
    abort = Decision("Abort", "vfio-agent/a", 0.0)
    story = moved().story(*MOVED)
    return replace(story, decisions=(*story.decisions, abort))


def committed_before_the_votes() -> Story:
    tale = Tale()
    tale.prepare()
    tale.save()
    tale.decide("Commit")
    tale.load()
    tale.start()
    tale.release()
    return tale.story(*MOVED)


def source_closed_before_barrier_d() -> Story:
    tale = committed()
    tale.release()
    tale.start()
    return tale.story(*MOVED)


def source_closed_in_rollback() -> Story:
    tale = aborted()
    tale.take("close", tale.source(0))
    return tale.story("Failed", "VoteTimeout")


def loaded_target_blanked_without_abort() -> Story:
    tale = until_the_vote()
    tale.blank()
    tale.decide("Abort")
    tale.back()
    return tale.story("Failed", "VoteTimeout")


def loaded_target_blanked_after_commit() -> Story:
    tale = committed()
    tale.blank()
    return tale.story("Failed", "TargetLostAfterCommit")


def stopped_before_barrier_a() -> Story:
    tale = Tale()
    tale.prepare()
    for source in tale.sources:
        tale.arcs([source], "PRE_COPY_P2P", "STOP_COPY")
    tale.load()
    tale.decide("Commit")
    tale.start()
    tale.release()
    return tale.story(*MOVED)


def barrier_a_passed_on_failure() -> Story:
    tale = Tale()
    tale.prepare()
    tale.arc(tale.source(1), "PRE_COPY_P2P", errno=5)
    tale.arcs([tale.source(0), tale.source(2)], "PRE_COPY_P2P", "STOP_COPY")
    tale.arcs([tale.source(1)], "RUNNING", "RUNNING_P2P", "STOP", "STOP_COPY")
    return tale.story("Switchover")


def started_before_barrier_d() -> Story:
    tale = committed()
    for target in tale.targets:
        tale.arcs([target], "RUNNING_P2P", "RUNNING")
    tale.release()
    return tale.story(*MOVED)


def started_without_the_one_that_is_loaded_again() -> Story:
    tale = committed()
    tale.arcs([tale.target(0)], "RUNNING_P2P")
    tale.arc(tale.target(1), "RUNNING_P2P", error=True)
    tale.take("reset", tale.target(1))
    tale.arcs([tale.target(1)], "RUNNING_P2P")  # blank, on its way to RESUMING
    tale.arcs([tale.target(2)], "RUNNING_P2P", "RUNNING")
    return tale.story("Starting")


def barrier_d_passed_by_the_rest_and_not_said() -> Story:
    return target_in_error().story(*MOVED)


def rest_of_the_targets_left_stopped() -> Story:
    tale = committed()
    tale.arcs(tale.targets, "RUNNING_P2P")
    tale.take("close", tale.target(0))
    tale.closed.add(tale.target(0))
    tale.release()
    return tale.story("Failed", "TargetLostAfterCommit")


def came_back_one_by_one() -> Story:
    tale = until_the_vote()
    tale.decide("Abort")
    for source in tale.sources:
        tale.arcs([source], "STOP", "RUNNING_P2P", "RUNNING")
    tale.blank()
    return tale.story("Failed", "VoteTimeout")


def hidden_loss() -> Story:
    return source_in_error().story("Failed", "ArcFailed")


def wrong_side() -> Story:
    tale = until_the_vote()
    tale.decide("Abort")
    tale.blank()
    return tale.story("Failed", "VoteTimeout")


def without_marks() -> Story:
    story = moved().story(*MOVED)
    return replace(story, end={end: replace(found, marks_ok=False) for end, found in story.end.items()})


def target_left_open() -> Story:
    tale = aborted()
    tale.take("open", tale.target(0))
    return tale.story("Failed", "VoteTimeout")


def target_taken_again() -> Story:
    """And given back again before anybody looks at how it ended."""
    tale = aborted()
    tale.take("open", tale.target(0))
    tale.take("close", tale.target(0))
    return tale.story("Failed", "VoteTimeout")


BAD = [
    ("never_both", both_run()),
    ("target_starts_after_commit", started_before_commit()),
    ("target_starts_after_commit", started_while_commit_was_made()),
    ("source_stays_after_commit", source_ran_after_commit()),
    ("source_returns_after_abort", source_resumed_by_itself()),
    ("source_returns_after_abort", source_resumed_before_abort()),
    ("one_identity", loaded_with_another()),
    ("one_identity", loaded_again_after_it_ran()),
    ("decided_once", decided_twice()),
    ("commit_after_every_load", committed_before_the_votes()),
    ("source_is_kept", source_closed_before_barrier_d()),
    ("source_is_kept", source_closed_in_rollback()),
    ("loaded_target_is_kept", loaded_target_blanked_without_abort()),
    ("loaded_target_is_kept", loaded_target_blanked_after_commit()),
    ("barrier_a", stopped_before_barrier_a()),
    ("barrier_a", barrier_a_passed_on_failure()),
    ("barrier_d", started_before_barrier_d()),
    ("barrier_d", started_without_the_one_that_is_loaded_again()),
    ("barrier_d", barrier_d_passed_by_the_rest_and_not_said()),
    ("one_side_runs", rest_of_the_targets_left_stopped()),
    ("barrier_back", came_back_one_by_one()),
    ("it_ends", committed().story("Starting")),
    ("decision_and_phase", until_the_vote().story(*MOVED)),
    ("decision_and_phase", moved().story("Failed", "StepTimeout")),
    ("losses_are_said", hidden_loss()),
    ("losses_are_said", aborted().story("Failed", "SourceStateLost")),
    ("losses_are_said", moved().story("Failed", "TargetLostAfterCommit")),
    ("one_side_runs", wrong_side()),
    ("one_side_runs", both_run()),
    ("one_side_runs", without_marks()),
    ("no_write_is_lost", moved().story(*MOVED, lost=1)),
    ("no_write_is_lost", moved().story(*MOVED, missing=1)),
    ("no_write_is_lost", resent().story(*MOVED, doubled=1)),
    ("idle_side_is_blank", target_left_open()),
    ("target_stays_blank", target_taken_again()),
    ("nothing_is_claimed", moved().story(*MOVED, claims_left=2)),
]


@pytest.mark.parametrize(("rule", "story"), BAD, ids=[f"{n}-{name}" for n, (name, _) in enumerate(BAD)])
def test_a_bad_story_breaks_its_rule(rule: str, story: Story) -> None:
    assert rule in broken(story)


def test_every_rule_is_shown_to_catch_something() -> None:
    assert {rule.__name__ for _, rule in RULES} == {name for name, _ in BAD}


def test_a_violation_names_device_arc_and_decision() -> None:
    (found,) = [v for v in check(started_while_commit_was_made()) if v.invariant == "I1"]
    assert "b/t0: STOP -> RUNNING_P2P" in found.message
    assert "Commit by operator-0" in found.message


@given(st.integers(1, 6), st.data())
def test_any_order_within_a_barrier_is_good(count: int, data: st.DataObject) -> None:
    pairs = tuple((f"gpu{n}", f"a{n % 2}", f"s{n}", f"b{n % 3}", f"t{n}") for n in range(count))
    tale = Tale(pairs)
    for ends, states in (
        (tale.targets, ("RUNNING_P2P", "STOP", "RESUMING")),
        (tale.sources, ("PRE_COPY", "PRE_COPY_P2P", "STOP_COPY")),
        (tale.targets, ("STOP",)),
    ):
        for state in states:
            tale.arcs(data.draw(st.permutations(ends)), state)
    tale.open.update(tale.targets)
    if data.draw(st.booleans()):
        tale.decide("Commit")
        for state in ("RUNNING_P2P", "RUNNING"):
            tale.arcs(data.draw(st.permutations(tale.targets)), state)
        tale.release()
        assert check(tale.story(*MOVED)) == ()
    else:
        tale.decide("Abort")
        for state in ("STOP", "RUNNING_P2P", "RUNNING"):
            tale.arcs(data.draw(st.permutations(tale.sources)), state)
        tale.blank()
        assert check(tale.story("Failed", "StepTimeout")) == ()


@given(st.sampled_from(["PRE_COPY_P2P", "RUNNING_P2P"]), st.integers(0, 2), st.integers(0, 2))
def test_a_barrier_that_one_device_did_not_reach_is_never_passed(barrier: str, late: int, early: int) -> None:
    """Whoever is late, and whoever goes on first: it is seen, unless they are the same one."""
    tale = Tale() if barrier == "PRE_COPY_P2P" else committed()
    if barrier == "PRE_COPY_P2P":
        tale.prepare()
    ends, further = (tale.sources, "STOP_COPY") if barrier == "PRE_COPY_P2P" else (tale.targets, "RUNNING")
    tale.arcs([end for end in ends if end != ends[late]], barrier)
    tale.arc(ends[early], further)
    rule = "barrier_a" if barrier == "PRE_COPY_P2P" else "barrier_d"
    assert rule in broken(tale.story("Switchover"))


@given(st.integers(-5, 5))
def test_the_moment_of_commit_is_what_counts(shift: int) -> None:
    tale = committed()
    tale.start()
    tale.release()
    story = tale.story(*MOVED)
    assert story.decision is not None
    earliest = min(e.began for e in story.events if e.end == tale.target(0) and e.old == "STOP" and e.port is not None)
    decision = replace(story.decision, time=earliest + shift + story.wall_minus_monotonic)
    found = broken(replace(story, decision=decision, decisions=(decision,)))
    assert ("target_starts_after_commit" in found) == (shift > 0)
