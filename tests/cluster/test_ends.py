"""However a migration is ended, and whenever: its devices live on exactly one side and nothing is left behind."""

import json
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest

from cluster.world import SETS, Json, World, condition, mark, migration, pairs
from vfio_api.device import DeviceState as S

SLOW = {"strategy": {"bandwidthLimitBytesPerSecond": 4 << 20}}
STRIP = '{"metadata":{"finalizers":null}}'


def settled(world: World, side: str, addresses: list[str] = SETS) -> None:
    """Wait until the devices run on `side` with their marks and nowhere else, and nothing is claimed or left."""
    other = "node-b" if side == "node-a" else "node-a"
    world.stack.wait_until(
        lambda: all("claimRef" not in d["spec"] for d in world.stack.get("vfd")["items"]), "every claim is dropped", 60
    )
    world.published(other, dict.fromkeys(addresses, ""))
    assert world.states(side, addresses) == ["RUNNING"] * len(addresses)
    assert world.marks(side, addresses) == [mark(address) for address in addresses]
    totals = world.totals(side)
    assert (totals["lost"], totals["missing"], totals["doubled"]) == (0, 0, 0)
    world.stack.wait_until(lambda: _orphaned_switchovers(world) == [], "no VFIOSwitchover outlives its migration")


def _orphaned_switchovers(world: World) -> list[str]:
    """Those whose migration is gone; the garbage collector takes them once our finalizer is off."""
    migrations = {m["metadata"]["uid"] for m in world.stack.get("vfm", "-A")["items"]}
    return [
        s["metadata"]["name"]
        for s in world.stack.get("vfioswitchovers", "-A")["items"]
        if s["spec"]["migrationUID"] not in migrations
    ]


@contextmanager
def stopping_takes_its_time(world: World, seconds: int = 2) -> Iterator[None]:
    """One source's arc into STOP_COPY lasts that long, so that something can happen in the switchover."""
    world.control("node-a").fault("sim1", "arc", arc=(S.PRE_COPY_P2P, S.STOP_COPY), delay_us=seconds * 1_000_000)
    yield


def force_delete(world: World, name: str) -> None:
    """What people do to an object that does not go: delete it, and take its finalizer off before it was dealt with."""
    world.operator.signal(signal.SIGSTOP)
    try:
        world.stack.kubectl("delete", "vfm", name, "--wait=false")
        world.stack.kubectl("patch", "vfm", name, "--type=merge", "-p", STRIP)
    finally:
        world.operator.signal(signal.SIGCONT)


def in_switchover(world: World) -> None:
    world.stack.wait_until(
        lambda: any(s in ("STOP_COPY", "PRE_COPY_P2P") for s in world.states("node-a")), "a source is quiesced"
    )


def test_deleted_in_the_switchover_it_is_aborted_and_then_goes(world: World) -> None:
    with world.workload(), stopping_takes_its_time(world):
        world.apply(migration("deleted-late", pairs()))
        in_switchover(world)
        world.stack.kubectl("delete", "vfm", "deleted-late", "--timeout=30s")
        settled(world, "node-a")


def test_cancelled_in_the_switchover(world: World) -> None:
    with world.workload(), stopping_takes_its_time(world):
        world.apply(migration("cancelled-late", pairs()))
        in_switchover(world)
        world.stack.kubectl("patch", "vfm", "cancelled-late", "--type=merge", "-p", '{"spec":{"cancel":true}}')
        found = world.finished("cancelled-late")
        assert found["status"]["phase"] == "Cancelled"
        assert found["status"]["decision"]["outcome"] == "Abort"
        settled(world, "node-a")


def test_a_switchover_that_takes_too_long_is_aborted_with_the_device_it_waited_for(world: World) -> None:
    with world.workload(), stopping_takes_its_time(world, 3):
        found = world.run(migration("too-late", pairs(), strategy={"switchoverTimeoutSeconds": 1}))
        assert found["status"]["phase"] == "Failed"
        succeeded = condition(found, "Succeeded")
        assert succeeded["reason"] == "StepTimeout"
        assert (
            "BarrierB was not done within 1 s" in succeeded["message"]
            or "StopCopy was not reached within 1000 ms" in (succeeded["message"])
        )
        assert found["status"]["decision"]["outcome"] == "Abort"
        settled(world, "node-a")


