"""`kubectl vfio` on evacuations, policies and pods, against the real API server, operator and agents."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.cli_world import Plugin, as_plugin, ended, first_line, interrupt
from cluster.world import SETS, World, mark
from vfio_agent.broker import request_device
from vfio_cli.checks_of_moving import EVICTION_WEBHOOK

Json = dict[str, Any]
NODES = ("--from-node", "node-a", "--to-node", "node-b")


@pytest.fixture
def plugin(world: World) -> Iterator[Plugin]:
    """It leaves no evacuation, and none of what that has made."""
    yield Plugin(world.stack.plane.kubeconfig)
    world.stack.kubectl("delete", "vfe", "--all", "--cascade=foreground")


@contextmanager
def policies(world: World, *names: str) -> Iterator[None]:
    """Policies that select every migration, for the duration."""
    items = [
        {
            "apiVersion": "vfiomigration.io/v1alpha1",
            "kind": "VFIOMigrationPolicy",
            "metadata": {"name": name},
            "spec": {"strategy": {"downtimeLimitMilliseconds": 123}},
        }
        for name in names
    ]
    world.stack.kubectl("apply", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
    try:
        yield
    finally:
        world.stack.kubectl("delete", "vfp", *names)


def test_a_node_is_emptied_and_each_item_is_told(world: World, plugin: Plugin) -> None:
    with world.workload():
        ran = plugin.run("evacuate", "node-a", "--priority", "3", "--downtime-limit", "5s")
        assert ran.code == 0, ran
        lines = ran.out.splitlines()
        assert lines[0].startswith("vfioevacuation.vfiomigration.io/node-a-")
        assert lines[0].endswith(" created")
        assert any("device sim0: Moving, 4 devices → node-b (vfm node-a-" in line for line in lines), ran.out
        assert any(line.startswith(" ✓ device sim0: Moved, 4 devices → node-b") for line in lines), ran.out
        assert lines[-2].startswith(" ✓ Succeeded: 1 of 1 moved")
        assert lines[-1] == " → next: kubectl drain node-a --ignore-daemonsets"
        assert ran.error == "warning: node node-a takes new pods meanwhile: kubectl cordon node-a\n"
        assert world.marks("node-b", SETS) == [mark(address) for address in SETS]
    spec = world.stack.get("vfe", lines[0].partition("/")[2].split()[0])["spec"]
    assert (spec["nodeName"], spec["priority"]) == ("node-a", 3)
    assert spec["strategy"] == {"downtimeLimitMilliseconds": 5000}


def opened(world: World, node: str, address: str, workload: str) -> None:
    """Somebody has a device open besides."""
    for fd in request_device(world.stack.nodes[node].broker_socket, address, workload)[1]:
        os.close(fd)
    world.published(node, {address: f"workload {workload}"})


def test_one_that_runs_is_followed_and_cancelled_and_no_second_one_is_made(world: World, plugin: Plugin) -> None:
    with world.workload("node-a", ["sim0"]):
        # what waits: there is no room for it, while something else moves for long
        opened(world, "node-a", "nop2p", "second")
        opened(world, "node-b", "nop2p", "third")
        made = plugin.run("evacuate", "node-a", "--bandwidth-limit", "1M", "--no-wait", "-o", "json").data()
        name = made["metadata"]["name"]
        with plugin.start("evacuate", "node-a") as following:
            assert first_line(following) == f"vfioevacuation.vfiomigration.io/{name} is under way\n"
            ran = interrupt(following)
        assert ran.code == 130
        assert ran.error.startswith(f"error: VFIOEvacuation {name}: not waited for any longer, it goes on; kubectl")
        assert f"found VFIOEvacuation {name} under way; leave the other flags out" in plugin.refused(
            "evacuate", "node-a", "--to-node", "node-b"
        )
        assert "--cancel: expected no flags that say how a node is emptied" in plugin.refused(
            "evacuate", "node-a", "--to-node", "node-b", "--cancel", code=2
        )
        assert "found it in Running; it goes on: kubectl vfio evacuate node-a" in plugin.refused(
            "evacuate", "node-a", "--timeout", "0", "-o", "json"
        )
        moving = next(i for i in world.stack.get("vfe", name)["status"]["items"] if i["phase"] == "Moving")
        with plugin.start("evacuate", "node-a", "--cancel") as cancelling:
            assert first_line(cancelling) == f"vfioevacuation.vfiomigration.io/{name} is told to cancel\n"
            # what moves goes on, unless it is cancelled as well
            plugin.good("cancel", moving["migration"], "-n", moving["namespace"], "--yes", "--wait")
            ran = ended(cancelling)
        assert ran.code == 0, ran
        assert " ! device nop2p: Cancelled, 1 device: no node has 1 x vfio-sim" in ran.out
        assert " ! device sim0: Cancelled, 1 device (vfm node-a-" in ran.out
        assert " ! Cancelled: cancelled: 0 of 2 moved, the others stay on node node-a\n" in ran.out
        assert world.states("node-a", ["sim0"]) == ["RUNNING"]
    assert "Node node-a: expected an evacuation of it that is under way, found none; see kubectl get vfe" in (
        plugin.refused("evacuate", "node-a", "--cancel")
    )
    assert "Node nowhere: expected a node of that name, found none" in plugin.refused("evacuate", "nowhere")


def test_policies_in_conflict_are_told_by_the_doctor_and_by_what_they_refuse(world: World, plugin: Plugin) -> None:
    with world.workload("node-a", ["sim0"]):
        with policies(world, "cli-one"):
            ran = plugin.run("plan", *NODES, "-o", "json").data()
            assert ran["status"]["policy"] == "cli-one"
            assert ran["status"]["strategy"]["downtimeLimitMilliseconds"] == 123
        with policies(world, "cli-one", "cli-two"):
            refused = plugin.run("plan", *NODES)
            assert refused.code == 1
            assert " ✗ Failed: PolicyConflict: VFIOMigrationPolicies cli-one and cli-two select" in refused.out
            rows = json.loads(plugin.run("doctor", "-o", "json").out)["findings"]
            found = next(row for row in rows if row["subject"] == "VFIOMigrationPolicies cli-one and cli-two")
            assert found["result"] == "warning"
            assert "of migrations, every one is refused (PolicyConflict)" in found["found"]


def test_the_doctor_says_whether_drains_move_pods(world: World, plugin: Plugin) -> None:
    def said() -> str:
        rows = json.loads(plugin.run("doctor", "-o", "json").out)["findings"]
        return str(next(row["found"] for row in rows if row["subject"] == "eviction webhook"))

    assert said().startswith("is off: ")
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods/eviction"]}
    webhook = {
        "name": "evictions.vfiomigration.io",
        "clientConfig": {"url": "https://127.0.0.1:1/evictions"},
        "rules": [rule],
        "failurePolicy": "Ignore",
        "sideEffects": "NoneOnDryRun",
        "admissionReviewVersions": ["v1"],
        "namespaceSelector": {"matchLabels": {"nobody": "has-this"}},
    }
    body = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": EVICTION_WEBHOOK},
        "webhooks": [webhook],
    }
    world.stack.kubectl("create", "-f", "-", input=json.dumps(body))
    try:
        assert said().startswith("has no caBundle: ")
    finally:
        world.stack.kubectl("delete", "validatingwebhookconfiguration", EVICTION_WEBHOOK)


def test_a_pod_that_is_not_there_and_flags_that_reach_the_api_server(world: World, plugin: Plugin) -> None:
    ran = plugin.run("plan", "--from-pod", "nothing", "--to-node", "node-b")
    assert ran.code == 1
    assert " ! pod: nothing → a counterpart on node-b\n" in ran.out
    assert " ✗ Failed: UnknownPod: spec.source: pod default/nothing does not exist" in ran.out
    flags = ("--from-pod", "p", "--to-node", "node-b", "--dry-run", "-o", "json")
    hooked = plugin.run("migrate", *flags, "--pause", "hook", "--hook", "8080/vfio", "--pause-timeout", "7s").data()
    assert hooked["spec"]["workload"]["pause"]["hook"]["path"] == "/vfio"
    assert hooked["spec"]["workload"]["pause"]["timeoutSeconds"] == 7
    frozen = plugin.run("migrate", *flags, "--pause", "freeze", "--priority", "-5").data()["spec"]
    assert (frozen["workload"]["pause"]["method"], frozen["priority"]) == ("Freeze", -5)
    assert "--priority': Input should be less than or equal to 1000" in plugin.refused(
        "migrate", *flags, "--priority", "5000", code=2
    )
    assert "found --pause hook without --hook" in plugin.refused("migrate", *flags, "--pause", "hook", code=2)


def test_nodes_to_be_emptied_are_completed(world: World, tmp_path: Path) -> None:
    plane = world.stack.plane
    words = as_plugin(plane, tmp_path, "__complete", "vfio", "evacuate", "node-").splitlines()
    assert words == ["node-a", "node-b", ":4"]
    assert "evacuate" in as_plugin(plane, tmp_path, "__complete", "vfio", "evac").splitlines()
