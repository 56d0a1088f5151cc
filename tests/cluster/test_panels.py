"""Every panel and every alert, asked of a real Prometheus that scraped a real run.

The run has a failover of the operator, migrations that succeed, one that is rolled back, one that is cancelled, a
rehearsal, a plan and one that is refused. With VFIO_TABLE=path the table of panels is written there, with
VFIO_SCREENS=folder the pictures of the dashboards are drawn there.
"""

import os
import re
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from errno import EIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from cluster.world import SETS, World, devices, migration, pairs
from devtools.dashboards.ask import Answers, Asked, ask
from devtools.dashboards.boards import DASHBOARDS
from devtools.dashboards.declared import Panel
from devtools.dashboards.draw import draw
from devtools.prometheus import Prometheus, Target
from devtools.stack import Stack
from vfio_api.device import DeviceState as S

RULES = Path(__file__).resolve().parents[2] / "charts/vfio-migration/alerts/vfio-migration.yaml"
NODES = ("node-a", "node-b")
TURNS = 8
SELECTOR = re.compile(r"\b(?:vfio_[a-z_]+|vfio:[a-z0-9_:]+)(?:\{[^}]*\})?")
# What stays at 0 while all is well, or is 0 again when a run is over.
QUIET = {
    "Agents missing",
    "In progress",
    "Queued",
    "Held sessions",
    "Unreadable records",
    "Recoveries from the journal",
}
PANELS = [(board, panel) for board in DASHBOARDS for panel in board.panels]
Rule = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """What was done, and where its samples are. start, end: seconds since the epoch. uids: by the migration's name."""

    prometheus: Prometheus
    operator_port: int
    start: float
    end: float
    phases: dict[str, str]
    uids: dict[str, str]
    answers: Answers


def _migrate(world: World) -> Iterator[dict[str, Any]]:
    with world.workload():
        for turn in range(TURNS):
            source, target = NODES if turn % 2 == 0 else NODES[::-1]
            yield world.run(migration(f"turn{turn}", pairs(SETS, source, target)))
            world.published(target, dict.fromkeys(SETS, "keeper"))
            world.published(source, dict.fromkeys(SETS, ""))
    with world.workload("node-a", ["sim0", "sim1"]):
        world.open(world.stack.nodes["node-b"], ["sim2", "sim3"])
        crossed = [(f"gpu{i}", "node-b", f"sim{i}", "node-a", f"sim{i}") for i in (2, 3)]
        yield world.run(migration("crossed", [*pairs(["sim0", "sim1"]), *crossed]))
    with world.workload():
        yield world.run(migration("planned", pairs(), mode="Plan"))
        yield world.run(migration("rehearsed", pairs(), mode="Rehearse"))
        world.control("node-b").fault("sim2", "arc", arc=(S.RESUMING, S.STOP), error=EIO)
        yield world.run(migration("rolled-back", pairs()))
        yield world.run(migration("refused", [("gpu0", "node-a", "nothing", "node-b", "sim0")]))
        world.apply(migration("cancelled", pairs(), strategy={"bandwidthLimitBytesPerSecond": 4 << 20}))
        world.in_pre_copy("cancelled")
        world.stack.kubectl("patch", "vfm", "cancelled", "--type=merge", "-p", '{"spec":{"cancel":true}}')
        yield world.finished("cancelled")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with Stack(["node-a", "node-b", "node-c"]) as stack:
        leader = stack.start_operator("operator-0")
        leader.wait_for('"event": "leading"')
        standby = stack.start_operator("operator-1")
        for name in NODES:
            agent = stack.add_node(name, devices()).start_agent()
            agent.wait_for('"event": "connected"')
        stack.devices_published(2 * 7)
        operators = [
            Target(
                "vfio-operator-metrics",
                Stack.operator_metrics_port(child),
                (("namespace", "vfio-migration"), ("pod", child.name)),
            )
            for child in (leader, standby)
        ]
        agents = [
            Target(
                "vfio-migration-agents/vfio-agent",
                stack.nodes[name].metrics_port(),
                (("namespace", "vfio-migration-agents"), ("pod", f"vfio-agent-{name}"), ("node", name)),
            )
            for name in NODES
        ]
        folder = tmp_path_factory.mktemp("prometheus")
        with Prometheus(folder, [*operators, *agents], [RULES]) as prometheus:
            start = prometheus.scraped_after(time.time())
            leader.stop()
            standby.wait_for('"event": "leading"')
            for node in stack.nodes.values():
                assert node.agent is not None
                node.agent.wait_for('"event": "connected"')
            found = list(_migrate(World(stack, standby)))
            end = prometheus.scraped_after(time.time(), down=1)
            answers = {panel: ask(prometheus, panel, start, end) for _, panel in PANELS}
            yield Run(
                prometheus,
                operators[1].port,
                start,
                end,
                {body["metadata"]["name"]: body["status"]["phase"] for body in found},
                {body["metadata"]["name"]: body["metadata"]["uid"] for body in found},
                answers,
            )


