"""What the plugin shows of a migration: pure functions from objects to text."""

import io
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from pure.cli_tales import (
    COPYING,
    FAILED,
    SUCCEEDED,
    condition,
    conditions,
    device,
    event,
    migration,
    pair,
    switchover,
)
from vfio_api.errors import Reason
from vfio_api.models_migration import Mode
from vfio_api.reasons import ConditionReason
from vfio_cli.explain import Case, Story, explain
from vfio_cli.lists import device_rows, ended, history_rows, node_facts, node_rows
from vfio_cli.live import MigrationView
from vfio_cli.outcome import next_step_of, outcome
from vfio_cli.pictures import page
from vfio_cli.progress import DEVICE_ROWS, Scale, estimates, frame, sizes_of
from vfio_cli.terminal import View
from vfio_cli.waterfall import Bar

NOW = datetime(2026, 11, 26, 1, 1, tzinfo=UTC)


def drawn(status, scale, seconds=2.0, width=96):
    """The picture as text without colours."""
    out = io.StringIO()
    console = Console(file=out, width=width, legacy_windows=False, color_system=None, highlight=False, emoji=False)
    console.print(frame(status, scale, seconds))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def told(status, *, has_switchover=None, devices=(), events=(), now=NOW, mode="Migrate") -> Story:
    return explain(Case(migration(status, mode=mode), has_switchover, devices, events, now))


SCALE = Scale({"gpu0": 100 << 20, "gpu1": 100 << 20}, "lab/m  Migrate  node-a → node-b", Mode.MIGRATE, 100)


def test_a_migration_that_copies():
    assert drawn(COPYING, SCALE) == [
        "lab/m  Migrate  node-a → node-b  2 s",
        "  Pending · Preparing · PreCopy · Switchover · Starting · Succeeded",
        "  gpu0 ━━━━━━━╸──────────────────   30 MiB  PRE_COPY → RESUMING",
        "  gpu1 ━━━━━━━━━━━━━━━╸──────────   60 MiB  PRE_COPY → RESUMING",
        "  all  ━━━━━━━━━━━╸──────────────  45%  90 MiB  200 MiB/s  ETA 3 s  downtime ~900 ms  PreCopy",
        "  downtime: predicted 900 ms, limit 100 ms: not within it yet",
        "  pre-copy until the downtime limit can be kept",
    ]


def test_a_migration_that_has_succeeded():
    lines = drawn(SUCCEEDED, SCALE)
    assert "  downtime 21.0 ms (predicted 21.7 ms, limit 100 ms)" in lines
    assert any(line.endswith("100%  200 MiB  Succeeded") for line in lines)


def test_a_limit_that_a_policy_or_the_default_says_is_shown_once_it_has_begun():
    unsaid = replace(SCALE, limit_milliseconds=None)
    assert "  downtime: predicted 900 ms" in drawn(COPYING, unsaid)
    resolved = COPYING | {"strategy": {"downtimeLimitMilliseconds": 300}}
    assert "  downtime: predicted 900 ms, limit 300 ms: not within it yet" in drawn(resolved, unsaid)


def test_one_that_failed_ends_its_track_there():
    assert drawn(FAILED, SCALE)[1].endswith("Switchover · Starting · Failed")


def test_before_there_is_a_status_there_are_empty_bars():
    assert drawn({}, SCALE)[2:4] == [f"  gpu{n} {'─' * 26}" for n in (0, 1)]


def test_of_many_devices_some_are_shown_and_the_rest_is_counted():
    many = COPYING | {"devices": [{"name": f"g{n}", "bytes": n} for n in range(256)]}
    lines = drawn(many, Scale({}))
    assert len(lines) == DEVICE_ROWS + 2
    assert lines[-1] == f"  and {256 - DEVICE_ROWS} devices more"


def test_sizes_come_from_the_sources_in_the_inventory():
    runs = {"state": "RUNNING", "stopCopyBytes": 60 << 20}
    copied = device("node-a", "sim1", state="PRE_COPY", stopCopyBytes=9)  # what is left of it
    held = estimates([device("node-a", "sim0", **runs), device("node-b", "sim1", **runs), copied])
    assert sizes_of([pair(0), pair(1)], held) == {"gpu0": 60 << 20, "gpu1": 0}
    # also if the pairs are known only by the status, as with the shorthand
    half = drawn(COPYING, Scale({}, held=held))[0]
    assert half.split() == ["gpu0", "━" * 13 + "─" * 13, "30", "MiB", "PRE_COPY", "→", "RESUMING"]


