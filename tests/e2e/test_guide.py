"""docs/guide/move-a-pod.md as it is written: its files, its commands, and what it says comes of them."""

import json
from collections.abc import Iterator

import pytest

from cluster.cli_world import Plugin
from devtools.images import ROOT
from e2e.installation import GuestDevices, Installation

EXAMPLES, SPACE = ROOT / "examples", "vfio-try"
DEVICE = "counter.py, sim0]"  # as the example's command ends


@pytest.fixture
def counter(installed: Installation) -> Iterator[Installation]:
    """The pod of counter.yaml counts on node-a, by a device of this stage."""
    cluster = installed.cluster
    text = (EXAMPLES / "counter.yaml").read_text()
    assert DEVICE in text
    address = installed.devices.of(cluster, "node-a")[0]
    cluster.kubectl("apply", "-f", "-", stdin=text.replace(DEVICE, f"counter.py, {address}]"))
    program = EXAMPLES / "counter/counter.py"
    cluster.kubectl("create", "configmap", "counter", "-n", SPACE, f"--from-file={program}")
    cluster.kubectl("wait", "-n", SPACE, "--for=condition=Ready", "pod/counter", "--timeout=2m", timeout=150)
    yield installed
    cluster.kubectl("delete", "namespace", SPACE, "--wait=true")
    for node in cluster.nodes:
        installed.close(node, installed.devices.of(cluster, node)[0])


def counts(installation: Installation, pod: str) -> list[tuple[str, int]]:
    """What a counter has said so far, as far as its log tells whole lines."""
    log = installation.cluster.kubectl("logs", "-n", SPACE, pod)
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{") and line.endswith("}")]
    return [(line["what"], line["count"]) for line in lines if "count" in line]


def test_the_pod_of_the_guide_goes_on_at_the_other_node(counter: Installation) -> None:
    cluster = counter.cluster
    cluster.wait_until(lambda: len(counts(counter, "counter")) > 1, "the pod counts", 60)
    held = {d["status"].get("holder") for d in cluster.get("vfd")["items"] if d["spec"]["nodeName"] == "node-a"}
    assert f"pod {SPACE}/counter" in held
    before = counts(counter, "counter")[-1][1]

    plugin = Plugin(cluster.plane.kubeconfig)
    planned = plugin.good("plan", "-n", SPACE, "--from-pod", "counter", "--to-node", "node-b")
    assert " ✓ pod: counter on node-a with 1 device → a counterpart on node-b\n" in planned

    cluster.kubectl("apply", "-f", str(EXAMPLES / "move-counter.yaml"))
    cluster.kubectl("wait", "-n", SPACE, "--for=condition=Finished", "vfm/move-counter", "--timeout=2m", timeout=150)
    ended = cluster.get("vfm", "-n", SPACE, "move-counter")["status"]
    assert ended["phase"] == "Succeeded", ended.get("message")
    assert ended["downtimeMicroseconds"] > 0
    assert ended["workload"]["sourcePod"]["name"] == "counter"

    told = plugin.good("explain", "-n", SPACE, "move-counter")
    assert (
        f"The pods: counter on node-a with 1 device → pod {ended['workload']['targetPod']['name']} on node-b." in told
    )
    assert "pause the workload" in plugin.good("timeline", "-n", SPACE, "move-counter")

    (pod,) = cluster.get("pods", "-n", SPACE, "-l", "app=counter")["items"]
    name = pod["metadata"]["name"]
    assert name == ended["workload"]["targetPod"]["name"]
    assert name.startswith("counter-")
    assert pod["spec"]["nodeName"] == "node-b"
    cluster.wait_until(lambda: len(counts(counter, name)) > 4, "its counterpart counts", 60)
    (first, taken), *rest = counts(counter, name)
    assert first == "take"
    done = [count for what, count in rest if what == "done"]
    modulus = 256 if isinstance(counter.devices, GuestDevices) else 2**64  # what a device can hold
    assert (taken - before) % modulus < modulus // 2
    assert done == [(taken + 1 + n) % modulus for n in range(len(done))], "no count was lost or repeated"
