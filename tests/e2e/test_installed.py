"""From `helm install` to `helm uninstall`, with migrations before, during and after each. In this order."""

import time
from collections.abc import Callable

import pytest

from e2e.installation import AGENTS, NAMESPACE, RELEASE, Installation, Stopwatch

Say = Callable[[str], None]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Prints a line into the run's own output."""

    def line(text: str) -> None:
        with capsys.disabled():
            print(f"\n    {text}", flush=True)

    return line


def _downtime(migration: dict[str, object]) -> str:
    status = migration["status"]
    assert isinstance(status, dict)
    return f"downtime {status['downtimeMicroseconds'] / 1000:.1f} ms"


def test_from_helm_install_to_the_first_migration(installation: Installation, say: Say) -> None:
    watch = Stopwatch()
    installation.helm("install", "--create-namespace")
    say(f"helm install --wait: {watch}")
    pods = installation.pods_of_release()
    restarts = {p["metadata"]["name"]: [c["restartCount"] for c in p["status"]["containerStatuses"]] for p in pods}
    assert not any(count for counts in restarts.values() for count in counts), restarts
    installation.devices_free()
    say(f"devices published: {watch}")
    installation.allow_markers()
    ended = installation.carried("first", "node-a", "node-b")
    say(f"install to first Succeeded migration: {watch}, {_downtime(ended)}; markers found")


def test_helm_test_is_content(installation: Installation) -> None:
    shown = installation.cluster.helm("test", RELEASE, "--namespace", NAMESPACE, "--logs")
    assert "Succeeded" in shown, shown


def test_the_leaders_pod_is_deleted_during_a_migration(installation: Installation, say: Say) -> None:
    leader = installation.leader()

    def during() -> None:
        installation.cluster.kubectl("delete", "pod", "-n", NAMESPACE, leader, "--wait=false")
        installation.cluster.wait_until(lambda: installation.leader() not in ("", leader), "another pod leads", 60)

    say(f"leader replaced: {_downtime(installation.carried('failover', 'node-b', 'node-a', during))}")
    assert installation.leader() != leader


@pytest.mark.parametrize("side", ["source", "target"])
def test_an_agents_pod_is_deleted_during_a_migration(installation: Installation, side: str, say: Say) -> None:
    source, target = ("node-a", "node-b") if side == "source" else ("node-b", "node-a")
    node = source if side == "source" else target
    agent = installation.agent(node)

    def during() -> None:
        installation.cluster.kubectl("delete", "pod", "-n", AGENTS, agent, "--wait=false")

    ended = installation.carried(f"agent-{side}", source, target, during)
    say(f"agent of the {side} deleted: {_downtime(ended)}")
    installation.cluster.wait_until(
        lambda: len(installation.cluster.pods(AGENTS, "agent")) == 2 and installation.agent(node) != agent,
        f"another agent on {node}",
        120,
    )


def test_helm_upgrade_during_a_migration(installation: Installation, say: Say) -> None:
    watch = Stopwatch()
    before = {node: installation.agent(node) for node in installation.cluster.nodes}

    def during() -> None:
        # every pod but the keepers' is replaced; agents end only when their migrations have
        arguments = {"operator__logLevel": "debug", "agent__logLevel": "debug"}
        installation.helm_in_background("upgrade", **arguments)
        installation.cluster.wait_until(
            lambda: any("deletionTimestamp" in pod["metadata"] for pod in installation.pods_of_release()),
            "the roll-out has begun",
            60,
        )

    ended = installation.carried("upgrade", "node-a", "node-b", during)
    installation.background_done()
    say(f"helm upgrade: {watch}, {_downtime(ended)}")
    after = {node: installation.agent(node) for node in installation.cluster.nodes}
    assert all(after[node] != before[node] for node in after)
    ended = installation.carried("after-upgrade", "node-b", "node-a")
    say(f"after the upgrade: {_downtime(ended)}")


def test_uninstall_refuses_to_strand_a_migration(installation: Installation, say: Say) -> None:
    refusals: list[str] = []

    def during() -> None:
        refusals.append(installation.cluster.helm("uninstall", RELEASE, "--namespace", NAMESPACE, check=False))

    installation.carried("stays", "node-a", "node-b", during)
    (refusal,) = refusals
    said = installation.cluster.kubectl("logs", "--namespace", NAMESPACE, "job/vfio-uninstall")
    say(f"helm uninstall during a migration: {said.strip()}")
    assert "vfio-uninstall" in refusal, refusal
    assert "default/stays" in said
    # after the refused uninstall everything still works, and what helm takes for half uninstalled can be upgraded again
    installation.carried("works-still", "node-b", "node-a")
    installation.cluster.helm("rollback", RELEASE, "--namespace", NAMESPACE, "--wait")
    installation.helm("upgrade")


def test_uninstall_keeps_what_users_made(installation: Installation) -> None:
    names = {item["metadata"]["name"] for item in installation.cluster.get("vfm")["items"]}
    installation.cluster.helm("uninstall", RELEASE, "--namespace", NAMESPACE, "--wait")
    deadline = time.monotonic() + 60 * installation.cluster.patience
    while installation.cluster.pods(NAMESPACE, "operator") and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not installation.cluster.pods(NAMESPACE, "operator")
    assert {item["metadata"]["name"] for item in installation.cluster.get("vfm")["items"]} == names
