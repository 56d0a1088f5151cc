"""What runbooks and the pages on operations tell people to type would do what they say."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.rendering import AGENTS, EVERYTHING, NAMESPACE, ROOT, Object, render
from vfio_agent.journal import Journal

PAGES = sorted([*(ROOT / "docs/runbooks").glob("*.md"), *(ROOT / "docs/operations").glob("*.md")])
COMMANDS = [
    (page.stem, command)
    for page in PAGES
    for command in re.findall(r"kubectl [^`\n|#]*", page.read_text().replace("\\\n", " "))
]
SELECTOR = re.compile(r" (?:-l|--selector)[ =](\S+)")
SELECTING = [each for each in COMMANDS if SELECTOR.search(each[1])]
NAMESPACES = {"$NS": NAMESPACE, "$AGENTS": AGENTS}


def _selectable(items: list[Object]) -> Iterator[tuple[str, str, dict[str, str]]]:
    """What kubectl could find: kind as one types it, namespace, labels. Of workloads their pods, too."""
    for item in items:
        namespace = item["metadata"].get("namespace", "")
        yield item["kind"].lower(), namespace, item["metadata"].get("labels", {})
        pod = item["spec"].get("template", {}).get("metadata") if "spec" in item else None
        if pod:
            yield "pod", namespace, pod["labels"]


SELECTABLE = list(_selectable(render(*EVERYTHING)))


def selects(command: str) -> bool:
    """Whether the chart has an object that the command's selector finds."""
    found = SELECTOR.search(command)
    assert found is not None
    wanted = dict(pair.split("=") for pair in found[1].split(","))
    _, verb, *rest = command.split()
    kind = "pod" if verb == "logs" else rest[0].removesuffix("s")
    asked = re.search(r" -n (\S+)", command)
    namespace = NAMESPACES.get(asked[1], asked[1]) if asked else ""
    return any(
        (kind, namespace) == (of, where) and wanted.items() <= labels.items() for of, where, labels in SELECTABLE
    )


@pytest.mark.parametrize(("page", "command"), SELECTING)
def test_selectors_find_something(page: str, command: str) -> None:
    assert selects(command), page


@pytest.mark.parametrize(
    "command",
    [
        "kubectl delete vfd -l app.kubernetes.io/component=agent",
        "kubectl get pods -n $NS -l app.kubernetes.io/component=keeper",
        "kubectl get pods -l app.kubernetes.io/component=keeper",
        "kubectl logs -n $NS -l app=vfio-operator --tail=-1",
    ],
)
def test_mutant_a_selector_that_finds_nothing_is_seen(command: str) -> None:
    assert not selects(command)


def test_what_looks_at_commands_finds_them() -> None:
    assert {page for page, _ in SELECTING} >= {"VFIOKeeperGone", "VFIONoLeader", "VFIOOperatorBug", "upgrade"}


def test_logs_are_those_of_all_replicas() -> None:
    """Of a Deployment kubectl shows one pod's, of a selector the last ten lines of each."""
    logs = [(page, command) for page, command in COMMANDS if command.startswith("kubectl logs")]
    assert [each for each in logs if re.search(r" deploy(ment)?s?/", each[1])] == []
    selecting = [each for each in logs if SELECTOR.search(each[1])]
    assert [each for each in selecting if "--tail=" not in each[1] or "--prefix" not in each[1]] == []


def scripts() -> list[str]:
    """What the runbook of unreadable records has an agent's pod run."""
    page = (ROOT / "docs/runbooks/VFIOUnreadableRecords.md").read_text()
    return [re.sub("(?m)^   ", "", text) for text in re.findall(r"python3 -c '\n(.*?)'\n", page, re.DOTALL)]


def test_an_unreadable_record_is_put_aside(tmp_path: Path) -> None:
    state, run = tmp_path / "state", tmp_path / "run"
    journal = Journal(state, run, "this-boot")
    for folder in (state, run):
        for name in ("0a-1b.target.json", "0a-2c.target.json"):
            (folder / "sessions" / name).write_text("damaged")
    script = scripts()[0].replace("/var/lib/vfio-agent", str(state)).replace("/run/vfio-agent", str(run))
    script = script.replace("UID.ROLE", "0a-1b.target")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 2
    assert [each.migration_uid for each in journal.recall()[1]] == ["0a-2c"]


def test_a_device_is_closed_by_the_brokers_socket(tmp_path: Path) -> None:
    """There is no agent here, so it gets as far as its socket."""
    script = scripts()[1].replace("/run/vfio-agent", str(tmp_path))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].startswith("FileNotFoundError"), done.stderr
