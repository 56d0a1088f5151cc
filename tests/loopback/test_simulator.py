"""The simulator as a process: fds, several holders, a whole migration, faults, the trace."""

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from vfio_agent.devices import simwire
from vfio_agent.devices.protocol import Backend, DeviceInfo, NoDataError, PrecopyInfo
from vfio_agent.devices.simulated import SimulatedBackend, SimulatedDevice, SimulatedStream, SimulatorControl
from vfio_api.device import DeviceState as S
from vfio_api.device import MigrationFlags

MODEL = "sim:1"
SIZE = 5 * 64 * 1024 + 123


def environment() -> dict[str, str]:
    """Another Python finds what this one finds."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


class Node:
    """A running simulator."""

    def __init__(self, directory: Path, config: dict[str, Any], *options: str):
        directory.mkdir()
        self.socket, self.trace_file = directory / "sim.sock", directory / "trace"
        (directory / "config").write_text(json.dumps(config))
        self.command = [sys.executable, "-m", "vfio_agent.devices.simulator", "--socket", str(self.socket)]
        self.command += ["--config", str(directory / "config"), "--trace", str(self.trace_file), *options]
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(), text=True
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"
        self.backend = SimulatedBackend(self.socket)
        self.control = SimulatorControl(self.socket)

    def trace(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.trace_file.read_text().splitlines()]

    def arcs(self) -> list[tuple[str, str, int]]:
        return [(line["from"], line["to"], line["errno"]) for line in self.trace() if line["event"] == "arc"]

    def end(self) -> None:
        self.process.terminate()
        with self.process:
            pass


StartNode = Callable[..., Node]


def config(count: int = 2, p2p: Mapping[str, float] | None = None, **device: Any) -> dict[str, Any]:
    common = {"model": MODEL, "size_bytes": SIZE, **device}
    return {"devices": [{"address": f"sim{i}", **common} for i in range(count)], "p2p": p2p or {}}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartNode]:
    nodes: list[Node] = []

    def start_node(settings: dict[str, Any] | None = None, *options: str) -> Node:
        nodes.append(Node(tmp_path / f"node{len(nodes)}", settings or config(), *options))
        return nodes[-1]

    yield start_node
    for node in nodes:
        node.end()


@pytest.fixture
def node(start: StartNode) -> Node:
    return start()


def stream_of(device: SimulatedDevice, state: S) -> SimulatedStream:
    stream = device.set_state(state)
    assert stream is not None
    return stream


def copy(source: SimulatedStream, target: SimulatedStream, chunk: int = 50_000) -> int:
    """Until there is no more for now; returns the bytes."""
    buffer, total = memoryview(bytearray(chunk)), 0
    while True:
        try:
            count = source.readinto(buffer)
        except NoDataError:
            return total
        if not count:
            return total
        rest = buffer[:count]
        while rest:
            rest = rest[target.write(rest) :]
        total += count


def await_writes(node: Node, *addresses: str) -> None:
    """Until each of the devices has initiated a write."""
    while not all(sum(node.control.stats()["devices"][address]["sent"].values()) for address in addresses):
        pass


def errno_of(action: Callable[[], object]) -> int | None:
    with pytest.raises(OSError) as refused:  # noqa: PT011
        action()
    return refused.value.errno


# --- open and close


def test_list_and_open(node: Node) -> None:
    backend: Backend = node.backend
    assert backend.name == "simulated"
    assert backend.list() == [DeviceInfo("sim0", "vfio-sim", MODEL), DeviceInfo("sim1", "vfio-sim", MODEL)]
    with node.backend.open("sim0") as device:
        assert [bool(info.opener) for info in backend.list()] == [True, False]
        assert device.flags() == MigrationFlags.STOP_COPY | MigrationFlags.P2P | MigrationFlags.PRE_COPY
        assert device.state() is S.RUNNING
        assert device.data_size() > SIZE
        assert errno_of(lambda: backend.open("sim0")) == errno.EBUSY
    assert [info.opener for info in backend.list()] == [None, None]
    assert errno_of(lambda: backend.open("nothing")) == errno.ENODEV


def test_the_last_close_resets(node: Node) -> None:
    first = node.backend.open("sim0")
    first.write_region(0, b"marker")
    first.start_traffic(1, [])
    second = node.backend.adopt("sim0", [os.dup(first.fds()[0])])
    first.set_state(S.STOP)
    first.close()
    assert (second.state(), second.read_region(0, 6)) == (S.STOP, b"marker")
    stream = stream_of(second, S.STOP_COPY)
    second.close()
    assert not node.control.list()[0]["open"]
    with node.backend.open("sim0") as device, stream:
        assert (device.state(), device.read_region(0, 6)) == (S.RUNNING, bytes(6))
        assert node.control.stats()["devices"]["sim0"]["port"] is None
        assert errno_of(lambda: stream.readinto(memoryview(bytearray(8)))) == errno.ENODEV


# Another process: it takes the device, uses it when told, and is killed.
HOLDER = """
import socket, sys
from vfio_agent.devices.simulated import SimulatedBackend
with socket.socket(fileno=int(sys.argv[1])) as sock:
    _, fds, _, _ = socket.recv_fds(sock, 1, 1)
