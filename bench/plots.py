"""The plots of docs/performance.md, drawn from what the benchmarks have kept in bench/data."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from measure import p50

OURS, PEER, LIMIT, FAINT = "#1565c0", "#ef6c00", "#c62828", "#90a4ae"
DOWN = ("BarrierA", "BarrierB", "Vote", "Decide", "BarrierC", "BarrierD")
Json = dict[str, Any]
Plot = Callable[[Json, Figure], None]

mpl.use("svg")
# the same picture from the same figures: no dates, no random names
mpl.rcParams.update({"svg.hashsalt": "vfio-migration", "svg.fonttype": "none", "font.size": 9, "axes.grid": True})
mpl.rcParams.update({"grid.alpha": 0.3, "axes.axisbelow": True, "legend.frameon": False})


def draw(plots: Mapping[str, Json], folder: Path) -> list[str]:
    """Draw a picture for each benchmark that there is data of, and return their names. plots: name -> raw data."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, plot in PLOTS.items():
        if name not in plots:
            continue
        figure = Figure(figsize=(7, 3.2), layout="constrained")
        plot(plots[name], figure)
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        drawn.append(name)
    return drawn


def _strips(axes: Axes, groups: Sequence[tuple[str, Sequence[float], str]]) -> None:
    """Every sample as a dot, medians as lines, one row a group."""
    for row, (_, samples, colour) in enumerate(groups):
        spread = [row + 0.3 * ((n * 0.618) % 1 - 0.5) for n in range(len(samples))]
        axes.plot(samples, spread, "o", color=colour, markersize=4, alpha=0.6)
        axes.plot([p50(samples)] * 2, [row - 0.35, row + 0.35], color=colour, linewidth=2)
    axes.set_yticks(range(len(groups)), [name for name, _, _ in groups])
    axes.invert_yaxis()
    axes.set_xlim(left=0)


def qemu(raw: Json, figure: Figure) -> None:
    """Downtimes in one guest, whole and of the devices."""
    axes = figure.subplots()
    mine, theirs = raw["ours"], raw["qemu"]
    _strips(
        axes,
        [
            ("this, downtime", [r["downtime"] for r in mine], OURS),
            ("this, devices", [r["devices"] for r in mine], OURS),
            ("QEMU, query-migrate", [r["downtime"] for r in theirs], PEER),
            ("QEMU, STOP to RESUME", [r["steps"]["STOP to RESUME"] for r in theirs], PEER),
            ("QEMU, devices", [r["devices"] for r in theirs], PEER),
        ],
    )
    axes.set_xlabel("ms, in one emulated guest; lines are medians")


def overhead(raw: Json, figure: Figure) -> None:
    """The steps of a downtime beside the floor."""
    axes = figure.subplots()
    steps = {s: p50([r["steps"][s] for r in raw["ours"] if s in r["steps"]] or [0.0]) for s in DOWN}
    left = 0.0
    shades = ["#0d47a1", "#1565c0", "#42a5f5", "#ef6c00", "#64b5f6", "#90caf9"]
    for (step, value), shade in zip(steps.items(), shades, strict=True):
        if value:
            axes.barh(0, value, left=left, color=shade, label=step)
            left += value
    patch = p50([s["patch"] for s in raw["floor"]])
    trips = p50([s["whole"] - s["patch"] for s in raw["floor"]])
    axes.barh(1, trips / 2, color=FAINT, label="bare round trip")
    axes.barh(1, patch, left=trips / 2, color="#ef6c00")
    axes.barh(1, trips / 2, left=trips / 2 + patch, color=FAINT)
    axes.set_yticks([0, 1], ["this", "floor"])
    axes.set_xlabel("ms, medians")
    axes.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.2))


def dataplane(raw: Json, figure: Figure) -> None:
    """Throughput of ours and the peers."""
    axes = figure.subplots()
    cases = [case for case in raw if isinstance(raw[case], dict)]
    for number, case in enumerate(cases):
        for offset, side, colour in ((-0.2, "ours", OURS), (0.2, "theirs", PEER)):
            rates = [raw["bytes"] / 2**30 / run["seconds"] for run in raw[case][side]]
            axes.bar(number + offset, p50(rates), 0.38, color=colour, label=side if not number else None)
            axes.plot([number + offset] * len(rates), rates, "k.", markersize=3)
    axes.set_xticks(range(len(cases)), [f"{case}\nbeside {raw[case]['peer']}" for case in cases], fontsize=7)
    axes.set_ylabel("GiB/s on loopback")
    axes.legend(["this", "peer"])