def test_without_an_estimate_each_device_has_its_share_of_what_the_percent_say():
    first, second = drawn(COPYING, Scale({}))[:2]  # 90 MiB are 45%: 100 MiB each
    assert (first.count("━"), second.count("━")) == (7, 15)


def test_what_copies_is_explained_by_what_it_waits_for():
    story = told(COPYING)
    assert story.headline == "VFIOMigration lab/m: PreCopy, created 1m ago"
    assert story.sentences == (
        "It moves 2 devices (gpu0, gpu1), node-a → node-b.",
        ConditionReason.PRE_COPY.meaning,
        "Just now: pre-copy until the downtime limit can be kept.",
        "It has passed Validated, Prepared.",
        f"It is not Converged yet. {ConditionReason.FORECAST.meaning} forecast 900 ms.",
        "The forecast of the downtime is 900 ms, over the limit of 100 ms.",
        "90 MiB of state are copied at 200 MiB/s (45%).",
        "Most of its time went into: claim devices (50.0 ms).",
    )
    assert story.next_steps[0] == ConditionReason.FORECAST.next_step
    assert story.next_steps[-1] == "To give up: kubectl vfio cancel m -n lab"


def test_what_failed_is_explained_by_its_reason_pair_arc_and_errno():
    story = told(FAILED, has_switchover=switchover("Abort"))
    text = " ".join(story.sentences)
    assert story.headline == "VFIOMigration lab/m: Failed, ended 30s ago"
    assert f"ArcFailed: {Reason.ARC_FAILED.meaning}" in story.sentences
    assert (
        "Pair gpu1, node-a/sim1 to node-b/sim1, refused the arc PRE_COPY_P2P -> STOP_COPY with errno 5 (EIO)." in text
    )
    assert "It had come as far as the switchover." in text
    assert "It had come as far as Converged." in told(FAILED).sentences
    assert "Nothing is lost" in text
    assert "The decision of the switchover is Abort, by vfio-agent/node-a" in text
    assert story.next_steps[0] == Reason.ARC_FAILED.next_step


@pytest.mark.parametrize("reason", ["SourceStateLost", "TargetLostAfterCommit", "RollbackIncomplete"])
def test_nobody_is_told_that_nothing_is_lost_when_something_is(reason):
    lost = FAILED | {
        "conditions": conditions(
            3, condition("Finished", "True", "Failed"), condition("Succeeded", "False", reason, "x")
        )
    }
    story = told(lost)
    assert not any("Nothing is lost" in sentence for sentence in story.sentences)
    assert story.next_steps[0] == Reason(reason).next_step


def test_what_succeeded_is_explained_by_its_downtime():
    story = told(SUCCEEDED, has_switchover=switchover("Commit"))
    assert "Every device runs at its target; downtime 21.0 ms." in story.sentences
    assert "The downtime was 21.0 ms; 21.7 ms was predicted." in story.sentences
    assert "kubectl vfio timeline m -n lab" in story.next_steps[-1]


def test_what_nobody_has_taken_up_leads_to_the_doctor_after_a_while():
    late = told(None)
    assert late.sentences[1].endswith("it seems that none leads.")
    assert late.next_steps == (
        "See whether an operator leads: kubectl vfio doctor",
        "What to do then: docs/runbooks/VFIONoLeader.md of the project",
    )
    soon = datetime.fromisoformat("2026-11-26T01:00:02+00:00")
    assert told(None, now=soon).next_steps == ("Wait a moment, then again: kubectl vfio explain m -n lab",)


def test_a_switchover_that_nobody_decided_and_a_committed_one():
    story = told(COPYING | {"phase": "Switchover"}, has_switchover=switchover())
    assert any("nobody has decided yet" in sentence for sentence in story.sentences)
    committed = told(COPYING | {"phase": "Starting", "conditions": conditions(5)})
    assert not any("cancel" in step for step in committed.next_steps if step.startswith("To give up"))


def test_the_inventory_says_who_has_a_device():
    found = [
        device("node-a", "sim0", state="ERROR"),
        device("node-b", "sim0", message="its driver is gone"),
        device("node-b", "sim1"),
    ]
    found[2]["spec"]["claimRef"] = {"namespace": "lab", "name": "other", "uid": "else"}
    text = " ".join(told(COPYING, devices=found).sentences)
    assert "The source of gpu0, node-a/sim0, is in ERROR: only a reset leads out" in text
    assert "The target of gpu0, node-b/sim0, reports: its driver is gone." in text
    assert "The source of gpu1, node-a/sim1, is not in the inventory." in text
    assert "The target of gpu1, node-b/sim1, is reserved by lab/other." in text


