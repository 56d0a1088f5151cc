"""One real control plane for all tests of this folder: kube-apiserver, etcd, controllers, nodes that only seem to run."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from devtools.plane import Plane

CRDS = Path(__file__).resolve().parents[2] / "crds"


@pytest.fixture(scope="session")
def plane() -> Iterator[Plane]:
    """A control plane with two nodes; what a test creates in it, it removes or keeps in a namespace of its own."""
    with Plane(fake_nodes=["node-a", "node-b"]) as plane:
        yield plane


@pytest.fixture(scope="session")
def crds(plane: Plane) -> Plane:
    """The control plane with our CRDs, served."""
    plane.kubectl("apply", "-f", str(CRDS))
    plane.kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", str(CRDS))
    return plane