def barrier(raw: Json, figure: Figure) -> None:
    """Barriers and bare fan-outs by the number of agents."""
    axes = figure.subplots()
    counts = sorted(map(int, raw))
    for label, key, colour in (("this, A+B", "whole", OURS), ("bare fan-out", "bare", PEER)):
        axes.plot(counts, [p50(raw[str(n)][key]) for n in counts], "o-", color=colour, label=f"{label}, median")
        axes.plot(counts, [max(raw[str(n)][key]) for n in counts], ":", color=colour, label=f"{label}, slowest")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(counts, [f"{n} agents\n{4 * n} pairs" for n in counts])
    axes.set_ylabel("ms")
    axes.legend()


def scale(raw: Json, figure: Figure) -> None:
    """How many of the migrations that were applied at once had finished when."""
    axes = figure.subplots()
    for label, key, colour in (("this", "each", OURS), ("bare kopf", "each_of_peer", PEER)):
        seconds = sorted(raw[key])
        axes.plot(seconds, range(1, len(seconds) + 1), color=colour, label=label)
    axes.set_xlabel("seconds from when it was applied until its last write")
    axes.set_ylabel("migrations")
    axes.set_xlim(left=0)
    axes.legend()


def devices(raw: Json, figure: Figure) -> None:
    """Downtime by the number of devices, simulated, beside QEMU's published figures."""
    axes = figure.subplots()
    runs = [r for r in raw["runs"] if r["kind"] == "like-mlx5"]
    counts = sorted({r["devices"] for r in runs})
    for label, key, style in (("this, simulated", "downtime_ms", "o-"), ("without the transfer", "rest_ms", "o--")):
        axes.plot(counts, [p50([r[key] for r in runs if r["devices"] == n]) for n in counts], style, color=OURS,
                  label=label)  # fmt: skip
    for (label, figures), style in zip(raw["qemu_published_p25_ms"].items(), ("s-", "s:"), strict=False):
        axes.plot(list(map(int, figures)), list(figures.values()), style, color=PEER, label=f"QEMU, published, {label}")
    axes.set_xticks(counts)
    axes.set_xlabel("devices of 100 MiB and 70 ms load each; QEMU's are real NICs on other machines")
    axes.set_ylabel("downtime, ms")
    axes.legend()


def prediction(raw: Json, figure: Figure) -> None:
    """Predicted against actual downtime, with what the bar allows."""
    axes = figure.subplots()
    runs = [r for r in raw["runs"] if r.get("predicted") and r.get("actual")]
    most = max(max(r["predicted"], r["actual"]) for r in runs) * 1.2
    line = [1 + n * (most - 1) / 200 for n in range(201)]
    allowed = [max(0.25 * a, 5) for a in line]
    axes.fill_between(line, [max(a - b, 0.5) for a, b in zip(line, allowed, strict=True)],
                      [a + b for a, b in zip(line, allowed, strict=True)], color=FAINT, alpha=0.3,
                      label="25 % or 5 ms")  # fmt: skip
    axes.plot([r["actual"] for r in runs], [r["predicted"] for r in runs], "o", color=OURS, markersize=4, alpha=0.7)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("actual downtime, ms")
    axes.set_ylabel("predicted, ms")
    axes.legend()


def soak(raw: Json, figure: Figure) -> None:
    """What processes have over the time of the soak."""
    panes = figure.subplots(1, 3)
    for pane, (key, label) in zip(
        panes, (("rss_mib", "resident, MiB"), ("fds", "fds"), ("threads", "threads")), strict=True
    ):
        for name, taken in raw["processes"].items():
            pane.plot([float(s) / 60 for s in taken["seconds"].split()], [float(v) for v in taken[key].split()],
                      linewidth=1, label=name)  # fmt: skip
        pane.set_title(label)
        pane.set_xlabel("minutes")
        pane.set_ylim(bottom=0)
    panes[0].legend(fontsize=6)


PLOTS: dict[str, Plot] = {
    "qemu": qemu,
    "overhead": overhead,
    "dataplane": dataplane,
    "barrier": barrier,
    "scale": scale,
    "devices": devices,
    "prediction": prediction,
    "soak": soak,
}
