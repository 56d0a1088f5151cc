"""What a dashboard is here, before it is Grafana's JSON: the one source of the JSON, of the table and of the pictures.

Queries are written with Grafana's variables; `concrete` puts values in their place, for a Prometheus without Grafana.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """How a panel shows its series."""

    STAT = "stat"
    LINES = "timeseries"
    STACK = "stacked timeseries"
    HEATMAP = "heatmap"
    BARS = "bargauge"


@dataclass(frozen=True, slots=True)
class Query:
    """One PromQL query; legend is Grafana's template of a series' name."""

    expr: str
    legend: str = ""
    exemplars: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel. unit: Grafana's name of it. width: of 24. runbook: the alert whose page says what to do."""

    title: str
    about: str
    kind: Kind
    unit: str
    queries: tuple[Query, ...]
    width: int = 8
    runbook: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under one heading."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One dashboard; `uid` names its file and its URL."""

    uid: str
    title: str
    about: str
    rows: tuple[Row, ...]

    @property
    def panels(self) -> tuple[Panel, ...]:
        """All panels, in their order."""
        return tuple(panel for row in self.rows for panel in row.panels)


NAMESPACE, NODE = 'namespace=~"$namespace"', 'node=~"$node"'


def of_operator(metric: str, **labels: str) -> str:
    """A selector of an operator's series; labels that must be equal."""
    return _selector(metric, (NAMESPACE,), labels)


def of_operator_and_node(metric: str) -> str:
    """A selector of what an operator says of the chosen nodes."""
    return _selector(metric, (NAMESPACE, NODE), {})


def of_agents(metric: str, **labels: str) -> str:
    """A selector of the chosen nodes' agents' series; labels that must be equal."""
    return _selector(metric, (NAMESPACE, NODE), labels)


def _selector(metric: str, matchers: tuple[str, ...], labels: Mapping[str, str]) -> str:
    equal = (f'{name}="{value}"' for name, value in labels.items())
    return f"{metric}{{{','.join((*matchers, *equal))}}}"


def quantile(q: float, selector: str, *by: str) -> str:
    """A quantile of a histogram over the window; `selector` selects its buckets."""
    return f"histogram_quantile({q}, sum {_by(('le', *by))}(rate({selector}[$window])))"


def mean(metric: str, *by: str, **labels: str) -> str:
    """The mean of what an operator's histogram or summary saw in the window; 0 if it saw nothing."""
    seen, count = (total(of_operator(metric + end, **labels), *by) for end in ("_sum", "_count"))
    return f"{seen} / clamp_min({count}, 1)"


def total(selector: str, *by: str) -> str:
    """By how much counters rose in the window."""
    return f"sum {_by(by)}(increase({selector}[$window]))"


def per_second(selector: str, *by: str) -> str:
    """How fast counters rise."""
    return f"sum {_by(by)}(rate({selector}[$__rate_interval]))"


def _by(labels: tuple[str, ...]) -> str:
    return f"by ({', '.join(labels)}) " if labels else ""


def concrete(expr: str, values: Mapping[str, str]) -> str:
    """The query with Grafana's variables replaced; `values` by name, without the $."""
    for name in sorted(values, key=len, reverse=True):
        expr = expr.replace(f"${name}", values[name])
    return expr
