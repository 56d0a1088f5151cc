"""What is said of a session to the operator."""

from typing import TYPE_CHECKING

from vfio_api.types import DeviceReport, SessionDevice, SessionReport

if TYPE_CHECKING:
    from vfio_agent.session import Session


def report_of(session: "Session") -> SessionReport:
    """The session as it is now."""
    facts = session.facts
    return SessionReport(
        migration_uid=session.key.uid,
        role=facts.role,
        epoch=facts.epoch,
        sequence=facts.sequence,
        reached=session.reached,
        backward=facts.backward,
        certificate=session.identity.certificate,
        devices=tuple(_device(session, device) for device in session.held_devices()),
        failure=session.failure,
        timings=session.timings,
        link_bytes_per_second=session.side.link_bytes_per_second(),
        lost=facts.lost,
        attempt=facts.attempt,
    )


def _device(session: "Session", device: SessionDevice) -> DeviceReport:
    name = device.name
    return session.side.complete(DeviceReport(name, device.address, session.state(name), session.device(name).flags))
