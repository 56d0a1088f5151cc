"""The alerts, by promtool on made-up series: each fires when it should and is silent when it should be.

Mutants of the rules show that the cases see the difference.
"""

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from devtools.promtool import promtool
from devtools.tools import helm

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "charts/vfio-migration/alerts/vfio-migration.yaml"
Rule = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """Series as promtool writes them, one value an `interval`; at `at`, `firing` alerts of this name are firing.

    evaluate: how often the rules are evaluated, which is what takes time; "" for every interval.
    """

    alert: str
    name: str
    series: dict[str, str]
    at: str
    firing: int
    interval: str = "1m"
    evaluate: str = ""

    def __str__(self) -> str:
        return f"{self.alert}: {self.name}"


def downtime(count: str, quick: str) -> dict[str, str]:
    """Switchovers, and those of at most 300 ms."""
    return {
        'vfio_migration_downtime_seconds_count{namespace="n"}': count,
        'vfio_migration_downtime_seconds_bucket{namespace="n",le="0.3"}': quick,
        'vfio_migration_downtime_seconds_bucket{namespace="n",le="+Inf"}': count,
    }


def age(phase: str, values: str) -> dict[str, str]:
    return {f'vfio_migrations_oldest_phase_age_seconds{{namespace="n",phase="{phase}"}}': values}


def migrations(prepared: str, back: str, cancelled: str = "0x90") -> dict[str, str]:
    count = "vfio_migration_phase_duration_seconds_count"
    return {
        f'{count}{{namespace="n",phase="Preparing"}}': prepared,
        f'{count}{{namespace="n",phase="RollingBack"}}': back,
        'vfio_migrations_total{namespace="n",result="Cancelled",reason="Cancelled"}': cancelled,
        'vfio_migrations_total{namespace="n",result="Failed",reason="UnknownDevice"}': "0+1x90",  # refused
    }


def queue(waiting: str, prepared: str) -> dict[str, str]:
    return {
        'vfio_migrations_queued{namespace="n",waiting_for="Turn"}': waiting,
        'vfio_migrations_queued{namespace="n",waiting_for="Claims"}': "0x90",
        'vfio_migration_phase_duration_seconds_count{namespace="n",phase="Preparing"}': prepared,
    }


def leader(**values: str) -> dict[str, str]:
    return {f'vfio_operator_leader{{namespace="n",pod="{pod}"}}': value for pod, value in values.items()}


def node(metric: str, values: str, labels: str = "") -> dict[str, str]:
    here, there = (f'{metric}{{namespace="n",node="{name}"{labels}}}' for name in "ab")
    return {here: values, there: "1x90"}


def failures(values: str) -> dict[str, str]:
    return {'vfio_operator_task_failures_total{namespace="n"}': values}


