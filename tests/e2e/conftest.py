"""One cluster of real nodes for all end-to-end tests, with the chart installed as its users do.

VFIO_E2E_STAGE says which: "local", nodes on this machine with simulated devices (inside devtools.cluster.sandbox), or
"guests", virtual machines with the kernel's mtty devices. The tests are the same.
"""

import os
from collections.abc import Iterator

import pytest

from devtools.cluster.guest_cluster import guest_cluster
from devtools.cluster.local_cluster import local_cluster
from devtools.images import IMAGES, build_image
from e2e.installation import GuestDevices, Installation, SimulatedDevices

NODES = ("node-a", "node-b")
STAGE = os.environ.get("VFIO_E2E_STAGE", "")
# guests have fewer devices than these tests have pods
collect_ignore = [] if STAGE == "local" else ["test_evacuation.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What installs the chart comes first, and finds nothing."""
    items.sort(key=lambda item: "test_installed" not in item.nodeid)


@pytest.fixture(scope="session")
def installed(installation: Installation) -> Installation:
    """The chart is installed, by whichever test came first, and workloads may reach their node's agent."""
    installation.ready()
    return installation


@pytest.fixture(scope="session")
def installation() -> Iterator[Installation]:
    """The cluster, with nothing installed yet: the first test does that."""
    archives = [build_image(image) for image in IMAGES]
    if STAGE == "local":
        with local_cluster(NODES, archives) as cluster:
            yield Installation(cluster, SimulatedDevices())
    elif STAGE == "guests":
        with guest_cluster(NODES, archives) as cluster:
            yield Installation(cluster, GuestDevices())
    else:
        pytest.fail("run these tests by `make e2e`, which makes their nodes")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A test that fails says what the cluster showed then."""
    report = yield
    found = getattr(item, "funcargs", {}).get("installation")
    if report.when == "call" and report.failed and found is not None:
        report.sections.append(("cluster", found.describe()))
    return report
