"""One real control plane for all tests of this folder.

It is kube-apiserver, etcd, scheduler and controllers, with nodes whose pods only seem to run.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster.objects import NAMESPACE
from devtools.plane import Plane

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


@pytest.fixture(scope="module")
def namespace(crds: Plane) -> Iterator[None]:
    """The namespace of the objects that cluster.objects makes; it and their devices go with the module."""
    crds.kubectl("create", "namespace", NAMESPACE)
    yield
    crds.kubectl("delete", "vfiodevices", "-l", f"test={NAMESPACE}")
    crds.kubectl("delete", "namespace", NAMESPACE)
