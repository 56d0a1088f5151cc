"""One simulated VFIO device, which behaves as the kernel and a migration driver do.

Pure: no I/O, no threads; time is passed in (seconds, monotonic, never going back). The process around it
(simulator.py) sleeps and locks. Arcs take time, so each is in two halves: `begin_arc` says when it will be
done, `finish_arc` does it.

Source: include/uapi/linux/vfio.h (VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE and following,
VFIO_MIG_GET_PRECOPY_INFO); error numbers as in drivers/vfio/vfio_main.c and drivers/vfio/pci/mlx5/main.c.
"""

import errno
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from vfio_agent.devices.protocol import NoDataError, PrecopyInfo
from vfio_agent.devices.simfabric import Endpoint, Fabric
from vfio_agent.devices.simfaults import Fault, FaultOp, take_fault
from vfio_agent.devices.simstate import (
    MODEL_BYTES,
    PAGE_BYTES,
    SCRATCH_BYTES,
    Identity,
    LoadStream,
    Pages,
    SaveStream,
    encode_trailer,
    full_bytes,
    os_error,
)
from vfio_api.device import (
    DATA_FD_ARCS,
    RUNS,
    SAVING,
    DeviceState,
    IllegalArcError,
    MigrationFlags,
    next_state,
)

CONFIG_BYTES = 64
ALL_FLAGS = MigrationFlags.STOP_COPY | MigrationFlags.P2P | MigrationFlags.PRE_COPY
# Where a device initiates P2P writes.
INITIATES = frozenset({DeviceState.RUNNING, DeviceState.PRE_COPY})
_PRE_COPY = frozenset({DeviceState.PRE_COPY, DeviceState.PRE_COPY_P2P})
# The content is not a state: half loaded, or lost.
_UNDEFINED = frozenset({DeviceState.RESUMING, DeviceState.ERROR})


@dataclass(frozen=True, slots=True)
class DeviceConfig:
    """What a simulated device is.

    arc_latency_seconds: how long an arc takes; arc_latencies_seconds: by (from, to), for arcs that take
    another time. precopy_info_v2: it offers VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2.
    """

    address: str
    model: str
    size_bytes: int
    dirty_rate_bytes_per_second: float = 0.0
    flags: MigrationFlags = ALL_FLAGS
    arc_latency_seconds: float = 0.0
    arc_latencies_seconds: Mapping[tuple[DeviceState, DeviceState], float] = field(default_factory=dict)
    precopy_info_v2: bool = True

    def __post_init__(self) -> None:
        if len(self.model.encode()) > MODEL_BYTES:
            raise ValueError(f"{self.address}: a model has at most {MODEL_BYTES} bytes, not {self.model!r}")
        if self.size_bytes < 1 or self.dirty_rate_bytes_per_second < 0:
            raise ValueError(f"{self.address}: size must be positive and dirty rate not negative")


@dataclass(frozen=True, slots=True)
class Arc:
    """A single arc under way: done at `ready`, not before."""

    source: DeviceState
    target: DeviceState
    began: float
    ready: float
    fault: Fault | None


