"""How long the switchover would take now, from what the sources report. Pure."""

from vfio_api.types import DeviceReport, Role
from vfio_operator.observed import Observed

# Before any byte has been measured: a modest link, so that nothing converges on hope.
UNKNOWN_BYTES_PER_SECOND = 100 * 1000 * 1000
# Rounds of messages, the decision and the arcs, until they are measured.
FIXED_MICROSECONDS = 20_000


def _sources(observed: Observed) -> list[list[DeviceReport]]:
    return [list(p.report.devices) for p in observed.side(Role.SOURCE) if p.report is not None]


def predicted_downtime_microseconds(observed: Observed) -> int | None:
    """stop_copy_length over the measured rate of each source node, the slowest counts; None before any report.

    The devices of one node share its link, so their sizes and their rates add up.
    """
    nodes = _sources(observed)
    if not nodes or len(nodes) < len(observed.side(Role.SOURCE)):
        return None
    slowest = 0.0
    for devices in nodes:
        size = sum(d.stop_copy_bytes for d in devices)
        rate = sum(d.bytes_per_second for d in devices if d.transferred_bytes > 1 << 20)
        limit = observed.wish.strategy.bandwidth_limit_bytes_per_second
        rate = min(rate or UNKNOWN_BYTES_PER_SECOND, limit or rate or UNKNOWN_BYTES_PER_SECOND)
        slowest = max(slowest, size / rate)
    return FIXED_MICROSECONDS + int(slowest * 1e6)


def converged(observed: Observed) -> bool:
    """Every device's initial bytes are loaded at the target, and the forecast keeps the downtime limit."""
    predicted, strategy = predicted_downtime_microseconds(observed), observed.wish.strategy
    if predicted is None:
        return False
    acknowledged = all(d.initial_acknowledged for devices in _sources(observed) for d in devices)
    if strategy.pre_copy != "Disabled" and strategy.switchover_ack and not acknowledged:
        return False
    return predicted <= strategy.downtime_limit_milliseconds * 1000
