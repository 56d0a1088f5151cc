"""A migration as a collector sees it: one trace, of the operator and both agents, and nothing depends on it."""

import json
import urllib.request
from collections.abc import Iterator
from errno import EINVAL

import pytest

from cluster.world import World, devices, mark, migration, pairs
from devtools.collector import Collected, Collector
from devtools.stack import Stack
from vfio_api.device import DeviceState as S
from vfio_api.names import TRACEPARENT_ANNOTATION
from vfio_api.spans import trace_id

PIPELINE = ["4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"]
SENT = ["sim0", "sim1"]
# what is to be found of each participant, by name
OPERATOR = {
    "AddFinalizer", "PersistPairs", "Claim", "PrepareSources", "PrepareTargets", "PreCopy", "Converge",
    "BeginSwitchover", "create VFIOSwitchover", "BarrierB", "Decide", "patch decision Commit", "BarrierD",
    "ReleaseSources", "ReleaseTargets", "Unclaim", "downtime",
    "Source Prepared on node-a", "Source PreCopy on node-a", "Source StopCopy on node-a", "Source Released on node-a",
    "Target Prepared on node-b", "Target Running on node-b", "Target Released on node-b",
    "Pending", "Preparing", "Switchover", "Starting",
}  # fmt: skip
SOURCE = {
    "Source Prepared", "Source PreCopy", "Source StopCopy", "Source Released",
    "pre_copy", "barrier_a", "barrier_b", "transfer", "pre-copy/gpu0", "pre-copy/gpu1",
    "gpu0: RUNNING -> PRE_COPY", "gpu1: RUNNING -> PRE_COPY",
    "gpu0: PRE_COPY -> PRE_COPY_P2P", "gpu1: PRE_COPY -> PRE_COPY_P2P",
    "gpu0: PRE_COPY_P2P -> STOP_COPY", "gpu1: PRE_COPY_P2P -> STOP_COPY",
}  # fmt: skip
TARGET = {
    "Target Prepared", "Target Running", "Target Released", "load/gpu0", "load/gpu1", "vote", "barrier_c", "barrier_d",
    "gpu0: RESUMING -> STOP", "gpu1: RESUMING -> STOP",
    "gpu0: STOP -> RUNNING_P2P", "gpu1: STOP -> RUNNING_P2P",
    "gpu0: RUNNING_P2P -> RUNNING", "gpu1: RUNNING_P2P -> RUNNING",
}  # fmt: skip


@pytest.fixture(scope="module")
def collector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collector]:
    with Collector(tmp_path_factory.mktemp("collector")) as collector:
        yield collector


@pytest.fixture(scope="module")
def traced(collector: Collector) -> Iterator[World]:
    """A stack whose operator and agents trace."""
    with Stack(["node-a", "node-b"]) as stack:
        operator = stack.start_operator("operator-0", OTLP_ENDPOINT=collector.endpoint)
        for name in ("node-a", "node-b"):
            stack.add_node(name, devices()).start_agent(OTLP_ENDPOINT=collector.endpoint)
        operator.wait_for('"event": "leading"')
        for node in stack.nodes.values():
            assert node.agent is not None
            node.agent.wait_for('"event": "connected"')
        stack.devices_published(2 * 7)
        yield World(stack, operator)


def whole(world: World, collector: Collector, uid: str) -> list[Collected]:
    """The trace once the root has come, and what every agent did at the last command that it was given."""

    def there() -> bool:
        spans = collector.trace(trace_id(uid))
        done = {f"{span.name} on {span.instance}" for span in spans}
        released = {span.name for span in spans if "Released on" in span.name}
        return bool(released) and released <= done and any(not span.parent for span in spans)

    world.stack.wait_until(there, f"the trace of {uid}", 60)
    return collector.trace(trace_id(uid))


def above(span: Collected, spans: dict[str, Collected]) -> list[str]:
    """The names of a span's parents, the nearest first. Fails if one is missing."""
    names = []
    while span.parent:
        assert span.parent in spans, f"{span.name} of {span.instance} has a parent that is nowhere"
        span = spans[span.parent]
        names.append(span.name)
    return names


