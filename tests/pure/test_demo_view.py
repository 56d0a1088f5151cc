"""The demo's pictures and verdicts: pure functions from status and accounts to text."""

import io
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devtools.demo_flow import _conditions, _log_line, _section, hints, settled
from devtools.demo_kernel import barrier_finding
from devtools.demo_scene import p2p_findings
from devtools.demo_view import Steps
from devtools.demo_watch import documents
from devtools.mtty_trace import Arc
from vfio_cli.fields import condition
from vfio_cli.live import MigrationView
from vfio_cli.progress import Scale
from vfio_cli.terminal import View
from vfio_cli.waterfall import DOWN_STEPS, WORDS, Bar, chart, duration_text, operator_steps, overview, switchover
from vfio_operator.metrics import STEPS


def timing(step: str, microseconds: int) -> dict[str, Any]:
    return {"step": step, "startTime": "2026-11-23T01:00:00.000000Z", "durationMicroseconds": microseconds}


ONE_NODE_EACH = [
    timing("Claim", 50_000),
    timing("Converge", 900_000),
    timing("BeginSwitchover", 10_000),
    timing("BarrierB", 20_000),
    timing("Vote", 2_000),
    timing("Decide", 8_000),
    timing("BarrierD", 10_000),
    timing("Unclaim", 100_000),
    timing("Agent/BarrierA", 3_000),
    timing("Agent/BarrierB", 2_000),
    timing("Agent/Transfer", 15_000),
    timing("Agent/Load", 1_500),
    timing("Agent/BarrierC", 2_500),
    timing("Agent/BarrierD", 1_000),
]


def test_operator_steps_follow_each_other_and_agents_steps_are_left_out():
    bars = operator_steps(ONE_NODE_EACH)
    assert [bar.label for bar in bars][:2] == ["Claim", "Converge"]
    assert all(second.start == first.end for first, second in itertools.pairwise(bars))
    assert bars[-1].end == 1_100_000


def test_the_overview_has_the_downtime_as_one_bar():
    bars = overview(ONE_NODE_EACH)
    assert [bar for bar in bars if bar.down] == [Bar("SWITCHOVER", 960_000, 40_000, True)]
    assert [bar.label for bar in bars] == [
        "claim devices",
        "pre-copy",
        "record the intent",
        "SWITCHOVER",
        "drop claims",
    ]


def test_a_workload_that_is_paused_and_resumed_is_in_the_picture_of_its_downtime():
    bars = switchover([*ONE_NODE_EACH, timing("Agent/Pause", 4_000), timing("Agent/Resume", 700)])
    spans = [(bar.label.strip(), bar.start, bar.end) for bar in bars]
    assert spans[:3] == [
        ("pause the workload", 0, 4_000),
        ("A  sources quiesce P2P", 4_000, 7_000),
        ("B  sources STOP_COPY", 7_000, 9_000),
    ]
    assert spans[-1] == ("resume the workload", 33_500, 34_200)


def test_every_step_of_a_plan_has_words():
    assert set(WORDS) | set(DOWN_STEPS) == set(STEPS)


def test_the_switchover_is_zoomed_with_agents_steps_in_their_order():
    spans = [(bar.label[:2].strip() or bar.label.strip(), bar.start, bar.end) for bar in switchover(ONE_NODE_EACH)]
    assert spans == [
        ("A", 0, 3_000),
        ("B", 3_000, 5_000),
        ("send the rest of state", 5_000, 15_000),
        ("load, validate, vote", 15_000, 16_500),
        ("votes on their way", 16_500, 22_000),
        ("decision stored: Commit", 22_000, 30_000),
        ("C", 30_000, 32_500),
        ("D", 32_500, 33_500),
    ]


def test_barriers_over_several_nodes_begin_with_the_operators_steps():
    several = [
        timing("BarrierA", 5_000),
        timing("BarrierB", 20_000),
        timing("Vote", 1_000),
        timing("Decide", 4_000),
        timing("BarrierC", 6_000),
        timing("BarrierD", 7_000),
        *ONE_NODE_EACH[-6:],
    ]
    starts = {bar.label[0]: bar.start for bar in switchover(several) if bar.label[0] != " "}
    assert starts == {"A": 0, "B": 5_000, "C": 30_000, "D": 36_000}


def test_a_load_is_never_drawn_after_the_decision_that_waited_for_it():
    late = [t | {"durationMicroseconds": 40_000} if t["step"] == "Agent/Transfer" else t for t in ONE_NODE_EACH]
    bars = {bar.label.strip(): bar for bar in switchover(late)}
    assert bars["load, validate, vote"].end == bars["decision stored: Commit"].start


