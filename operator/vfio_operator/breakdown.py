"""What one downtime was made of. Pure.

The operator's own steps span the downtime, but where one node is a whole side a barrier is passed within a step of it,
and the transfer always is. What agents timed themselves divides such a step; it never adds to it, so that the parts
add up to the downtime. Durations of several clocks are compared, never their readings.
"""

from collections.abc import Mapping

from vfio_api.downtime import DowntimeStep as D

# What of the downtime is none of the parts below belongs to this one.
_OWN = {
    "Pause": D.PAUSE,
    "BarrierA": D.BARRIER_A,
    "BarrierB": D.BARRIER_B,
    "Vote": D.VOTE,
    "Decide": D.DECISION,
    "ReloadTargets": D.TRANSFER,
    "ResendSources": D.TRANSFER,
    "BarrierC": D.BARRIER_C,
    "BarrierD": D.BARRIER_D,
    "Resume": D.RESUME,
}
# (step of the operator, what an agent times within it): in this order, as long as there is anything left of the step.
_WITHIN = (
    ("BarrierA", D.PAUSE),
    ("BarrierB", D.PAUSE),
    ("BarrierB", D.TRANSFER),
    ("BarrierB", D.BARRIER_A),
    ("Vote", D.LOAD),
    ("BarrierD", D.BARRIER_C),
    ("BarrierD", D.RESUME),
)
# Less than that is between two readings of the clock.
UNCOVERED_MICROSECONDS = 1_000


def breakdown(steps: Mapping[str, int], agents: Mapping[str, int], downtime: int) -> dict[D, int]:
    """Microseconds of every part that took any.

    steps: of the plan during the downtime, by name. agents: the slowest agent's time, by the part's name.
    downtime: the whole; what no step of this leader covers passed under an earlier one, or without any.
    """
    left, own = dict(steps), dict(agents)
    parts: dict[D, int] = {}

    def take(part: D, microseconds: int) -> None:
        if microseconds > 0:
            parts[part] = parts.get(part, 0) + microseconds

    for step, part in _WITHIN:
        if part.value in steps:
            continue  # it was a step of its own
        within = min(own.get(part.value, 0), left.get(step, 0))
        left[step] = left.get(step, 0) - within
        own[part.value] = own.get(part.value, 0) - within
        take(part, within)
    for step, part in _OWN.items():
        take(part, left.get(step, 0))
    uncovered = downtime - sum(parts.values())
    if uncovered > UNCOVERED_MICROSECONDS:
        take(D.FAILOVER, uncovered)
    return {part: parts[part] for part in D if part in parts}
