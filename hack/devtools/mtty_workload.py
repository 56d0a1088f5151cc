"""Mediated devices of the kernel's sample driver mtty, and marks in them that a migration must carry over.

Runs inside a guest, on the standard library alone. Devices are made and removed by sysfs. A mark is what a
workload would have put into its device: the scratch register and the queue of an emulated UART that receives
what it sends, both part of the state that mtty saves. As a program: ``mtty_workload.py
create|remove|fault|kmsg ...``.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import os
import struct
import sys
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

TYPES = Path("/sys/class/mdev_bus/mtty/mdev_supported_types")
DEVICES = Path("/sys/bus/mdev/devices")
FAULTS = Path("/sys/module/mtty/parameters/fault")
"""See mtty_fault.c."""

# linux/vfio.h: _IO(';', 100 + n) and the structures that go with them.
GET_REGION_INFO = 0x3B << 8 | 108
SET_IOMMU = 0x3B << 8 | 102
GROUP_SET_CONTAINER = 0x3B << 8 | 104
GROUP_GET_DEVICE_FD = 0x3B << 8 | 106
TYPE1V2_IOMMU = 3
REGION_INFO = struct.Struct("=IIIIQQ")
CONFIG_REGION, INTERRUPT_LINE = 7, 0x3C

FIFO_LIMIT = 15
"""A full FIFO of 16 bytes reads as an empty one, so a mark is one shorter."""


class Register(IntEnum):
    """Registers of the 16550 UART, as offsets in the region of a port."""

    DATA = 0
    LSR = 5
    SCR = 7


LSR_DATA_READY = 1


class Fault(IntEnum):
    """What an armed fault does to its arc."""

    FAIL = 1
    """Fail with EIO; the device stays where it was."""
    ERROR = 2
    """Fail with EIO; the device is in ERROR."""
    DELAY = 3
    """Take the arc after the delay."""
    HOLD = 4
    """Take the arc when released; if the process is killed before, fail with EINTR, and the device stays."""
    STUCK = 5
    """Take the arc when released; a process that is killed before does not end until then."""


@dataclass(frozen=True)
class Mark:
    """What is written to one port of a device."""

    scratch: int
    queue: bytes


def create(uuid: str, mdev_type: str = "mtty-2") -> None:
    """Make a device. ``mtty-1`` has one port, ``mtty-2`` two; their states do not fit each other."""
    (TYPES / mdev_type / "create").write_text(uuid)


def remove(uuid: str) -> None:
    """Remove a device; blocks while it is open."""
    (DEVICES / uuid / "remove").write_text("1")


def open_device(uuid: str) -> tuple[int, int, int]:
    """Open a device as an unmodified program does; returns the fds of device, group and container."""
    group = (DEVICES / uuid / "iommu_group").readlink().name
    opened: list[int] = []
    try:
        container = os.open("/dev/vfio/vfio", os.O_RDWR | os.O_CLOEXEC)
        opened.append(container)
        group_fd = os.open(f"/dev/vfio/{group}", os.O_RDWR | os.O_CLOEXEC)
        opened.append(group_fd)
        fcntl.ioctl(group_fd, GROUP_SET_CONTAINER, struct.pack("=i", container))
        fcntl.ioctl(container, SET_IOMMU, TYPE1V2_IOMMU)
        # Only with a mutable buffer does ioctl return the call's own result, here the new fd.
        device = fcntl.ioctl(group_fd, GROUP_GET_DEVICE_FD, bytearray(uuid.encode() + b"\0"))
    except OSError:
        for fd in opened:
            os.close(fd)
        raise
    return device, group_fd, container


def write_mark(device: int, mark: Mark, port: int = 0) -> None:
    """Put a mark into a port of a device whose fd is given, after emptying the port's queue.

    Raises `ValueError` if the mark does not fit.
    """
    if len(mark.queue) > FIFO_LIMIT or not 0 <= mark.scratch <= 0xFF:
        raise ValueError(f"a mark holds one byte and at most {FIFO_LIMIT} queued ones: {mark}")
    offset = region_offset(device, port)
    _read_queue(device, offset)
    _poke(device, offset + Register.SCR, mark.scratch)
    for byte in mark.queue:
        _poke(device, offset + Register.DATA, byte)


def read_mark(device: int, port: int = 0) -> Mark:
    """Take the mark out of a port: a second reading finds the scratch byte only, as the queue is empty."""
    offset = region_offset(device, port)
    return Mark(_peek(device, offset + Register.SCR), _read_queue(device, offset))


def set_interrupt_line(device: int, line: int) -> None:
    """Write the one register of mtty's PCI config space that keeps a byte; it is no part of the state it saves."""
    _poke(device, region_offset(device, CONFIG_REGION) + INTERRUPT_LINE, line)