@pytest.mark.parametrize("timings", [[], [timing("Claim", 5), timing("Abort", 5)]])
def test_without_downtime_there_is_no_switchover_to_show(timings):
    assert switchover(timings) == []


def test_a_rollback_before_any_vote_is_drawn_without_what_did_not_happen():
    timings = [timing("BarrierB", 9_000), timing("Abort", 5_000), timing("Agent/BarrierA", 2_000)]
    assert [bar.label for bar in switchover(timings)] == ["A  sources quiesce P2P"]
    assert [bar.label for bar in overview(timings)] == ["SWITCHOVER", "record the abort"]


def test_the_picture():
    bars = [Bar("first", 0, 500_000), Bar("second", 500_000, 250_000, True), Bar("short", 990_000, 10)]
    assert [row.text for row in chart(bars, 56)] == [
        "  first                     ██████████            500 ms",
        "  second                              █████       250 ms",
        "  short                                        ▐   10 us",
        "                            ┴─────────┴─────────",
        "                            0         0.5 s",
    ]


def test_the_picture_for_terminals_without_unicode():
    text = "\n".join(row.text for row in chart(overview(ONE_NODE_EACH), 100, ascii_only=True))
    assert text.isascii()
    assert "+" in text


def test_nothing_to_draw():
    assert chart([], 80) == []


@given(
    bars=st.lists(
        st.builds(Bar, st.text("abc", max_size=40), st.integers(0, 10**9), st.integers(0, 10**9)), min_size=1
    ),
    width=st.integers(60, 200),
)
def test_every_bar_is_seen_and_no_line_is_too_long(bars, width):
    rows = chart(bars, width)
    assert all(len(row.text) <= width for row in rows)
    assert all(row.picture.strip() for row in rows[: len(bars)])


@pytest.mark.parametrize(
    ("microseconds", "text"),
    [(0, "0 us"), (999, "999 us"), (1_000, "1.00 ms"), (48_674, "48.7 ms"), (999_499, "999 ms"), (3_590_000, "3.59 s")],
)
def test_durations_have_three_digits(microseconds, text):
    assert duration_text(microseconds) == text


def account(devices: dict[str, dict[str, Any]], **totals: int) -> dict[str, Any]:
    return {"devices": devices, "totals": {"received": 0, "lost": 0, "doubled": 0, "missing": 0} | totals}


def working(sent: int, received: int) -> dict[str, Any]:
    return {str(n): {"port": n, "sent": {9: sent}, "received": {9: received}} for n in range(4)}


@pytest.mark.parametrize(
    ("source", "target", "lost"),
    [
        ({}, {}, "0"),
        ({}, {"missing": 3}, "3"),
        ({"lost": 2}, {}, "2"),
        ({"lost": 2}, {"lost": 1, "missing": 3}, "3"),
    ],
)
def test_a_lost_write_is_told_wherever_it_was_lost(source, target, lost):
    findings = {f.label: f for f in p2p_findings(account({}, **source), account(working(5, 5), received=4, **target))}
    assert findings["P2P writes lost"].text == lost
    assert findings["P2P writes lost"].good == (lost == "0")
    assert findings["P2P traffic"].good


def test_barriers_are_judged_by_the_order_in_the_drivers_log():
    arcs = [
        Arc(1.0, "a", "PRE_COPY", "PRE_COPY_P2P"),
        Arc(1.1, "b", "PRE_COPY", "PRE_COPY_P2P"),
        Arc(1.2, "a", "PRE_COPY_P2P", "STOP_COPY"),
        Arc(1.3, "b", "PRE_COPY_P2P", "STOP_COPY"),
    ]
    swapped = [arcs[0], replace(arcs[1], time=1.25), *arcs[2:]]
    for trace, held in ((arcs, True), (swapped, False), (arcs[:2], False), ([*arcs[:1], *arcs[2:]], False)):
        assert barrier_finding("A, B", trace, ("PRE_COPY_P2P",), "STOP_COPY").good == held


def test_devices_that_are_silent_at_the_target_are_no_success():
    findings = {f.label: f for f in p2p_findings(account({}), account(working(5, 5), received=0, doubled=1))}
    assert not findings["P2P traffic"].good
    assert not findings["P2P writes doubled"].good


STATUS = {
    "phase": "PreCopy",
    "progress": {"percent": 35, "bytes": 300 << 20, "bytesPerSecond": 200 << 20, "etaSeconds": 3},
    "devices": [{"name": "gpu0", "bytes": 300 << 20, "sourceState": "PRE_COPY", "targetState": "RESUMING"}],
}