def test_events_of_another_object_of_the_same_name_are_left_out():
    events = [
        event("Converged", "late", "2026-11-26T01:00:20Z"),
        event("Preparing", "early", "2026-11-26T01:00:10Z"),
        event("Failed", "of before", "2026-11-26T00:00:00Z", uid="older"),
    ]
    assert told(COPYING, events=events).events == (
        "50s ago  Normal Preparing: early",
        "40s ago  Normal Converged: late",
    )


def moved(status, *, target=None):
    """A migration of a pod."""
    body = migration(status)
    del body["spec"]["devices"]
    body["spec"] |= {"source": {"podName": "counter"}, "target": target or {"nodeName": "node-b"}}
    return body


PODS = {
    "sourcePod": {"name": "counter", "uid": "u1", "nodeName": "node-a"},
    "targetPod": {"name": "counter-1a2b3c4d", "uid": "u2", "nodeName": "node-b"},
}


def refused(reason, message="found so", **more):
    ends = (condition("Finished", "True", "Failed"), condition("Succeeded", "False", reason, message))
    return {"phase": "Failed", "message": message, "conditions": conditions(0, *ends), **more}


def test_a_pod_that_moves_is_shown_with_its_devices_and_who_takes_its_place():
    story = explain(Case(moved(COPYING | {"workload": PODS}), None, (), (), NOW))
    assert story.sentences[0] == "It moves pod counter with 2 devices (gpu0, gpu1), node-a → node-b."
    assert story.sentences[1] == ("The pods: counter on node-a with 2 devices → pod counter-1a2b3c4d on node-b.")
    first = explain(Case(moved(None), None, (), (), NOW)).sentences[0]
    assert first == "It moves pod counter with its devices, pod counter → node-b."
    onto = moved(None, target={"podName": "taker"})
    assert explain(Case(onto, None, (), (), NOW)).sentences[0].endswith("pod counter → pod taker.")


def test_a_plan_of_a_pod_shows_its_whole_set_and_names_no_counterpart_that_nobody_will_have():
    ends = (condition("Finished", "True", "Succeeded"), condition("Succeeded", "True", "Planned", "fine"))
    status = {"phase": "Succeeded", "message": "2 pairs can migrate", "conditions": conditions(0, *ends)}
    status |= {"pairs": [pair(0), pair(1)], "workload": {"sourcePod": PODS["sourcePod"]}}
    status["feasibility"] = [{"name": f"gpu{n}", "feasible": True} for n in (0, 1)]
    body = moved(status)
    body["spec"]["mode"] = "Plan"
    lines = [f"{line.label}: {line.text}" for line in outcome(body)]
    assert lines[:3] == [
        "pod: counter on node-a with 2 devices → a counterpart on node-b",
        "gpu0: node-a/sim0 → node-b/sim0",
        "gpu1: node-a/sim1 → node-b/sim1",
    ]


def test_one_that_waits_for_its_turn_says_which_it_is():
    waiting = {
        "phase": "Pending",
        "message": "queued: number 2 of 4: 5 migrations run, at most 5 may at once",
        "queuePosition": 2,
        "policy": "gold",
        "conditions": conditions(0),
    }
    assert drawn(waiting, SCALE)[-2:] == [
        f"  all  {'─' * 26}   0%  0 B  Pending  number 2 of those that wait",
        "  queued: number 2 of 4: 5 migrations run, at most 5 may at once",
    ]
    story = told(waiting)
    assert "It waits for others to end: it is number 2 of those that wait." in story.sentences
    assert "What its spec does not say is as VFIOMigrationPolicy gold says." in story.sentences
    assert "Just now: queued: number 2 of 4: 5 migrations run, at most 5 may at once." in story.sentences


