"""Finds the fd of a device in a running process, and takes a duplicate of it: the process needs no change.

By pidfd_getfd(2), Linux 5.6. The duplicate is the same open file: arcs made through it are the process's device's, and
the device stays open when the process ends.
"""

import contextlib
import ctypes
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vfio_agent.devices import uapi
from vfio_agent.devices.openers import Node, OpenFile, concerns, names, opened
from vfio_agent.pods import Pods
from vfio_api.errors import DeviceError, Reason

_PIDFD_GETFD = 438  # the same on every architecture
_LIBC = ctypes.CDLL(None, use_errno=True)
NAMED = 8  # of what was found, in a message


@dataclass(frozen=True, slots=True)
class Opening:
    """A file of a process that is a device, or with an address the device's group, by which it has that open."""

    pid: int
    command: str
    fd: int
    address: str = ""

    def __str__(self) -> str:
        return f"process {self.pid} ({self.command}) fd {self.fd}" + (" (its group)" if self.address else "")


def find(
    pods: Pods, uid: str, address: str, nodes: Sequence[Node], pids: Sequence[int] | None = None
) -> Opening | None:
    """The file by which a process of the pod has the device open; None if none has. pids: its processes, if known.

    Raises DeviceError (DeviceAmbiguous) if two processes have it, or if the kernel does not say which of several
    files it is: what was found is listed, nothing is guessed.
    """
    found, maybe = [], []
    for pid in pods.processes(uid) if pids is None else pids:
        command = _command(pods.folders.proc, pid)
        has = opened(_files(pods.folders.proc / str(pid)), nodes)
        if fds := has.devices.get(address):
            found.append(Opening(pid, command, fds[0]))
        elif address in has.groups:
            found.append(Opening(pid, command, has.groups[address], address))
        elif address in has.candidates:
            maybe += [Opening(pid, command, fd) for fd in has.unnamed]
    if len(found) > 1:
        raise _ambiguous(address, found, "one process must hold it, to be paused and moved with it")
    if not found and maybe:
        raise _ambiguous(address, maybe, "this kernel does not say which file is which device (newer ones do)")
    return found[0] if found else None


def devices_of(pods: Pods, pids: Sequence[int], nodes: Sequence[Node]) -> set[str]:
    """Addresses of what these processes have open for certain: by itself, or as all of its group."""
    found: set[str] = set()
    for pid in pids:
        has = opened(_files(pods.folders.proc / str(pid)), nodes)
        found |= has.devices.keys() | has.groups.keys()
    return found


def _ambiguous(address: str, found: Sequence[Opening], why: str) -> DeviceError:
    named = ", ".join(map(str, found[:NAMED])) + (f" and {len(found) - NAMED} more" if len(found) > NAMED else "")
    return DeviceError(
        f"device {address} was found as {named}: {why}; have the process that is meant say it through the agent's "
        'socket: {"adopt": ADDRESS, "fd": N}',
        reason=Reason.DEVICE_AMBIGUOUS,
        device=address,
    )


def duplicate(pods: Pods, opening: Opening, uid: str) -> int:
    """A duplicate of the file, or another file of the same open device; the caller's to close. Raises OSError.

    The pod is looked at again once the process is pinned: its number may be another's by then (ESRCH).
    """
    with contextlib.closing(_Pid(opening.pid)) as pinned:
        if uid and pods.uid_of(opening.pid) != uid:
            raise ProcessLookupError(3, f"{opening} has ended")
        taken = pinned.fd(opening.fd)
    if not opening.address:
        return taken
    try:
        return uapi.group_device(taken, opening.address)
    finally:
        os.close(taken)


def is_device(pods: Pods, pid: int, taken: int, address: str, nodes: Sequence[Node]) -> bool:
    """Whether a file that was duplicated from a process is the device of this address, as far as the kernel says.

    One that the kernel does not name may be any device of a group that the process has open. What no node of this
    machine is (a simulated device) is for its backend to tell.
    """
    if all(node.address != address for node in nodes):
        return True
    ours = _file(Path("/proc/self"), taken)
    # numbered so that none of them is taken for ours
    others = [replace(f, fd=-1 - f.fd) for f in _files(pods.folders.proc / str(pid)) if names(f.link)]
    has = opened([file for file in (ours, *others) if file is not None], nodes)
    return taken in has.devices.get(address, ()) or (taken in has.unnamed and address in has.candidates)


class _Pid:
    """A process that cannot be taken for another."""

    def __init__(self, pid: int):
        self._fd = os.pidfd_open(pid)

    def fd(self, number: int) -> int:
        """A duplicate of its file `number`, closed on exec. Raises OSError."""
        found: int = _LIBC.syscall(_PIDFD_GETFD, self._fd, number, 0)
        if found < 0:
            code = ctypes.get_errno()
            raise OSError(code, f"pidfd_getfd of fd {number}: {os.strerror(code)}")
        return found

    def close(self) -> None:
        """Let it go."""
        os.close(self._fd)


def _files(process: Path) -> Iterator[OpenFile]:
    """The files of a process that have to do with VFIO; none if it has ended or is not ours to look at."""
    try:
        numbers = sorted(int(entry.name) for entry in (process / "fd").iterdir())
    except OSError:
        return
    yield from filter(None, (_file(process, number) for number in numbers))


def _file(process: Path, number: int) -> OpenFile | None:
    """A file of a process; None if it is closed, or has nothing to do with VFIO."""
    with contextlib.suppress(OSError):
        link = os.readlink(process / "fd" / str(number))
        if concerns(link):
            return OpenFile(number, link, (process / "fdinfo" / str(number)).read_text(errors="replace"))
    return None


def _command(proc: Path, pid: int) -> str:
    try:
        return (proc / str(pid) / "comm").read_text(errors="replace").strip()
    except OSError:
        return "ended"
