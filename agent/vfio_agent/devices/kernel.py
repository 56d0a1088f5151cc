"""Kernel VFIO devices by the legacy path: /dev/vfio/GROUP in a container of its own."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from errno import ENXIO, EPERM
from pathlib import Path

from vfio_agent.devices import uapi
from vfio_agent.devices.protocol import DeviceInfo, NoDataError, PrecopyInfo
from vfio_api.device import DeviceState, MigrationFlags


class KernelStream:
    """The data fd that the kernel handed out with an arc."""

    def __init__(self, fd: int):
        self._fd = fd

    def readinto(self, buffer: memoryview) -> int:
        """See DataStream.readinto; ENOMSG becomes NoDataError."""
        try:
            return os.readv(self._fd, [buffer])
        except OSError as error:
            if error.errno == uapi.NO_DATA_ERRNO:
                raise NoDataError from None
            raise

    def write(self, data: memoryview) -> int:
        """See DataStream.write."""
        return os.write(self._fd, data)

    def precopy_info(self) -> PrecopyInfo:
        """See DataStream.precopy_info."""
        return PrecopyInfo(*uapi.get_precopy_info(self._fd))

    def close(self) -> None:
        """Close the fd, once."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class KernelDevice:
    """One open VFIO device: device fd, group fd, container fd."""

    def __init__(self, address: str, fds: Sequence[int]):
        self.address = address
        self._fds = list(fds)

    def fds(self) -> Sequence[int]:
        """Device, group, container."""
        return tuple(self._fds)

    def flags(self) -> MigrationFlags:
        """See Device.flags."""
        return uapi.get_migration_flags(self._fds[0])

    def state(self) -> DeviceState:
        """See Device.state."""
        return uapi.get_state(self._fds[0])

    def set_state(self, new: DeviceState) -> KernelStream | None:
        """See Device.set_state."""
        data_fd = uapi.set_state(self._fds[0], new)
        return KernelStream(data_fd) if data_fd >= 0 else None

    def data_size(self) -> int:
        """See Device.data_size."""
        return uapi.get_data_size(self._fds[0])

    def config(self) -> bytes:
        """See Device.config."""
        return b""

    def restore_config(self, data: bytes) -> None:
        """See Device.restore_config."""

    def reset(self) -> None:
        """See Device.reset."""
        uapi.device_reset(self._fds[0])

    def close(self) -> None:
        """Close all fds, once."""
        while self._fds:
            os.close(self._fds.pop(0))


class KernelGroupBackend:
    """VFIO devices of this machine, opened by group and container.

    sysfs and dev are the mount points, so that an agent in a container may see the host's elsewhere.
    """

    name = "kernel"

    def __init__(self, sysfs: Path = Path("/sys"), dev: Path = Path("/dev"), proc: Path = Path("/proc")):
        self._sysfs, self._dev, self._proc = sysfs, dev, proc

    def list(self) -> list[DeviceInfo]:
        """See Backend.list. Reads sysfs and /proc/*/fd only."""
        openers = self._openers()
        devices = []
        for bus in ("mdev", "pci"):
            for path in sorted((self._sysfs / "bus" / bus / "devices").glob("*")):
                group = _link_name(path / "iommu_group")
                driver = _link_name(path / "driver")
                # whatever drives an mdev is a VFIO driver, by whatever name; on PCI the name tells
                if not group or (bus == "pci" and "vfio" not in driver):
                    continue
                devices.append(
                    DeviceInfo(
                        address=path.name,
                        driver=_parent_driver(path) if bus == "mdev" else driver,
                        model=_model(path),
                        opener=openers.get(str(self._dev / "vfio" / group), ""),
                    )
                )
        return devices

    def open(self, address: str) -> KernelDevice:
        """See Backend.open."""
        group = _link_name(self._device_path(address) / "iommu_group")
        with ExitStack() as undo:
            container = os.open(self._dev / "vfio" / "vfio", os.O_RDWR | os.O_CLOEXEC)
            undo.callback(os.close, container)
            if not uapi.check_container(container):
                raise OSError(ENXIO, "/dev/vfio/vfio does not offer the type 1 v2 IOMMU")
            group_fd = os.open(self._dev / "vfio" / group, os.O_RDWR | os.O_CLOEXEC)
            undo.callback(os.close, group_fd)
            if not uapi.group_viable(group_fd):
                raise OSError(EPERM, f"group {group} is not viable: bind all its devices to VFIO drivers")
            device = uapi.group_device_fd(group_fd, container, address)
            undo.pop_all()
        return KernelDevice(address, (device, group_fd, container))

    def adopt(self, address: str, fds: Sequence[int]) -> KernelDevice:
        """See Backend.adopt."""
        return KernelDevice(address, fds)

    def _device_path(self, address: str) -> Path:
        for bus in ("mdev", "pci"):
            path = self._sysfs / "bus" / bus / "devices" / address
            if path.exists():
                return path
        raise OSError(ENXIO, f"no VFIO device {address} on this node")

    def _openers(self) -> dict[str, str]:
        """Group path -> "pid N (command)" of a process that has it open."""
        prefix = str(self._dev / "vfio") + "/"
        found: dict[str, str] = {}
        for fd_folder in self._proc.glob("[0-9]*/fd"):
            try:
                for fd in fd_folder.iterdir():
                    target = _readlink(fd)
                    if target.startswith(prefix) and target != prefix + "vfio":
                        command = (fd_folder.parent / "comm").read_text().strip()
                        found[target] = f"pid {fd_folder.parent.name} ({command})"
            except OSError:
                continue  # the process ended, or is not ours to look at
        return found


def _readlink(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _link_name(path: Path) -> str:
    return os.path.basename(_readlink(path))


def _parent_driver(path: Path) -> str:
    """The driver of an mdev is its type's: "mtty-mtty-2" -> "mtty"."""
    return _link_name(path / "mdev_type").partition("-")[0] or _link_name(path / "driver")


def _model(path: Path) -> str:
    mdev_type = _link_name(path / "mdev_type")
    if mdev_type:
        return mdev_type
    return ":".join((path / name).read_text().strip().removeprefix("0x") for name in ("vendor", "device"))
