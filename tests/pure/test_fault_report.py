"""The report of the matrix, and the readers that it and the checker live on."""

import json

from hypothesis import given
from hypothesis import strategies as st

from devtools.faults import history
from devtools.faults.report import Result, last_line, markdown, percentile, running_again, summary, to_json
from devtools.faults.story import Decision, Violation
from devtools.faults.witness import MIGRATIONS, SWITCHOVERS, Record
from pure.fault_tales import Tale, aborted, moved

GOOD = Result("kill operator at vote", "2x2", "Vote", "Succeeded", "Succeeded", "Commit", 2.5, 1.0)
BAD = Result("cut link at barrier A", "1x1", "BarrierA", "", "", "Abort", None, None, (Violation("I1", "runs twice"),))
MISSED = Result("stall data", "1x1", "", "Failed", "StepTimeout", "Abort", 1.0, 3.0)


def test_the_report_ends_with_one_line_and_shows_every_violation() -> None:
    text = markdown([GOOD, BAD, MISSED])
    assert text.splitlines()[-1] == last_line([GOOD, BAD, MISSED]) == "cells: 3, violations: 1, stuck: 1"
    assert "- I1: runs twice" in text
    assert "decisions: Commit 1, Abort 2, none 0; missed their point: 1" in text
    assert "p50 1.000 s, p99 3.000 s" in text
    assert text.count("MISSED") == 1
    assert json.loads(to_json([GOOD, BAD, MISSED]))["summary"] == summary([GOOD, BAD, MISSED])


def test_a_report_of_nothing_is_a_report() -> None:
    assert markdown([]).splitlines()[-1] == "cells: 0, violations: 0, stuck: 0"


@given(st.lists(st.floats(0, 100), min_size=1), st.sampled_from([0.5, 0.99, 1.0]))
def test_a_percentile_is_one_of_the_values_that_enough_do_not_exceed(values: list[float], share: float) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values)
    assert sum(value < found for value in values) < share * len(values)


def test_running_again_is_when_the_last_device_of_the_right_side_runs() -> None:
    tale = moved()
    story = tale.story("Succeeded")
    last = max(e.t for e in story.events if e.end in tale.targets and e.new == "RUNNING" and e.kind == "arc")
    stopped = min(e.t for e in story.events if e.new == "STOP_COPY")
    assert running_again(story, stopped) == last - stopped
    assert running_again(story, last + 1) == 0
    back = aborted()
    story = back.story("Failed")
    last = max(e.t for e in story.events if e.end in back.sources and e.new == "RUNNING")
    assert running_again(story, stopped) == last - stopped
    assert running_again(story, last + 1) == 0
    assert running_again(aborted().story("Failed", events=story.events[:20]), stopped) is None


def test_sources_that_nothing_happened_to_have_run_all_the_time() -> None:
    tale = Tale()
    tale.blank()  # the targets were prepared, no more
    story = tale.story("Failed", "ArcFailed")
    assert not [event for event in story.events if event.end in tale.sources]
    assert running_again(story, story.events[0].t) == 0


def test_a_trace_is_read_from_a_line_on_and_an_unfinished_line_is_left_out(tmp_path) -> None:
    line = {
        "t": 2.0,
        "began": 1.5,
        "device": "sim0",
        "from": "PRE_COPY",
        "to": "PRE_COPY_P2P",
        "errno": 5,
        "event": "arc",
        "state": "ERROR",
        "port": 3,
    }
    path = tmp_path / "arcs.jsonl"
    path.write_text(json.dumps({**line, "t": 1.0}) + "\n" + json.dumps(line) + "\n" + json.dumps(line)[:20])
    assert history.count(path) == 2
    (event,) = history.read("node-a", path, 1)
    assert (event.end, event.old, event.new, event.after, event.port) == (
        ("node-a", "sim0"),
        "PRE_COPY",
        "PRE_COPY_P2P",
        "ERROR",
        3,
    )
    other = history.read("node-b", path)
    assert [e.t for e in history.merge([event], other)] == [1.0, 2.0, 2.0]


def migration(version: int, phase: str, reason: str = "") -> dict:
    metadata = {"name": "m", "namespace": "default", "uid": "u", "resourceVersion": str(version)}
    metadata["creationTimestamp"] = "2026-11-25T00:00:00Z"
    conditions = [{"type": "Succeeded", "status": "False", "reason": reason}] if reason else []
    return {"metadata": metadata, "status": {"phase": phase, "conditions": conditions}}


def test_a_decision_outlives_its_object_and_phases_are_told_in_order() -> None:
    record = Record()
    switchover = {"metadata": {"name": "u", "namespace": "default", "resourceVersion": "1"}}
    decision = {"outcome": "Commit", "by": "operator-0", "time": "2026-11-25T00:00:01.250000Z"}
    decided = {"metadata": {**switchover["metadata"], "resourceVersion": "2"}, "status": {"decision": decision}}
    record.add(SWITCHOVERS, "ADDED", switchover, 1.0)
    assert record.decision("u") is None
    record.add(SWITCHOVERS, "MODIFIED", decided, 2.0)
    record.add(SWITCHOVERS, "ADDED", decided, 2.5)  # the watch was begun anew
    record.add(SWITCHOVERS, "DELETED", decided, 3.0)
    assert record.decision("u") == Decision("Commit", "operator-0", 1795564801.25)
    assert len(record.decisions("u")) == 1
    assert record.decided_at("u") == 2.0
    for at, (version, phase) in enumerate([(3, "PreCopy"), (4, "PreCopy"), (5, "Failed")]):
        record.add(MIGRATIONS, "MODIFIED", migration(version, phase, "ArcFailed" * (phase == "Failed")), float(at))
    record.add(MIGRATIONS, "DELETED", migration(6, "Failed", "ArcFailed"), 9.0)
    assert record.phases("u") == [(0.0, "PreCopy"), (2.0, "Failed"), (9.0, "Deleted")]
    assert record.reason("u") == "ArcFailed"
    assert record.uid("m") == "u"
    assert record.wait_for_phase("u", frozenset({"Failed"}), 0) == "Failed"
    assert record.wait_for_phase("u", frozenset({"Succeeded"}), 0) is None
