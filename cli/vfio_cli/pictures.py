"""A migration's timeline as a page or a picture, for who has no terminal at hand."""

import importlib.util
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from vfio_cli.problems import UserError
from vfio_cli.waterfall import Bar, duration_text

PAGE_WIDTH, LABEL_WIDTH, ROW_HEIGHT = 960, 240, 26
DOWN, UP = "#b5179e", "#3a86ff"
_STYLE = """body{font:14px/1.5 system-ui,sans-serif;margin:2em auto;max-width:60em;padding:0 1em}
svg{width:100%;height:auto}h2{margin-top:1.5em}table{border-collapse:collapse}td{padding:.1em 1em .1em 0}
@media (prefers-color-scheme:dark){body{background:#111;color:#ddd}svg{fill:#ddd}}svg{fill:currentColor}"""
Charts = Sequence[tuple[str, Sequence[Bar]]]


def page(title: str, facts: Mapping[str, str], charts: Charts) -> str:
    """A page that needs nothing from elsewhere. charts: (heading, bars)."""
    rows = "".join(f"<tr><td>{escape(k)}</td><td>{escape(v)}</td></tr>" for k, v in facts.items() if v)
    drawn = "".join(f"<h2>{escape(heading)}</h2>{_svg(bars)}" for heading, bars in charts if bars)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{escape(title)}</h1><table>{rows}</table>{drawn}</body></html>\n"
    )


def _svg(bars: Sequence[Bar]) -> str:
    total = max(1, *(bar.end for bar in bars))
    cells = PAGE_WIDTH - LABEL_WIDTH - 80
    parts = []
    for n, bar in enumerate(bars):
        x, width = LABEL_WIDTH + cells * bar.start / total, max(2.0, cells * bar.duration / total)
        y = n * ROW_HEIGHT
        parts.append(
            f'<text x="0" y="{y + 17}">{escape(bar.label.strip())}</text>'
            f'<rect x="{x:.1f}" y="{y + 4}" width="{width:.1f}" height="{ROW_HEIGHT - 8}" rx="2" '
            f'fill="{DOWN if bar.down else UP}"/>'
            f'<text x="{x + width + 6:.1f}" y="{y + 17}">{duration_text(bar.duration)}</text>'
        )
    return f'<svg viewBox="0 0 {PAGE_WIDTH} {len(bars) * ROW_HEIGHT}" role="img">{"".join(parts)}</svg>'


def draw_png(path: Path, title: str, charts: Charts) -> None:
    """Write the picture. Raises UserError if matplotlib is not installed, OSError if the file cannot be written."""
    if importlib.util.find_spec("matplotlib") is None:
        next_step = "pip install 'vfio-migration[png]', or use --html"
        raise UserError("--png", "expected matplotlib, which is not installed", next_step)
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [(heading, bars) for heading, bars in charts if bars]
    heights = [max(2, len(bars)) for _, bars in shown]
    figure, axes = pyplot.subplots(
        len(shown), 1, figsize=(11, 1.2 + 0.42 * sum(heights)), height_ratios=heights, squeeze=False
    )
    figure.suptitle(title, x=0.01, ha="left")
    for (heading, bars), (axis,) in zip(shown, axes, strict=True):
        _draw(axis, heading, bars)
    figure.tight_layout()
    try:
        figure.savefig(path, dpi=120, format="png")
    finally:
        pyplot.close(figure)


def _draw(axis: Any, heading: str, bars: Sequence[Bar]) -> None:
    unit, name = (1e6, "s") if max(bar.end for bar in bars) >= 1e6 else (1e3, "ms")
    axis.set_title(heading, loc="left", fontsize=10)
    for n, bar in enumerate(bars):
        axis.barh(n, bar.duration / unit, left=bar.start / unit, color=DOWN if bar.down else UP)
        axis.text(bar.end / unit, n, f" {duration_text(bar.duration)}", va="center", fontsize=8)
    axis.set_yticks(range(len(bars)), [bar.label.strip() for bar in bars], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel(name)
    axis.margins(x=0.12)
    axis.spines[["top", "right"]].set_visible(False)
