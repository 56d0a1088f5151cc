"""What one real device does when it is opened, refused, taken back and removed, by the way given.

Runs inside a guest, with the UUID of a free mdev and a way to open it (group, cdev) as its arguments. Prints one JSON
object: what was asked -> what came of it, an errno by its name. Nothing here is judged; the test on the host does that.
"""

import contextlib
import errno
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from devtools.mtty_workload import (
    Fault,
    Mark,
    arm_fault,
    create,
    disarm_faults,
    interrupt_line,
    read_mark,
    remove,
    set_interrupt_line,
    write_mark,
)
from vfio_agent.devices import uapi
from vfio_agent.devices.kernel import KernelBackend, KernelDevice, KernelPath, KernelStream
from vfio_agent.keeper import KeeperClient
from vfio_api.device import DeviceState

HEADER, CHUNK = 24, 4096
MARK = Mark(0x5A, b"still there")
Report = dict[str, Any]


def outcome(action: Callable[[], object]) -> str:
    """The name of the errno that an action ends with, or "done"."""
    try:
        action()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "done"


def go(device: KernelDevice, state: DeviceState) -> KernelStream:
    """Take an arc that hands out a stream."""
    stream = device.set_state(state)
    assert stream is not None
    return stream


def load(device: KernelDevice, *parts: bytes) -> tuple[KernelStream, list[str]]:
    """Bring a device to RESUMING and write; returns what came of each part. The stream is left open."""
    stream = go(device, DeviceState.RESUMING)
    return stream, [outcome(partial(stream.write, memoryview(part))) for part in parts]


def saved(device: KernelDevice) -> bytes:
    """The whole state of a running device, which runs again afterwards."""
    stream, state, buffer = go(device, DeviceState.STOP_COPY), b"", bytearray(CHUNK)
    while count := stream.readinto(memoryview(buffer)):
        state += buffer[:count]
    stream.close()
    device.set_state(DeviceState.RUNNING)
    return state


def opening(backend: KernelBackend, uuid: str) -> Report:
    """A device is open once, is found open by whoever looks, and a refused opening leaves nothing behind."""
    device = backend.open(uuid)
    with contextlib.closing(device):
        device.reset()
        before = len(os.listdir("/proc/self/fd"))
        refused = [
            outcome(lambda: KernelBackend("group").open(uuid)),
            outcome(lambda: KernelBackend("cdev").open(uuid)),
        ]
        stream = go(device, DeviceState.PRE_COPY)
        info = stream.precopy_info()
        stream.close()
        device.reset()
        opener = next(info.opener for info in backend.list() if info.address == uuid)
        return {
            "fds": [os.readlink(f"/proc/self/fd/{fd}") for fd in device.fds()],
            "second opening": refused,
            "fds left by it": len(os.listdir("/proc/self/fd")) - before,
            "opener is this process": opener is not None and opener.pid == os.getpid(),
            "precopy info v2": uapi.enable_precopy_info_v2(device.fds()[0]),
            "precopy info": [info.initial_bytes, info.dirty_bytes, info.reinit],
        }


def refusals(device: KernelDevice) -> Report:
    """What mtty refuses; a reset leads out of each. Nothing is written after a bad header: mtty would take it."""
    write_mark(device.fds()[0], MARK)
    state = saved(device)
    report: Report = {"state bytes": len(state)}
    cases = {
        "bad header": [bytes([state[0] ^ 1]) + state[1:HEADER]],
        "short load": [state[:HEADER], state[HEADER:-1]],
        "overflow": [state + b"\0"],
        "whole load": [state[:HEADER], state[HEADER:]],
    }
    for name, parts in cases.items():
        stream, written = load(device, *parts)
        stopped = outcome(lambda: device.set_state(DeviceState.STOP))
        report[name] = [*written, stopped, device.state().name]
        device.reset()
        report[name].append(device.state().name)
        report[f"{name}: fd after reset"] = outcome(partial(stream.write, memoryview(b"x")))
        stream.close()
    stream = go(device, DeviceState.STOP_COPY)
    device.reset()
    report["saving fd after reset"] = outcome(lambda: stream.readinto(memoryview(bytearray(CHUNK))))
    stream.close()
    device.set_state(DeviceState.STOP)
    arm_fault(DeviceState.RUNNING_P2P, DeviceState.RUNNING, Fault.FAIL)
    half_way = outcome(lambda: device.set_state(DeviceState.RUNNING))
    disarm_faults()
    report["half of an arc"] = [half_way, device.state().name]
    device.reset()
    return report


def config(device: KernelDevice) -> Report:
    """The register that mtty keeps, and does not save, is carried; damaged bytes are refused and change nothing."""
    fd = device.fds()[0]
    set_interrupt_line(fd, 0x2A)
    carried = device.config()
    set_interrupt_line(fd, 1)
    damaged = [carried[:-1], b"\0" + carried[1:], carried + b"\0"]
    refused = [outcome(partial(device.restore_config, data)) for data in damaged]
    unchanged = interrupt_line(fd)
    device.restore_config(carried)
    restored = interrupt_line(fd)
    device.restore_config(b"")
    return {"bytes": len(carried), "damaged": refused, "before": unchanged, "after": restored}


def keeping(backend: KernelBackend, uuid: str) -> Report:
    """A stopped device outlives its opener at the keeper, and goes on from the fds alone, whoever takes them."""
    with tempfile.TemporaryDirectory() as folder:
        keeper = KeeperClient(Path(folder) / "keeper")
        argv = [sys.executable, "-m", "vfio_agent.keeper", "--socket", str(Path(folder) / "keeper")]
        with subprocess.Popen([*argv, "--exit-on-stdin-eof"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdout.readline()
            device = backend.open(uuid)
            device.reset()
            write_mark(device.fds()[0], MARK)
            device.set_state(DeviceState.STOP)
            keeper.store(uuid, {}, list(device.fds()))
            device.close()
            reopened = outcome(lambda: backend.open(uuid))
            _, fds = keeper.take(uuid)
            device = backend.adopt(uuid, fds)
            found = device.state().name
            device.set_state(DeviceState.RUNNING)
            marked = read_mark(device.fds()[0]) == MARK
            device.close()
            keeper.drop(uuid)
            process.stdin.close()
    return {"opened meanwhile": reopened, "state": found, "mark": marked}


def removal(backend: KernelBackend, uuid: str) -> Report:
    """A device can be removed once it is closed: no fd of it is left anywhere. The kernel waits for the last."""
    for _ in range(10):
        backend.open(uuid).close()
    remove(uuid)
    gone = outcome(lambda: backend.open(uuid))
    create(uuid)
    backend.open(uuid).close()
    return {"opened when removed": gone}


def main(uuid: str, path: KernelPath) -> int:
    """Ask everything; print the report."""
    backend = KernelBackend(path)
    report: Report = {"opening": opening(backend, uuid)}
    with contextlib.closing(backend.open(uuid)) as device:
        device.reset()
        report |= {"refusals": refusals(device), "config": config(device)}
    report |= {"keeping": keeping(backend, uuid), "removal": removal(backend, uuid)}
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], "cdev" if sys.argv[2] == "cdev" else "group"))
