"""The VFIO migration v2 state machine as a table, and the one function that reads it.

Everything about which arc leads where is in this module. It knows values and rules of the uAPI and nothing of
file descriptors, so that the simulated device, the agent's planning, the documentation and the tests all read
the same table.

Source: include/uapi/linux/vfio.h (enum vfio_device_mig_state, VFIO_MIGRATION_*) and vfio_mig_get_next_state() in
drivers/vfio/vfio_main.c.
"""

from enum import IntEnum, IntFlag


class DeviceState(IntEnum):
    """enum vfio_device_mig_state, with the kernel's values."""

    ERROR = 0
    STOP = 1
    RUNNING = 2
    STOP_COPY = 3
    RESUMING = 4
    RUNNING_P2P = 5
    PRE_COPY = 6
    PRE_COPY_P2P = 7


class MigrationFlags(IntFlag):
    """VFIO_MIGRATION_STOP_COPY, _P2P and _PRE_COPY of struct vfio_device_feature_migration."""

    STOP_COPY = 1
    P2P = 2
    PRE_COPY = 4


# A device that cannot migrate, or of which nothing is known.
NO_FLAGS = MigrationFlags(0)


class IllegalArcError(ValueError):
    """The arc does not exist in the table for a device with these flags (the kernel's -EINVAL)."""

    def __init__(self, current: DeviceState, new: DeviceState, flags: MigrationFlags):
        super().__init__(f"no arc {current.name} -> {new.name} for a device with flags {flags!r}")
        self.current, self.new, self.flags = current, new, flags


_S = DeviceState
_ALL = MigrationFlags.STOP_COPY | MigrationFlags.P2P | MigrationFlags.PRE_COPY

# What a device must support for a state to exist on it.
REQUIRED_FLAGS: dict[DeviceState, MigrationFlags] = {
    _S.STOP: MigrationFlags.STOP_COPY,
    _S.RUNNING: MigrationFlags.STOP_COPY,
    _S.STOP_COPY: MigrationFlags.STOP_COPY,
    _S.RESUMING: MigrationFlags.STOP_COPY,
    _S.RUNNING_P2P: MigrationFlags.STOP_COPY | MigrationFlags.P2P,
    _S.PRE_COPY: MigrationFlags.STOP_COPY | MigrationFlags.PRE_COPY,
    _S.PRE_COPY_P2P: _ALL,
}

# NEXT_STATE[current][new] is the first step on the way. A missing entry is -EINVAL. ERROR leads nowhere: only
# VFIO_DEVICE_RESET leaves it. STOP_COPY never goes back to the pre-copy states (6.12 loops for ever if asked to).
NEXT_STATE: dict[DeviceState, dict[DeviceState, DeviceState]] = {
    _S.STOP: {
        _S.STOP: _S.STOP,
        _S.RUNNING: _S.RUNNING_P2P,
        _S.PRE_COPY: _S.RUNNING_P2P,
        _S.PRE_COPY_P2P: _S.RUNNING_P2P,
        _S.STOP_COPY: _S.STOP_COPY,
        _S.RESUMING: _S.RESUMING,
        _S.RUNNING_P2P: _S.RUNNING_P2P,
    },
    _S.RUNNING: {
        _S.STOP: _S.RUNNING_P2P,
        _S.RUNNING: _S.RUNNING,
        _S.PRE_COPY: _S.PRE_COPY,
        _S.PRE_COPY_P2P: _S.RUNNING_P2P,
        _S.STOP_COPY: _S.RUNNING_P2P,
        _S.RESUMING: _S.RUNNING_P2P,
        _S.RUNNING_P2P: _S.RUNNING_P2P,
    },
    _S.PRE_COPY: {
        _S.STOP: _S.RUNNING,
        _S.RUNNING: _S.RUNNING,
        _S.PRE_COPY: _S.PRE_COPY,
        _S.PRE_COPY_P2P: _S.PRE_COPY_P2P,
        _S.STOP_COPY: _S.PRE_COPY_P2P,
        _S.RESUMING: _S.RUNNING,
        _S.RUNNING_P2P: _S.RUNNING,
    },
    _S.PRE_COPY_P2P: {
        _S.STOP: _S.RUNNING_P2P,
        _S.RUNNING: _S.RUNNING_P2P,
        _S.PRE_COPY: _S.PRE_COPY,
        _S.PRE_COPY_P2P: _S.PRE_COPY_P2P,
        _S.STOP_COPY: _S.STOP_COPY,
        _S.RESUMING: _S.RUNNING_P2P,
        _S.RUNNING_P2P: _S.RUNNING_P2P,
    },
    _S.STOP_COPY: {
        _S.STOP: _S.STOP,
        _S.RUNNING: _S.STOP,
        _S.STOP_COPY: _S.STOP_COPY,
        _S.RESUMING: _S.STOP,
        _S.RUNNING_P2P: _S.STOP,
    },
    _S.RESUMING: {
        _S.STOP: _S.STOP,
        _S.RUNNING: _S.STOP,
        _S.PRE_COPY: _S.STOP,
        _S.PRE_COPY_P2P: _S.STOP,
        _S.STOP_COPY: _S.STOP,
        _S.RESUMING: _S.RESUMING,
        _S.RUNNING_P2P: _S.STOP,
    },
    _S.RUNNING_P2P: {
        _S.STOP: _S.STOP,
        _S.RUNNING: _S.RUNNING,
        _S.PRE_COPY: _S.RUNNING,
        _S.PRE_COPY_P2P: _S.PRE_COPY_P2P,
        _S.STOP_COPY: _S.STOP,
        _S.RESUMING: _S.STOP,
        _S.RUNNING_P2P: _S.RUNNING_P2P,
    },
    _S.ERROR: {},
}