@pytest.mark.parametrize(
    ("reason", "step"),
    [
        ("PodNotMovable", "kubectl describe pod counter -n lab"),
        ("PodDevicesSplit", "kubectl get vfd -o wide"),
        ("DeviceAmbiguous", "docs/guide/connect-a-workload.md"),
        ("ForbiddenPod", "kubectl auth can-i delete pods -n lab; kubectl auth can-i create pods -n lab"),
        ("PolicyConflict", "kubectl vfio doctor"),
        ("NodeBeingEmptied", "kubectl get vfe"),
        ("PodGone", "kubectl events --for pod/counter -n lab"),
        ("TargetPodFailed", "kubectl events --for pod/counter-1a2b3c4d -n lab"),
        ("PauseFailed", "kubectl logs counter -n lab"),
        ("ResumeFailed", "kubectl logs counter -n lab"),
    ],
)
def test_what_went_wrong_with_a_pod_is_told_with_the_command_that_shows_it(reason, step):
    story = explain(Case(moved(refused(reason, workload=PODS)), None, (), (), NOW))
    assert f"{reason}: {Reason(reason).meaning}" in story.sentences
    assert story.next_steps[0] == Reason(reason).next_step
    assert any(step in each for each in story.next_steps[1:]), story.next_steps


def test_a_command_about_a_pod_that_nobody_knows_is_left_out():
    story = told(refused("PauseFailed"))
    assert not any("kubectl logs" in step for step in story.next_steps)
    assert any("Nothing is lost" in sentence for sentence in story.sentences)
    paused = told(refused("ResumeFailed")).sentences
    assert any("may be paused still" in sentence for sentence in paused)
    assert not any("Nothing is lost" in sentence for sentence in paused)


def test_a_plan_says_of_each_pair_whether_and_why_not():
    planned = {
        "phase": "Failed",
        "conditions": conditions(
            0, condition("Finished", "True", "Failed"), condition("Succeeded", "False", "IncompatibleDevices", "model")
        ),
        "pairs": [pair(0), pair(1)],
        "feasibility": [
            {"name": "gpu0", "feasible": True},
            {"name": "gpu1", "feasible": False, "reason": "IncompatibleDevices", "message": "model differs"},
        ],
        "predictedDowntimeMicroseconds": 27_000,
    }
    body = migration(planned, mode="Plan")
    assert [(line.good, line.label, line.text) for line in outcome(body)] == [
        (True, "gpu0", "node-a/sim0 → node-b/sim0"),
        (False, "gpu1", "node-a/sim1 → node-b/sim1: IncompatibleDevices: model differs"),
        (True, "forecast", "27.0 ms of downtime, within the limit 100 ms"),
        (False, "Failed", "IncompatibleDevices: model"),
    ]
    assert next_step_of(body) == Reason.INCOMPATIBLE_DEVICES.next_step


def test_a_downtime_over_the_limit_is_marked_and_no_failure():
    over = {line.label: line.good for line in outcome(migration(SUCCEEDED, limit=20))}
    assert over == {"downtime": None, "copied": True, "Succeeded": True}


def lines_of(body) -> dict[str, tuple[bool | None, str]]:
    return {line.label: (line.good, line.text) for line in outcome(body)}


def test_a_plan_over_the_limit_says_that_pre_copy_brings_it_down():
    planned = {"phase": "Succeeded", "predictedDowntimeMicroseconds": 8_420_000, "conditions": conditions(1)}
    good, text = lines_of(migration(planned, mode="Plan"))["forecast"]
    assert good is None
    assert text.startswith("8.42 s of downtime, over the limit 100 ms, if all state were sent while stopped;")
    assert text.endswith("kubectl vfio rehearse measures it")
    assert any("if all state were sent while stopped" in said for said in told(planned, mode="Plan").sentences)
    # measured, or without pre-copy, it is what it is
    assert "sent while stopped" not in lines_of(migration(planned, mode="Rehearse"))["forecast"][1]
    never = migration(planned, mode="Plan")
    never["spec"]["strategy"]["preCopy"] = "Disabled"
    assert "sent while stopped" not in lines_of(never)["forecast"][1]


CANCELLED = COPYING | {
    "phase": "Cancelled",
    "conditions": conditions(
        2, condition("Finished", "True", "Cancelled"), condition("Succeeded", "False", "Cancelled", "by its user")
    ),
}


def test_what_was_cancelled_is_neither_good_nor_bad_and_has_no_forecast():
    assert lines_of(migration(CANCELLED)) == {"Cancelled": (None, "by its user")}
    assert not any("forecast" in sentence for sentence in told(CANCELLED).sentences)
    assert history_rows([migration(CANCELLED)], NOW)[0][4:6] == ("-", "-")
    assert not any("predicted" in line for line in drawn(CANCELLED, SCALE))