def interrupt_line(device: int) -> int:
    """Read it."""
    return _peek(device, region_offset(device, CONFIG_REGION) + INTERRUPT_LINE)


def region_offset(device: int, index: int) -> int:
    """Where a region lies in the device's file (VFIO_DEVICE_GET_REGION_INFO); port n is region n."""
    info = bytearray(REGION_INFO.pack(REGION_INFO.size, 0, index, 0, 0, 0))
    fcntl.ioctl(device, GET_REGION_INFO, info)
    _, _, _, _, size, offset = REGION_INFO.unpack(info)
    if not size:
        raise OSError(errno.ENXIO, f"the device has no region {index}")
    return int(offset)


@dataclass(frozen=True)
class Armed:
    """A fault as the driver has it: how many arcs it hits yet, and has hit."""

    device: str
    old: int
    new: int
    fault: Fault
    left: int
    hits: int


def arm_fault(old: int, new: int, fault: Fault, *, device: str = "", delay_ms: int = 0, count: int = 1) -> None:
    """Have the next ``count`` arcs old -> new of a device, or any, hit.

    States are numbers of ``enum vfio_device_mig_state``. Faults add up, to eight at most; of two for the same arc the
    first is used up first. Raises ``OSError``.
    """
    FAULTS.write_text(f"{device or '*'} {int(old)} {int(new)} {fault.value} {delay_ms} {count}")


def armed_faults() -> list[Armed]:
    """All faults since the last `disarm_faults`, also those used up."""
    armed = []
    for line in FAULTS.read_text().splitlines():
        device, *numbers = line.split()
        old, new, mode, left, hits = map(int, numbers)
        armed.append(Armed(device, old, new, Fault(mode), left, hits))
    return armed


def release_held() -> None:
    """Let every arc that is held go on."""
    FAULTS.write_text("release")


def disarm_faults() -> None:
    """Let all arcs pass again, and those that are held go on."""
    FAULTS.write_text("clear")


def kernel_log() -> str:
    """The kernel's log from its start, as records of ``/dev/kmsg`` (see `devtools.mtty_trace`)."""
    records: list[bytes] = []
    fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    try:
        while True:
            try:
                records.append(os.read(fd, 8192))
            except BlockingIOError:
                return b"".join(records).decode(errors="replace")
            except BrokenPipeError:  # the record that was next is overwritten; go on with the oldest
                continue
    finally:
        os.close(fd)


def _poke(device: int, offset: int, value: int) -> None:
    os.pwrite(device, bytes([value]), offset)


def _peek(device: int, offset: int) -> int:
    return os.pread(device, 1, offset)[0]


def _read_queue(device: int, offset: int) -> bytes:
    queue = bytearray()
    while _peek(device, offset + Register.LSR) & LSR_DATA_READY:
        queue.append(_peek(device, offset + Register.DATA))
    return bytes(queue)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Mediated devices of the sample driver mtty.")
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("create", help="make devices")
    making.add_argument("uuid", nargs="+")
    making.add_argument("--type", default="mtty-2", choices=("mtty-1", "mtty-2"))
    commands.add_parser("remove", help="remove devices").add_argument("uuid", nargs="+")
    fault = commands.add_parser("fault", help="arm a fault of one arc, by the numbers of its states")
    fault.add_argument("old", type=int)
    fault.add_argument("new", type=int)
    fault.add_argument("kind", choices=[kind.name.lower() for kind in Fault])
    fault.add_argument("--device", default="")
    fault.add_argument("--delay-ms", type=int, default=0)
    fault.add_argument("--count", type=int, default=1)
    commands.add_parser("disarm", help="take back all faults")
    commands.add_parser("kmsg", help="print the kernel's log")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run one command of the command line; returns the exit code."""
    given = _arguments(argv)
    match given.command:
        case "create":
            for uuid in given.uuid:
                create(uuid, given.type)
        case "remove":
            for uuid in given.uuid:
                remove(uuid)
        case "fault":
            options = {"delay_ms": given.delay_ms, "count": given.count}
            arm_fault(given.old, given.new, Fault[given.kind.upper()], device=given.device, **options)
        case "disarm":
            disarm_faults()
        case _:
            sys.stdout.write(kernel_log())
    return 0


if __name__ == "__main__":
    sys.exit(main())
