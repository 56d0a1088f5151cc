"""Which of a process's open files is which VFIO device: by what the kernel says of them, never by a guess. Pure.

A device opened by its own node is named by the link of its fd (/dev/vfio/devices/vfioN). One that came out of a legacy
group is an anonymous file: newer kernels name it in its fdinfo (vfio-device-syspath; drivers/vfio/vfio_main.c,
vfio_device_show_fdinfo). Of older ones it is known if nothing else can be meant; and if there are as many such files as
devices in the open groups, all of these are open, and each can be had by its group once more: an open group gives the
same device to who asks again (vfio_df_open of drivers/vfio/vfio_main.c), and no other process can have that group.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

# Only the end of a path counts: of an fd opened in another mount namespace (a container, or the host's seen from one)
# the kernel names the path from that mount's root on.
_NODE = re.compile(r"(?:^|/)vfio/(?:devices/(vfio\d+)|(\d+|noiommu-\d+))(?: \(deleted\))?$")
_ANONYMOUS = "anon_inode:[vfio-device]"
_SYSPATH = re.compile(r"^vfio-device-syspath:\s*(\S+)\s*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class OpenFile:
    """An open file of a process: where its link in /proc/PID/fd points, and its fdinfo."""

    fd: int
    link: str
    info: str = ""


@dataclass(frozen=True, slots=True)
class Node:
    """A device as sysfs names it: its own node's name and its group's, "" where it has none."""

    address: str
    cdev: str
    group: str


@dataclass(frozen=True, slots=True)
class Opened:
    """What a process has open. devices: address -> its fds. unnamed: fds of devices that the kernel does not name.

    candidates: addresses that those may be. groups: address -> fd of its group, of those that all are.
    """

    devices: dict[str, tuple[int, ...]]
    unnamed: tuple[int, ...] = ()
    candidates: tuple[str, ...] = ()
    groups: dict[str, int] = field(default_factory=dict)


def names(link: str) -> str:
    """The name of the device node or of the group that an fd's link points to; "" if it is neither."""
    found = _NODE.search(link)
    return (found[1] or found[2]) if found else ""


def concerns(link: str) -> bool:
    """Whether a file with this link is a VFIO device, or the group of one."""
    return link == _ANONYMOUS or bool(names(link))


def opened(files: Iterable[OpenFile], nodes: Sequence[Node]) -> Opened:
    """Which devices a process has open."""
    by_cdev = {node.cdev: node.address for node in nodes if node.cdev}
    known: dict[str, list[int]] = {}
    groups: dict[str, int] = {}
    unnamed = []
    for file in files:
        name, said = names(file.link), _SYSPATH.search(file.info)
        if name in by_cdev:
            known.setdefault(by_cdev[name], []).append(file.fd)
        elif name:
            groups[name] = file.fd
        elif file.link == _ANONYMOUS and said:
            known.setdefault(said[1].rpartition("/")[2], []).append(file.fd)
        elif file.link == _ANONYMOUS:
            unnamed.append(file.fd)
    maybe = {node.address: groups[node.group] for node in nodes if node.group in groups and node.address not in known}
    if len(unnamed) == len(maybe) == 1:
        known[next(iter(maybe))], unnamed, maybe = unnamed, [], {}
    devices = {address: tuple(fds) for address, fds in known.items()}
    return Opened(devices, tuple(unnamed), tuple(maybe), maybe if len(unnamed) == len(maybe) else {})
