"""How long the switchover would take now: from what the agents report and what this leader has measured. Pure.

The same parts as QEMU's downtime estimate has (hw/vfio/migration.c, vfio_state_pending: stop_copy_size over the
measured bandwidth), and what QEMU leaves out: the arcs, the load, and the messages and the decision between nodes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from vfio_api.device import MigrationFlags
from vfio_api.types import BURST_SECONDS, DeviceReport, Role, SessionReport
from vfio_operator.observed import Observed, Pair, Shape

# Before any byte has been measured: a modest link, so that nothing converges on hope.
UNKNOWN_BYTES_PER_SECOND = 100 * 1000 * 1000
# Before anything like it has been measured, in microseconds.
UNKNOWN_ARC, UNKNOWN_ROUND_TRIP, UNKNOWN_DECISION = 2_000, 2_000, 8_000
# The most that is assumed of an arc that was never measured: a guess must not keep anything from converging.
MOST_ASSUMED_ARC = 20_000
# Below this a transfer takes as long as its messages do, whatever the rate.
SMALL_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Forecast:
    """The parts of a switchover in microseconds; size and rate are those of the node that transfers longest.

    measured: whether the rate is, or only assumed. sized: whether every device has told how much state it has; if one
    has not, the transfer is of what is known and may take any time.
    """

    transfer: int
    arcs: int
    load: int
    messages: int
    decision: int
    size_bytes: int
    bytes_per_second: int
    measured: bool = True
    sized: bool = True

    @property
    def total(self) -> int:
        """The whole, in microseconds."""
        return self.transfer + self.arcs + self.load + self.messages + self.decision

    def __str__(self) -> str:
        """For people: the whole and what it is made of."""
        parts = {"arcs": self.arcs, "load": self.load, "messages": self.messages, "decision": self.decision}
        rate = f"{self.bytes_per_second / 1e6:.0f} MB/s{'' if self.measured else ' assumed'}"
        least = "" if self.sized else "unknown, as a device does not tell the size of its state, but at least "
        return (
            f"{least}{self.total / 1000:.0f} ms = transfer {self.transfer / 1000:.0f} "
            f"({self.size_bytes / 1e6:.1f} MB at {rate})"
            + "".join(f" + {name} {microseconds / 1000:.0f}" for name, microseconds in parts.items())
        )


@dataclass(frozen=True, slots=True)
class _Link:
    size: int
    rate: int
    measured: bool
    limited: bool = False

    @property
    def seconds(self) -> float:
        # the limit lets a burst through at once when the devices are down
        return max(0.0, self.size / self.rate - BURST_SECONDS * self.limited)


def forecast(observed: Observed) -> Forecast | None:
    """For a migration under way; None before every source has reported."""
    sources = observed.side(Role.SOURCE)
    if not sources or any(p.report is None for p in sources):
        return None
    sizes = {p.node: sum(d.stop_copy_bytes for d in p.report.devices) for p in sources if p.report}
    rates = {p.node: p.report.link_bytes_per_second for p in sources if p.report}
    first = {p.node: _first_arc(p.report) for p in observed.participants}
    sized = not any(d.size_unknown for p in sources if p.report for d in p.report.devices)
    return replace(_forecast(observed, observed.pairs, sizes, rates, first), sized=sized)


def planned(observed: Observed, pairs: tuple[Pair, ...]) -> Forecast:
    """Before anything is touched: sizes from the inventory, rates and times from earlier migrations if any."""
    sizes: dict[str, int] = {}
    sized = True
    for pair in pairs:
        record = observed.inventory.get((pair.source_node, pair.source_device))
        size = record.stop_copy_bytes if record else 0
        sizes[pair.source_node] = sizes.get(pair.source_node, 0) + size
        sized = sized and size > 0
    return replace(_forecast(observed, pairs, sizes, {}, {}), sized=sized)


def _forecast(
    observed: Observed,
    pairs: tuple[Pair, ...],
    sizes: Mapping[str, int],
    rates: Mapping[str, int],
    first_arcs: Mapping[str, int],
) -> Forecast:
    known = observed.known
    sources, targets = {p.source_node for p in pairs}, {p.target_node for p in pairs}
    kinds = _kinds(observed, pairs)

    def step(node: str, name: str, otherwise: int = UNKNOWN_ARC) -> int:
        return known.steps.get((node, kinds.get(node, ""), name)) or otherwise

    link = max((_link(observed, n, sizes.get(n, 0), rates.get(n, 0)) for n in sources), key=lambda x: x.seconds)
    # what is known of transfers is how long small ones take, and none takes less
    transfer = max(int(link.seconds * 1e6), *(known.steps.get((n, kinds.get(n, ""), "transfer"), 0) for n in sources))
    # never measured: as long as this device's arc into pre-copy, or into RESUMING, took
    arcs = max(step(n, "barrier_a") + step(n, "barrier_b", first_arcs.get(n, UNKNOWN_ARC)) for n in sources)
    arcs += max(step(n, "barrier_c") + step(n, "barrier_d") for n in targets)
    # stop and start are a message each way; a barrier over several nodes is one more. What else it takes, until the
    # operator has taken note of an answer and the agent of a command, is known of migrations like this one only.
    rounds = 2 + (len(sources) > 1) + (len(targets) > 1)
    round_trip = max(known.round_trips.get(n, UNKNOWN_ROUND_TRIP) for n in sources | targets)
    return Forecast(
        transfer=transfer,
        arcs=arcs,
        load=max(step(n, "load", first_arcs.get(n, UNKNOWN_ARC)) for n in targets),
        messages=max(rounds * round_trip, known.between.get(shape(observed, pairs), 0)),
        decision=known.decision or UNKNOWN_DECISION,
        size_bytes=link.size,
        bytes_per_second=link.rate,
        measured=link.measured,
    )


def _link(observed: Observed, node: str, size: int, measured: int) -> _Link:
    """The devices of one node share its link, so their sizes add up; the rate is that of all its streams together."""
    rate = measured or observed.known.rates.get(node, 0)
    limit = observed.wish.strategy.bandwidth_limit_bytes_per_second
    usable = min(rate or UNKNOWN_BYTES_PER_SECOND, limit or rate or UNKNOWN_BYTES_PER_SECOND)
    return _Link(size, usable, bool(rate), limited=0 < limit <= usable)


def _first_arc(report: SessionReport | None) -> int:
    """How long the arc into pre-copy or RESUMING took: a hint of what this device's arcs take, for want of better."""
    timings = {t.step: t.microseconds for t in report.timings} if report else {}
    return min(timings.get("pre_copy") or timings.get("resuming") or UNKNOWN_ARC, MOST_ASSUMED_ARC)