def test_one_that_has_ended_shows_how_long_it_took():
    scale = replace(SCALE, created=datetime(2026, 11, 26, 1, 0, tzinfo=UTC))
    assert drawn(SUCCEEDED, scale, seconds=0)[0].endswith("took 30 s")
    assert drawn(COPYING, scale)[0].endswith(" 2 s")


def test_bars_show_their_ends_also_where_there_is_no_unicode():
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="replace")
    Console(file=out, width=96, color_system=None, legacy_windows=False).print(frame(COPYING, SCALE, 0))
    out.flush()
    lines = out.buffer.getvalue().decode().splitlines()
    assert lines[2].split()[:2] == ["gpu0", f"{'#' * 7}{'-' * 19}"]


def test_what_is_old_says_so_until_the_api_server_is_back():
    out = io.StringIO()
    view = MigrationView(View(out), SCALE)
    with view as shown:
        shown.show(COPYING)
        shown.away(3.4)
        shown.away(4.4)  # soon after: not said again
        shown.show(SUCCEEDED)
    lines = [line.split(" s  ", 1)[1] for line in out.getvalue().splitlines()]
    assert lines[1] == "the API server does not answer for 3 s; last seen: PreCopy, 45%"
    assert len(lines) == 3
    assert "Succeeded" in lines[2]
    live = MigrationView(View(out), SCALE)
    live.show(COPYING)
    live.away(7)
    drawing = Console(file=io.StringIO(), width=96, color_system=None, record=True)
    drawing.print(live)
    assert "the API server does not answer for 7 s; last seen: PreCopy, 45%" in drawing.export_text(clear=False)
    live.show(COPYING)
    drawing.export_text()
    drawing.print(live)
    assert "does not answer" not in drawing.export_text()


def test_devices_with_who_uses_them():
    found = [
        device("node-b", "x", migratable=False, migrationFlags=[], message="no"),
        device(
            "node-a", "y", migratable=True, migrationFlags=["STOP_COPY", "P2P"], holder="keeper", stopCopyBytes=2 << 20
        ),
        device("node-a", "x"),
    ]
    rows = device_rows(found)
    assert [(row[0], row[1], row[4], row[5], row[7]) for row in rows] == [
        ("node-a", "x", "?", "free", ""),
        ("node-a", "y", "STOP_COPY,P2P", "keeper", "2 MiB"),
        ("node-b", "x", "-", "not migratable", ""),
    ]


def test_nodes_with_devices_or_an_agent():
    ready = {"conditions": [{"type": "Ready", "status": "True"}]}
    nodes = [{"metadata": {"name": name}, "status": ready} for name in ("node-a", "node-c", "idle")]
    devices = [device("node-a", "x", holder="w"), device("node-a", "y"), device("node-b", "x", migratable=False)]
    agents = [{"spec": {"nodeName": "node-a"}, "status": ready}, {"spec": {"nodeName": "node-c"}, "status": {}}]
    assert [row[:8] for row in node_rows(node_facts(nodes, devices, agents))] == [
        ("node-a", "yes", "yes", "2", "1", "1", "0", "0"),
        ("node-b", "gone", "no", "1", "0", "0", "0", "1"),
        ("node-c", "yes", "no", "0", "0", "0", "0", "0"),
    ]
    assert node_rows(node_facts(nodes, devices, None))[0][2] == "?"


def test_history_has_what_ended_the_last_first():
    first, last = migration(FAILED), migration(SUCCEEDED)
    for found in last["status"]["conditions"]:
        found["lastTransitionTime"] = "2026-11-26T01:00:50Z"
    bodies = ended([first, migration(COPYING), last])
    rows = history_rows(bodies, NOW + timedelta(hours=1))
    assert [row[2:7] for row in rows] == [
        ("Succeeded", "Succeeded", "21.0 ms", "21.7 ms", "200 MiB"),
        ("Failed", "ArcFailed", "-", "900 ms", "90 MiB"),
    ]
    assert rows[0][-1] == "1h"


def test_a_page_has_every_bar_and_escapes_what_it_is_told():
    made = page(
        "<m>", {"Message": "a & b", "Empty": ""}, [("All", [Bar("first", 0, 5), Bar("down", 5, 9, True)]), ("No", [])]
    )
    assert made.count("<rect") == 2
    assert "&lt;m&gt;" in made
    assert "a &amp; b" in made
    assert "Empty" not in made
    assert "<h2>No</h2>" not in made
