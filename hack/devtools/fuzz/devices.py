"""Devices that are only memory: a state, and what a session did to it."""

import os
from collections.abc import Callable, Sequence
from errno import EBUSY, EINVAL, ENOENT

from vfio_agent.devices.openers import Node
from vfio_agent.devices.protocol import DeviceInfo, NoDataError, PrecopyInfo
from vfio_api.device import DeviceState, MigrationFlags

FLAGS = MigrationFlags.STOP_COPY | MigrationFlags.P2P | MigrationFlags.PRE_COPY
_PRE_COPY = (DeviceState.PRE_COPY, DeviceState.PRE_COPY_P2P)
_SAVING = (*_PRE_COPY, DeviceState.STOP_COPY)


class Stream:
    """A data stream: `left` bytes of state in STOP_COPY, nothing before."""

    def __init__(self, device: "MemoryDevice", left: int = 1000):
        self._device, self._left = device, left

    def readinto(self, buffer: memoryview) -> int:
        """The state, once the device has stopped."""
        if self._device.state() is not DeviceState.STOP_COPY:
            raise NoDataError
        count = min(len(buffer), self._left)
        self._left -= count
        return count

    def ready(self) -> bool:
        """It does nothing that takes time."""
        return True

    def write(self, data: memoryview) -> int:
        """Takes all."""
        return len(data)

    def precopy_info(self) -> PrecopyInfo:
        """Nothing is left before it stops."""
        if self._device.state() not in _PRE_COPY:
            raise OSError(EINVAL, "not in pre-copy")
        return PrecopyInfo(0, 0)

    def close(self) -> None:
        """Nothing to close."""


class MemoryDevice:
    """One open device. moves: told every state that it is set to."""

    def __init__(self, address: str, moves: Callable[[str, DeviceState], None]):
        self.address, self._moves, self._state = address, moves, DeviceState.RUNNING
        self._fd = os.open("/dev/null", os.O_RDONLY)

    def fds(self) -> Sequence[int]:
        """One that stands for it."""
        return (self._fd,)

    def flags(self) -> MigrationFlags:
        """It can do everything."""
        return FLAGS

    def state(self) -> DeviceState:
        """As it was set."""
        return self._state

    def set_state(self, new: DeviceState) -> Stream | None:
        """Every arc is made."""
        self._moves(self.address, new)
        old, self._state = self._state, new
        begins = new is DeviceState.RESUMING or (new in _SAVING and old not in _SAVING)
        return Stream(self) if begins else None

    def data_size(self) -> int:
        """Nothing."""
        return 0

    def config(self) -> bytes:
        """None."""
        return b""

    def restore_config(self, data: bytes) -> None:
        """Any."""

    def reset(self) -> None:
        """Blank and running."""
        self._state = DeviceState.RUNNING

    def close(self) -> None:
        """Close the descriptor."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


class Memory:
    """The backend: `count` devices mem0, mem1, ..."""

    name = "memory"

    def __init__(self, count: int, moves: Callable[[str, DeviceState], None] = lambda _address, _state: None):
        self._addresses, self._moves = [f"mem{n}" for n in range(count)], moves
        self._open: dict[str, MemoryDevice] = {}

    def list(self) -> list[DeviceInfo]:
        """All of them."""
        return [DeviceInfo(address, "memory", "memory") for address in self._addresses]

    def nodes(self) -> Sequence[Node]:
        """Nothing says whose memory it is."""
        return ()

    def open(self, address: str) -> MemoryDevice:
        """Exclusively."""
        if address not in self._addresses:
            raise OSError(ENOENT, f"no device {address}")
        known = self._open.get(address)
        if known is not None and known.fds()[0] >= 0:
            raise OSError(EBUSY, f"{address} is open")
        self._open[address] = MemoryDevice(address, self._moves)
        return self._open[address]

    def adopt(self, address: str, fds: Sequence[int]) -> MemoryDevice:
        """Not here: what was memory is gone with its process."""
        raise OSError(EINVAL, f"{address} cannot be taken back")
