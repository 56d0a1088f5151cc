"""Every pair of states asked of a real device, and what the kernel does compared with `vfio_api.device`.

Runs inside a guest, with the UUID of a free mdev and a way to open it (group, cdev) as its arguments, and prints one
JSON object: pairs asked, arcs taken (as the driver logged them), and every difference. An arc out of RESUMING is asked
for after a whole state was loaded, since without one it is refused.
"""

import errno
import json
import os
import sys
from dataclasses import dataclass
from itertools import pairwise

from devtools.kernel_workload import KernelLog
from devtools.mtty_trace import Outcome, parse_driver_trace
from devtools.mtty_workload import Fault, arm_fault, disarm_faults
from vfio_agent.devices import uapi
from vfio_agent.devices.kernel import KernelBackend, KernelPath
from vfio_api.device import DATA_FD_ARCS, DeviceState, IllegalArcError, path

# Linux before 7.2 loops for ever in these two, with the kernel's one CPU: never ask for them.
ENDLESS = {(DeviceState.STOP_COPY, DeviceState.PRE_COPY), (DeviceState.STOP_COPY, DeviceState.PRE_COPY_P2P)}
CHUNK = 4096


@dataclass(frozen=True)
class Answer:
    """What became of one request: errno or 0, whether a data fd came with it, the arcs, and the state after."""

    errno: int
    data_fd: bool
    arcs: tuple[str, ...]
    state: str


class Subject:
    """The device under test."""

    def __init__(self, uuid: str, path: KernelPath):
        self._uuid = uuid
        self._device = KernelBackend(path).open(uuid)
        self._fd = self._device.fds()[0]
        self._log = KernelLog()
        self.flags = self._device.flags()
        self._device.reset()
        self._state = self._saved()

    def _go(self, state: DeviceState) -> int:
        return uapi.set_state(self._fd, state)

    def _saved(self) -> bytes:
        """A whole state of this device, to be loaded again."""
        data_fd = self._go(DeviceState.STOP_COPY)
        saved = b""
        while chunk := os.read(data_fd, CHUNK):
            saved += chunk
        os.close(data_fd)
        return saved

    def _prepare(self, state: DeviceState) -> None:
        """Bring the device into a state, from a reset."""
        self._device.reset()
        if state is DeviceState.ERROR:
            arm_fault(DeviceState.RUNNING, DeviceState.RUNNING_P2P, Fault.ERROR, device=self._uuid)
            try:
                self._go(DeviceState.RUNNING_P2P)
            except OSError:
                return
            finally:
                disarm_faults()
        self._data_fd = self._go(state)
        if state is DeviceState.RESUMING:
            os.write(self._data_fd, self._state)

    def ask(self, start: DeviceState, wanted: DeviceState) -> Answer:
        """Request `wanted` of the device in `start`."""
        self._data_fd = -1
        self._prepare(start)
        self._log.news()
        code, data_fd = 0, -1
        try:
            data_fd = self._go(wanted)
        except OSError as error:
            code = error.errno or -1
        trace = parse_driver_trace(self._log.news())
        for fd in (data_fd, self._data_fd):
            if fd >= 0:
                os.close(fd)
        taken = [arc for arc in trace if arc.device == self._uuid and arc.outcome is Outcome.TAKEN]
        arcs = tuple(f"{arc.old} -> {arc.new}" for arc in taken)
        return Answer(code, data_fd >= 0, arcs, uapi.get_state(self._fd).name)

    def expected(self, start: DeviceState, wanted: DeviceState) -> Answer:
        """The same answer by the table."""
        try:
            states = (start, *path(start, wanted, self.flags))
        except IllegalArcError:
            return Answer(errno.EINVAL, False, (), start.name)
        steps = list(pairwise(states))
        data_fd = bool(steps) and steps[-1] in DATA_FD_ARCS
        return Answer(0, data_fd, tuple(f"{old.name} -> {new.name}" for old, new in steps), wanted.name)

    def close(self) -> None:
        """Leave a blank device."""
        self._device.reset()
        self._device.close()


def main(uuid: str, path: KernelPath) -> int:
    """Ask everything; print the outcome."""
    subject = Subject(uuid, path)
    differences: list[str] = []
    pairs, arcs = 0, 0
    try:
        for start in DeviceState:
            for wanted in DeviceState:
                if (start, wanted) in ENDLESS:
                    continue
                found, expected = subject.ask(start, wanted), subject.expected(start, wanted)
                pairs, arcs = pairs + 1, arcs + len(found.arcs)
                if found != expected:
                    differences.append(f"{start.name} -> {wanted.name}: kernel {found}, table {expected}")
    finally:
        subject.close()
    print(json.dumps({"pairs": pairs, "arcs": arcs, "differences": differences}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], "cdev" if sys.argv[2] == "cdev" else "group"))