device = SimulatedBackend("unused").adopt("sim0", fds)
print("taken", flush=True)
sys.stdin.readline()
print(device.state().name, device.read_region(0, 6).decode(), flush=True)
sys.stdin.readline()
"""


def test_a_duplicate_in_another_process_keeps_the_device(node: Node) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(),
            text=True,
        )
        with holder, node.backend.open("sim0") as device:
            assert holder.stdin is not None
            assert holder.stdout is not None
            device.write_region(0, b"marker")
            device.set_state(S.STOP)
            socket.send_fds(ours, [b"x"], [device.fds()[0]])
            assert holder.stdout.readline() == "taken\n"
            device.close()
            assert node.control.list()[0]["open"]
            assert errno_of(lambda: node.backend.open("sim0")) == errno.EBUSY
            print("use it", file=holder.stdin, flush=True)
            assert holder.stdout.readline() == "STOP marker\n"
            holder.kill()
    assert not node.control.list()[0]["open"]
    with node.backend.open("sim0") as device:
        assert device.state() is S.RUNNING


def test_a_device_can_be_opened_as_soon_as_it_is_closed(node: Node) -> None:
    for _ in range(200):
        node.backend.open("sim0").close()


def test_no_fd_is_left_behind(node: Node) -> None:
    with node.backend.open("sim0") as device:
        for _ in range(200):
            stream_of(device, S.STOP_COPY).close()
            device.set_state(S.STOP)
        assert len(list(Path(f"/proc/{node.process.pid}/fd").iterdir())) < 100


def test_adopt_refuses_what_is_not_that_device(node: Node) -> None:
    with node.backend.open("sim0") as device, open(os.devnull, "rb") as other:
        assert errno_of(lambda: node.backend.adopt("sim1", device.fds())) == errno.EINVAL
        assert errno_of(lambda: node.backend.adopt("sim0", [other.fileno()])) == errno.ENOTSOCK
        assert errno_of(lambda: node.backend.adopt("sim0", [])) == errno.EINVAL
        assert device.state() is S.RUNNING, "the fds are left alone"
    assert errno_of(device.fds) == errno.EBADF


def test_a_user_that_dies_within_a_request_leaves_no_reply_to_the_next(start: StartNode) -> None:
    node = start(config(arc_latency_us=50_000))
    device = node.backend.open("sim0")
    # A request whose reply nobody waits for, as if its sender had been killed.
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    fd = os.dup(device.fds()[0])
    with ours, theirs, socket.socket(fileno=fd) as sock:
        socket.send_fds(sock, [json.dumps({"op": "set_state", "state": int(S.STOP)}).encode()], [theirs.fileno()])
    with device:
        assert device.state() is S.STOP
        assert device.data_size() > SIZE


def test_threads_share_a_device(node: Node) -> None:
    seen: list[object] = []
    with node.backend.open("sim0") as device:

        def ask() -> None:
            for _ in range(100):
                seen.append(device.state())  # noqa: PERF401
            seen.append(device.read_region(0, 4))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert seen.count(S.RUNNING) == 400
    assert seen.count(bytes(4)) == 4


def test_a_dead_simulator_is_a_device_that_is_gone(node: Node) -> None:
    with node.backend.open("sim0") as device, stream_of(device, S.STOP_COPY) as stream:
        node.process.kill()
        node.process.wait()
        assert errno_of(device.state) == errno.ENODEV
        assert errno_of(lambda: stream.readinto(memoryview(bytearray(8)))) == errno.ENODEV
    assert errno_of(node.backend.list) in {errno.ECONNREFUSED, errno.ENOENT}


def test_requests_that_make_no_sense_are_refused(node: Node) -> None:
    with node.backend.open("sim0") as device:
        for request in ({"op": "x"}, {}, {"op": "set_state", "state": 99}, {"op": "read_region"}):
            assert errno_of(partial(simwire.call, device._socket, request)) == errno.EINVAL
        device._socket.send(b"no request at all")
        assert device.state() is S.RUNNING
    assert errno_of(lambda: node.control.fault("sim0", "arc")) == errno.EINVAL
    assert errno_of(lambda: node.control.fault("simX", "read")) == errno.ENODEV


# --- migration


def test_a_whole_migration_between_two_nodes(start: StartNode) -> None:
    settings = config(2, dirty_rate_bytes_per_second=10_000_000, arc_latency_us=200)
    left, right = start(settings), start(settings)
    with contextlib.ExitStack() as stack:
        sources = [stack.enter_context(left.backend.open(f"sim{i}")) for i in range(2)]
        targets = [stack.enter_context(right.backend.open(f"sim{i}")) for i in range(2)]
        for port, device in enumerate(sources):
            device.start_traffic(port, [1 - port])
            device.write_region(16 * port, b"marker %d" % port)
        # Only now, or the first device may write to a port that is not there yet.
        for node in (left, right):
            node.control.configure(rate_per_second=2000, latency_us=500)
        await_writes(left, "sim0", "sim1")
        saving = [stack.enter_context(stream_of(device, S.PRE_COPY)) for device in sources]
        loading = [stack.enter_context(stream_of(device, S.RESUMING)) for device in targets]
        for source, target in zip(saving, loading, strict=True):
            assert source.precopy_info().initial_bytes > SIZE
            copy(source, target)
            assert source.precopy_info().initial_bytes == 0
        for state in (S.PRE_COPY_P2P, S.STOP_COPY):
            for device in sources:
                assert device.set_state(state) is None
        for source, target, device in zip(saving, loading, sources, strict=True):
            assert copy(source, target) > 0
            assert device.data_size() == 0
        for state in (S.STOP, S.RUNNING_P2P, S.RUNNING):
            for device in targets:
                device.set_state(state)
        assert [d.read_region(16 * i, 8) for i, d in enumerate(targets)] == [b"marker 0", b"marker 1"]
        before, after = left.control.stats(), right.control.stats()
        assert before["totals"]["lost"] == before["totals"]["missing"] == before["totals"]["in_flight"] == 0
        assert before["totals"]["sent"] == before["totals"]["received"]
        assert after["totals"]["lost"] == after["totals"]["missing"] == after["totals"]["doubled"] == 0
        assert [after["devices"][f"sim{i}"]["port"] for i in range(2)] == [0, 1]
        assert after["devices"]["sim0"]["sent"][1] >= before["devices"]["sim0"]["sent"][1]
    steps = [(line["device"], line["to"]) for line in left.trace() if line["event"] == "arc"]
    assert steps == [
        (device, state) for state in ("PRE_COPY", "PRE_COPY_P2P", "STOP_COPY") for device in ("sim0", "sim1")
    ]


def test_a_broken_barrier_is_seen_on_the_target(start: StartNode) -> None:
    # Writes are under way for much longer than it is from one to the next, so that some always are.
    settings = config(2, {"rate_per_second": 10_000, "latency_us": 20_000})
    left, right = start(settings), start(settings)
    with contextlib.ExitStack() as stack:
        sources = [stack.enter_context(left.backend.open(f"sim{i}")) for i in range(2)]
        targets = [stack.enter_context(right.backend.open(f"sim{i}")) for i in range(2)]
        for port, device in enumerate(sources):
            device.start_traffic(port, [1 - port])
        await_writes(left, "sim0", "sim1")
        for device in sources:
            device.set_state(S.STOP)
        for device, target in zip(sources, targets, strict=True):
            copy(
                stack.enter_context(stream_of(device, S.STOP_COPY)),
                stack.enter_context(stream_of(target, S.RESUMING)),
            )
            target.set_state(S.STOP)
        lost = left.control.stats()["totals"]["lost"]
        assert lost > 0
        assert right.control.stats()["totals"]["missing"] == lost


@pytest.mark.parametrize("chunk", [1000, 64 * 1024, 1 << 20])
def test_chunks_of_any_size(node: Node, chunk: int) -> None:
    with node.backend.open("sim0") as source, node.backend.open("sim1") as target:
        source.write_region(0, b"marker")
        with stream_of(source, S.STOP_COPY) as saving, stream_of(target, S.RESUMING) as loading:
            assert saving.readinto(memoryview(b"")) == loading.write(memoryview(b"")) == 0
            expected = source.data_size()
            assert copy(saving, loading, chunk) == expected
            assert saving.readinto(memoryview(bytearray(8))) == 0
        target.set_state(S.RUNNING)
        assert target.read_region(0, 6) == b"marker"


def test_a_closed_data_fd_leaves_the_device_as_it_is(node: Node) -> None:
    with node.backend.open("sim0") as device:
        with stream_of(device, S.PRE_COPY) as stream:
            stream.readinto(memoryview(bytearray(100)))
        assert device.state() is S.PRE_COPY
        device.set_state(S.RUNNING)
        with stream_of(device, S.PRE_COPY) as stream:
            assert isinstance(stream.precopy_info(), PrecopyInfo)


def test_a_device_that_cannot_migrate(start: StartNode) -> None:
    node = start(config(1, flags=[]))
    with node.backend.open("sim0") as device:
        assert errno_of(device.flags) == errno.ENOTTY
        assert errno_of(device.state) == errno.ENOTTY
        assert errno_of(lambda: device.set_state(S.STOP)) == errno.ENOTTY
        device.reset()


# --- faults and trace


def test_faults_and_the_trace(node: Node) -> None:
    with node.backend.open("sim0") as device:
        node.control.fault("sim0", arc=(S.RUNNING_P2P, S.STOP), error=errno.EIO)
        assert errno_of(lambda: device.set_state(S.STOP_COPY)) == errno.EIO
        assert device.state() is S.RUNNING_P2P
        node.control.fault("sim0", arc=(S.STOP, S.STOP_COPY), error=errno.EIO, to_error=True)
        assert errno_of(lambda: device.set_state(S.STOP_COPY)) == errno.EIO
        assert device.state() is S.ERROR
        assert errno_of(lambda: device.set_state(S.RUNNING)) == errno.EINVAL
        device.reset()
        with stream_of(device, S.STOP_COPY) as stream:
            node.control.fault("sim0", "read", limit_bytes=7)
            assert stream.readinto(memoryview(bytearray(100))) == 7
            node.control.fault("sim0", "read", error=errno.EIO)
            assert errno_of(lambda: stream.readinto(memoryview(bytearray(100)))) == errno.EIO
            assert stream.readinto(memoryview(bytearray(100))) == 100
        assert errno_of(lambda: device.set_state(S.PRE_COPY)) == errno.EINVAL
    node.control.list()
    assert node.arcs() == [
        ("RUNNING", "RUNNING_P2P", 0),
        ("RUNNING_P2P", "STOP", errno.EIO),
        ("RUNNING_P2P", "STOP", 0),
        ("STOP", "STOP_COPY", errno.EIO),
        ("ERROR", "RUNNING", errno.EINVAL),
        ("RUNNING", "RUNNING_P2P", 0),
        ("RUNNING_P2P", "STOP", 0),
        ("STOP", "STOP_COPY", 0),
        ("STOP_COPY", "PRE_COPY", errno.EINVAL),
    ]
    trace = node.trace()
    assert [line["event"] for line in trace if line["event"] != "arc"] == ["open", "reset", "close"]
    assert [line["state"] for line in trace if line["errno"] == errno.EIO] == ["RUNNING_P2P", "ERROR"]
    assert [line["t"] for line in trace] == sorted(line["t"] for line in trace)
    assert all(line["began"] <= line["t"] and line["device"] == "sim0" for line in trace)


def test_a_fault_that_stays_is_cleared(node: Node) -> None:
    with node.backend.open("sim0") as device, stream_of(device, S.STOP_COPY) as stream:
        node.control.fault("sim0", "read", ends=True, times=0)
        buffer = memoryview(bytearray(100))
        assert [stream.readinto(buffer) for _ in range(3)] == [0, 0, 0]
        node.control.clear_faults("sim0")
        assert stream.readinto(buffer) == 100
    assert errno_of(lambda: node.control.clear_faults("simX")) == errno.ENODEV


def test_new_initial_data_is_said_once(node: Node) -> None:
    with node.backend.open("sim0") as device:
        assert errno_of(lambda: node.control.reinit("sim0")) == errno.EINVAL
        with (
            node.backend.open("sim1") as target,
            stream_of(device, S.PRE_COPY) as stream,
            stream_of(target, S.RESUMING) as loading,
        ):
            copied = copy(stream, loading)
            node.control.reinit("sim0")
            first, second = stream.precopy_info(), stream.precopy_info()
            assert (first.reinit, second.reinit) == (True, False)
            assert SIZE < first.initial_bytes == second.initial_bytes < copied


def test_a_device_without_the_newer_info_has_no_new_initial_data(start: StartNode) -> None:
    node = start(config(1, precopy_info_v2=False))
    with node.backend.open("sim0") as device, stream_of(device, S.PRE_COPY) as stream:
        node.control.reinit("sim0")
        assert not stream.precopy_info().reinit


def test_config_registers(node: Node) -> None:
    with node.backend.open("sim0") as device:
        assert device.config() == b""
        device.write_registers(2, b"set up")
        config = device.config()
        assert device.read_registers(0, 8) == b"\0\0set up" == config[:8]
        assert errno_of(lambda: device.restore_config(config + b"x")) == errno.EINVAL
        device.reset()
        assert device.config() == b""
        device.restore_config(config)
        assert device.config() == config


def test_a_refused_state_leaves_resuming_until_a_reset(node: Node) -> None:
    with node.backend.open("sim0") as device:
        with stream_of(device, S.RESUMING) as stream:
            assert errno_of(lambda: stream.write(memoryview(b"no state"))) == errno.EFAULT
            assert errno_of(lambda: device.set_state(S.STOP)) == errno.EINVAL
            assert device.state() is S.RESUMING
            device.reset()
            assert errno_of(lambda: stream.write(memoryview(b"no state"))) == errno.ENODEV
        assert device.state() is S.RUNNING


def test_traffic_can_be_configured_and_two_of_a_port_are_counted(node: Node) -> None:
    with node.backend.open("sim0") as one, node.backend.open("sim1") as other:
        one.start_traffic(5, [6])
        other.start_traffic(5, [])
        assert node.control.stats()["totals"]["doubled"] == 1
        assert node.control.stats()["devices"]["sim0"]["sent"] == {}
        node.control.configure(rate_per_second=10_000, latency_us=0)
        await_writes(node, "sim0")
        node.control.configure(rate_per_second=0, latency_us=0)
        totals = node.control.stats()["totals"]
        assert totals["sent"] == totals["lost"] == node.control.stats()["devices"]["sim0"]["aborted"]
        assert errno_of(lambda: node.control.configure(rate_per_second=-1, latency_us=0)) == errno.EINVAL


# --- the process


def test_it_ends_on_sigterm_and_leaves_no_socket(node: Node) -> None:
    with node.backend.open("sim0"):
        node.process.send_signal(signal.SIGTERM)
        assert node.process.wait() == 0
    assert not node.socket.exists()


def test_it_ends_with_its_stdin_if_told_to(start: StartNode) -> None:
    node = start(None, "--exit-on-stdin-eof")
    assert node.process.stdin is not None
    node.process.stdin.close()
    assert node.process.wait() == 0


def test_it_takes_the_place_of_a_dead_one_but_not_of_a_live_one(node: Node) -> None:
    refused = subprocess.run(node.command, env=environment(), stderr=subprocess.PIPE, text=True, check=False)
    assert refused.returncode != 0
    assert "Address already in use" in refused.stderr
    node.process.kill()
    node.process.wait()
    with subprocess.Popen(node.command, env=environment(), stdout=subprocess.PIPE, text=True) as again:
        assert again.stdout is not None
        assert again.stdout.readline() == "ready\n"
        assert len(node.backend.list()) == 2
        again.terminate()