# Arcs that hand out a data fd: (from, to).
DATA_FD_ARCS: frozenset[tuple[DeviceState, DeviceState]] = frozenset(
    {
        (_S.RUNNING, _S.PRE_COPY),
        (_S.RUNNING_P2P, _S.PRE_COPY_P2P),
        (_S.STOP, _S.STOP_COPY),
        (_S.STOP, _S.RESUMING),
    }
)

# The saving states: the data fd is kept on arcs among them.
SAVING: frozenset[DeviceState] = frozenset({_S.PRE_COPY, _S.PRE_COPY_P2P, _S.STOP_COPY})
# The device runs: DMA may happen.
RUNS: frozenset[DeviceState] = frozenset({_S.RUNNING, _S.RUNNING_P2P, _S.PRE_COPY, _S.PRE_COPY_P2P})
# The device starts no P2P transaction of its own.
P2P_QUIESCENT: frozenset[DeviceState] = frozenset({_S.RUNNING_P2P, _S.PRE_COPY_P2P, _S.STOP, _S.STOP_COPY, _S.RESUMING})


def supports(flags: MigrationFlags, state: DeviceState) -> bool:
    """Whether `state` exists on a device with `flags`; ERROR is not a state that can be asked for."""
    required = REQUIRED_FLAGS.get(state)
    return required is not None and required & flags == required


def next_state(current: DeviceState, new: DeviceState, flags: MigrationFlags) -> DeviceState:
    """The next single arc on the way from `current` to `new`, as vfio_mig_get_next_state() finds it.

    Interior states that the device does not support are skipped.
    Raises IllegalArcError where the kernel answers -EINVAL.
    """
    if not supports(flags, new) or (current != DeviceState.ERROR and not supports(flags, current)):
        raise IllegalArcError(current, new, flags)
    step = NEXT_STATE[current].get(new)
    while step is not None and not supports(flags, step):
        step = NEXT_STATE[step].get(new)
    if step is None:
        raise IllegalArcError(current, new, flags)
    return step


def path(current: DeviceState, new: DeviceState, flags: MigrationFlags) -> tuple[DeviceState, ...]:
    """Every state the device takes after `current` until it is in `new`; empty if it is there already.

    Raises IllegalArcError where the kernel answers -EINVAL.
    """
    states: list[DeviceState] = []
    while current != new:
        current = next_state(current, new, flags)
        states.append(current)
    return tuple(states)
