"""Pictures of the dashboards from samples of a real run: what Grafana would show, by matplotlib, and saying so."""

import math
import re
from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from devtools.dashboards.anatomy import WATERFALL
from devtools.dashboards.ask import Answers, Asked
from devtools.dashboards.declared import Dashboard, Kind, Panel
from devtools.prometheus import Series

INCHES, DPI = 18.0, 80
HEIGHTS = {Kind.STAT: 1.0}
HEIGHT = 2.6
MOST = 12  # series that a legend names
INK, GRID = "#22252b", "#d8d9da"
COLORS = ("#7eb26d", "#eab839", "#6ed0e0", "#ef843c", "#e24d42", "#1f78c1", "#ba43a9", "#705da0", "#508642", "#cca300")
CAPTION = (
    "Drawn by `make panels` with matplotlib from what a real Prometheus answered to the panels' queries after a "
    "real run (simulated devices, two nodes).\nThis is no screenshot of Grafana."
)


def draw(board: Dashboard, answers: Answers, folder: Path) -> Path:
    """One dashboard as folder/UID.png; returns its path."""
    mpl.use("Agg")
    lines = _lines(board)
    heights = [max(HEIGHTS.get(panel.kind, HEIGHT) for panel in line) for line in lines]
    tall = sum(heights) + 0.95 * len(lines) + 1.6
    figure = Figure(figsize=(INCHES, tall), dpi=DPI, facecolor="white")
    figure.text(0.02, 1 - 0.35 / tall, board.title, size=17, weight="bold", color=INK, va="center")
    figure.text(0.02, 0.45 / tall, CAPTION, size=10, color=INK, va="center", style="italic")
    top = tall - 0.75
    for line, height in zip(lines, heights, strict=True):
        left = 0
        for panel in line:
            box = (
                0.03 + 0.96 * left / 24,
                (top - 0.45 - height) / tall,
                0.96 * panel.width / 24 - 0.035,
                height / tall,
            )
            if panel.kind is Kind.BARS:
                names = [legend(asked, series) for asked in answers[panel] for series in asked.series]
                room = 0.0042 * max(map(len, names))
                box = (box[0] + room, box[1], box[2] - room, box[3])
            _panel(figure, box, panel, answers[panel])
            left += panel.width
        top -= height + 0.95
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{board.uid}.png"
    figure.savefig(path, metadata={"Software": None, "Title": board.title})
    return path


def _lines(board: Dashboard) -> list[list[Panel]]:
    """Panels that stand beside each other."""
    lines: list[list[Panel]] = []
    for row in board.rows:
        lines.append([])
        for panel in row.panels:
            if sum(other.width for other in lines[-1]) + panel.width > 24:
                lines.append([])
            lines[-1].append(panel)
    return lines


def _panel(figure: Figure, box: tuple[float, float, float, float], panel: Panel, answer: tuple[Asked, ...]) -> None:
    axes = figure.add_axes(box)
    axes.set_title(panel.title, size=10, loc="left", color=INK, weight="bold")
    axes.tick_params(labelsize=8, colors=INK)
    for side in axes.spines.values():
        side.set_color(GRID)
    match panel.kind:
        case Kind.STAT:
            _stat(axes, panel, answer)
        case Kind.BARS:
            _bars(axes, panel, answer)
        case Kind.HEATMAP:
            _heatmap(axes, answer)
        case Kind.LINES | Kind.STACK:
            _lines_of(axes, panel, answer)


def _stat(axes: Axes, panel: Panel, answer: tuple[Asked, ...]) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    value = answer[0].series[0].samples[-1][1]
    axes.text(0.5, 0.45, told(value, panel.unit), size=22, ha="center", va="center", color="#37872d")


def _bars(axes: Axes, panel: Panel, answer: tuple[Asked, ...]) -> None:
    rows = [(legend(asked, series), series.samples[-1][1]) for asked in answer for series in asked.series]
    offsets = [0.0] * len(rows)
    if panel is WATERFALL:  # each begins where the one before has ended
        offsets = [sum(value for _, value in rows[:number]) for number in range(len(rows))]
    for number, ((_, value), offset) in enumerate(zip(rows, offsets, strict=True)):
        axes.barh(number, value, left=offset, color=COLORS[number % len(COLORS)], height=0.7)
        axes.text(offset + value, number, f" {told(value, panel.unit)}", size=8, va="center", color=INK)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], size=8)
    axes.invert_yaxis()
    axes.margins(x=0.18)
    axes.xaxis.set_major_formatter(lambda value, _: told(value, panel.unit))
    axes.grid(axis="x", color=GRID)


def _heatmap(axes: Axes, answer: tuple[Asked, ...]) -> None:
    by_bound = {float(dict(series.labels)["le"]): dict(series.samples) for series in answer[0].series}
    bounds = sorted(by_bound)
    moments = sorted({at for samples in by_bound.values() for at in samples})
    cells = []
    before: Mapping[float, float] = {}
    for bound in bounds:
        cells.append([max(0.0, by_bound[bound].get(at, 0.0) - before.get(at, 0.0)) for at in moments])
        before = by_bound[bound]
    axes.imshow(cells, aspect="auto", origin="lower", cmap="Oranges", interpolation="nearest")
    axes.set_yticks(range(len(bounds)), [told(bound, "s") for bound in bounds], size=8)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0f} s")


def _lines_of(axes: Axes, panel: Panel, answer: tuple[Asked, ...]) -> None:
    named = [(legend(asked, series), series) for asked in answer for series in asked.series]
    named.sort(key=lambda each: -max(value for _, value in each[1].samples))
    began = min(series.samples[0][0] for _, series in named)
    if panel.kind is Kind.STACK:
        moments = sorted({at for _, series in named for at, _ in series.samples})
        values = [[dict(series.samples).get(at, 0.0) for at in moments] for _, series in named]
        axes.stackplot(
            [at - began for at in moments],
            values,
            labels=[name for name, _ in named],
            colors=[COLORS[number % len(COLORS)] for number in range(len(named))],
            alpha=0.75,
        )
    else:
        for number, (name, series) in enumerate(named):
            seconds, values_of = [at - began for at, _ in series.samples], [value for _, value in series.samples]
            style = "-" if number < len(COLORS) else "--"
            axes.plot(seconds, values_of, style, label=name, color=COLORS[number % len(COLORS)], linewidth=1.3)
    handles, names = axes.get_legend_handles_labels()
    axes.legend(handles[:MOST], names[:MOST], fontsize=7, loc="upper left", framealpha=0.6, ncols=1 + (len(named) > 6))
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0f} s")
    axes.yaxis.set_major_formatter(lambda value, _: told(value, panel.unit))
    axes.grid(color=GRID)


def legend(asked: Asked, series: Series) -> str:
    """The name that Grafana would give a series."""
    labels = dict(series.labels)
    return re.sub(r"{{(\w+)}}", lambda found: labels.get(found[1], ""), asked.query.legend)


def told(value: float, unit: str) -> str:
    """A figure with its unit, as Grafana would write it."""
    if unit == "percentunit":
        return f"{value * 100:.1f} %"
    if unit == "s":
        if math.isinf(value):
            return "+Inf"
        scale, name = (1e6, "µs") if 0 < value < 1e-3 else (1e3, "ms") if 0 < value < 1 else (1, "s")
        return f"{value * scale:.3g} {name}"
    if unit in ("Bps", "bytes"):
        power = min(4, int(math.log10(value) // 3)) if value >= 1 else 0
        return f"{value / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}{'/s' if unit == 'Bps' else ''}"
    return f"{value:.3g}{'/s' if unit == 'ops' else ''}"