def test_one_trace_has_every_step_of_the_operator_and_both_agents(traced: World, collector: Collector) -> None:
    asked = migration("traced", pairs(SENT))
    asked["metadata"]["annotations"] = {TRACEPARENT_ANNOTATION: f"00-{PIPELINE[0]}-{PIPELINE[1]}-01"}
    with traced.workload("node-a", SENT):
        found = traced.run(asked)
    status, uid = found["status"], found["metadata"]["uid"]
    assert status["phase"] == "Succeeded", status["message"]
    assert status["traceID"] == uid.replace("-", "")

    spans = whole(traced, collector, uid)
    by_id = {span.span_id: span for span in spans}
    assert len(by_id) == len(spans), "no two spans have the same id"
    of = {
        who: {span.name: span for span in spans if span.instance == who} for who in ("operator-0", "node-a", "node-b")
    }
    assert {span.service for span in of["operator-0"].values()} == {"vfio-operator"}
    assert {span.service for who in ("node-a", "node-b") for span in of[who].values()} == {"vfio-agent"}
    assert set(of["operator-0"]) >= OPERATOR, OPERATOR - set(of["operator-0"])
    assert set(of["node-a"]) >= SOURCE, SOURCE - set(of["node-a"])
    assert set(of["node-b"]) >= TARGET, TARGET - set(of["node-b"])

    root = next(span for span in spans if not span.parent)
    assert root.name == "migration default/traced"
    assert root.links == [PIPELINE]
    assert root.attributes["vfio.migration.result"] == "Succeeded"
    assert root.attributes["vfio.downtime_microseconds"] == status["downtimeMicroseconds"]
    for span in spans:
        assert span is root or above(span, by_id)[-1] == root.name
        assert span.error == ""

    expected = {
        ("node-a", "gpu0: PRE_COPY_P2P -> STOP_COPY"): ["barrier_b", "Source StopCopy", "Source StopCopy on node-a"],
        ("node-a", "transfer"): ["Source StopCopy", "Source StopCopy on node-a", "BarrierB", "Switchover"],
        ("node-a", "pre-copy/gpu1"): ["PreCopy", root.name],
        ("node-b", "gpu1: RESUMING -> STOP"): ["load/gpu1", "Switchover", root.name],
        ("node-b", "vote"): ["Switchover", root.name],
        ("node-b", "gpu0: STOP -> RUNNING_P2P"): ["barrier_c", "Target Running", "Target Running on node-b"],
        ("operator-0", "patch decision Commit"): ["Decide", "Switchover", root.name],
        ("operator-0", "BarrierD"): ["Starting", root.name],
        ("operator-0", "downtime"): [root.name],
    }
    for (who, name), parents in expected.items():
        assert above(of[who][name], by_id)[: len(parents)] == parents, (who, name)
    took = of["operator-0"]["downtime"].end - of["operator-0"]["downtime"].start
    assert abs(took // 1000 - status["downtimeMicroseconds"]) <= 1


def test_barriers_over_several_nodes_are_the_operators_and_each_agents_part_is_below(
    traced: World, collector: Collector
) -> None:
    with traced.workload("node-a", ["sim0"]):
        traced.open(traced.stack.nodes["node-b"], ["sim1"])
        crossed = [*pairs(["sim0"]), ("gpu1", "node-b", "sim1", "node-a", "sim1")]
        found = traced.run(migration("crossed", crossed))
    assert found["status"]["phase"] == "Succeeded", found["status"]["message"]
    spans = whole(traced, collector, found["metadata"]["uid"])
    by_id = {span.span_id: span for span in spans}
    for barrier, command, step in (
        ("BarrierA", "Source Quiesced", "barrier_a"),
        ("BarrierB", "Source StopCopy", "barrier_b"),
        ("BarrierC", "Target RunningP2P", "barrier_c"),
        ("BarrierD", "Target Running", "barrier_d"),
    ):
        for node in ("node-a", "node-b"):
            (part,) = [span for span in spans if span.instance == node and span.name == step]
            assert above(part, by_id)[:3] == [command, f"{command} on {node}", barrier]


def test_exemplars_name_the_trace_that_the_status_names(traced: World) -> None:
    with traced.workload("node-a", SENT):
        found = traced.run(migration("exemplary", pairs(SENT)))
    port = Stack.operator_metrics_port(traced.operator)
    asked = urllib.request.Request(
        f"http://127.0.0.1:{port}/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"}
    )
    with urllib.request.urlopen(asked, timeout=10) as answer:
        text = answer.read().decode()
    uid, trace = found["metadata"]["uid"], found["status"]["traceID"]
    labels = f'{{migration_uid="{uid}",trace_id="{trace}"}}'
    lines = [line for line in text.splitlines() if labels in line]
    assert {line.partition("{")[0] for line in lines} == {
        "vfio_migrations_total",
        "vfio_migration_downtime_seconds_bucket",
        "vfio_migration_downtime_step_seconds_bucket",
        "vfio_migration_downtime_to_prediction_ratio_bucket",
        "vfio_migration_predicted_downtime_seconds_bucket",
    }


