"""Which VFIO devices this machine has, the ways to open each, and who has it open: found without opening any.

A device is opened by its legacy group (/dev/vfio/GROUP) or, where the kernel has CONFIG_VFIO_DEVICE_CDEV, by a
character device of its own (/dev/vfio/devices/vfioN, named in <device>/vfio-dev/) together with /dev/iommu.
"""

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from errno import ENXIO
from pathlib import Path

from vfio_agent.devices.openers import Node, names
from vfio_agent.devices.protocol import DeviceInfo, Opener

NO_DEVICE = 0
BUSES = ("mdev", "pci")


@dataclass(frozen=True, slots=True)
class Found:
    """A device bound to a VFIO driver. group, cdev: the names of its nodes below /dev/vfio, "" where it has none."""

    address: str
    path: Path
    group: str
    cdev: str


@dataclass(frozen=True, slots=True)
class Host:
    """Where the host's file systems are mounted, so that an agent in a container may see them elsewhere."""

    sysfs: Path = Path("/sys")
    dev: Path = Path("/dev")
    proc: Path = Path("/proc")

    @property
    def iommufd(self) -> Path:
        """The device node of iommufd."""
        return self.dev / "iommu"

    @property
    def container(self) -> Path:
        """The device node of the legacy way."""
        return self.dev / "vfio" / "vfio"

    def group_node(self, found: Found) -> Path:
        """The device node of a device's group."""
        return self.dev / "vfio" / found.group

    def cdev_node(self, found: Found) -> Path:
        """The device node of a device."""
        return self.dev / "vfio" / "devices" / found.cdev

    def offers_cdev(self, found: Found) -> bool:
        """Whether the device can be opened by its own node. The name in sysfs is there on older kernels too."""
        return bool(found.cdev) and self.iommufd.exists() and self.cdev_node(found).exists()

    def devices(self) -> Iterator[Found]:
        """Every device bound to a VFIO driver, in the order of the buses and addresses."""
        for bus in BUSES:
            for path in sorted((self.sysfs / "bus" / bus / "devices").glob("*")):
                found = _look(path)
                # whatever drives an mdev is a VFIO driver, by whatever name; on PCI the name tells
                if (found.group or found.cdev) and (bus == "mdev" or "vfio" in _link_name(path / "driver")):
                    yield found

    def find(self, address: str) -> Found:
        """One device. Raises OSError ENXIO if there is none of this name."""
        for bus in BUSES:
            path = self.sysfs / "bus" / bus / "devices" / address
            if path.exists():
                return _look(path)
        raise OSError(ENXIO, f"no VFIO device {address} on this node")

    def list(self) -> list[DeviceInfo]:
        """Every device with its opener, by whichever way that opened it. Reads sysfs and /proc/*/fd only."""
        openers = self._openers()
        devices = []
        for found in self.devices():
            opener = openers.get(found.cdev) or openers.get(found.group)
            with contextlib.suppress(OSError):  # it was removed meanwhile
                devices.append(DeviceInfo(found.address, _driver(found.path), _model(found.path), opener))
        return devices

    def nodes(self) -> Sequence[Node]:
        """Every device as open files of processes name it."""
        return [Node(found.address, found.cdev, found.group) for found in self.devices()]

    def _openers(self) -> dict[str, Opener]:
        """Name of a group or a device -> a process that has it open."""
        found: dict[str, Opener] = {}
        for fd_folder in self.proc.glob("[0-9]*/fd"):
            try:
                for fd in fd_folder.iterdir():
                    if (name := names(_readlink(fd))) and self._is_node(fd, name):
                        command = (fd_folder.parent / "comm").read_text(errors="replace").strip()
                        found[name] = Opener(int(fd_folder.parent.name), command)
            except OSError:
                continue  # the process ended, or is not ours to look at
        return found

    def _is_node(self, file: Path, name: str) -> bool:
        """Whether an open file can be the device node of this name: a path that ends alike is anybody's to make."""
        node = self.dev / "vfio" / ("devices" if name.startswith("vfio") else "") / name
        has, known = _device_number(file), _device_number(node)
        return has is None or has == (known or has) != NO_DEVICE


def _device_number(path: Path) -> int | None:
    """Of a character device; NO_DEVICE of any other file, None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_rdev if stat.S_ISCHR(found.st_mode) else NO_DEVICE


def _look(path: Path) -> Found:
    cdevs = sorted(entry.name for entry in (path / "vfio-dev").glob("vfio*"))
    return Found(path.name, path, _link_name(path / "iommu_group"), cdevs[0] if cdevs else "")


def _readlink(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _link_name(path: Path) -> str:
    return os.path.basename(_readlink(path))


def _driver(path: Path) -> str:
    """The driver of an mdev is its type's: "mtty-mtty-2" -> "mtty"."""
    return _link_name(path / "mdev_type").partition("-")[0] or _link_name(path / "driver")


def _model(path: Path) -> str:
    mdev_type = _link_name(path / "mdev_type")
    if mdev_type:
        return mdev_type
    return ":".join((path / name).read_text().strip().removeprefix("0x") for name in ("vendor", "device"))
