"""A pod's cgroup is frozen and thawed, on the kernel that is here: by the hierarchy of either version that it has."""

import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from loopback.pods_world import MOUNTED, Pod, Stubborn
from vfio_agent.freezer import end, freeze, thaw
from vfio_agent.pods import NodeFolders, PodRef, Pods
from vfio_api.errors import Reason, WorkloadError


@pytest.fixture(params=MOUNTED)
def pod(request: pytest.FixtureRequest) -> Iterator[Pod]:
    made = Pod(Path(request.param))
    yield made
    made.close()


def test_the_processes_of_a_pod_are_those_of_its_cgroup(pod: Pod) -> None:
    assert pod.pods.members(pod.uid) == {pod.process.pid}
    forked = pod.run(["cat"])
    assert pod.pods.members(pod.uid) == {pod.process.pid, forked.pid}
    assert pod.pods.members(str(uuid.uuid4())) == set()
    elsewhere = Pods(NodeFolders(cgroups=Path("/nowhere")))
    assert elsewhere.members(pod.uid) == set(pod.pods.processes(pod.uid))


def test_a_frozen_pod_does_nothing_until_it_is_thawed(pod: Pod) -> None:
    assert pod.runs
    freeze(pod.pods, pod.ref, 10)
    freeze(pod.pods, pod.ref, 10)  # it is
    assert pod.frozen
    assert pod.pods.uid_of(pod.process.pid) == pod.uid
    assert pod.pods.processes(pod.uid) == [pod.process.pid]
    pod.ask()
    assert pod.silent()
    assert thaw(pod.pods, pod.ref)
    assert pod.answers()
    assert pod.runs


def test_a_pod_that_has_ended_is_told_of(pod: Pod) -> None:
    gone = PodRef(str(uuid.uuid4()), "default", "gone")
    assert not thaw(pod.pods, gone)
    with pytest.raises(WorkloadError, match="pod default/gone has no cgroup on this node: it has ended") as raised:
        freeze(pod.pods, gone, 1)
    assert raised.value.reason is Reason.POD_GONE


def test_a_frozen_pod_ends_without_having_run_again(pod: Pod) -> None:
    freeze(pod.pods, pod.ref, 10)
    pod.ask()
    end(pod.pods, pod.ref)
    assert pod.process.wait(10) == -9
    assert pod.process.stdout is not None
    assert pod.process.stdout.read() == b"", "it has not answered what it was asked while it was frozen"
    end(pod.pods, PodRef(str(uuid.uuid4())))


@pytest.mark.parametrize("version", [1, 2])
def test_a_pod_counts_as_frozen_only_if_the_kernel_says_so(tmp_path: Path, version: int) -> None:
    stubborn = Stubborn(tmp_path, version)
    with pytest.raises(WorkloadError, match=r"pod team/stubborn was not frozen within 0.05 s: .*/proc/PID/stack"):
        freeze(Pods(stubborn.folders), stubborn.ref, 0.05)


@pytest.mark.parametrize("version", [1, 2])
def test_a_freeze_that_was_called_off_ends(tmp_path: Path, version: int) -> None:
    """Long before its time is over: the test would not wait for that."""
    stubborn, called_off = Stubborn(tmp_path, version), threading.Event()
    called_off.set()
    with pytest.raises(WorkloadError, match="pod team/stubborn was not frozen: the migration has turned back"):
        freeze(Pods(stubborn.folders), stubborn.ref, 100_000, called_off)


def test_what_cannot_be_frozen_says_where_it_is(tmp_path: Path) -> None:
    stubborn = Stubborn(tmp_path, 2)
    folder = Pods(stubborn.folders).cgroup(stubborn.uid)
    assert folder is not None
    (folder / "cgroup.events").unlink()
    with pytest.raises(WorkloadError, match=f"pod team/stubborn could not be frozen: .*; its cgroup is {folder}"):
        freeze(Pods(stubborn.folders), stubborn.ref, 10)
