"""Asks a real Prometheus what a panel would show: with the values in place that Grafana would give the variables."""

from collections.abc import Mapping
from dataclasses import dataclass

from devtools.dashboards.declared import Kind, Panel, Query, concrete
from devtools.prometheus import Prometheus, Series

RATE_SECONDS = 8
WINDOW_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Asked:
    """A query of a panel, and the series that came."""

    query: Query
    series: tuple[Series, ...]


Answers = Mapping[Panel, tuple[Asked, ...]]


def ask(prometheus: Prometheus, panel: Panel, start: float, end: float) -> tuple[Asked, ...]:
    """Every query of a panel between two moments; what shows one value is asked at the end, over the whole time."""
    once = panel.kind in (Kind.STAT, Kind.BARS)
    whole = f"{int(end - start)}s"
    values = {
        "namespace": ".*",
        "node": ".*",
        "window": whole if once else f"{WINDOW_SECONDS}s",
        "__range": whole,
        "__rate_interval": f"{RATE_SECONDS}s",
    }

    def answer(query: Query) -> tuple[Series, ...]:
        expr = concrete(query.expr, values)
        return tuple(prometheus.instant(expr, end) if once else prometheus.range(expr, start, end))

    return tuple(Asked(query, answer(query)) for query in panel.queries)
