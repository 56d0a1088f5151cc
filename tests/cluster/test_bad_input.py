"""Wrong input is refused early, with a message that names the field or device; nothing is touched."""

import errno
from typing import Any

import pytest

from cluster.test_invalid_objects import Refused, record
from cluster.world import World, condition, migration, pairs

REFUSED: list[tuple[str, list[Any], dict[str, Any], str, str]] = [
    (
        "unknown-node",
        [("gpu0", "node-a", "sim0", "node-z", "sim0")],
        {},
        "UnknownNode",
        "pair gpu0: target node node-z does not exist; `kubectl get nodes` lists what there is",
    ),
    (
        "no-agent",
        [("gpu0", "node-a", "sim0", "node-c", "sim0")],
        {},
        "AgentNotConnected",
        "pair gpu0: target node node-c has no connected vfio-agent; look at its agent pod and its log",
    ),
    (
        "unknown-device",
        [("gpu0", "node-a", "sim9", "node-b", "sim0")],
        {},
        "UnknownDevice",
        "pair gpu0: source device sim9 does not exist on node node-a; `kubectl get vfd` lists what there is",
    ),
    (
        "not-migratable",
        [("gpu0", "node-a", "rigid", "node-b", "rigid")],
        {},
        "DeviceNotMigratable",
        "pair gpu0: source device rigid on node node-a (driver vfio-sim) cannot migrate",
    ),
    (
        "target-has-holder",
        [("gpu0", "node-a", "sim0", "node-a", "sim1")],
        {},
        "TargetHasHolder",
        "pair gpu0: target device sim1 on node node-a is held by workload test",
    ),
    (
        "source-not-open",
        [("gpu0", "node-b", "sim0", "node-b", "sim1")],
        {},
        "SourceNotHeld",
        "pair gpu0: source device sim0 on node node-b is not open",
    ),
    (
        "duplicate-device",
        [("gpu0", "node-a", "sim0", "node-b", "sim0"), ("gpu1", "node-a", "sim0", "node-b", "sim1")],
        {},
        "DuplicateDevice",
        "device sim0 on node node-a is both pair gpu0 source and pair gpu1 source",
    ),
    (
        "other-model",
        [("gpu0", "node-a", "sim0", "node-b", "other")],
        {},
        "IncompatibleDevices",
        "pair gpu0: model differs: source sim0 has sim-vf, target other has other-vf",
    ),
    (
        "one-lacks-p2p",
        [("gpu0", "node-a", "sim0", "node-b", "sim0"), ("gpu1", "node-a", "nop2p", "node-b", "nop2p")],
        {},
        "P2PUnsupported",
        "pair gpu1: device nop2p on node node-a does not support P2P",
    ),
    (
        "pre-copy-required",
        [("gpu0", "node-a", "plain", "node-b", "plain")],
        {"strategy": {"preCopy": "Required"}},
        "PreCopyUnsupported",
        "pair gpu0: strategy.preCopy is Required, device plain on node node-a has flags STOP_COPY|P2P; use preCopy: "
        "Auto",
    ),
    (
        "other-flags",
        [("gpu0", "node-a", "plain", "node-b", "nop2p")],
        {},
        "IncompatibleDevices",
        "pair gpu0: migration flags differs: source plain has STOP_COPY|P2P, target nop2p has STOP_COPY|PRE_COPY",
    ),
    (
        "its-own-target",
        [("gpu0", "node-a", "sim0", "node-b", "sim0"), ("gpu1", "node-a", "sim1", "node-b", "sim0")],
        {},
        "DuplicateDevice",
        "device sim0 on node node-b is both pair gpu0 target and pair gpu1 target",
    ),
    (
        "pause-by-hook",
        pairs(["sim0"]),
        {"workload": {"pause": {"method": "Hook", "hook": {"port": 8099}}}},
        "UnsupportedSpec",
        "spec.workload.pause.method is Hook: it is for a pod that is moved, whose counterpart takes what it saves; "
        "give spec.source.podName, or use Freeze",
    ),
    (
        "plan-of-nothing",
        [("gpu0", "node-a", "sim0", "node-b", "nowhere")],
        {"mode": "Plan"},
        "UnknownDevice",
        "pair gpu0: target device nowhere does not exist on node node-b; `kubectl get vfd` lists what there is",
    ),
    (
        "rehearsal-of-nothing",
        [("gpu0", "node-a", "nowhere", "node-b", "sim0")],
        {"mode": "Rehearse"},
        "UnknownDevice",
        "pair gpu0: source device nowhere does not exist on node node-a; `kubectl get vfd` lists what there is",
    ),
]


