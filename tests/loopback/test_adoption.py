"""The fd of a device is found in a running process and duplicated: files stand in for devices, the kernel is real."""

import contextlib
import errno
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from vfio_agent.adoption import NAMED, Opening, devices_of, duplicate, find
from vfio_agent.devices.openers import Node
from vfio_agent.devices.protocol import DeviceInfo, Opener
from vfio_agent.holdings import Holdings
from vfio_agent.inventory import Inventory
from vfio_agent.metrics import AgentMetrics
from vfio_agent.pods import NodeFolders, Pods
from vfio_api.errors import DeviceError, Reason

HOLD = """
import sys
held = [open(path, "r+b") for path in sys.argv[1:]]
print(held[0].fileno(), flush=True)
sys.stdin.read()
"""
UID = str(uuid.uuid4())
ANONYMOUS = "anon_inode:[vfio-device]"


@dataclass
class World:
    """Processes that all belong to one pod. /proc is the kernel's but for their cgroups."""

    folder: Path
    closing: contextlib.ExitStack
    processes: dict[int, "subprocess.Popen[str]"] = field(default_factory=dict)

    def device(self, name: str) -> Path:
        """A file at a path that ends as a device node's does."""
        path = self.folder / "dev/vfio/devices" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
        return path

    def plain(self) -> Path:
        """A file that is no device."""
        path = self.folder / "plain"
        path.touch()
        return path

    def process(self, *paths: Path) -> tuple[int, int]:
        """A process of the pod with these files open: its number, and the fd of the first."""
        started = subprocess.Popen(
            [sys.executable, "-c", HOLD, *map(str, paths)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        process = self.closing.enter_context(started)
        self.closing.callback(process.kill)
        assert process.stdout is not None
        fd = int(process.stdout.readline())
        self.processes[process.pid] = process
        folder = self.folder / "proc" / str(process.pid)
        folder.mkdir(parents=True)
        for name in ("fd", "fdinfo", "comm"):
            (folder / name).symlink_to(f"/proc/{process.pid}/{name}")
        (folder / "cgroup").write_text(f"0::/kubepods/pod{UID}/container\n")
        return process.pid, fd

    def replaces(self, pid: int, links: dict[int, str], info: bytes = b"pos:\t0\n") -> None:
        """The process has these files instead, as its folder in /proc shows them."""
        folder = self.folder / "proc" / str(pid)
        for name in ("fd", "fdinfo"):
            (folder / name).unlink()
            (folder / name).mkdir()
        for number, link in links.items():
            (folder / "fd" / str(number)).symlink_to(link)
            (folder / "fdinfo" / str(number)).write_bytes(info)

    def ends(self, pid: int) -> None:
        """The process is killed; what its folder points to goes with it."""
        process = self.processes.pop(pid)
        process.kill()
        process.wait()

    @property
    def pods(self) -> Pods:
        return Pods(NodeFolders(proc=self.folder / "proc"))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with contextlib.ExitStack() as closing:
        yield World(tmp_path, closing)


NODES = (Node("gpu", "vfio0", ""), Node("nic", "vfio1", ""))


def test_the_fd_of_a_running_process_is_duplicated(world: World) -> None:
    pid, fd = world.process(world.device("vfio0"), world.device("vfio1"))
    opening = find(world.pods, UID, "gpu", NODES)
    assert opening == Opening(pid, opening.command if opening else "", fd)
    taken = duplicate(world.pods, opening, UID)
    with open(taken, "rb") as file:
        assert os.pread(file.fileno(), 5, 0) == b"vfio0"
        assert not os.get_inheritable(taken)
    assert find(world.pods, UID, "absent", NODES) is None
    assert find(world.pods, str(uuid.uuid4()), "gpu", NODES) is None


def test_two_processes_with_the_device_are_named_and_none_is_taken(world: World) -> None:
    gpu = world.device("vfio0")
    first, second = world.process(gpu), world.process(gpu)
    with pytest.raises(DeviceError) as raised:
        find(world.pods, UID, "gpu", NODES)
    assert raised.value.reason is Reason.DEVICE_AMBIGUOUS
    for pid, fd in (first, second):
        assert f"process {pid} (python" in raised.value.message
        assert f"fd {fd}" in raised.value.message


def test_a_process_with_the_device_twice_is_one(world: World) -> None:
    gpu = world.device("vfio0")
    pid, fd = world.process(gpu, gpu)
    opening = find(world.pods, UID, "gpu", NODES)
    assert opening is not None
    assert (opening.pid, opening.fd) == (pid, fd)


def test_many_processes_with_the_device_are_not_all_listed(world: World) -> None:
    gpu = world.device("vfio0")
    pids = [world.process(gpu)[0] for _ in range(NAMED + 2)]
    with pytest.raises(DeviceError) as raised:
        find(world.pods, UID, "gpu", NODES)
    assert raised.value.message.count("process ") >= NAMED
    assert f"process {max(pids)}" not in raised.value.message
    assert " and 2 more: one process must hold it" in raised.value.message


def test_what_processes_have_open_is_found_whole(world: World) -> None:
    gpu, nic = world.device("vfio0"), world.device("vfio1")
    one, _ = world.process(gpu)
    two, _ = world.process(nic)
    assert devices_of(world.pods, [one], NODES) == {"gpu"}
    assert devices_of(world.pods, [one, two], NODES) == {"gpu", "nic"}
    world.ends(one)
    assert devices_of(world.pods, [one], NODES) == set()


def test_what_the_kernel_does_not_name_is_open_if_all_of_its_group_is(world: World) -> None:
    pid, _ = world.process(world.plain())
    world.replaces(pid, {3: "/dev/vfio/42", 7: ANONYMOUS, 9: ANONYMOUS})
    twins = (Node("gpu", "", "42"), Node("nic", "", "42"))
    assert devices_of(world.pods, [pid], twins) == {"gpu", "nic"}
    assert devices_of(world.pods, [pid], (*twins, Node("audio", "", "42"))) == set()


def test_devices_that_the_kernel_does_not_name_are_listed_and_none_is_taken(world: World) -> None:
    """An older kernel: three devices of one group, and two anonymous files, which may be any of them."""
    pid, _ = world.process(world.plain())
    world.replaces(pid, {3: "/dev/vfio/42", 7: ANONYMOUS, 9: ANONYMOUS})
    twins = (Node("gpu", "", "42"), Node("nic", "", "42"), Node("audio", "", "42"))
    for address in ("gpu", "nic"):
        with pytest.raises(DeviceError) as raised:
            find(world.pods, UID, address, twins)
        assert raised.value.reason is Reason.DEVICE_AMBIGUOUS
        for fd in (7, 9):
            assert f"process {pid} (python" in raised.value.message
            assert f"fd {fd}" in raised.value.message
        assert "this kernel does not say which file is which device" in raised.value.message
        assert '{"adopt": ADDRESS, "fd": N}' in raised.value.message
    assert find(world.pods, UID, "other", twins) is None


def test_devices_that_the_kernel_does_not_name_are_had_by_their_group_if_all_are_open(world: World) -> None:
    pid, _ = world.process(world.plain())
    world.replaces(pid, {3: "/dev/vfio/42", 7: ANONYMOUS, 9: ANONYMOUS})
    for address in ("gpu", "nic"):
        opening = find(world.pods, UID, address, (Node("gpu", "", "42"), Node("nic", "", "42")))
        assert opening is not None
        assert (opening.pid, opening.fd, opening.address) == (pid, 3, address)
        assert str(opening).endswith("fd 3 (its group)")


def test_what_is_no_group_gives_no_device(world: World) -> None:
    pid, fd = world.process(world.plain())
    files = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="ioctl"):
        duplicate(world.pods, Opening(pid, "python", fd, "gpu"), UID)
    assert len(os.listdir("/proc/self/fd")) <= files


def test_a_process_that_ends_between_find_and_duplicate_is_told_of(world: World) -> None:
    pid, _ = world.process(world.device("vfio0"))
    opening = find(world.pods, UID, "gpu", NODES)
    assert opening is not None
    files = len(os.listdir("/proc/self/fd"))
    world.ends(pid)
    with pytest.raises(ProcessLookupError):
        duplicate(world.pods, opening, UID)
    assert len(os.listdir("/proc/self/fd")) <= files
    assert find(world.pods, UID, "gpu", NODES) is None, "what is left in /proc of it is no process"


def test_a_file_that_was_closed_between_find_and_duplicate_is_told_of(world: World) -> None:
    pid, fd = world.process(world.device("vfio0"))
    opening = find(world.pods, UID, "gpu", NODES)
    assert opening is not None
    with pytest.raises(OSError, match=f"pidfd_getfd of fd {fd + 40}: Bad file descriptor"):
        duplicate(world.pods, Opening(pid, opening.command, fd + 40), UID)


def test_a_pod_with_nothing_open_has_nothing(world: World) -> None:
    world.process(world.plain())
    assert find(world.pods, UID, "gpu", NODES) is None


ODD = (b"\xff\xfe\x00py", b"", b"a b\nc", b"(x) 7", "\u202eexe".encode())


@pytest.mark.parametrize("comm", ODD)
def test_a_process_may_be_called_anything(world: World, comm: bytes) -> None:
    """PR_SET_NAME takes any bytes; who is called so must not keep others' devices from being found."""
    pid, fd = world.process(world.device("vfio0"))
    (world.folder / "proc" / str(pid) / "comm").unlink()
    (world.folder / "proc" / str(pid) / "comm").write_bytes(comm)
    opening = find(world.pods, UID, "gpu", NODES)
    assert opening is not None
    assert (opening.pid, opening.fd) == (pid, fd)
    assert str(opening)


def test_what_is_odd_in_proc_is_passed_over(world: World) -> None:
    pid, fd = world.process(world.device("vfio0"))
    proc = world.folder / "proc"
    for name, cgroup in {"7777777": b"\xff\xfe\n0::/kubepods\xff/x\n", "7777778": b"", "7777779": b"\0" * 9}.items():
        (proc / name).mkdir()
        (proc / name / "cgroup").write_bytes(cgroup)
    (proc / "7777780").write_text("a file")
    (proc / "self").symlink_to(proc / str(pid))
    (proc / "\u0661").mkdir()  # a number, to Python
    (proc / "7777781").mkdir()
    (proc / "7777781" / "cgroup").write_text(f"0::/kubepods/pod{UID}/c\n")  # it has no files: it ends
    opening = find(world.pods, UID, "gpu", NODES)
    assert opening is not None
    assert (opening.pid, opening.fd) == (pid, fd)
    assert world.pods.processes(str(uuid.uuid4())) == []


INFOS = (b"\xff\xfe", b"", b"vfio-device-syspath:\n", b"vfio-device-syspath: /\xff/gpu \n" * 3)


@pytest.mark.parametrize("info", INFOS)
def test_odd_fdinfo_names_no_device(world: World, info: bytes) -> None:
    pid, _ = world.process(world.plain())
    world.replaces(pid, {7: ANONYMOUS}, info)
    found = find(world.pods, UID, "nic", NODES)
    assert found is None


def test_a_number_that_is_another_processs_by_now_is_not_taken(world: World) -> None:
    pid, fd = world.process(world.device("vfio0"))
    (world.folder / "proc" / str(pid) / "cgroup").write_text("0::/system.slice\n")
    with pytest.raises(ProcessLookupError, match="has ended"):
        duplicate(world.pods, Opening(pid, "python", fd), UID)


def test_what_cannot_be_duplicated_says_so(world: World) -> None:
    pid, _ = world.process(world.device("vfio0"))
    with pytest.raises(OSError, match="pidfd_getfd of fd 999: Bad file descriptor"):
        duplicate(world.pods, Opening(pid, "python", 999), UID)


class Stranger:
    """A backend to which the file is another device."""

    name = "stranger"

    def nodes(self) -> Sequence[Node]:
        """As sysfs has them."""
        return NODES

    def list(self) -> Sequence[DeviceInfo]:
        """One device, open in a process."""
        return [DeviceInfo("gpu", "driver", "model", Opener(self.pid, "python"))]

    def adopt(self, address: str, _fds: Sequence[int]) -> Any:
        """Not that."""
        raise OSError(errno.ENOTTY, f"{address} cannot be asked")

    pid = 0


def test_a_device_that_the_inventory_only_looks_at_is_let_go_of_in_any_case(world: World) -> None:
    """It looks every few seconds: what it kept open of each look would be an agent's end."""
    backend: Any = Stranger()
    backend.pid, _ = world.process(world.device("vfio0"))
    keeper: Any = None
    api: Any = None
    holdings = Holdings({"stranger": backend}, keeper, "boot")
    inventory = Inventory("node", {"stranger": backend}, holdings, world.pods, api, AgentMetrics("test"))
    files = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        (status,) = [inventory._status(backend, info) for info in backend.list()]
        assert status["pod"]["uid"] == UID
        assert "gpu cannot be asked" in status["message"]
    assert len(os.listdir("/proc/self/fd")) == files