def test_a_target_node_that_answers_nothing_in_pre_copy_ends_it_and_is_blanked_when_it_is_back(world: World) -> None:
    node = world.stack.nodes["node-b"]
    assert node.agent is not None
    with world.workload():
        strategy = {"bandwidthLimitBytesPerSecond": 1 << 20, "convergenceTimeoutSeconds": 25}
        world.apply(migration("silent", pairs(), strategy=strategy))
        world.in_pre_copy("silent")
        os.kill(node.agent.pid, signal.SIGSTOP)
        try:
            found = world.finished("silent")
        finally:
            os.kill(node.agent.pid, signal.SIGCONT)
        assert condition(found, "Succeeded")["reason"] in ("AgentLost", "StreamBroken")
        assert (
            "node-b" in condition(found, "Succeeded")["message"]
            or "127.0.0.1" in condition(found, "Succeeded")["message"]
        )
        settled(world, "node-a")


@pytest.mark.parametrize("moment", ["pre-copy", "switchover"])
def test_force_deleted_with_its_finalizer_stripped_it_is_rolled_back_all_the_same(world: World, moment: str) -> None:
    name = f"forced-{moment}"
    with world.workload(), stopping_takes_its_time(world) if moment == "switchover" else nullcontext():
        world.apply(migration(name, pairs(), **(SLOW if moment == "pre-copy" else {})))
        if moment == "pre-copy":
            world.in_pre_copy(name)
        else:
            in_switchover(world)
        force_delete(world, name)
        settled(world, "node-a")
        assert name not in world.stack.kubectl("get", "vfm")


def test_made_again_under_its_name_while_the_first_is_rolled_back(world: World) -> None:
    """The second has another UID: it inherits neither claims nor decision, and waits for nobody's devices."""
    with world.workload():
        world.apply(migration("twice", pairs(), **SLOW))
        world.in_pre_copy("twice")
        force_delete(world, "twice")
        found = world.run(migration("twice", pairs()))
        if found["status"]["phase"] == "Failed":  # it came while the first still had the devices
            assert condition(found, "Succeeded")["reason"] == "DeviceClaimed"
            settled(world, "node-a")
        else:
            settled(world, "node-b")


def test_its_namespace_deleted_in_mid_flight(world: World) -> None:
    with world.workload():
        world.stack.kubectl("create", "namespace", "doomed")
        made = migration("inside", pairs(), namespace="doomed", **SLOW)
        world.stack.kubectl("apply", "-f", "-", input=json.dumps(made))
        world.in_pre_copy("inside", "doomed")
        world.stack.kubectl("delete", "namespace", "doomed", "--timeout=60s")
        settled(world, "node-a")


def test_its_namespace_deleted_in_the_switchover(world: World) -> None:
    with world.workload(), stopping_takes_its_time(world, 8):
        world.stack.kubectl("create", "namespace", "doomed-late")
        made = migration("inside", pairs(), namespace="doomed-late")
        world.stack.kubectl("apply", "-f", "-", input=json.dumps(made))
        in_switchover(world)
        world.stack.kubectl("delete", "namespace", "doomed-late", "--timeout=60s")
        settled(world, "node-a")


def test_a_node_object_deleted_in_mid_flight_does_not_strand_the_devices(world: World) -> None:
    """Its agent goes on as long as it is connected: the machine is there, only its object is not."""
    node = world.stack.get("node", "node-a")
    kept = {key: node["metadata"][key] for key in ("name", "labels", "annotations") if key in node["metadata"]}
    with world.workload():
        try:
            world.apply(migration("nodeless", pairs(), **SLOW))
            world.in_pre_copy("nodeless")
            world.stack.kubectl("delete", "node", "node-a")
            world.stack.kubectl("patch", "vfm", "nodeless", "--type=merge", "-p", '{"spec":{"cancel":true}}')
            assert world.finished("nodeless")["status"]["phase"] == "Cancelled"
            settled(world, "node-a")
        finally:
            again = {"apiVersion": "v1", "kind": "Node", "metadata": kept, "spec": node.get("spec", {})}
            world.stack.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", input=json.dumps(again))


def test_applied_again_by_gitops_it_does_nothing_and_after_deletion_it_is_refused(world: World) -> None:
    made = migration("gitops", pairs(["sim0", "sim1"]))
    with world.workload("node-a", ["sim0", "sim1"]):
        first = world.run(made)
        assert first["status"]["phase"] == "Succeeded"
        again = world.run(made)
        assert again["metadata"]["uid"] == first["metadata"]["uid"]
        assert again["status"] == first["status"]
        world.stack.kubectl("delete", "vfm", "gitops")
        restored = world.run(made)
        assert restored["status"]["phase"] == "Failed"
        assert condition(restored, "Succeeded")["reason"] == "SourceNotHeld"
        assert world.marks("node-b", ["sim0", "sim1"]) == [mark("sim0"), mark("sim1")]


