"""What the agent asks of a device and of a backend, whichever kind it is.

All calls block and may be called from any thread, but for one device never from two at once, except that its
data stream is read or written by a stream thread while another thread moves its state.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from vfio_agent.devices.openers import Node
from vfio_api.device import DeviceState, MigrationFlags


@dataclass(frozen=True, slots=True)
class Opener:
    """A process that has a device open. pid: 0 if it is not known which."""

    pid: int
    command: str

    def __str__(self) -> str:
        return f"pid {self.pid} ({self.command})" if self.pid else self.command


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """A VFIO device as the backend lists it without opening it.

    address: as its bus names it (PCI address, mdev UUID). driver: the VFIO driver bound to it. model: what must be
    equal on both sides for a state to fit (vendor:device ids, or the mdev type). opener: who has it open, as found
    without opening it (None if nobody was found).
    """

    address: str
    driver: str
    model: str
    opener: Opener | None = None


@dataclass(frozen=True, slots=True)
class PrecopyInfo:
    """struct vfio_precopy_info: bytes still to be read of the initial data, and bytes dirtied since.

    reinit: VFIO_PRECOPY_INFO_REINIT, the device has new initial data, which must be loaded before it is stopped.
    """

    initial_bytes: int
    dirty_bytes: int
    reinit: bool = False


class NoDataError(Exception):
    """The device has no pre-copy data for now (the kernel's ENOMSG)."""


class DataStream(Protocol):
    """The data fd of a device in a saving state or in RESUMING."""

    def readinto(self, buffer: memoryview) -> int:
        """Read device state into `buffer`; 0 at the end of STOP_COPY.

        Raises NoDataError at the temporary end of pre-copy data, OSError as the device says.
        """

    def ready(self) -> bool:
        """Whether a read would give something, or the end, at once; it may be said of a device that does not tell."""

    def write(self, data: memoryview) -> int:
        """Load device state; returns how many bytes the device took (may be fewer). Raises OSError."""

    def precopy_info(self) -> PrecopyInfo:
        """VFIO_MIG_GET_PRECOPY_INFO; only in the pre-copy states (else OSError EINVAL)."""

    def close(self) -> None:
        """Close the fd."""


class Device(Protocol):
    """One open VFIO device."""

    @property
    def address(self) -> str:
        """As its bus names it."""

    def fds(self) -> Sequence[int]:
        """The fds that keep the device open: device first, then group/container or iommufd."""

    def flags(self) -> MigrationFlags:
        """VFIO_DEVICE_FEATURE_MIGRATION. Raises OSError ENOTTY if it cannot migrate."""

    def state(self) -> DeviceState:
        """VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE (GET)."""

    def set_state(self, new: DeviceState) -> DataStream | None:
        """VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE (SET): goes every arc to `new`.

        Returns the data stream if the last arc handed one out. Raises OSError; the device may then be in any state
        on the way: read it back.
        """

    def data_size(self) -> int:
        """VFIO_DEVICE_FEATURE_MIG_DATA_SIZE: the estimated stop_copy_length in bytes, in any state."""

    def config(self) -> bytes:
        """What the device's state does not carry: the PCI config registers set up by its user; b"" if none.

        At most 4 KiB, only for restore_config of a device of the same model. Raises OSError.
        """

    def restore_config(self, data: bytes) -> None:
        """Write what `config` gave at the source; after the state was loaded, before RUNNING_P2P.

        Raises OSError, EINVAL for bytes that are no such registers.
        """

    def reset(self) -> None:
        """VFIO_DEVICE_RESET: the only way out of ERROR; leaves the device RUNNING and blank."""

    def close(self) -> None:
        """Close this process's fds of the device (others may hold duplicates)."""


class Backend(Protocol):
    """A kind of devices on this node."""

    name: str

    def list(self) -> list[DeviceInfo]:
        """Every device of this kind, found without opening any."""

    def nodes(self) -> Sequence[Node]:
        """Every device as the open files of processes name it; none if they do not."""

    def open(self, address: str) -> Device:
        """Open a device exclusively; on real hardware this resets it. Raises OSError (EBUSY if it is open)."""

    def adopt(self, address: str, fds: Sequence[int]) -> Device:
        """A device whose fds (in the order of Device.fds) this process was given."""
