"""A real Prometheus on a port of its own: it scrapes what it is told to, evaluates the chart's rules, and is asked."""

import json
import time
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from devtools.ports import free_port
from devtools.processes import Child
from devtools.promtool import prometheus

SCRAPE_SECONDS = 1
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Target:
    """Who is scraped, with the labels that the chart's ServiceMonitor or PodMonitor would give it."""

    job: str
    port: int
    labels: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Series:
    """One series of an answer: its labels, and (seconds since the epoch, value) pairs; NaN and stale ones left out."""

    labels: tuple[tuple[str, str], ...]
    samples: tuple[tuple[float, float], ...]


class Prometheus:
    """The server, with its data in `folder`; exemplars are stored. Use it in a with statement."""

    def __init__(self, folder: Path, targets: Sequence[Target], rules: Sequence[Path]):
        self._folder, self._targets, self._rules = folder, targets, rules
        self._port = free_port()

    def __enter__(self) -> "Prometheus":
        self._folder.mkdir(parents=True, exist_ok=True)
        config = self._folder / "prometheus.yml"
        config.write_text(yaml.safe_dump(self._config()))
        arguments = [
            str(prometheus()),
            f"--config.file={config}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self._port}",
            "--enable-feature=exemplar-storage",
        ]
        self._child = Child("prometheus", arguments, self._folder / "log", {}, "Server is ready")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.stop()

    def _config(self) -> Json:
        scraped = [
            {"job_name": f"{target.job}-{number}", "static_configs": [_static(target)]}
            for number, target in enumerate(self._targets)
        ]
        every = f"{SCRAPE_SECONDS}s"
        return {
            "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
            "storage": {"exemplars": {"max_exemplars": 10_000}},
            "rule_files": [str(rule) for rule in self._rules],
            "scrape_configs": scraped,
        }

    def _get(self, path: str, **parameters: str) -> Any:
        url = f"http://127.0.0.1:{self._port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return json.loads(answer.read())["data"]
        except urllib.error.HTTPError as error:
            raise ValueError(f"Prometheus says of {parameters}: {error.read().decode()}") from error

    def instant(self, query: str, at: float) -> list[Series]:
        """The query at one moment, seconds since the epoch. Raises ValueError if Prometheus does not understand it."""
        found = self._get("query", query=query, time=f"{at:.3f}")["result"]
        return _series((item["metric"], [item["value"]]) for item in found)

    def range(self, query: str, start: float, end: float, step: float = SCRAPE_SECONDS) -> list[Series]:
        """The query over time. Raises ValueError if Prometheus does not understand it."""
        found = self._get("query_range", query=query, start=f"{start:.3f}", end=f"{end:.3f}", step=f"{step:g}")
        return _series((item["metric"], item["values"]) for item in found["result"])

    def exemplars(self, query: str, start: float, end: float) -> list[Json]:
        """The exemplars of a query's series: each with its labels, value and timestamp."""
        found = self._get("query_exemplars", query=query, start=f"{start:.3f}", end=f"{end:.3f}")
        return [exemplar for series in found for exemplar in series["exemplars"]]

    def rules(self) -> list[Json]:
        """Every rule as it was evaluated last."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def scraped_after(self, moment: float, seconds: float = 60, down: int = 0) -> float:
        """Wait until all targets but those that are `down` were scraped after `moment`; returns when that was seen."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            seen = self.instant("timestamp(up == 1)", time.time())
            if sum(series.samples[0][1] > moment + 1 for series in seen) == len(self._targets) - down:
                return round(time.time(), 3)  # as exact as Prometheus is
            time.sleep(0.2)
        raise TimeoutError(f"not every target was scraped within {seconds:g} s; see {self._folder / 'log'}")


def _static(target: Target) -> Json:
    return {"targets": [f"127.0.0.1:{target.port}"], "labels": {"job": target.job, **dict(target.labels)}}


def _series(found: Any) -> list[Series]:
    made = []
    for labels, values in found:
        samples = tuple((float(at), float(value)) for at, value in values if value not in ("NaN", "+Inf", "-Inf"))
        if samples:
            made.append(Series(tuple(sorted(labels.items())), samples))
    return made