FAST, SLOW = "VFIODowntimeBudgetBurnFast", "VFIODowntimeBudgetBurnSlow"
FEW = ("0+30x192 5763+3x95", "0+30x192 5762.88+2.88x95")  # two days of many quick ones, then a day of few
CASES = [
    Case(FAST, "all slow", downtime("0+1x60", "0x60"), "60m", 1, evaluate="10m"),
    Case(FAST, "all quick", downtime("0+1x60", "0+1x60"), "60m", 0, evaluate="10m"),
    Case(FAST, "one of a hundred is slow", downtime("0+1x400", "0+0.99x400"), "360m", 0, evaluate="10m"),
    Case(FAST, "two slow ones and no other", downtime("0x20 1 2x60", "0x90"), "60m", 0, evaluate="10m"),
    Case(FAST, "it was slow and is quick again", downtime("0+1x90", "0x20 0+1x69"), "80m", 0, evaluate="10m"),
    Case(FAST, "eight of a hundred for hours", downtime("0+1x400", "0+0.92x400"), "370m", 1, evaluate="10m"),
    Case(
        FAST,
        "a quarter, for an hour",
        downtime("0+1x300 301+1x59", "0+1x300 300.75+0.75x59"),
        "360m",
        1,
        evaluate="10m",
    ),
    Case(
        FAST,
        "eight of a hundred until an hour ago",
        downtime("0+1x460", "0+0.92x400 369+1x59"),
        "460m",
        0,
        evaluate="10m",
    ),
    Case(SLOW, "four of a hundred for a day", downtime("0+15x99", "0+14.4x99"), "1485m", 1, "15m", "45m"),
    Case(SLOW, "fifteen of a thousand for three days", downtime("0+15x300", "0+14.775x300"), "4320m", 1, "15m", "45m"),
    Case(SLOW, "four of a hundred for a day of few", downtime(*FEW), "4320m", 1, "15m", "45m"),
    Case(SLOW, "five of a thousand", downtime("0+15x300", "0+14.925x300"), "4320m", 0, "15m", "45m"),
    Case(SLOW, "two slow ones in three days", downtime("0+0.15x300", "0+0.143x300"), "4320m", 0, "15m", "45m"),
    Case(SLOW, "slow until half a day ago", downtime("0+15x300", "0+13.8x233 3230+15x67"), "4500m", 0, "15m", "45m"),
    *(
        Case("VFIOMigrationStuck", f"{phase} for {seconds} s", age(phase, f"{seconds}x10"), "5m", firing)
        for phase, limit in (
            ("Switchover", 300),
            ("Starting", 300),
            ("RollingBack", 300),
            ("Pending", 900),
            ("Preparing", 900),
            ("PreCopy", 3600),
        )
        for seconds, firing in ((limit - 10, 0), (limit + 10, 1))
    ),
    Case("VFIOMigrationStuck", "it went on at once", age("Switchover", "0x4 310 0x9"), "5m", 0),
    Case("VFIOQueueStands", "none begins", queue("3x90", "5x90"), "60m", 1),
    Case("VFIOQueueStands", "one after the other", queue("3x90", "0+0.2x90"), "60m", 0),
    Case("VFIOQueueStands", "nobody waits", queue("0x90", "5x90"), "60m", 0),
    Case("VFIOQueueStands", "they have just come", queue("0x50 3x40", "5x90"), "60m", 0),
    Case("VFIORollbacksRising", "half of them", migrations("0+0.2x90", "0+0.1x90"), "80m", 1),
    Case("VFIORollbacksRising", "one in ten", migrations("0+1x90", "0+0.1x90"), "80m", 0),
    Case("VFIORollbacksRising", "two of two", migrations("0x30 1 2x90", "0x30 1 2x90"), "80m", 0),
    Case("VFIORollbacksRising", "cancelled, all of them", migrations("0+1x90", "0+1x90", "0+1x90"), "80m", 0),
    Case("VFIORollbacksRising", "only just", migrations("0x50 5x20", "0x50 5x20"), "53m", 0),
    Case("VFIONoLeader", "two standbys", leader(a="0x9", b="0x9"), "5m", 1),
    Case("VFIONoLeader", "no operator at all", {}, "5m", 1),
    Case("VFIONoLeader", "one leads", leader(a="0x9", b="1x9"), "5m", 0),
    Case("VFIONoLeader", "an election", leader(a="1x3 0x6", b="0x4 1x5"), "4m", 0),
    Case("VFIOOperatorBug", "a task failed", failures("0x9 1x9"), "12m", 1),
    Case(
        "VFIOOperatorBug",
        "it failed long ago",
        failures("0 1x30"),
        "30m",
        0,
    ),
    Case("VFIOAgentGone", "for minutes", node("vfio_operator_agent_connected", "1 0x9"), "5m", 1),
    Case("VFIOAgentGone", "a restart", node("vfio_operator_agent_connected", "1x3 0 1x9"), "5m", 0),
    Case("VFIOAgentGone", "connected", node("vfio_operator_agent_connected", "1x9"), "5m", 0),
    Case("VFIOAgentGone", "just now", node("vfio_operator_agent_connected", "1x4 0x9"), "5m", 0),
    Case("VFIOSourceHeld", "held", node("vfio_agent_sessions_held", "0 1x9", ',role="Source"'), "5m", 2),
    Case("VFIOSourceHeld", "a target that waits", node("vfio_agent_sessions_held", "0 1x9", ',role="Target"'), "5m", 0),
    Case(
        "VFIOSourceHeld",
        "it asked once and was told",
        {'vfio_agent_sessions_held{namespace="n",node="a",role="Source"}': "0x4 1 0x9"},
        "5m",
        0,
    ),
    Case("VFIOKeeperGone", "gone", node("vfio_agent_keeper_up", "1 0x9"), "5m", 1),
    Case("VFIOKeeperGone", "it answers", node("vfio_agent_keeper_up", "1x9"), "5m", 0),
    Case("VFIOKeeperGone", "a restart", node("vfio_agent_keeper_up", "1x4 0 1x9"), "5m", 0),
    Case("VFIOUnreadableRecords", "one", node("vfio_agent_unreadable_records", "1x9"), "5m", 2),
    Case("VFIOUnreadableRecords", "none", {'vfio_agent_unreadable_records{namespace="n",node="a"}': "0x9"}, "5m", 0),
    Case(
        "VFIOUnreadableRecords",
        "for a moment",
        {'vfio_agent_unreadable_records{namespace="n",node="a"}': "0x4 1 0x9"},
        "5m",
        0,
    ),
]


