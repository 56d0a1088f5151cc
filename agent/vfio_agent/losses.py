"""What a way back finds: source devices that fell into ERROR, that are gone, or that do not run."""

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from vfio_api.device import DeviceState
from vfio_api.errors import DeviceError, Reason
from vfio_api.types import SessionDevice

if TYPE_CHECKING:
    from vfio_agent.session import Session


async def reset_lost(session: "Session") -> None:
    """Peers run again: devices that fell into ERROR are reset, which erases them.

    It is journalled before: nobody could tell afterwards. Raises DeviceError for a device that does not say itself that
    it is in ERROR.
    """
    fallen = [device for device in session.held_devices() if session.state(device.name) is DeviceState.ERROR]
    for device in fallen:
        await session.blocking(partial(_confirm_error, session, device))
    gone = tuple(sorted({*session.facts.gone, *(device.name for device in fallen)}))
    if gone != session.facts.gone:
        await session.note(replace(session.facts, gone=gone))
    for device in fallen:
        await session.blocking(partial(session.reset, device.name))


def say_lost(session: "Session") -> None:
    """A source device that had to be reset has lost its state; one that is no longer open here took it with it."""
    known = dict(session.facts.incarnations)
    for device in session.spec.devices:
        if device.name in session.facts.gone:
            cause = session.cause
            cause = cause if cause and cause.device == device.name else None
            session.fail(
                DeviceError(
                    f"device {device.name} ({device.address}) fell into ERROR during the migration; only a reset "
                    "leads out of it, and it erased the device's state: its workload must set it up anew",
                    reason=Reason.SOURCE_STATE_LOST,
                    device=device.name,
                    arc=cause.arc if cause else "",
                    errno=cause.errno if cause else 0,
                )
            )
        if device.name in known and device not in session.held_devices():
            session.fail(
                DeviceError(
                    f"device {device.name} ({device.address}) is no longer held: keeper or node restarted, and the "
                    "device's state went with it",
                    reason=Reason.SOURCE_STATE_LOST,
                    device=device.name,
                )
            )


def _confirm_error(session: "Session", device: SessionDevice) -> None:
    """A reset erases the state: it is done only if the device says itself, now, that it is in ERROR."""
    held = session.device(device.name)
    with held.lock:
        try:
            found = held.device.state()
        except OSError as error:
            raise DeviceError(
                f"device {device.name} ({device.address}) does not tell its state: {error}; it is not reset",
                device=device.name,
                errno=error.errno or 0,
            ) from error
    if found is not DeviceState.ERROR:
        raise DeviceError(
            f"device {device.name} ({device.address}) is in {found.name}; it could not be read before",
            device=device.name,
        )


def raise_unless_running(session: "Session") -> None:
    """Without a Commit a source is released only when every device runs. Raises DeviceError."""
    for device in session.held_devices():
        state = session.state(device.name)
        if state is not DeviceState.RUNNING:
            raise DeviceError(
                f"device {device.name} ({device.address}) is in {state.name}, expected RUNNING after the rollback",
                device=device.name,
            )
