"""A migration's progress as a picture: what `kubectl vfio watch` and the demo show while it runs. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from vfio_api.device import DeviceState
from vfio_api.models_migration import Mode
from vfio_api.models_status import Phase
from vfio_cli.fields import Json, ended_at, queue_position, size_text
from vfio_cli.waterfall import duration_text

BAR_WIDTH, DEVICE_ROWS = 26, 16
TRACKS: Mapping[str, Sequence[Phase]] = {
    Mode.MIGRATE: (Phase.PENDING, Phase.PREPARING, Phase.PRE_COPY, Phase.SWITCHOVER, Phase.STARTING, Phase.SUCCEEDED),
    Mode.REHEARSE: (Phase.PENDING, Phase.PREPARING, Phase.PRE_COPY, Phase.SUCCEEDED),
    Mode.PLAN: (Phase.PENDING, Phase.SUCCEEDED),
}
_STYLES = {Phase.SUCCEEDED: "bold green", Phase.FAILED: "bold red", Phase.CANCELLED: "bold yellow"}


@dataclass(frozen=True, slots=True)
class Scale:
    """What a status does not say.

    sizes: bytes of each pair's state, 0 if unknown; held: the same by the source's (node, address), for pairs that are
    resolved only while one looks; limit: of the downtime, in milliseconds; created: when the object was.
    """

    sizes: Mapping[str, int]
    title: str = ""
    mode: str = Mode.MIGRATE
    limit_milliseconds: int | None = None
    arrow: str = "→"
    held: Mapping[tuple[str, str], int] = field(default_factory=dict)
    created: datetime | None = None

    def took(self, status: Json) -> float | None:
        """Seconds from the creation of a migration to its end; None if it has not ended, or if nobody knows."""
        end = ended_at({"status": status})
        return (end - self.created).total_seconds() if end is not None and self.created is not None else None


def estimates(devices: Iterable[Json]) -> dict[tuple[str, str], int]:
    """Bytes of state by (node, address), as the inventory estimates them: of devices that run and are not copied."""
    return {
        (d["spec"]["nodeName"], d["spec"]["address"]): int(d["status"]["stopCopyBytes"])
        for d in devices
        if d.get("status", {}).get("stopCopyBytes") and d["status"].get("state") == DeviceState.RUNNING.name
    }


def sizes_of(pairs: Iterable[Json], held: Mapping[tuple[str, str], int]) -> dict[str, int]:
    """Bytes of each pair's state by the estimate for its source; 0 where there is none."""
    return {pair["name"]: held.get((pair["source"]["nodeName"], pair["source"]["device"]), 0) for pair in pairs}


def device_text(device: Json, arrow: str = "→") -> str:
    """Bytes and the states of both sides."""
    states = [device[side] for side in ("sourceState", "targetState") if side in device]
    return f"{size_text(device.get('bytes', 0)):>8}  {f' {arrow} '.join(states)}"


def total_text(status: Json) -> str:
    """Percent, bytes, rate, time left, the predicted downtime, the phase, and its place in the queue."""
    progress, phase = status.get("progress", {}), status.get("phase", Phase.PENDING)
    parts = [f"{progress.get('percent', 0):>3}%", size_text(progress.get("bytes", 0))]
    if phase == Phase.PRE_COPY and progress.get("bytesPerSecond"):
        parts.append(f"{size_text(progress['bytesPerSecond'])}/s")
        parts += [f"ETA {progress['etaSeconds']} s"] if "etaSeconds" in progress else []
        predicted = status.get("predictedDowntimeMicroseconds")
        parts += [f"downtime ~{duration_text(predicted)}"] if predicted is not None else []
    waits = [f"number {queue_position(status)} of those that wait"] if queue_position(status) else []
    return "  ".join([*parts, phase, *waits])


def plain_line(status: Json, seconds: float) -> str:
    """One line for where no control characters are taken."""
    devices = " ".join(f"{d['name']}={size_text(d.get('bytes', 0))}" for d in status.get("devices", [])[:DEVICE_ROWS])
    return f"  {seconds:4.1f} s  {total_text(status)}  {devices}".rstrip()


def away_line(status: Json, silent: float) -> str:
    """That what is shown is old: the API server has not answered for `silent` seconds."""
    percent, phase = status.get("progress", {}).get("percent", 0), status.get("phase", Phase.PENDING)
    return f"the API server does not answer for {silent:.0f} s; last seen: {phase}, {percent}%"


