"""Simulated devices on a fabric, and what their tests do with them."""

from hypothesis import strategies as st

from vfio_agent.devices.protocol import NoDataError
from vfio_agent.devices.simfabric import Fabric
from vfio_agent.devices.simmodel import ALL_FLAGS, DeviceConfig, SimDevice
from vfio_agent.devices.simstate import PAGE_BYTES, LoadStream, SaveStream
from vfio_api.device import DeviceState as S
from vfio_api.device import MigrationFlags

MODEL = "sim:1"
LATENCY = 1 / 128  # seconds; binary fractions, so that sums are exact
RATE = 1024
SIZES = st.one_of(st.integers(1, 40), st.integers(PAGE_BYTES - 20, 3 * PAGE_BYTES + 20), st.just(9 * PAGE_BYTES))


def new_device(
    size: int = 3 * PAGE_BYTES,
    *,
    dirty_rate: float = 0,
    flags: MigrationFlags = ALL_FLAGS,
    address: str = "sim0",
) -> SimDevice:
    config = DeviceConfig(address, MODEL, size, dirty_rate, flags)
    return SimDevice(config, Fabric(), now=0.0)


def saving(device: SimDevice, state: S, now: float = 0.0) -> tuple[SaveStream, float]:
    now, stream = device.set_state(state, now)
    assert isinstance(stream, SaveStream)
    return stream, now


def resuming(device: SimDevice, now: float = 0.0) -> LoadStream:
    _, stream = device.set_state(S.RESUMING, now)
    assert isinstance(stream, LoadStream)
    return stream


def read_available(device: SimDevice, stream: SaveStream, now: float, chunk: int = 1 << 20) -> bytes:
    """Until the temporary or final end of the data, at one moment."""
    data, buffer = bytearray(), memoryview(bytearray(chunk))
    while True:
        try:
            count = device.read(stream, buffer, now)
        except NoDataError:
            return bytes(data)
        if not count:
            return bytes(data)
        data += buffer[:count]


def whole_state(device: SimDevice, now: float = 0.0) -> bytes:
    stream, now = saving(device, S.STOP_COPY, now)
    return read_available(device, stream, now)