@pytest.fixture(scope="module", autouse=True)
def _opened(world: World) -> Any:
    with world.workload("node-a", ["sim0", "sim1", "nop2p", "plain"]):
        yield


@pytest.mark.parametrize(("name", "wanted", "spec", "reason", "message"), REFUSED, ids=lambda v: str(v)[:20])
def test_it_is_refused_and_nothing_is_touched(
    world: World, name: str, wanted: list[Any], spec: dict[str, Any], reason: str, message: str
) -> None:
    before = [len(node.arcs()) for node in world.stack.nodes.values()]
    found = world.run(migration(name, wanted, **spec))
    assert found["status"]["phase"] == "Failed"
    validated, succeeded = condition(found, "Validated"), condition(found, "Succeeded")
    assert (validated["status"], validated["reason"]) == ("False", reason)
    assert (succeeded["status"], succeeded["reason"]) == ("False", reason)
    assert message in succeeded["message"]
    record([Refused(name, f"operator: {reason}", succeeded["message"])])
    assert [len(node.arcs()) for node in world.stack.nodes.values()] == before
    assert "finalizers" not in found["metadata"]
    assert all("claimRef" not in d["spec"] for d in world.stack.get("vfd")["items"])


@pytest.mark.parametrize(
    ("name", "node", "fault", "message"),
    [
        ("out-of-memory", "node-b", {"op": "write", "error": errno.ENOMEM}, "Cannot allocate memory"),
        ("out-of-disk", "node-b", {"op": "write", "error": errno.ENOSPC}, "No space left on device"),
        ("state-not-accepted", "node-b", {"op": "write", "error": errno.EFAULT}, "Bad address"),
        ("source-gone", "node-a", {"op": "read", "error": errno.ENODEV}, "No such device"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_device_that_cannot_says_so_with_errno_and_next_step(
    world: World, name: str, node: str, fault: dict[str, Any], message: str
) -> None:
    world.control(node).fault("sim0", **fault)
    found = world.run(migration(name, pairs(["sim0"])))
    succeeded = condition(found, "Succeeded")
    assert found["status"]["phase"] == "Failed"
    assert "device gpu0" in succeeded["message"]
    assert message in succeeded["message"]
    assert f"errno={fault['error']}" in succeeded["message"]
    assert world.states("node-a", ["sim0"]) == ["RUNNING"]
    record([Refused(name, f"operator: {succeeded['reason']}", succeeded["message"])])


def test_a_claimed_device_names_the_other_migration(world: World) -> None:
    first = migration("first", pairs(["sim0"]), strategy={"bandwidthLimitBytesPerSecond": 1 << 20})
    world.apply(first)
    world.in_pre_copy("first")
    found = world.run(migration("second", pairs(["sim0"])))
    assert condition(found, "Succeeded")["reason"] == "DeviceClaimed"
    assert "is claimed by migration default/first" in condition(found, "Succeeded")["message"]
    world.stack.kubectl("patch", "vfm", "first", "--type=merge", "-p", '{"spec":{"cancel":true}}')
    assert world.finished("first")["status"]["phase"] == "Cancelled"


def test_a_second_agent_for_a_node_is_refused_with_both_named(world: World) -> None:
    node = world.stack.nodes["node-a"]
    first = node.agent
    folder = node.dir
    second = node.start_agent(
        STATE_DIR=str(folder / "state2"), RUNTIME_DIR=str(folder / "run2"), BROKER_SOCKET=str(folder / "broker2")
    )
    node.agent = first
    try:
        second.wait_for("node node-a is served by agent pod vfio-agent-node-a")
        assert "one agent per node" in second.text()
    finally:
        second.stop()


def test_a_second_agent_with_the_same_journal_does_not_start(world: World) -> None:
    node = world.stack.nodes["node-a"]
    first = node.agent
    try:
        with pytest.raises(RuntimeError, match="one agent per node; stop the other first"):
            node.start_agent()
    finally:
        node.agent = first