class SimDevice:
    """A device on a fabric: state machine, content, identity.

    One arc at a time; reads and writes of the data stream may come while one is under way and see the old
    state.
    """

    def __init__(self, config: DeviceConfig, fabric: Fabric, now: float):
        self.config = config
        self.state = DeviceState.RUNNING
        self.opened = False
        self.arc: Arc | None = None
        self.endpoint = Endpoint(config.address)
        self.faults: list[Fault] = []
        self._fabric = fabric
        self._settled = now
        self._saving: SaveStream | None = None
        self._loading: LoadStream | None = None
        self._registers = bytearray(CONFIG_BYTES)
        self._opted_in = self._reinit = False
        self._blank()
        fabric.attach(self.endpoint)

    @property
    def identity(self) -> Identity | None:
        """Who the device is to its peers; None: blank."""
        return self.endpoint.identity

    def start_traffic(self, port: int, peers: tuple[int, ...], now: float) -> None:
        """Make a blank device a working one: what the driver of a workload does.

        Raises OSError EBUSY if it is not blank, EIO if it is not RUNNING.
        """
        self._settle(now)
        if self.identity is not None:
            raise os_error(errno.EBUSY, f"{self.config.address} already is port {self.identity.port}")
        if self.state is not DeviceState.RUNNING:
            raise os_error(errno.EIO, f"{self.config.address} is {self.state.name}")
        self._fabric.assign(self.endpoint, Identity(port, peers), now)
        self._switch(now)

    def begin_arc(self, goal: DeviceState, now: float) -> Arc:
        """Begin the next single arc on the way to `goal`.

        A device that is to initiate nothing in the new state stops that at once and is not done before its
        own writes have arrived. Raises OSError EINVAL where the kernel does.
        """
        if self.arc is not None:
            raise os_error(errno.EBUSY, f"{self.config.address} is on an arc")
        try:
            target = next_state(self.state, goal, self.config.flags)
        except IllegalArcError as e:
            raise os_error(errno.EINVAL, str(e)) from e
        key = (self.state, target)
        fault = take_fault(self.faults, FaultOp.ARC, arc=key)
        latency = self.config.arc_latencies_seconds.get(key, self.config.arc_latency_seconds)
        latency += fault.delay_seconds if fault else 0.0
        self._switch(now, target)
        ready = now + latency
        if target not in INITIATES:
            ready = max(ready, self.endpoint.drained_at)
        self.arc = Arc(self.state, target, now, ready, fault)
        return self.arc

    def finish_arc(self, now: float) -> SaveStream | LoadStream | None:
        """Finish the arc under way; returns the data stream if it hands one out.

        Raises OSError if it fails; the device is then where the arc began, or in ERROR.
        """
        arc = self.arc
        if arc is None or now < arc.ready:
            raise ValueError(f"{self.config.address}: no arc is done at {now}")
        self._settle(now)
        self.arc = None
        try:
            if arc.fault is not None and arc.fault.errno:
                if arc.fault.to_error:
                    self._enter(DeviceState.ERROR, now)
                raise os_error(arc.fault.errno, "injected")
            if self._loading is not None and arc.target is DeviceState.STOP:
                self._accept(self._loading, now)
            self._enter(arc.target, now)
        finally:
            self._switch(now)
        if (arc.source, arc.target) not in DATA_FD_ARCS:
            return None
        if arc.target is DeviceState.RESUMING:
            # What the device held is overwritten from here on; from RESUMING only a whole state or a reset
            # leads out.
            self._fabric.assign(self.endpoint, None, now)
            self._blank()
            self._loading = LoadStream(self.config.size_bytes, self.config.model)
            return self._loading
        self._reinit = False
        self._saving = SaveStream(self._pages, self.config.model)
        return self._saving

    def set_state(self, goal: DeviceState, now: float) -> tuple[float, SaveStream | LoadStream | None]:
        """Every arc to `goal`, each done as soon as it can be. Returns when that is, and the last arc's
        stream.

        Raises OSError; the device may then be in any state on the way.
        """
        stream = None
        while self.state is not goal:
            now = self.begin_arc(goal, now).ready
            stream = self.finish_arc(now)
        return now, stream

    def open(self, now: float) -> None:
        """Open the device, which resets it as vfio-pci does. Raises OSError EBUSY if it is open."""
        if self.opened:
            raise os_error(errno.EBUSY, f"{self.config.address} is open")
        self.opened, self._opted_in = True, False
        self._restart(now)

    def close(self, now: float) -> None:
        """The last fd of the device was closed: it is reset."""
        self.opened = False
        self._restart(now)

    def reset(self, now: float) -> None:
        """VFIO_DEVICE_RESET: RUNNING and blank. Armed faults stay armed: they belong to the hardware."""
        self._injected(FaultOp.RESET)
        self._restart(now)

    def _restart(self, now: float) -> None:
        self._settle(now)
        self.arc = None
        self._fabric.assign(self.endpoint, None, now)
        self._enter(DeviceState.RUNNING, now)
        self._registers = bytearray(CONFIG_BYTES)
        self._blank()

    def read(self, stream: SaveStream | LoadStream, buffer: memoryview, now: float) -> int:
        """Read the data stream; 0 at the end of STOP_COPY. Raises NoDataError in pre-copy, and OSError."""
        if not isinstance(stream, SaveStream):
            raise os_error(errno.EBADF, "the stream of RESUMING is not for reading")
        if stream is not self._saving:
            raise os_error(errno.ENODEV, "the device has left the saving states")
        fault = self._injected(FaultOp.READ, stream.position)
        if fault is not None and fault.ends:
            return 0
        buffer = buffer[: fault.limit_bytes] if fault and fault.limit_bytes else buffer
        self._settle(now)
        final = self.state is DeviceState.STOP_COPY
        endless = final and take_fault(self.faults, FaultOp.ENDLESS) is not None
        count = stream.read_into(buffer, self._trailer if final and not endless else None)
        if endless and not count:
            stream.mark(0, self._pages.count)
            count = stream.read_into(buffer, None)
        if not count and not final:
            raise NoDataError
        return count

    def holds(self, stream: SaveStream | LoadStream) -> bool:
        """Whether the next read is to wait until it is released; asked once for each read."""
        fault = take_fault(self.faults, FaultOp.READ, position=stream.position, state=self.state, held=True)
        return fault is not None

    def write(self, stream: SaveStream | LoadStream, data: memoryview) -> int:
        """Load from the data stream; returns the bytes taken. Raises OSError."""
        if not isinstance(stream, LoadStream):
            raise os_error(errno.EBADF, "the stream of the saving states is not for writing")
        if stream is not self._loading:
            raise os_error(errno.ENODEV, "the device has left RESUMING")
        fault = self._injected(FaultOp.WRITE, stream.position)
        return stream.write(data[: fault.limit_bytes] if fault and fault.limit_bytes else data)

    def precopy_info(self, stream: SaveStream | LoadStream, now: float) -> PrecopyInfo:
        """VFIO_MIG_GET_PRECOPY_INFO. Raises OSError EINVAL outside of pre-copy, ENODEV for an old stream."""
        if self.state not in _PRE_COPY:
            raise os_error(errno.EINVAL, f"{self.config.address} is {self.state.name}")
        if not isinstance(stream, SaveStream) or stream is not self._saving:
            raise os_error(errno.ENODEV, "the stream is of an earlier pre-copy")
        fault = self._injected(FaultOp.INFO)
        self._settle(now)
        initial = stream.initial_bytes()
        dirty = stream.pending_bytes() - initial
        reinit, self._reinit = self._reinit, False
        return PrecopyInfo(min(initial, fault.limit_bytes) if fault else initial, dirty, reinit)

    def opt_in(self) -> None:
        """VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2 (SET), for as long as the device is open. Raises OSError ENOTTY."""
        if not self.config.precopy_info_v2:
            raise os_error(errno.ENOTTY, f"{self.config.address} has no PRECOPY_INFOv2")
        self._opted_in = True

    def reinit(self, now: float) -> None:
        """Have new initial data, as after a reconfiguration: what was sent is to be sent again.

        The next `precopy_info` says so by VFIO_PRECOPY_INFO_REINIT if the user has opted in; otherwise the data comes
        as dirty data. Raises OSError EINVAL outside of pre-copy.
        """
        if self.state not in _PRE_COPY or self._saving is None:
            raise os_error(errno.EINVAL, f"{self.config.address} is {self.state.name}")
        self._settle(now)
        if self._opted_in:
            self._saving.begin_anew()
            self._reinit = True
        else:
            self._saving.mark(0, self._pages.count)

    def data_size(self, now: float) -> int:
        """Stream bytes that STOP_COPY would (still) produce if the device stopped now. Raises OSError."""
        self._injected(FaultOp.SIZE)
        self._settle(now)
        if self._saving is not None:
            return self._saving.remaining_bytes(self.identity)
        return full_bytes(self._pages, self.identity)

    def read_region(self, offset: int, length: int) -> bytes:
        """Read the scratch registers. Raises OSError EINVAL outside of them, EIO in RESUMING and ERROR."""
        self._check_region(offset, length, _UNDEFINED)
        return bytes(self._scratch[offset : offset + length])

    def write_region(self, offset: int, data: bytes) -> None:
        """Write the scratch registers.

        Raises OSError EINVAL outside of them, EIO in RESUMING and ERROR, and in STOP_COPY, as the state that
        was or is being read would no longer be the device's.
        """
        self._check_region(offset, len(data), _UNDEFINED | {DeviceState.STOP_COPY})
        self._scratch[offset : offset + len(data)] = data

    def read_registers(self, offset: int, length: int) -> bytes:
        """Read config registers (64 bytes), as a user does. Raises OSError EINVAL outside of them."""
        _check_bounds(offset, length, CONFIG_BYTES)
        return bytes(self._registers[offset : offset + length])

    def write_registers(self, offset: int, data: bytes) -> None:
        """Write config registers; only a reset blanks them, and no state carries them. Raises OSError EINVAL."""
        _check_bounds(offset, len(data), CONFIG_BYTES)
        self._registers[offset : offset + len(data)] = data

    def get_config(self) -> bytes:
        """protocol.Device.config: the config registers, b"" if nobody has set any up. Raises OSError."""
        self._injected(FaultOp.CONFIG)
        return bytes(self._registers) if any(self._registers) else b""

    def restore_config(self, data: bytes) -> None:
        """protocol.Device.restore_config. Raises OSError EINVAL for bytes that are no such registers."""
        self._injected(FaultOp.CONFIG)
        if len(data) != CONFIG_BYTES:
            raise os_error(errno.EINVAL, f"{len(data)} bytes for {CONFIG_BYTES} bytes of registers")
        self._registers[:] = data

    def _check_region(self, offset: int, length: int, refused: frozenset[DeviceState]) -> None:
        _check_bounds(offset, length, SCRATCH_BYTES)
        if self.state in refused:
            raise os_error(errno.EIO, f"{self.config.address} is {self.state.name}")

    def _blank(self) -> None:
        self._pages = Pages(self.config.size_bytes, zlib.crc32(self.config.address.encode()))
        self._scratch = bytearray(SCRATCH_BYTES)
        self._ran_seconds = 0.0

    def _trailer(self) -> bytes:
        return encode_trailer(self._pages, bytes(self._scratch), self.identity)

    def _accept(self, stream: LoadStream, now: float) -> None:
        loaded = stream.finish()
        self._pages, self._scratch = loaded.pages, bytearray(loaded.scratch)
        self._ran_seconds = 0.0
        self._fabric.assign(self.endpoint, loaded.identity, now)

    def _enter(self, state: DeviceState, now: float) -> None:
        self.state = state
        if state not in SAVING:
            self._saving = None
        if state is not DeviceState.RESUMING:
            self._loading = None
        self._switch(now)

    def _switch(self, now: float, target: DeviceState | None = None) -> None:
        initiates = self.state in INITIATES and (target is None or target in INITIATES)
        self._fabric.switch(self.endpoint, initiates=initiates, answers=self.state in RUNS, now=now)

    def _settle(self, now: float) -> None:
        """Dirty what a running device has dirtied since the last time."""
        self._fabric.advance(now)
        passed, self._settled = max(0.0, now - self._settled), max(now, self._settled)
        if self.state not in RUNS:
            return
        self._ran_seconds += passed
        pages = int(self._ran_seconds * self.config.dirty_rate_bytes_per_second / PAGE_BYTES)
        due = pages - self._pages.dirtied
        for first, last in self._pages.dirty(due) if due > 0 else ():
            if self._saving is not None:
                self._saving.mark(first, last)

    def _injected(self, op: FaultOp, position: int = 0) -> Fault | None:
        """The fault for an operation, if any. Raises OSError if it fails by it."""
        fault = take_fault(self.faults, op, position=position, state=self.state)
        if fault is not None and fault.errno:
            raise os_error(fault.errno, "injected")
        return fault


def _check_bounds(offset: int, length: int, size: int) -> None:
    if offset < 0 or length < 0 or offset + length > size:
        raise os_error(errno.EINVAL, f"{length} bytes at {offset} of {size}")
