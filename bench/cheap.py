"""Devices that cost nothing, in the agent's own process, and what stands in for a keeper; for bench/fleet.py.

A device is the simulator's pure model: it has the states, arcs and stream of a real one, and no arc takes time.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from vfio_agent.devices.openers import Node
from vfio_agent.devices.protocol import DeviceInfo, Opener, PrecopyInfo
from vfio_agent.devices.simfabric import Fabric
from vfio_agent.devices.simmodel import DeviceConfig, SimDevice
from vfio_agent.devices.simstate import LoadStream, SaveStream, os_error
from vfio_agent.keeper import KeeperClient
from vfio_api.device import DeviceState, MigrationFlags

Json = dict[str, Any]


class CheapStream:
    """The data stream of a cheap device; protocol.DataStream."""

    def __init__(self, device: "CheapDevice", stream: SaveStream | LoadStream):
        self._device, self._stream, self._pause = device, stream, device.first_byte_seconds

    def readinto(self, buffer: memoryview) -> int:
        """See protocol. A device that has stopped may take its time until it gives its first byte."""
        if self._pause and self._device.model.state is DeviceState.STOP_COPY:
            time.sleep(self._pause)
            self._pause = 0.0
        with self._device.lock:
            return self._device.model.read(self._stream, buffer, time.monotonic())

    def ready(self) -> bool:
        """See protocol."""
        return not self._pause

    def write(self, data: memoryview) -> int:
        """See protocol."""
        with self._device.lock:
            return self._device.model.write(self._stream, data)

    def precopy_info(self) -> PrecopyInfo:
        """See protocol."""
        with self._device.lock:
            return self._device.model.precopy_info(self._stream, time.monotonic())

    def close(self) -> None:
        """Nothing is open."""


class CheapDevice:
    """A device of the simulator's model in this process; protocol.Device."""

    def __init__(self, model: SimDevice, lock: Lock, first_byte_seconds: float, moved: Callable[[DeviceState], None]):
        self.model, self.lock = model, lock  # the lock is the node's: its devices share a bus
        self.first_byte_seconds, self._moved = first_byte_seconds, moved

    @property
    def address(self) -> str:
        """See protocol."""
        return self.model.config.address

    def fds(self) -> Sequence[int]:
        """None: nothing but this object keeps it open."""
        return ()

    def flags(self) -> MigrationFlags:
        """See protocol."""
        return self.model.config.flags

    def state(self) -> DeviceState:
        """See protocol."""
        return self.model.state

    def set_state(self, new: DeviceState) -> CheapStream | None:
        """See protocol."""
        with self.lock:
            if new is DeviceState.PRE_COPY:
                self.model.opt_in()
            _, stream = self.model.set_state(new, time.monotonic())
        self._moved(new)
        return CheapStream(self, stream) if stream is not None else None

    def data_size(self) -> int:
        """See protocol."""
        with self.lock:
            return self.model.data_size(time.monotonic())

    def config(self) -> bytes:
        """See protocol."""
        return self.model.get_config()

    def restore_config(self, data: bytes) -> None:
        """See protocol."""
        self.model.restore_config(data)

    def reset(self) -> None:
        """See protocol."""
        with self.lock:
            self.model.reset(time.monotonic())

    def close(self) -> None:
        """The last user closes it: it is blank again."""
        with self.lock:
            self.model.close(time.monotonic())


class CheapBackend:
    """The cheap devices of one node; protocol.Backend."""

    name = "simulated"

    def __init__(
        self,
        addresses: Iterable[str],
        flags: MigrationFlags,
        size_bytes: int,
        first_byte_seconds: float = 0.0,
        moved: Callable[[DeviceState], None] = lambda _state: None,
    ):
        now, fabric = time.monotonic(), Fabric()
        self._lock, self._first_byte_seconds, self._moved = Lock(), first_byte_seconds, moved
        self._models = {
            address: SimDevice(DeviceConfig(address, "bench", size_bytes, flags=flags), fabric, now)
            for address in addresses
        }

    def list(self) -> "list[DeviceInfo]":
        """See protocol."""
        return [
            DeviceInfo(address, "vfio-bench", "bench", Opener(0, "open") if model.opened else None)
            for address, model in self._models.items()
        ]

    def nodes(self) -> Sequence[Node]:
        """None: no process can have one open."""
        return ()

    def open(self, address: str) -> CheapDevice:
        """See protocol."""
        if (model := self._models.get(address)) is None:
            raise os_error(19, address)
        with self._lock:
            model.open(time.monotonic())
        return CheapDevice(model, self._lock, self._first_byte_seconds, self._moved)

    def adopt(self, address: str, fds: Sequence[int]) -> CheapDevice:
        """See protocol."""
        raise os_error(22, f"{address}: a device of this process cannot be given by {len(fds)} fds")


class MemoryKeeper(KeeperClient):
    """Stands in for a keeper process: these agents are not to be outlived by their devices."""

    def __init__(self) -> None:
        super().__init__(Path("/nonexistent"))
        self._noted: dict[str, Json] = {}

    def store(self, name: str, meta: Json, fds: list[int]) -> None:
        """See KeeperClient."""
        self._noted[name] = meta

    def note(self, name: str, meta: Json) -> None:
        """See KeeperClient."""
        self._noted[name] = meta

    def drop(self, name: str) -> None:
        """See KeeperClient."""
        del self._noted[name]

    def held(self) -> list[str]:
        """See KeeperClient."""
        return list(self._noted)