def groups() -> list[Any]:
    return list(yaml.safe_load(RULES.read_text())["groups"])


def alerts(found: list[Any]) -> Iterator[Rule]:
    for group in found:
        yield from (rule for rule in group["rules"] if "alert" in rule)


ALERTS = {rule["alert"]: rule for rule in alerts(groups())}


def run(cases: list[Case], rules: Path, folder: Path) -> str:
    """What promtool says is wrong; empty if nothing is."""
    files = []
    for number, case in enumerate(cases):
        test = {
            "interval": case.interval,
            "input_series": [{"series": name, "values": values} for name, values in case.series.items()],
            "promql_expr_test": [
                {
                    "expr": f'count(ALERTS{{alertname="{case.alert}",alertstate="firing"}}) or vector(0)',
                    "eval_time": case.at,
                    "exp_samples": [{"labels": "{}", "value": case.firing}],
                }
            ],
        }
        path = folder / f"case{number}.yaml"
        path.write_text(
            yaml.safe_dump(
                {"rule_files": [str(rules)], "evaluation_interval": case.evaluate or case.interval, "tests": [test]}
            )
        )
        files.append(path)
    done = subprocess.run([promtool(), "test", "rules", *files], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else (done.stdout + done.stderr)


def test_promtool_takes_the_rules() -> None:
    done = subprocess.run(
        [promtool(), "check", "rules", "--lint=all", "--lint-fatal", RULES], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_alert_fires_when_it_should_and_only_then(case: Case, tmp_path: Path) -> None:
    assert run([case], RULES, tmp_path) == ""


def test_every_alert_has_cases_of_both_kinds() -> None:
    for alert in ALERTS:
        assert {bool(case.firing) for case in CASES if case.alert == alert} == {True, False}, alert


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_says_how_bad_it_is_what_it_means_and_where_to_read_on(alert: str) -> None:
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    assert rule["annotations"]["runbook_url"] == f"docs/runbooks/{alert}.md"
    page = (ROOT / rule["annotations"]["runbook_url"]).read_text()
    for heading in ("## Meaning", "## Impact", "## Diagnosis", "## Mitigation"):
        assert heading in page, f"{alert} lacks {heading}"
    assert "kubectl" in page.partition("## Diagnosis")[2].partition("## Mitigation")[0]


def test_every_page_is_of_an_alert() -> None:
    pages = {page.stem for page in (ROOT / "docs/runbooks").glob("*.md")}
    assert pages == {*ALERTS, "README"}


def rendered(*flags: str) -> list[Rule]:
    """The chart's objects of the kinds that this is about."""
    command = [helm(), "template", "release", ROOT / "charts/vfio-migration", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    kinds = ("PrometheusRule", "ConfigMap")
    return [each for each in yaml.safe_load_all(done.stdout) if each and each["kind"] in kinds]


API = "--api-versions=monitoring.coreos.com/v1"
BASE = "https://docs.test/r"
# where the pages are, for each suffix: one of an alert, and the list of them
SUFFIXES = {
    ".md": ("/{}.md", "/README.md"),
    ".html": ("/{}.html", "/index.html"),
    "/": ("/{}/", "/"),
    "": ("/{}", "/"),
}


def led(link: str, suffix: str) -> str:
    """Where a link to a file of docs/runbooks leads."""
    page, first = SUFFIXES[suffix]
    stem = link.removeprefix("docs/runbooks/").removesuffix(".md")
    return BASE + (first if stem == "README" else page.format(stem))


def alerts(*flags: str) -> Rule:
    """The chart's PrometheusRule."""
    (rule,) = (each for each in rendered(API, *flags) if each["kind"] == "PrometheusRule")
    return rule


def dashboards(*flags: str) -> dict[str, Any]:
    """The chart's dashboards, by file."""
    found = [each for each in rendered(*flags) if each["metadata"]["labels"].get("grafana_dashboard") == "1"]
    assert {each["metadata"]["annotations"]["grafana_folder"] for each in found} == {"VFIO migration"}
    return {name: json.loads(text) for each in found for name, text in each["data"].items()}


def linking(board: Any) -> list[Any]:
    """What of a dashboard's file has links: itself, and its panels."""
    return [board, *(panel for panel in board["panels"] if "links" in panel)]


def files() -> dict[str, Any]:
    """The dashboards as they are in the repository."""
    return {path.name: json.loads(path.read_text()) for path in (ROOT / "charts/vfio-migration/dashboards").iterdir()}


def test_the_chart_has_the_alerts_where_there_is_an_operator_for_them() -> None:
    rule = alerts("--set=monitoring.labels.release=p")
    assert rule["metadata"]["labels"]["release"] == "p"
    for flags in ((), (API, "--set=monitoring.rules=false"), (API, "--set=monitoring.enabled=false")):
        assert not [each for each in rendered(*flags) if each["kind"] == "PrometheusRule"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_chart_links_to_where_the_runbooks_can_be_read(suffix: str) -> None:
    """All else is as in the files."""
    flags = [f"--set=monitoring.runbooks={BASE},monitoring.runbooksSuffix={suffix}"]
    expected = groups()
    for rule in (rule for group in expected for rule in group["rules"] if "alert" in rule):
        rule["annotations"]["runbook_url"] = led(rule["annotations"]["runbook_url"], suffix)
    assert alerts(*flags)["spec"]["groups"] == expected
    boards = files()
    for link in (link for board in boards.values() for each in linking(board) for link in each["links"]):
        if link.get("url"):
            link["url"] = led(link["url"], suffix)
    assert dashboards(*flags) == boards


def test_where_they_can_be_read_nowhere_the_chart_links_to_none() -> None:
    expected = groups()
    for rule in (rule for group in expected for rule in group["rules"] if "alert" in rule):
        del rule["annotations"]["runbook_url"]
    assert alerts()["spec"]["groups"] == expected
    boards = files()
    for each in (each for board in boards.values() for each in linking(board)):
        each["links"] = [link for link in each["links"] if "docs/runbooks" not in link.get("url", "")]
    assert dashboards() == boards
    assert sum(len(each["links"]) for board in boards.values() for each in linking(board)) == len(boards)


def test_the_chart_has_the_dashboards_for_grafanas_sidecar() -> None:
    assert set(dashboards()) == set(files())
    off = rendered("--set=monitoring.dashboards.enabled=false")
    assert not [each for each in off if "grafana_dashboard" in each["metadata"]["labels"]]


# mutants: an expression or a duration that is wrong in one way


def _flips(rule: Rule) -> Iterator[Rule]:
    """One comparison turned round, each in its turn."""
    for found in re.finditer(r" (>=|==|>|<) ", rule["expr"]):
        turned = {">": "<", "<": ">", ">=": "<", "==": "!="}[found[1]]
        yield {**rule, "expr": rule["expr"][: found.start(1)] + turned + rule["expr"][found.end(1) :]}


def _mutants() -> Iterator[Any]:
    for name, rule in ALERTS.items():
        yield pytest.param(name, {**rule, "expr": "vector(1) == 0"}, id=f"{name} never")
        yield pytest.param(name, {**rule, "expr": "vector(1)", "for": "0s"}, id=f"{name} always")
        if "for" in rule:
            yield pytest.param(name, {**rule, "for": "0s"}, id=f"{name} at once")
        for number, mutant in enumerate(_flips(rule)):
            yield pytest.param(name, mutant, id=f"{name} turned round {number}")


@pytest.mark.parametrize(("alert", "mutant"), list(_mutants()))
def test_mutant_a_wrong_alert_is_seen(alert: str, mutant: Rule, tmp_path: Path) -> None:
    changed = [group for group in groups() if ALERTS[alert] in group["rules"]]
    for group in changed:
        group["rules"] = [mutant if rule.get("alert") == alert else rule for rule in group["rules"]]
    rules = tmp_path / "rules.yaml"
    rules.write_text(yaml.safe_dump({"groups": changed}))
    cases = [case for case in CASES if case.alert == alert]
    assert "FAILED" in run(cases, rules, tmp_path)
