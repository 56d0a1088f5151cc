"""What forbids an uninstall, and what lets go before it."""

from typing import Any

from vfio_api.names import FINALIZER
from vfio_api.types import MigrationKey
from vfio_operator.remains import NAMED, refusal, remains_of, summary

Json = dict[str, Any]


def _migration(name: str, *, finalizer: bool, finished: bool = False, phase: str = "") -> Json:
    conditions = [{"type": "Finished", "status": "True"}] if finished else []
    return {
        "metadata": {
            "name": name,
            "namespace": "team",
            "uid": f"uid-{name}",
            "finalizers": ["another/one", *([FINALIZER] if finalizer else [])],
        },
        "status": {"conditions": conditions, **({"phase": phase} if phase else {})},
    }


def _switchover(name: str, *, finalizer: bool = True) -> Json:
    finalizers = [FINALIZER] if finalizer else []
    return {
        "metadata": {"name": f"uid-{name}", "namespace": "team", "finalizers": finalizers},
        "spec": {"migrationName": name},
    }


def _key(name: str) -> MigrationKey:
    return MigrationKey(f"uid-{name}", "team", name)


def test_only_what_has_begun_and_not_finished_runs() -> None:
    found = remains_of(
        [
            _migration("new", finalizer=False),
            _migration("runs", finalizer=True, phase="PreCopy"),
            _migration("begins", finalizer=True),
            _migration("finished", finalizer=False, finished=True),
            _migration("left", finalizer=True, finished=True),
        ],
        [],
    )
    assert found.running == ((_key("runs"), "PreCopy"), (_key("begins"), "Pending"))
    assert found.finished == (_key("left"),)
    assert found.waiting == (_key("new"),)
    assert summary(found).splitlines() == [
        "may be uninstalled: 2 migrations run, 1 wait, 1 objects let go",
        "These wait for the next operator, and begin when it comes (delete them if they must not):",
        "  VFIOMigration team/new",
    ]


def test_a_switchover_is_needed_as_long_as_its_migration_runs() -> None:
    found = remains_of(
        [_migration("runs", finalizer=True), _migration("finished", finalizer=False, finished=True)],
        [_switchover("runs"), _switchover("finished"), _switchover("gone"), _switchover("free", finalizer=False)],
    )
    assert found.switchovers == (_key("finished"),)
    assert [key for key, _ in found.running] == [_key("runs"), _key("gone")]


def test_the_refusal_names_what_runs_and_what_to_do() -> None:
    lines = refusal([(_key("runs"), "PreCopy")]).splitlines()
    assert lines[0].startswith("vfio-migration is not uninstalled: 1 migration would be stranded")
    assert lines[1] == "  VFIOMigration team/runs is PreCopy"
    assert "kubectl wait vfm --namespace team runs --for=condition=Finished" in lines[2]
    assert """kubectl patch vfm --namespace team runs --type=merge --patch='{"spec":{"cancel":true}}'""" in lines[3]
    assert "helm uninstall --no-hooks" in lines[4]


def test_what_is_gone_can_be_neither_awaited_nor_cancelled() -> None:
    (gone,) = remains_of([], [_switchover("gone")]).running
    lines = refusal([gone]).splitlines()
    assert lines[1].startswith("  VFIOMigration team/gone is gone, and agents have not come back yet")
    assert lines[2].startswith("Have the agents back that are away; their nodes: kubectl get vfioswitchovers")
    assert not any("kubectl wait" in line or "cancel" in line for line in lines)
    both = refusal([gone, (_key("runs"), "PreCopy")])
    assert "kubectl wait vfm --namespace team runs" in both
    assert "Have the agents back" in both


def test_a_long_refusal_is_cut() -> None:
    lines = refusal([(_key(f"m{number}"), "PreCopy") for number in range(NAMED + 3)]).splitlines()
    assert lines[0].startswith(f"vfio-migration is not uninstalled: {NAMED + 3} migrations would be stranded")
    assert lines[NAMED + 1] == "  and 3 more: kubectl get vfm --all-namespaces"
