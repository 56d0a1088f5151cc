"""VFIOEvacuations on a real API server, of devices that workloads without pods have open; pods: see tests/e2e."""

import errno
import json
import secrets
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from cluster.world import SETS, World, mark
from vfio_agent.broker import request_device
from vfio_agent.devices.simulated import SimulatedBackend
from vfio_api.device import DeviceState as S

Json = dict[str, Any]
PER_NODE = 2  # the operator's limit, by default
UNDERWAY = ("Preparing", "PreCopy", "Switchover", "Starting", "RollingBack")


@pytest.fixture
def used(world: World) -> Iterator[World]:
    """Four workloads on node-a have a device each; afterwards all is free again."""
    node = world.stack.nodes["node-a"]
    for number, address in enumerate(SETS):
        _, fds = request_device(node.broker_socket, address, f"w{number}")
        with SimulatedBackend(node.simulator_socket).adopt(address, fds) as device:
            device.write_region(0, mark(address))
    world.published("node-a", {address: f"workload w{number}" for number, address in enumerate(SETS)})
    yield world
    world.free()


def evacuate(world: World, **spec: Any) -> str:
    name = f"empty-{secrets.token_hex(3)}"
    body = {"apiVersion": "vfiomigration.io/v1alpha1", "kind": "VFIOEvacuation", "metadata": {"name": name}}
    world.stack.kubectl("apply", "-f", "-", input=json.dumps({**body, "spec": {"nodeName": "node-a", **spec}}))
    return name


def ended(world: World, name: str, timeout: int = 90) -> Json:
    world.stack.kubectl("wait", "--for=condition=Finished", f"vfe/{name}", f"--timeout={timeout}s")
    status: Json = world.stack.get("vfe", name)["status"]
    return status


def migrations(world: World, name: str) -> list[Json]:
    """Those of an evacuation: they say whose they are, and are in the operator's namespace."""
    found = world.stack.get("vfm", "-n", "vfio-migration", "-l", f"vfiomigration.io/evacuation={name}")["items"]
    assert all(m["metadata"]["ownerReferences"][0]["name"] == name for m in found)
    return list(found)


def at_once(made: list[Json]) -> int:
    """How many ran beside each other at most, by what their statuses say of when they began to and ended."""
    spans = []
    for status in (m["status"] for m in made):
        began = next(t["startTime"] for t in status["timings"] if t["step"] == "Claim")
        over = next(c["lastTransitionTime"] for c in status["conditions"] if c["type"] == "Finished")
        spans.append((datetime.fromisoformat(began), datetime.fromisoformat(over)))
    return max(sum(other[0] <= began < other[1] for other in spans) for began, _ in spans)


def phases(status: Json) -> Counter[str]:
    return Counter(item["phase"] for item in status["items"])


def condition(status: Json, kind: str) -> tuple[str, str]:
    return next((c["status"], c["reason"]) for c in status["conditions"] if c["type"] == kind)


def test_everything_in_use_is_moved_within_the_limits_and_each_item_says_where_to(used: World) -> None:
    name = evacuate(used)
    status = ended(used, name)
    assert status["message"] == "4 of 4 moved: nothing migratable is in use on node node-a"
    assert (status["total"], status["moved"], status["failed"]) == (4, 4, 0)
    assert (condition(status, "Finished")[0], condition(status, "Succeeded")) == ("True", ("True", "Succeeded"))
    assert {(i["name"], i["phase"], i["targetNode"], i["attempts"]) for i in status["items"]} == {
        (f"device {address}", "Moved", "node-b", 1) for address in SETS
    }
    made = migrations(used, name)
    assert at_once(made) == PER_NODE, "the limit is used, and kept"
    assert {m["metadata"]["name"] for m in made} == {item["migration"] for item in status["items"]}
    moved = {d["source"]["device"]: d["target"]["device"] for m in made for d in m["spec"]["devices"]}
    assert used.marks("node-b", [moved[address] for address in SETS]) == [mark(address) for address in SETS]


def test_to_nowhere_ends_and_says_what_is_missing_while_everything_runs_on(used: World) -> None:
    name = evacuate(used, targetNodes=["node-c", "nowhere"])
    used.stack.wait_until(
        lambda: "waits: no node has 1 x" in used.stack.get("vfe", name).get("status", {}).get("message", ""),
        "what it waits for is said",
    )
    status = ended(used, name)
    assert (status["phase"], phases(status)) == ("Failed", {"Failed": 4})
    assert condition(status, "Succeeded") == ("False", "Failed")
    missing = "no node has 1 x vfio-sim sim-vf free; looked at: none"
    assert status["message"] == f"4 of 4 could not be moved: device sim0: {missing}"
    assert {item["message"] for item in status["items"]} == {missing}
    assert migrations(used, name) == []
    assert set(used.states("node-a")) == {"RUNNING"}


def test_of_a_node_that_is_not_there_fails_and_of_an_idle_one_succeeds(world: World) -> None:
    status = ended(world, evacuate(world, nodeName="node-z"))
    assert (status["phase"], status["message"]) == ("Failed", "there is no node node-z: look at spec.nodeName")
    status = ended(world, evacuate(world, nodeName="node-c"))
    assert (status["phase"], status.get("total", 0)) == ("Succeeded", 0)


def test_cancel_takes_back_what_has_not_begun_and_lets_the_rest_arrive(used: World) -> None:
    for address in SETS:
        used.control("node-b").fault(address, "arc", arc=(S.RESUMING, S.STOP), delay_us=2_000_000)
    name = evacuate(used, strategy={"downtimeLimitMilliseconds": 10_000})

    def begun() -> int:
        return sum(m.get("status", {}).get("phase") in UNDERWAY for m in migrations(used, name))

    used.stack.wait_until(lambda: begun() == PER_NODE, "two move")
    used.stack.kubectl("patch", "vfe", name, "--type=merge", "-p", '{"spec": {"cancel": true}}')
    status = ended(used, name)
    assert (status["phase"], phases(status)) == ("Cancelled", {"Moved": 2, "Cancelled": 2})
    assert condition(status, "Succeeded") == ("False", "Cancelled")
    assert status["message"] == "cancelled: 2 of 4 moved, the others stay on node node-a"
    assert Counter(used.states("node-a"))["RUNNING"] >= 2


def test_what_cannot_be_moved_is_tried_again_and_said_with_the_reason(used: World) -> None:
    """One item fails for good; the others are moved all the same."""
    used.control("node-a").fault("sim1", "arc", arc=(S.RUNNING, S.PRE_COPY), error=errno.EIO, times=100)
    status = ended(used, evacuate(used), 180)
    assert (status["phase"], phases(status)) == ("Failed", {"Moved": 3, "Failed": 1})
    (failed,) = [item for item in status["items"] if item["phase"] == "Failed"]
    assert (failed["name"], failed["attempts"]) == ("device sim1", 3)
    assert failed["message"]
    assert status["message"] == f"1 of 4 could not be moved: device sim1: {failed['message']}"
