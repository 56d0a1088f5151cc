"""Spans reach a real collector as they were recorded; switched off, nothing of OpenTelemetry is even imported."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from devtools.collector import Collected, Collector, tree
from devtools.stack import python_path

UID = "0af76519-16cd-43dd-8448-eb211c80319c"
TRACE = UID.replace("-", "")
# what an operator or agent does with `traces`, in a process of its own as they are
SCRIPT = """
import json, sys
import vfio_agent.__main__, vfio_operator.__main__
from vfio_api import logs
from vfio_api.spans import ROOT, Link, Span, SpanKind
from vfio_api.traces import open_traces

logs.configure("info")
uid, endpoint, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
traces = open_traces(endpoint, "vfio-agent", "node-a", service_version="1.2.3")
if traces is not None and traces.covers(uid):
    link = Link("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7")
    spans = [Span(ROOT, None, "migration", 1_000, 5_000, attributes={"vfio.epoch": 3}, link=link)]
    spans += [Span(("step", n), ROOT, f"step{n}", 2_000, 1_000, SpanKind.CLIENT, {}, "failed") for n in range(count)]
    traces.export(uid, spans)
if traces is not None:
    traces.close()
loaded = sorted(module for module in sys.modules if module.partition(".")[0] == "opentelemetry")
print(json.dumps({"on": traces is not None, "modules": loaded}))
"""


def run(endpoint: str = "", count: int = 2, **environment: str) -> tuple[Mapping[str, object], str]:
    """What the script found, and what it logged."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, UID, endpoint, str(count)],
        env={**clean, **python_path(), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[Collector]:
    with Collector(tmp_path) as collector:
        yield collector


def collected(collector: Collector, count: int) -> list[Collected]:
    deadline = time.monotonic() + 60
    while len(found := collector.trace(TRACE)) < count and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


@pytest.mark.parametrize(
    ("endpoint", "environment"),
    [
        ("", {}),
        ("http://127.0.0.1:1", {"OTEL_SDK_DISABLED": "true"}),
        ("http://127.0.0.1:1", {"OTEL_TRACES_EXPORTER": "none"}),
        ("http://127.0.0.1:1", {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}),
    ],
    ids=["default", "disabled", "none", "http"],
)
def test_switched_off_nothing_is_imported(endpoint: str, environment: dict[str, str]) -> None:
    found, log = run(endpoint, **environment)
    assert (found["on"], found["modules"]) == (False, [])
    assert ("only gRPC is spoken" in log) is ("OTEL_EXPORTER_OTLP_PROTOCOL" in environment)


def test_switched_on_it_is_imported() -> None:
    """The test above is able to fail."""
    found, _ = run("http://127.0.0.1:1", count=0)
    assert found["on"]
    assert "opentelemetry.sdk.trace" in found["modules"]  # type: ignore[operator]


@pytest.mark.parametrize("by", ["setting", "variable"])
def test_a_span_comes_as_it_was_recorded(collector: Collector, by: str) -> None:
    if by == "setting":
        run(collector.endpoint)
    else:
        run(OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint, OTEL_SERVICE_NAME="mine")
    spans = collected(collector, 3)
    assert [span.name for span in spans] == ["migration", "step0", "step1"]
    root, step, _ = spans
    assert (root.start, root.end, root.parent, root.attributes) == (1_000, 6_000, "", {"vfio.epoch": 3})
    assert root.links == [["4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"]]
    assert (step.parent, step.error, root.error) == (root.span_id, "failed", "")
    assert {span.service for span in spans} == {"vfio-agent" if by == "setting" else "mine"}
    assert {span.instance for span in spans} == {"node-a"}
    assert list(tree(spans))[1:] == [
        "     0.00      0.01  node-a      migration",
        "     0.00      0.00  node-a      ├─ step0  ! failed",
        "     0.00      0.00  node-a      └─ step1  ! failed",
    ]


def test_a_great_migration_fits_into_the_queue(collector: Collector) -> None:
    run(collector.endpoint, count=2000)
    assert len({span.span_id for span in collected(collector, 2001)}) == 2001


def test_a_sampler_leaves_a_migration_out(collector: Collector) -> None:
    found, _ = run(collector.endpoint, OTEL_TRACES_SAMPLER="always_off")
    assert found["on"]
    assert collector.trace(TRACE) == []
    run(collector.endpoint, OTEL_TRACES_SAMPLER="traceidratio", OTEL_TRACES_SAMPLER_ARG="1.0")
    assert len(collected(collector, 3)) == 3


def test_a_dead_collector_is_told_once_and_not_waited_for(collector: Collector) -> None:
    collector.stop()
    found, log = run(collector.endpoint, count=5000, OTEL_BSP_MAX_EXPORT_BATCH_SIZE="512")
    assert found["on"]
    assert log.count("spans do not reach the collector") <= 1
    assert "Transient error" not in log


def test_settings_that_cannot_be_leave_it_off_and_say_so() -> None:
    found, log = run("http://127.0.0.1:1", OTEL_EXPORTER_OTLP_TIMEOUT="soon")
    assert not found["on"]
    assert "tracing stays off" in log
