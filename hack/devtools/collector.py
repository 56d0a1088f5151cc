"""Traces as a collector got them: starts one, reads what came, prints a trace as a tree."""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from devtools.processes import Child
from devtools.stack import python_path


@dataclass(frozen=True)
class Collected:
    """A span as it came. Ids in hexadecimal digits, parent "" of the root; start and end in nanoseconds since 1970.

    service and instance: service.name and service.instance.id of who sent it. links: (trace id, span id).
    """

    trace_id: str
    span_id: str
    parent: str
    name: str
    start: int
    end: int
    service: str
    instance: str
    attributes: dict[str, str | int | bool]
    error: str
    links: list[list[str]]


class Collector:
    """A collector with its file in `folder`, from `with` until `stop`."""

    def __init__(self, folder: Path):
        self._file, self._log = folder / "spans.jsonl", folder / "collector.log"

    def __enter__(self) -> "Collector":
        argv = [sys.executable, "-m", "devtools.collector_server", str(self._file)]
        self._child = Child("collector", argv, self._log, python_path(), "listening on ")
        self._child.wait_for(".")
        found = re.search(r"listening on (\d+)\.", self._child.text())
        assert found is not None
        self.endpoint = f"http://127.0.0.1:{found[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Answer nobody any more."""
        self._child.kill()

    def trace(self, trace_id: str) -> list[Collected]:
        """Every span of a trace so far, by start."""
        text = self._file.read_text() if self._file.exists() else ""
        whole = text[: text.rfind("\n") + 1]  # the last line may be under way
        spans = [Collected(**json.loads(line)) for line in whole.splitlines()]
        return sorted((span for span in spans if span.trace_id == trace_id), key=lambda span: span.start)


def tree(spans: Sequence[Collected]) -> Iterator[str]:
    """A trace as lines: start since the root's, duration, who, name; children below their parents, by start."""
    below: dict[str, list[Collected]] = {}
    known = {span.span_id for span in spans}
    for span in spans:
        below.setdefault(span.parent if span.parent in known else "", []).append(span)
    zero = min(span.start for span in spans)

    def lines(parent: str, indent: str) -> Iterator[str]:
        children = below.get(parent, [])
        for span in children:
            last = span is children[-1]
            branch = "" if not parent else "└─ " if last else "├─ "
            error = f"  ! {span.error}" if span.error else ""
            times = f"{_milliseconds(span.start - zero)} {_milliseconds(span.end - span.start)}"
            yield f"{times}  {span.instance:<11} {indent}{branch}{span.name}{error}"
            yield from lines(span.span_id, indent + ("" if not parent else "   " if last else "│  "))

    yield f"{'start ms':>9} {'took ms':>9}  {'who':<11} what"
    yield from lines("", "")


def _milliseconds(nanoseconds: int) -> str:
    return f"{nanoseconds / 1e6:9.2f}"