def shape(observed: Observed, pairs: tuple[Pair, ...]) -> Shape:
    """As `Known.between` is keyed."""
    sources, targets = {p.source_node for p in pairs}, {p.target_node for p in pairs}
    return Shape(len(sources), len(targets), len(pairs), observed.move.source is not None)


def slowest(report: SessionReport) -> dict[str, int]:
    """Microseconds of each step as an agent names it; what is timed for each device is as long as the longest."""
    found: dict[str, int] = {}
    for timing in report.timings:
        step = timing.step.partition("/")[0]
        found[step] = max(found.get(step, 0), timing.microseconds)
    return found


def between(observed: Observed, downtime: int, decision: int) -> int:
    """What a downtime had beside the parts that are forecast one by one, in microseconds, from the agents' timings."""

    def most(role: Role, *names: str) -> int:
        took = [slowest(p.report) for p in observed.side(role) if p.report is not None]
        return max((sum(steps.get(name, 0) for name in names) for steps in took), default=0)

    arcs = most(Role.SOURCE, "barrier_a", "barrier_b") + most(Role.TARGET, "barrier_c", "barrier_d")
    return max(0, downtime - arcs - most(Role.SOURCE, "transfer") - most(Role.TARGET, "load") - decision)


def _kinds(observed: Observed, pairs: tuple[Pair, ...]) -> dict[str, str]:
    """Node -> the models of its devices in this migration."""
    found: dict[str, set[str]] = {}
    for pair in pairs:
        for _, node, device in pair.ends:
            record = observed.inventory.get((node, device))
            found.setdefault(node, set()).add(record.model if record else "")
    return {node: ",".join(sorted(models)) for node, models in found.items()}


def kinds_of(observed: Observed) -> dict[str, str]:
    """Node -> the models of its devices in this migration, as `Known.steps` is keyed."""
    return _kinds(observed, observed.pairs)


def not_acknowledged(observed: Observed) -> tuple[DeviceReport, ...]:
    """Source devices whose initial bytes must be loaded at the target and are not yet."""
    strategy = observed.wish.strategy
    if strategy.pre_copy == "Disabled" or not strategy.switchover_ack:
        return ()
    reports = [p.report for p in observed.side(Role.SOURCE) if p.report is not None]
    return tuple(d for report in reports for d in report.devices if not d.initial_acknowledged)


def within_limit(observed: Observed) -> bool:
    """Every device's initial bytes are loaded at the target, and the forecast keeps the downtime limit."""
    return _keeps(observed, forecast(observed))


def _keeps(observed: Observed, found: Forecast | None) -> bool:
    if found is None or not found.sized or not_acknowledged(observed):
        return False
    return found.total <= observed.wish.strategy.downtime_limit_milliseconds * 1000


def converged(observed: Observed) -> bool:
    """Within the limit, and there is nothing to be gained by copying on: the rest of the state takes no longer than
    what the switchover takes anyway, or it has been within the limit for a while.

    QEMU switches over as soon as the limit can be kept (migration_iteration_run). Here a limit is not a wish: a few
    more passes make the downtime as short as it can be.
    """
    found = forecast(observed)
    if found is None or not _keeps(observed, found):
        return False
    return observed.lingered or not _copies(observed) or found.transfer <= found.total - found.transfer


def _copies(observed: Observed) -> bool:
    """Whether any device is being pre-copied."""
    reports = (p.report for p in observed.side(Role.SOURCE) if p.report is not None)
    able = any(MigrationFlags.PRE_COPY in device.flags for report in reports for device in report.devices)
    return able and observed.wish.strategy.pre_copy != "Disabled"