def test_a_finished_migration_goes_when_its_time_is_over_and_is_kept_current_until_then(world: World) -> None:
    found = world.run(migration("kept", [("gpu0", "node-a", "nowhere", "node-b", "sim0")]))
    assert found["status"]["observedGeneration"] == found["metadata"]["generation"] == 1
    patch = '{"spec":{"ttlSecondsAfterFinished":3600}}'
    world.stack.kubectl("patch", "vfm", "kept", "--type=merge", "-p", patch)
    world.stack.wait_until(
        lambda: world.stack.get("vfm", "kept")["status"]["observedGeneration"] == 2, "its status is of generation 2"
    )
    world.stack.kubectl("wait", "--for=condition=Finished", "vfm/kept", "--timeout=5s")
    world.stack.kubectl("patch", "vfm", "kept", "--type=merge", "-p", '{"spec":{"ttlSecondsAfterFinished":0}}')
    world.stack.wait_until(lambda: "kept" not in world.stack.kubectl("get", "vfm"), "it is deleted")


def test_a_copied_manifest_with_the_label_of_finished_ones_is_looked_after_all_the_same(world: World) -> None:
    """As `kubectl get -o yaml`, edited and created again, or a restored backup has it."""
    made = migration("copied", [("gpu0", "node-a", "nowhere", "node-b", "sim0")])
    made["metadata"]["labels"] = {"vfiomigration.io/finished": "true"}
    found = world.run(made)
    assert condition(found, "Succeeded")["reason"] == "UnknownDevice"


def test_the_label_of_finished_ones_on_one_that_is_under_way_changes_nothing(world: World) -> None:
    with world.workload("node-a", ["sim0"]):
        world.apply(migration("labelled", pairs(["sim0"]), **SLOW))
        world.in_pre_copy("labelled")
        world.stack.kubectl("label", "vfm", "labelled", "vfiomigration.io/finished=true")
        found = world.finished("labelled", 90)
        assert found["status"]["phase"] == "Succeeded", found["status"]["message"]
        # the status comes first: who waits for Finished may be faster than the finalizer's end
        world.stack.wait_until(
            lambda: "finalizers" not in world.stack.get("vfm", "labelled")["metadata"], "the finalizer is dropped"
        )
        assert world.marks("node-b", ["sim0"]) == [mark("sim0")]


STEPS = ["Claim", "PrepareSources", "PrepareTargets", "PreCopy", "Converge", "BarrierB", "BarrierD"]


@pytest.mark.parametrize("step", STEPS)
def test_cancelled_as_soon_as_a_step_is_seen_it_ends_on_exactly_one_side(world: World, step: str) -> None:
    """The patch races with the step: whichever wins, both sides agree."""
    name = f"cancel-at-{step.lower()}"

    def seen() -> bool:
        return any(
            entry.get("migration") == f"default/{name}" and entry.get("step") == step
            for entry in _entries(world.operator.text())
        )

    with world.workload():
        world.apply(migration(name, pairs()))
        world.stack.wait_until(seen, step)
        world.stack.kubectl("patch", "vfm", name, "--type=merge", "-p", '{"spec":{"cancel":true}}')
        found = world.finished(name)
        assert found["status"]["phase"] in ("Cancelled", "Succeeded"), found["status"]["message"]
        settled(world, "node-b" if found["status"]["phase"] == "Succeeded" else "node-a")


def _entries(text: str) -> Iterator[Json]:
    for line in text.splitlines():
        if '"step"' in line:
            entry: Any = json.loads(line)
            yield entry


def test_an_agent_two_versions_older_is_refused_with_both_versions_named(world: World) -> None:
    node = world.stack.nodes["node-a"]
    first = node.agent
    assert first is not None
    first.stop()
    try:
        old = node.start_agent(module="mutants.agent_of_an_old_protocol")
        old.wait_for("upgrade the older one")
        said = re.search(r"agent on node node-a speaks protocol -?\d+, this operator speaks \d+ to \d+", old.text())
        assert said is not None
        old.stop()
    finally:
        node.start_agent().wait_for('"event": "connected"')


def test_a_node_whose_clock_jumps_migrates_all_the_same(world: World) -> None:
    """Deadlines are durations on a clock that does not jump; times of day are for people."""
    node = world.stack.nodes["node-b"]
    assert node.agent is not None
    node.agent.stop()
    try:
        node.start_agent(module="mutants.agent_whose_clock_jumps").wait_for('"event": "connected"')
        with world.workload():
            found = world.run(migration("jumpy", pairs()))
            assert found["status"]["phase"] == "Succeeded", found["status"]["message"]
            settled(world, "node-b")
    finally:
        node.agent.stop()
        node.start_agent().wait_for('"event": "connected"')