@pytest.fixture(scope="module")
def table() -> Iterator[list[tuple[str, str, int]]]:
    """(panel or alert, query, series) as they are asked; written at the end, if somebody wants it."""
    rows: list[tuple[str, str, int]] = []
    yield rows
    if path := os.environ.get("VFIO_TABLE"):
        head = (
            "# Panels and alerts, asked of a real run\n\nWritten by `make panels`; observability.md says what it is.\n"
        )
        cells = ((f"| {name} | `{query.replace('|', chr(92) + '|')}` | {count} |") for name, query, count in rows)
        Path(path).write_text("\n".join([head, "| panel or alert | query | series |", "|---|---|---|", *cells]) + "\n")


def test_the_run_was_one_of_every_kind(run: Run) -> None:
    assert run.phases == {
        **{f"turn{turn}": "Succeeded" for turn in range(TURNS)},
        "crossed": "Succeeded",
        "planned": "Succeeded",
        "rehearsed": "Succeeded",
        "rolled-back": "Failed",
        "refused": "Failed",
        "cancelled": "Cancelled",
    }


@pytest.mark.parametrize(("board", "panel"), PANELS, ids=[f"{board.uid}: {panel.title}" for board, panel in PANELS])
def test_a_panel_shows_samples_of_the_run(run: Run, table: list[Any], board: Any, panel: Panel) -> None:
    answer = run.answers[panel]
    for asked in answer:
        table.append((f"{board.title.partition(' / ')[2]}: {panel.title}", asked.query.expr, len(asked.series)))
        assert "vector(" not in asked.query.expr
        assert asked.series, f"no series for {asked.query.expr}"
        for series in asked.series:
            assert all(run.start <= at <= run.end for at, _ in series.samples)
    if panel.title not in QUIET:
        assert _positive(answer), "all of it is 0"


def _positive(answer: tuple[Asked, ...]) -> bool:
    return any(value > 0 for asked in answer for series in asked.series for _, value in series.samples)


def _alerts() -> list[Rule]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


@pytest.mark.parametrize("rule", _alerts(), ids=lambda rule: rule["alert"])
def test_an_alert_is_about_series_that_are_there(run: Run, table: list[Any], rule: Rule) -> None:
    evaluated = next(found for found in run.prometheus.rules() if found["name"] == rule["alert"])
    assert evaluated["health"] == "ok", evaluated
    asked = set(SELECTOR.findall(rule["expr"]))
    assert asked
    seen = {selector: len(run.prometheus.range(selector, run.start, run.end)) for selector in sorted(asked)}
    firing = len(run.prometheus.range(rule["expr"], run.start, run.end))
    table.append((f"Alert {rule['alert']}", " ".join(rule["expr"].split()), firing))
    table.extend((f"Alert {rule['alert']}: what it looks at", selector, count) for selector, count in seen.items())
    assert all(seen.values()), f"an alert on what does not exist never fires: {seen}"


def test_exemplars_lead_from_a_figure_to_its_migration(run: Run) -> None:
    found = run.prometheus.exemplars("vfio_migration_downtime_seconds_bucket", run.start, run.end)
    moved = {run.uids[name] for name, phase in run.phases.items() if name.startswith("turn") or name == "crossed"}
    told = {exemplar["labels"]["migration_uid"] for exemplar in found}
    assert told
    assert told <= moved
    ended = run.prometheus.exemplars('vfio_migrations_total{reason="Cancelled"}', run.start, run.end)
    assert {exemplar["labels"]["migration_uid"] for exemplar in ended} == {run.uids["cancelled"]}


def test_openmetrics_is_served_to_who_asks_for_it(run: Run) -> None:
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    request = urllib.request.Request(f"http://127.0.0.1:{run.operator_port}/metrics", headers=accept)
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
        families = list(text_string_to_metric_families(answer.read().decode()))
    told = {family.name for family in families for sample in family.samples if sample.exemplar is not None}
    assert {"vfio_migrations", "vfio_migration_downtime_seconds", "vfio_migration_downtime_step_seconds"} <= told


def test_the_parts_of_the_downtime_are_the_downtime(run: Run) -> None:
    total, parts = (
        run.prometheus.instant(f"sum(vfio_migration_downtime{name}_seconds_sum)", run.end)[0].samples[0][1]
        for name in ("", "_step")
    )
    assert parts == pytest.approx(total, rel=0.01)


def test_what_is_sent_of_a_stopped_device_is_told_apart(run: Run) -> None:
    sent = run.prometheus.instant("sum by (stage) (vfio_agent_sent_state_bytes_total)", run.end)
    stages = {dict(series.labels)["stage"]: series.samples[0][1] for series in sent}
    assert 0 < stages["StopCopy"] < stages["PreCopy"]
    assert (
        sum(stages.values())
        == run.prometheus.instant('sum(vfio_agent_state_bytes_total{direction="sent"})', run.end)[0].samples[0][1]
    )


def test_the_pictures_are_drawn(run: Run, tmp_path: Path) -> None:
    folder = Path(os.environ.get("VFIO_SCREENS", tmp_path))
    for board in DASHBOARDS:
        picture = draw(board, run.answers, folder)
        assert picture.read_bytes().startswith(b"\x89PNG")