def track(status: Json, mode: str) -> Text:
    """The phases of such a migration, with where it is."""
    phase, line, passed = status.get("phase", Phase.PENDING), Text("  "), True
    phases = TRACKS[mode]
    if phase not in phases:  # on the way back, or there
        phases = (*phases[:-1], phase)
    for word in phases:
        passed = passed and word != phase
        here = word == phase
        style = _STYLES.get(Phase(word), "bold magenta") if here else "green" if passed else "dim"
        if phase in (Phase.ROLLING_BACK, Phase.FAILED, Phase.CANCELLED) and not here:
            style = "dim"  # how far it had come is for explain to say
        line.append(f"{' ' if len(line) > 2 else ''}{word}", style=style)
        line.append("" if word == phases[-1] else " ·", style="dim")
    return line


def frame(status: Json, scale: Scale, seconds: float) -> RenderableType:
    """What a terminal shows at one moment, `seconds` after it began to look."""
    parts: list[RenderableType] = []
    if scale.title:
        took = scale.took(status)
        time = f"  {seconds:.0f} s" if took is None else f"  took {took:.0f} s"
        parts += [Text(scale.title, style="bold") + Text(time, style="dim"), track(status, scale.mode)]
    grid = Table.grid(padding=(0, 1))
    devices = {d["name"]: d for d in status.get("devices", [])}
    sizes = {**sizes_of(status.get("pairs", []), scale.held), **scale.sizes}
    names, share = list(devices) or list(sizes), _share(status)
    for name in names[:DEVICE_ROWS]:
        device = devices.get(name, {})
        done = int(device.get("bytes", 0))
        size = max(sizes.get(name) or share, done, 1)
        grid.add_row(f"  {name}", _Bar(done, size, "cyan"), Text(device_text(device, scale.arrow) if device else ""))
    percent = int(status.get("progress", {}).get("percent", 0))
    grid.add_row("  all", _Bar(percent, 100, "bold magenta"), Text(total_text(status)))
    parts.append(grid)
    if len(names) > DEVICE_ROWS:
        parts.append(Text(f"  and {len(names) - DEVICE_ROWS} devices more", style="dim"))
    if scale.title:
        parts += [Text(f"  {line}") for line in (downtime_text(status, scale), str(status.get("message", ""))) if line]
    return Group(*parts)


def _share(status: Json) -> int:
    """Bytes of one device's state if all had the same: what is known where a watch began after the copy."""
    progress = status.get("progress", {})
    total = 100 * int(progress.get("bytes", 0)) // max(1, int(progress.get("percent", 0)))
    return total // max(1, len(status.get("devices", [])))


@dataclass(frozen=True, slots=True)
class _Bar:
    """A bar that shows also without colours where its end is."""

    done: int
    total: int
    style: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        whole, half, rest = ("#", "", "-") if options.ascii_only else ("━", "╸", "─")
        halves = 2 * BAR_WIDTH * min(self.done, self.total) // self.total
        done = whole * (halves // 2) + half * (halves % 2)
        yield Segment(done, console.get_style(self.style))
        yield Segment(rest * (BAR_WIDTH - len(done)), console.get_style("grey37"))

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(BAR_WIDTH, BAR_WIDTH)


def downtime_text(status: Json, scale: Scale) -> str:
    """The downtime as it was, else as it is predicted, beside its limit; empty if neither is known."""
    was, predicted = status.get("downtimeMicroseconds"), status.get("predictedDowntimeMicroseconds")
    limit = scale.limit_milliseconds  # what a policy or the default says is known only once it has begun
    limit = status.get("strategy", {}).get("downtimeLimitMilliseconds", limit)
    figures = [f"predicted {duration_text(predicted)}"] if predicted is not None else []
    figures += [f"limit {limit} ms"] if limit is not None else []
    if status.get("phase") == Phase.CANCELLED:
        return ""  # what would have been does not matter any more
    if was is not None:
        return f"downtime {duration_text(was)} ({', '.join(figures)})" if figures else f"downtime {duration_text(was)}"
    if predicted is None:
        return ""
    within = limit is None or predicted <= 1000 * limit
    return f"downtime: {', '.join(figures)}{'' if within else ': not within it yet'}"
