"""One real control plane for all tests of this folder.

It is kube-apiserver, etcd, scheduler and controllers, with nodes whose pods only seem to run.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.guarded import fill, operator_token
from cluster.objects import NAMESPACE
from cluster.pods_world import PATIENT, SETTINGS, PodsWorld
from cluster.users import User
from cluster.world import World, audit_arguments, devices
from devtools.plane import Plane
from devtools.stack import SimulatedDevice, Stack

CRDS = Path(__file__).resolve().parents[2] / "crds"


@pytest.fixture(scope="session")
def plane() -> Iterator[Plane]:
    """A control plane with two nodes. A test removes what it creates, or has a namespace of its own."""
    with Plane(fake_nodes=["node-a", "node-b"]) as plane:
        yield plane


@pytest.fixture(scope="session")
def crds(plane: Plane) -> Plane:
    """The control plane with our CRDs, served."""
    plane.kubectl("apply", "-f", str(CRDS))
    plane.kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", str(CRDS))
    return plane


@pytest.fixture(scope="session")
def empty_namespace(crds: Plane) -> Plane:
    """The control plane with the namespace that cluster.objects uses."""
    crds.kubectl("create", "namespace", NAMESPACE)
    return crds


@pytest.fixture(scope="module")
def namespace(empty_namespace: Plane) -> Iterator[Plane]:
    """The control plane for objects of cluster.objects, which go with the module."""
    yield empty_namespace
    empty_namespace.kubectl("delete", "vfiomigrations,vfioswitchovers", "--all", "-n", NAMESPACE)
    empty_namespace.kubectl("delete", "vfiodevices", "-l", f"test={NAMESPACE}")


@pytest.fixture(scope="session")
def guarded() -> Iterator[Stack]:
    """Control plane and chart with the objects of cluster.guarded: neither an operator nor an agent runs."""
    with Stack(["node-a", "node-b", "node-c"]) as stack:
        fill(stack)
        yield stack


@pytest.fixture(scope="session")
def operator_user(guarded: Stack, tmp_path_factory: pytest.TempPathFactory) -> User:
    """The operator's token on that control plane."""
    return operator_token(guarded, tmp_path_factory.mktemp("operator"))


@pytest.fixture(scope="session")
def audit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the API server of `world` writes its audit log."""
    return tmp_path_factory.mktemp("audit")


@pytest.fixture(scope="session")
def world(audit_folder: Path) -> Iterator[World]:
    """The whole product: control plane, operator, two nodes with agents, and a Node without one."""
    with Stack(["node-a", "node-b", "node-c"], apiserver_args=audit_arguments(audit_folder)) as stack:
        operator = stack.start_operator("operator-0")
        for name in ("node-a", "node-b"):
            stack.add_node(name, devices()).start_agent()
        operator.wait_for('"event": "leading"')
        for node in stack.nodes.values():
            assert node.agent is not None
            node.agent.wait_for('"event": "connected"')
        stack.devices_published(2 * 7)
        yield World(stack, operator)


@pytest.fixture(scope="session")
def pods() -> Iterator[PodsWorld]:
    """Two nodes with agents, and an operator that soon gives up a counterpart that does not run."""
    with Stack(["node-a", "node-b"]) as stack:
        operator = stack.start_operator("operator-0", **SETTINGS, **PATIENT)
        world = PodsWorld(stack, operator)
        for name in ("node-a", "node-b"):
            world.start(name, [SimulatedDevice(f"sim{i}") for i in range(3)])
        operator.wait_for('"event": "leading"')
        stack.devices_published(2 * 3)
        yield world
