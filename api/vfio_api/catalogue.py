"""The metrics that a component exports, each declared once: what is scraped, and what docs/metrics.md says of it.

A label whose values are known beforehand is declared with them, and every series of such a metric is there from the
start: a rate sees the first event, and 0 is told from "not there".
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, Summary, disable_created_metrics

UNITS = ("bytes_per_second", "seconds", "bytes", "ratio")
_Metric = TypeVar("_Metric", Counter, Gauge, Histogram, Summary)


@dataclass(frozen=True, slots=True)
class Label:
    """A label with all the values it can have, or with what bounds their number where only a run tells them."""

    name: str
    values: tuple[str, ...] = ()
    bound: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """One metric as the catalogue lists it. name: as a query writes it, without the endings of a histogram.

    lines: series of one set of label values. combinations: how many sets there are, where all are known.
    """

    name: str
    kind: str
    help: str
    labels: tuple[Label, ...]
    lines: int
    exemplars: bool = False
    combinations: int | None = None

    @property
    def unit(self) -> str:
        """The base unit that the name ends with; "" for a plain number."""
        bare = self.name.removesuffix("_total")
        return next((unit for unit in UNITS if bare.endswith(f"_{unit}")), "")

    @property
    def bound(self) -> str:
        """How many series there are at most."""
        open_ended = [label.bound for label in self.labels if not label.values]
        known = self.combinations or prod(len(label.values) for label in self.labels if label.values)
        return " x ".join([str(known * self.lines), *open_ended])


class Catalogue:
    """Declares metrics in a registry of its own, in the order of `entries`.

    Series that only tell when another series began are left out for the whole process: nobody asks for them.
    """

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.entries: list[Entry] = []

    def counter(
        self,
        name: str,
        text: str,
        *labels: Label,
        only: Iterable[Sequence[str]] | None = None,
        exemplars: bool = False,
    ) -> Counter:
        """A counter; its name ends with _total. only: the sets of label values that there are."""
        made = Counter(name, text, _names(labels), registry=self.registry)
        return self._declared(made, Entry(name, "counter", text, labels, 1, exemplars), only)

    def gauge(self, name: str, text: str, *labels: Label) -> Gauge:
        """A gauge."""
        return self._declared(Gauge(name, text, _names(labels), registry=self.registry), _gauge(name, text, labels))

    def histogram(
        self,
        name: str,
        text: str,
        buckets: Sequence[float],
        *labels: Label,
        only: Iterable[Sequence[str]] | None = None,
        exemplars: bool = False,
    ) -> Histogram:
        """A classic histogram with these upper bounds, ascending, and +Inf. only: as for a counter."""
        made = Histogram(name, text, _names(labels), buckets=buckets, registry=self.registry)
        return self._declared(made, Entry(name, "histogram", text, labels, len(buckets) + 3, exemplars), only)

    def summary(self, name: str, text: str, *labels: Label) -> Summary:
        """A sum and a count, without quantiles: for labels of which there may be many."""
        made = Summary(name, text, _names(labels), registry=self.registry)
        return self._declared(made, Entry(name, "summary", text, labels, 2))

    def build(self, name: str, text: str, version: str) -> None:
        """The constant 1 with the version as a label; `name` is without _info."""
        Info(name, text, registry=self.registry).info({"version": version})
        self.entries.append(Entry(f"{name}_info", "info", text, (Label("version", bound="releases"),), 1))

    def _declared(self, made: _Metric, entry: Entry, only: Iterable[Sequence[str]] | None = None) -> _Metric:
        known = entry.labels and all(label.values for label in entry.labels)
        sets = list(only if only is not None else itertools.product(*(label.values for label in entry.labels)))
        if known:
            for values in sets:
                made.labels(*values)
            entry = Entry(
                entry.name, entry.kind, entry.help, entry.labels, entry.lines, entry.exemplars, combinations=len(sets)
            )
        self.entries.append(entry)
        return made


def _names(labels: Iterable[Label]) -> list[str]:
    return [label.name for label in labels]


def _gauge(name: str, text: str, labels: tuple[Label, ...]) -> Entry:
    return Entry(name, "gauge", text, labels, 1)
