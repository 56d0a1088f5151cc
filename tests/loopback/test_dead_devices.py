"""Kernel devices that were closed, or that answer nothing any more: they are said to be lost, and harm nobody else.

An fd opened with O_PATH is one on which every ioctl fails, as with a device whose function fell off the bus.
"""

import errno
import os
import resource
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from loopback.agents_world import Node
from vfio_agent.devices.kernel import KernelBackend, KernelDevice, write_whole
from vfio_agent.devices.protocol import DeviceInfo, Opener
from vfio_agent.devices.simulated import SimulatedBackend
from vfio_agent.holdings import Holdings
from vfio_agent.inventory import Inventory
from vfio_agent.keeper import KeeperClient
from vfio_agent.metrics import AgentMetrics
from vfio_agent.pods import Pods
from vfio_api.device import DeviceState

META = {"backend": "kernel", "incarnation": "boot-1/dead", "holder": "workload"}


def dead_fd() -> int:
    return os.open("/dev/null", os.O_PATH)


def links_to(path: str) -> int:
    """How many fds of this process are of that file."""
    found = 0
    for fd in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{fd}") == path
        except FileNotFoundError:  # the folder's own
            continue
    return found


class Fixed(KernelBackend):
    """One free and one open device that are there without a host."""

    def list(self) -> "list[DeviceInfo]":
        busy = DeviceInfo("busy", "vfio-pci", "15b3:101e", Opener(7, "dpdk"))
        return [DeviceInfo("dead", "vfio-pci", "15b3:101e"), busy]


@pytest.fixture
def holdings(nodes: tuple[Node, Node]) -> Any:
    keeper = KeeperClient(nodes[0].directory / "keeper.sock")
    backends = {"kernel": Fixed(), "simulated": SimulatedBackend(nodes[0].directory / "sim.sock")}
    made = Holdings(backends, keeper, "boot-1")
    yield made
    for address in keeper.held():
        made.release(address)


CALLS = ["flags", "state", "data_size", "config", "reset", "fds"]


@pytest.mark.parametrize("call", CALLS)
def test_a_closed_device_raises_what_its_callers_expect(call: str) -> None:
    device = KernelBackend().adopt("dead", [dead_fd()])
    device.close()
    with pytest.raises(OSError, match="device dead is closed") as refused:
        getattr(device, call)()
    assert refused.value.errno == errno.EBADF
    with pytest.raises(OSError, match="device dead is closed"):
        device.set_state(DeviceState.STOP)
    device.close()


def test_a_register_that_is_written_in_part_is_an_error(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with (tmp_path / "config").open("wb") as file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (6, hard))  # the file ends within the second register
        try:
            write_whole(file.fileno(), b"four", 0)
            with pytest.raises(OSError, match="2 of 4 bytes were written at 0x4") as refused:
                write_whole(file.fileno(), b"more", 4)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert refused.value.errno == errno.EIO


def store_dead(holdings: Holdings) -> None:
    fd = dead_fd()
    holdings._keeper.store("dead", META, [fd])
    os.close(fd)


def test_a_dead_device_does_not_keep_the_agent_from_taking_back_the_others(holdings: Holdings) -> None:
    store_dead(holdings)
    holdings.open("sim0", "workload")
    holdings.all()["sim0"].device.close()  # that agent is gone
    before = links_to("/dev/null")
    after = Holdings(holdings._backends, holdings._keeper, "boot-1")
    after.restore()
    assert set(after.all()) == {"sim0"}
    assert links_to("/dev/null") == before, "the duplicates of the dead device are closed"
    assert set(holdings._keeper.held()) == {"dead", "sim0"}, "whether it is given up is not for a restart to decide"
    after.release("dead")
    assert holdings._keeper.held() == ["sim0"]
    after.release("sim0")


def inventory(holdings: Holdings) -> Inventory:
    api: Any = None
    return Inventory("node-a", holdings._backends, holdings, Pods(), api, AgentMetrics("test"))


def test_a_device_that_cannot_be_looked_at_does_not_hide_the_others(holdings: Holdings) -> None:
    class Broken(KernelDevice):
        def state(self) -> DeviceState:
            raise IndexError("a bug")

        def fds(self) -> Sequence[int]:
            return self._fds

        def reset(self) -> None: ...

        def flags(self) -> Any:
            return 0

    class Backend(Fixed):
        def open(self, address: str) -> KernelDevice:
            return Broken(address, [dead_fd()], precopy_flags=False)

    holdings._backends = {**holdings._backends, "kernel": Backend()}
    holdings.open("dead", "workload")
    assert set(inventory(holdings)._look()) == {"busy", "sim0", "sim1"}


def test_what_a_busy_device_said_last_stands(holdings: Holdings) -> None:
    looked = inventory(holdings)
    held = holdings.open("sim0", "workload")
    with held.lock:
        assert "state" not in looked._look()["sim0"][1], "an arc is under way, and nobody asked before"
    first = looked._look()["sim0"][1]
    assert first["state"] == "RUNNING"
    assert first["stopCopyBytes"] > 200_000
    with held.lock:
        assert looked._look()["sim0"][1] == first


def test_a_device_that_was_closed_meanwhile_is_not_in_error(holdings: Holdings) -> None:
    looked = inventory(holdings)
    held = holdings.open("sim0", "workload")
    holdings.release("sim0")
    assert looked._ask(held) == {}


def test_a_device_is_closed_only_when_nobody_asks_it(holdings: Holdings) -> None:
    held = holdings.open("sim0", "workload")
    with held.lock:
        thread = threading.Thread(target=holdings.release, args=("sim0",))
        thread.start()
        while holdings.get("sim0") is not None:  # from here it goes on to close
            pass
        assert held.device.state() is DeviceState.RUNNING
    thread.join()
    with pytest.raises(OSError, match="is closed"):
        held.device.fds()
