"""What a simulated device can be told to do wrong. Pure."""

from dataclasses import dataclass, replace
from enum import StrEnum

from vfio_api.device import DeviceState


class FaultOp(StrEnum):
    """What a fault waits for."""

    ARC = "arc"
    READ = "read"
    WRITE = "write"
    INFO = "info"  # VFIO_MIG_GET_PRECOPY_INFO
    CONFIG = "config"  # reading or restoring the config registers
    RESET = "reset"
    SIZE = "size"  # VFIO_DEVICE_FEATURE_MIG_DATA_SIZE
    ENDLESS = "endless"  # a read in STOP_COPY that would find nothing more: the pages come once more


@dataclass(frozen=True, slots=True)
class Fault:
    """Goes wrong at the first `times` operations it fits; times 0: until it is cleared.

    arc: the single arc (from, to), for FaultOp.ARC. errno: what the operation fails with; 0: it succeeds, slower or
    shorter. to_error: a failing arc ends in ERROR instead of where it began. delay_seconds: an arc takes longer.
    limit_bytes: a read or write is cut to this, INFO promises no more initial bytes. ends: a read gives 0 bytes, as at
    the end. after_bytes: a read or write only from this position of its stream. hold: an arc or a read does not come to
    its end before it is released. in_state: a read only while the device is in this state.
    """

    op: FaultOp
    arc: tuple[DeviceState, DeviceState] | None = None
    errno: int = 0
    to_error: bool = False
    delay_seconds: float = 0.0
    limit_bytes: int = 0
    ends: bool = False
    after_bytes: int = 0
    times: int = 1
    hold: bool = False
    in_state: DeviceState | None = None

    def __post_init__(self) -> None:
        if (self.op is FaultOp.ARC) != (self.arc is not None):
            raise ValueError("an arc is named for faults of arcs, and only for these")
        if self.to_error and not self.errno:
            raise ValueError("an arc into ERROR has failed: give the errno it fails with")
        if self.ends and self.op is not FaultOp.READ:
            raise ValueError("only what is read has an end")
        if self.hold and self.op not in (FaultOp.ARC, FaultOp.READ):
            raise ValueError("an arc or a read can be held, and nothing else")
        if self.times < 0:
            raise ValueError("a fault goes wrong once, more often, or (0) until it is cleared")


def take_fault(
    faults: list[Fault],
    op: FaultOp,
    *,
    arc: tuple[DeviceState, DeviceState] | None = None,
    position: int = 0,
    state: DeviceState | None = None,
    held: bool = False,
) -> Fault | None:
    """The first fault that fits the operation; it is spent by one time, and disarmed with the last.

    state: of the device, for a read. held: whether it is asked for one that holds a read, or for any other.
    """
    for number, fault in enumerate(faults):
        fits = fault.op is op and fault.arc == arc and position >= fault.after_bytes
        if op is FaultOp.READ:
            fits = fits and fault.hold is held and fault.in_state in (None, state)
        if fits:
            if fault.times == 1:
                del faults[number]
            elif fault.times:
                faults[number] = replace(fault, times=fault.times - 1)
            return fault
    return None
