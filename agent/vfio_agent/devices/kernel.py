"""Kernel VFIO devices: a character device of each with iommufd, or the legacy group in a container of its own."""

import os
import select
from collections.abc import Sequence
from contextlib import ExitStack
from errno import EBADF, EBUSY, EINVAL, EIO, ENXIO, EPERM
from typing import Literal

from vfio_agent import pciconfig
from vfio_agent.devices import uapi
from vfio_agent.devices.kernel_sysfs import Found, Host
from vfio_agent.devices.openers import Node
from vfio_agent.devices.protocol import DeviceInfo, NoDataError, PrecopyInfo
from vfio_api.device import DeviceState, MigrationFlags

KernelPath = Literal["auto", "cdev", "group"]
"""How devices are opened. auto: by cdev and iommufd where this node offers that for the device, else by group."""


class KernelStream:
    """The data fd that the kernel handed out with an arc."""

    def __init__(self, fd: int, precopy_flags: bool):
        self._fd, self._precopy_flags = fd, precopy_flags

    def readinto(self, buffer: memoryview) -> int:
        """See DataStream.readinto; ENOMSG becomes NoDataError."""
        try:
            return os.readv(self._fd, [buffer])
        except OSError as error:
            if error.errno == uapi.NO_DATA_ERRNO:
                raise NoDataError from None
            raise

    def ready(self) -> bool:
        """See DataStream.ready; drivers that do not say give at once what they have."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(0))

    def write(self, data: memoryview) -> int:
        """See DataStream.write."""
        return os.write(self._fd, data)

    def precopy_info(self) -> PrecopyInfo:
        """See DataStream.precopy_info; `reinit` only where the kernel has VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2."""
        found = uapi.get_precopy_info(self._fd, self._precopy_flags)
        return PrecopyInfo(found.initial, found.dirty, found.reinit)

    def close(self) -> None:
        """Close the fd, once: its number may be another's by the time a second caller comes."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class KernelDevice:
    """One open VFIO device, whichever way it was opened: all but `close` is done with the first of its fds.

    precopy_flags: its user has opted in to the flags of vfio_precopy_info. Closed, it raises OSError EBADF.
    """

    def __init__(self, address: str, fds: Sequence[int], *, precopy_flags: bool):
        self.address = address
        self._fds = list(fds)
        self._precopy_flags = precopy_flags

    def fds(self) -> Sequence[int]:
        """Device and iommufd; or device, group and container. Raises OSError EBADF after close."""
        self._device_fd()
        return tuple(self._fds)

    def _device_fd(self) -> int:
        if not self._fds:
            raise OSError(EBADF, f"device {self.address} is closed")
        return self._fds[0]

    def flags(self) -> MigrationFlags:
        """See Device.flags."""
        return uapi.get_migration_flags(self._device_fd())

    def state(self) -> DeviceState:
        """See Device.state."""
        return uapi.get_state(self._device_fd())

    def set_state(self, new: DeviceState) -> KernelStream | None:
        """See Device.set_state."""
        data_fd = uapi.set_state(self._device_fd(), new)
        return KernelStream(data_fd, self._precopy_flags) if data_fd >= 0 else None

    def data_size(self) -> int:
        """See Device.data_size."""
        return uapi.get_data_size(self._device_fd())

    def config(self) -> bytes:
        """See Device.config and `vfio_agent.pciconfig`; b"" for what is not PCI."""
        region = self._config_region()
        if region is None:
            return b""
        try:
            return pciconfig.save(self._read_config(*region))
        except pciconfig.ConfigError as error:
            raise OSError(EINVAL, f"device {self.address}: {error}") from error

    def restore_config(self, data: bytes) -> None:
        """See Device.restore_config. Raises OSError EIO if a register does not take what is written."""
        if not data:
            return
        region = self._config_region()
        if region is None:
            raise OSError(EINVAL, f"device {self.address} has no PCI config registers to restore")
        try:
            writes = pciconfig.restore(data, self._read_config(*region))
        except pciconfig.ConfigError as error:
            raise OSError(EINVAL, f"device {self.address}: {error}") from error
        for write in writes:
            write_whole(self._device_fd(), write.data(), region[0] + write.offset)
        command = writes[-1]
        found = os.pread(self._device_fd(), command.width, region[0] + command.offset)
        if found != command.data():
            raise OSError(EIO, f"device {self.address}: PCI command is {found.hex()}, not {command.data().hex()}")

    def _config_region(self) -> tuple[int, int] | None:
        """Offset and size of the PCI configuration space in the device's file; None if it has none."""
        if not uapi.is_pci(self._device_fd()):
            return None
        offset, size = uapi.region_offset(self._device_fd(), uapi.PCI_CONFIG_REGION_INDEX)
        return (offset, size) if size else None

    def _read_config(self, offset: int, size: int) -> bytes:
        return os.pread(self._device_fd(), min(size, pciconfig.CONFIG_BYTES), offset)

    def reset(self) -> None:
        """See Device.reset."""
        uapi.device_reset(self._device_fd())

    def close(self) -> None:
        """Close all fds, once. While any fd of a cdev is open, even one never bound, its device cannot be removed."""
        while self._fds:
            os.close(self._fds.pop(0))