def test_a_rollback_is_traced_with_its_error(traced: World, collector: Collector) -> None:
    """A target device refuses its state."""
    with traced.workload("node-a", SENT):
        traced.control("node-b").fault("sim1", "arc", arc=(S.RESUMING, S.STOP), error=EINVAL)
        found = traced.run(migration("refused", pairs(SENT)))
    assert found["status"]["phase"] == "Failed"
    spans = whole(traced, collector, found["metadata"]["uid"])
    by_id = {span.span_id: span for span in spans}
    names = {span.name for span in spans}
    assert {"RollingBack", "Abort", "patch decision Abort", "Restore", "Source Running", "BlankTargets"} <= names
    arc = next(span for span in spans if span.name == "gpu1: RESUMING -> STOP")
    assert "Invalid argument" in arc.error
    assert above(arc, by_id) == ["load/gpu1", "Switchover", "migration default/refused"]
    for span in spans:
        assert not span.parent or above(span, by_id)[-1] == "migration default/refused"
    root = next(span for span in spans if not span.parent)
    assert root.attributes["vfio.migration.reason"] == "StateRefused"
    assert root.error


def test_a_new_leader_goes_on_with_the_same_trace(traced: World, collector: Collector) -> None:
    with traced.workload("node-a", SENT):
        control = traced.control("node-a")
        control.fault(SENT[0], "read", hold=True, in_state=S.PRE_COPY)  # until the next one leads
        name = traced.apply(migration("led", pairs(SENT)))
        traced.in_pre_copy(name)
        second = traced.stack.start_operator("operator-1", OTLP_ENDPOINT=collector.endpoint)
        traced.operator.stop()
        traced.operator = second
        second.wait_for('"step": "Converge"')
        control.release(SENT[0])
        found = traced.finished(name)
    assert found["status"]["phase"] == "Succeeded", found["status"]["message"]
    assert found["status"]["traceID"] == trace_id(found["metadata"]["uid"])
    spans = whole(traced, collector, found["metadata"]["uid"])
    by_id = {span.span_id: span for span in spans}
    (root,) = [span for span in spans if not span.parent]
    assert (root.instance, root.name) == ("operator-1", "migration default/led")
    assert {span.instance for span in spans} == {"operator-0", "operator-1", "node-a", "node-b"}
    for span in spans:
        assert span is root or above(span, by_id)[-1] == root.name
    for instance in ("operator-0", "operator-1"):
        assert "PreCopy" in {span.name for span in spans if span.instance == instance}


def test_a_dead_collector_harms_nothing_and_is_told_once(traced: World, collector: Collector) -> None:
    collector.stop()
    for turn, (source, target) in enumerate((("node-a", "node-b"), ("node-a", "node-b"))):
        with traced.workload(source, SENT):
            found = traced.run(migration(f"unseen{turn}", pairs(SENT, source, target)))
            assert found["status"]["phase"] == "Succeeded", found["status"]["message"]
            assert traced.marks(target, SENT) == [mark(address) for address in SENT]
    children = [traced.operator, *(node.agent for node in traced.stack.nodes.values() if node.agent is not None)]
    for child in children:
        traced.stack.wait_until(
            lambda c=child: "spans do not reach the collector" in c.text(),  # type: ignore[misc]
            f"{child.name} says that the collector is away",
            60,
        )
    for child in children:
        child.stop()  # in good time, whatever is still to be sent
        lines = [json.loads(line) for line in child.text().splitlines() if line.startswith("{")]
        told = [line for line in lines if "collector" in line.get("event", "")]
        assert len(told) == 1, told
        assert not [line for line in child.text().splitlines() if "opentelemetry" in line]