def test_without_a_terminal_there_are_plain_lines_and_no_control_characters():
    out = io.StringIO()
    view = View(out)
    with Steps(view) as steps, steps.step("start"):
        pass
    with MigrationView(view, Scale({"gpu0": 400 << 20})) as progress:
        progress.show({})
        progress.show(STATUS)
        progress.show(STATUS)  # too soon to be worth another line
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[2].endswith("35%  300 MiB  200 MiB/s  ETA 3 s  PreCopy  gpu0=300 MiB")
    assert "\x1b" not in out.getvalue()
    assert "\r" not in out.getvalue()


def test_a_step_that_fails_is_told_and_raised():
    out = io.StringIO()
    with pytest.raises(OSError, match="gone"), Steps(View(out)) as steps, steps.step("start"):
        raise OSError("gone")
    assert "start" in out.getvalue()


DESCRIBED = """Name:  demo
Status:
  Conditions:
    Message:               all well
    Reason:                Checked
    Status:                True
    Type:                  Validated
    Message:               no
    Reason:                InProgress
    Status:                Unknown
    Type:                  Succeeded
  Phase:  PreCopy
Events:
  Type    Reason
  Normal  Begun
"""


def test_the_parts_of_kubectl_describe_that_matter():
    assert _conditions(DESCRIBED) == [
        "Conditions:",
        "    Type       Status   Reason      Message",
        "    Validated  True     Checked     all well",
        "    Succeeded  Unknown  InProgress  no",
    ]
    assert _section(DESCRIBED, "Events:", 0) == ["Events:", "  Type    Reason", "  Normal  Begun"]
    assert _section(DESCRIBED, "Absent:", 0) == []


def test_the_documents_of_a_watch_are_taken_apart():
    text = '{\n    "a": {\n        "b": 1\n    }\n}\n{\n    "a": 2\n}\n{\n'
    assert list(documents(io.StringIO(text))) == [{"a": {"b": 1}}, {"a": 2}]


def test_conditions_are_unknown_until_they_are_there():
    body = {"status": {"conditions": [{"type": "Finished", "status": "True"}]}}
    assert condition(body, "Finished") == "True"
    assert condition({}, "Finished") == "Unknown"


@pytest.mark.parametrize(
    ("line", "bad", "text"),
    [
        (
            '{"event": "e", "level": "error", "timestamp": "2026-11-23T01:02:03.456789Z", "n": 1, "uid": "u"}',
            True,
            "01:02:03.456 error: e n=1",
        ),
        ("ready", False, "ready"),
        ("[1]", False, "[1]"),
        ("OSError: x", True, "OSError: x"),
    ],
)
def test_log_lines_for_people(line, bad, text):
    assert _log_line(line) == (bad, text)


MOVED = {
    "spec": {
        "devices": [
            {
                "name": "gpu0",
                "source": {"nodeName": "node-a", "device": "sim0"},
                "target": {"nodeName": "node-b", "device": "sim1"},
            }
        ]
    }
}


def published(node: str, address: str, holder: str, **spec: Any) -> dict[str, Any]:
    return {"spec": {"nodeName": node, "address": address, **spec}, "status": {"holder": holder}}


@pytest.mark.parametrize(
    ("source", "target", "claim", "good"),
    [
        ("", "keeper", {}, True),
        ("", "migration default/demo", {}, False),
        ("workload demo", "keeper", {}, False),
        ("", "keeper", {"claimRef": {"name": "demo"}}, False),
    ],
)
def test_the_devices_are_shown_when_the_inventory_has_settled(source, target, claim, good):
    bystander = published("node-a", "sim9", "workload other")
    devices = [published("node-a", "sim0", source), published("node-b", "sim1", target, **claim), bystander]
    assert settled(MOVED, devices) == good


def test_devices_that_are_not_published_are_not_settled():
    assert not settled(MOVED, [])
    assert not settled(MOVED, [{"spec": {"nodeName": "node-a", "address": "sim0"}}, published("b", "sim1", "keeper")])


def test_what_to_try_on_a_demo_that_is_kept():
    lines = hints(MOVED, Path("/k/config"), [Path("/v/bin/python"), Path("/v/bin/kubectl"), Path("/c/helm")], {"b": 2})
    assert lines[:2] == ["export KUBECONFIG=/k/config", "export PATH=/v/bin:/c:$PATH"]
    assert sum(line.startswith("kubectl vfio ") for line in lines) >= 3
    assert "kubectl vfio migrate back --from-node node-b --to-node node-a --watch" in lines
    assert lines[-1] == "curl http://127.0.0.1:2/metrics   # b"
