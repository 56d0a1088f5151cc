"""An arc or a read of a simulated device that is held until it is released: how a test stops time at one point."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from loopback.test_simulator import Node, stream_of
from vfio_agent.devices.simfaults import Fault, FaultOp
from vfio_api.device import DeviceState as S

PATIENCE = 10.0


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    device = {"address": "sim0", "model": "sim:1", "size_bytes": 200_000}
    made = Node(tmp_path / "node", {"devices": [device], "p2p": {}})
    yield made
    made.end()


def test_an_arc_is_where_it_began_until_it_is_released(node: Node) -> None:
    with node.backend.open("sim0") as device, ThreadPoolExecutor(1) as pool:
        node.control.fault("sim0", "arc", arc=(S.RUNNING, S.RUNNING_P2P), hold=True)
        moving = pool.submit(device.set_state, S.STOP)
        assert node.control.await_hold("sim0", PATIENCE)
        assert node.control.stats()["devices"]["sim0"]["state"] == "RUNNING"
        assert not moving.done()
        node.control.release("sim0")
        moving.result(PATIENCE)
        assert device.state() is S.STOP
        assert not node.control.await_hold("sim0", 0)


def test_an_arc_that_is_held_may_fail_when_it_is_released(node: Node) -> None:
    with node.backend.open("sim0") as device, ThreadPoolExecutor(1) as pool:
        node.control.fault("sim0", "arc", arc=(S.RUNNING, S.PRE_COPY), hold=True, error=5)
        moving = pool.submit(device.set_state, S.PRE_COPY)
        assert node.control.await_hold("sim0", PATIENCE)
        node.control.release("sim0")
        with pytest.raises(OSError, match="injected"):
            moving.result(PATIENCE)


def test_a_read_is_held_in_the_state_that_is_named(node: Node) -> None:
    buffer = memoryview(bytearray(1000))
    with node.backend.open("sim0") as device, stream_of(device, S.PRE_COPY) as stream, ThreadPoolExecutor(1) as pool:
        node.control.fault("sim0", "read", hold=True, in_state=S.STOP_COPY)
        assert stream.readinto(buffer) == 1000
        device.set_state(S.STOP_COPY)
        reading = pool.submit(stream.readinto, buffer)
        assert node.control.await_hold("sim0", PATIENCE)
        assert device.state() is S.STOP_COPY  # all else goes on
        node.control.release("sim0")
        assert reading.result(PATIENCE) == 1000


def test_only_arcs_and_reads_can_be_held() -> None:
    with pytest.raises(ValueError, match="an arc or a read can be held"):
        Fault(FaultOp.WRITE, hold=True)


def test_a_device_that_is_held_is_closed_once_it_is_released(node: Node) -> None:
    """As one in a slow arc: the process in the ioctl has its fd until then."""
    with ThreadPoolExecutor(1) as pool:
        device = node.backend.open("sim0")
        node.control.fault("sim0", "arc", arc=(S.RUNNING, S.RUNNING_P2P), hold=True)
        moving = pool.submit(device.set_state, S.RUNNING_P2P)
        assert node.control.await_hold("sim0", PATIENCE)
        device.close()
        assert node.control.stats()["devices"]["sim0"]["open"]
        node.control.release("sim0")
        moving.result(PATIENCE)
        with node.backend.open("sim0") as again:
            assert again.state() is S.RUNNING


def test_a_device_that_is_held_is_reset_once_it_is_released(node: Node) -> None:
    with node.backend.open("sim0") as device, ThreadPoolExecutor(2) as pool:
        node.control.fault("sim0", "arc", arc=(S.RUNNING, S.RUNNING_P2P), hold=True)
        moving = pool.submit(device.set_state, S.RUNNING_P2P)
        assert node.control.await_hold("sim0", PATIENCE)
        resetting = pool.submit(device.reset)
        node.control.release("sim0")
        moving.result(PATIENCE)
        resetting.result(PATIENCE)
        assert device.state() is S.RUNNING