def write_whole(fd: int, data: bytes, offset: int) -> None:
    """Write a register in one access. Raises OSError EIO unless all of its width was taken."""
    count = os.pwrite(fd, data, offset)
    if count != len(data):
        raise OSError(EIO, f"{count} of {len(data)} bytes were written at {offset:#x}")


class KernelBackend:
    """VFIO devices of this machine. A device taken back by `adopt` goes on as it was opened, whatever `path` says."""

    name = "kernel"

    def __init__(self, path: KernelPath = "auto", host: Host | None = None):
        self._path, self._host = path, host or Host()

    def list(self) -> list[DeviceInfo]:
        """See Backend.list."""
        return self._host.list()

    def nodes(self) -> Sequence[Node]:
        """See Backend.nodes."""
        return self._host.nodes()

    def open(self, address: str) -> KernelDevice:
        """See Backend.open. Raises ENXIO if the node does not offer the way asked for."""
        found = self._host.find(address)
        if self._path == "cdev" or (self._path == "auto" and self._host.offers_cdev(found)):
            return self._open_cdev(found)
        return self._open_group(found)

    def adopt(self, address: str, fds: Sequence[int]) -> KernelDevice:
        """See Backend.adopt. A device that answers nothing any more is taken, too: its flags then raise."""
        try:
            precopy_flags = uapi.enable_precopy_info_v2(fds[0])
        except OSError:
            precopy_flags = False
        return KernelDevice(address, fds, precopy_flags=precopy_flags)

    def _open_cdev(self, found: Found) -> KernelDevice:
        if not self._host.offers_cdev(found):
            raise OSError(ENXIO, f"{found.address} has no node in /dev/vfio/devices, or there is no /dev/iommu")
        with ExitStack() as undo:
            device = os.open(self._host.cdev_node(found), os.O_RDWR | os.O_CLOEXEC)
            undo.callback(os.close, device)
            iommufd = os.open(self._host.iommufd, os.O_RDWR | os.O_CLOEXEC)
            undo.callback(os.close, iommufd)
            try:
                uapi.bind_iommufd(device, iommufd)
            except OSError as error:
                if error.errno == EINVAL:  # the kernel's answer to a second opener
                    raise OSError(EBUSY, f"{found.cdev} is open elsewhere") from error
                raise
            uapi.attach_iommufd_pt(device, uapi.ioas_alloc(iommufd))
            opted_in = uapi.enable_precopy_info_v2(device)
            opened = KernelDevice(found.address, (device, iommufd), precopy_flags=opted_in)
            undo.pop_all()
        return opened

    def _open_group(self, found: Found) -> KernelDevice:
        if not found.group:
            raise OSError(ENXIO, f"{found.address} has no IOMMU group: open it by cdev")
        with ExitStack() as undo:
            container = os.open(self._host.container, os.O_RDWR | os.O_CLOEXEC)
            undo.callback(os.close, container)
            if not uapi.check_container(container):
                raise OSError(ENXIO, "/dev/vfio/vfio does not offer the type 1 v2 IOMMU")
            group = os.open(self._host.group_node(found), os.O_RDWR | os.O_CLOEXEC)
            undo.callback(os.close, group)
            if not uapi.group_viable(group):
                raise OSError(EPERM, f"group {found.group} is not viable: bind all its devices to VFIO drivers")
            device = uapi.group_device_fd(group, container, found.address)
            undo.callback(os.close, device)
            opted_in = uapi.enable_precopy_info_v2(device)
            opened = KernelDevice(found.address, (device, group, container), precopy_flags=opted_in)
            undo.pop_all()
        return opened
