"""A pod that moves with its devices: when it is looked for, what refuses it, and which of the two pods ends when."""

from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest

from pure.test_resolve import record
from vfio_api.errors import Reason
from vfio_api.models_status import Phase
from vfio_api.types import Failure, Hook, MigrationKey, Outcome, PauseMethod, Role, Workload
from vfio_operator.actions import Authorize, FindPod, Finish, Look, Plan, ReleasePods, StartTargetPod, Step, SwitchPods
from vfio_operator.conditions import pods_failure, target_pod_late
from vfio_operator.observe import wish_of
from vfio_operator.observed import Move, Observed, Pair, Pausing, PodRecord, Shorthand, Switchover, Wish
from vfio_operator.plan import first_failure, plan
from vfio_operator.resolve import resolve
from vfio_operator.status import Measured, build
from vfio_operator.steps import FORWARD, LOST, REHEARSAL_BACK, ROLLBACK
from vfio_operator.workloads import pod_of, workloads

SOURCE = PodRecord("team", "web", "pod-a", "node-a", "10.0.0.1", "Running", running=True)
TARGET = PodRecord("team", "web-1", "pod-b", "node-b", "10.0.0.2", "Running", running=True, migration="uid-1")
GPU0, GPU1 = Pair("gpu0", "node-a", "gpu0", "node-b", "gpu0"), Pair("gpu1", "node-a", "gpu1", "node-b", "gpu1")


def asked(**changes: Any) -> Observed:
    """A migration of pod web, which has both devices of node-a; nothing is wrong with it."""
    devices = [
        record("node-a", name, holder="pod team/web", pod_uid="pod-a", pod="team/web", state="RUNNING")
        for name in ("gpu0", "gpu1")
    ] + [record("node-b", name) for name in ("gpu0", "gpu1", "gpu2")]
    made = Observed(
        key=MigrationKey("uid-1", "team", "move"),
        wish=Wish((), shorthand=Shorthand("", "node-b", "web"), pausing=Pausing(PauseMethod.FREEZE)),
        nodes=frozenset({"node-a", "node-b"}),
        connected=frozenset({"node-a", "node-b"}),
        inventory=MappingProxyType({(d.node, d.address): d for d in devices}),
        authorized=(),
        shows_all=True,
        move=Move(looked=True, source=SOURCE),
    )
    return replace(made, **changes)


def begun(**changes: Any) -> Observed:
    """It is accepted, and its devices are claimed."""
    names = frozenset(d.object_name for d in asked().inventory.values() if d.address in ("gpu0", "gpu1"))
    made = replace(asked(), has_finalizer=True, pairs=(GPU0, GPU1), claims=names)
    return replace(made, **changes)


def only(planned: Plan) -> object:
    (action,) = planned.actions
    return action


def test_the_pod_is_looked_for_before_anything_is_resolved() -> None:
    assert only(plan(asked(move=Move()))) == FindPod()


def test_rights_on_the_pod_are_asked_for_before_it_is_looked_for() -> None:
    """Who may not move it is not told what there is of it."""
    assert only(plan(asked(authorized=None, move=Move()))) == Authorize(())
    why = Failure(Reason.FORBIDDEN_POD, "no")
    refused = plan(asked(forbidden=why, move=Move()))
    assert (refused.step, refused.actions, refused.pairs) == ("Refused", (Finish(Phase.FAILED, why),), ())


def test_all_its_devices_move_and_no_others() -> None:
    other = record("node-a", "gpu9", holder="pod team/else", pod_uid="pod-z", pod="team/else")
    seen = asked()
    found = resolve(replace(seen, inventory={**seen.inventory, ("node-a", "gpu9"): other}))
    assert found.failure is None
    assert [(p.source_device, p.target_device) for p in found.pairs] == [("gpu0", "gpu0"), ("gpu1", "gpu1")]


def test_agents_look_before_its_devices_are_chosen() -> None:
    """What a process of the pod has opened by itself since they looked last moves with the rest."""
    planned = plan(asked(inventory_settled=False))
    assert (planned.step, planned.actions) == ("AwaitInventory", (Look(frozenset({"node-a", "node-b"})),))
    assert planned.sentence == "looking at what the pod has open"
    assert plan(asked()).step == "Authorize", "then the pairs"


REFUSED = {
    "absent": (
        Move(looked=True),
        Reason.UNKNOWN_POD,
        "spec.source: pod team/web does not exist; `kubectl get pods -o wide` lists what there is",
    ),
    "pending": (
        Move(looked=True, source=replace(SOURCE, phase="Pending", node="")),
        Reason.UNKNOWN_POD,
        "spec.source: pod team/web is Pending on node none: only a pod that runs can be moved",
    ),
    "deleted": (
        Move(looked=True, source=replace(SOURCE, deleted=True)),
        Reason.UNKNOWN_POD,
        "spec.source: pod team/web is being deleted: only a pod that runs can be moved",
    ),
    "moving": (
        Move(looked=True, source=replace(SOURCE, migration="uid-9")),
        Reason.POD_NOT_MOVABLE,
        "spec.source: pod team/web is part of another migration (UID uid-9); wait for that to finish, or cancel it",
    ),
    "without devices": (
        Move(looked=True, source=replace(SOURCE, uid="pod-q")),
        Reason.NOTHING_TO_MIGRATE,
        "spec.source: pod web on node node-a has no migratable device in use (gpu0: used by pod team/web; gpu1: used "
        "by pod team/web); `kubectl get vfd` lists what there is",
    ),
}


def target_pod(**changes: Any) -> Observed:
    """The user has made the counterpart."""
    short = Shorthand("", "", "web", "web-1")
    made = asked(wish=Wish((), shorthand=short), move=Move(True, SOURCE, replace(TARGET, migration="")))
    return replace(made, **changes)


NO_TARGET = {
    "absent": ("web-1", None, "spec.target: pod team/web-1 does not exist; `kubectl get pods` lists what there is"),
    "the source": ("web", SOURCE, "spec.target: pod team/web is the source as well; name another pod, or a node in"),
    "moving": (
        "web-1",
        replace(TARGET, migration="uid-9"),
        "spec.target: pod team/web-1 is part of another migration (UID uid-9); wait for that to finish, or name ",
    ),
    "crashed": (
        "web-1",
        replace(TARGET, running=False, trouble="CrashLoopBackOff: "),
        "spec.target: pod team/web-1 does not run: CrashLoopBackOff: ; look at kubectl describe pod",
    ),
}


@pytest.mark.parametrize("case", NO_TARGET)
def test_a_pod_that_cannot_take_over_is_refused(case: str) -> None:
    name, target, message = NO_TARGET[case]
    short = Shorthand("", "", "web", name)
    seen = target_pod(wish=Wish((), shorthand=short), move=Move(True, SOURCE, target))
    failure = resolve(seen).failure
    assert failure is not None
    assert failure.message.startswith(message)
    assert resolve(target_pod()).failure is None


def test_a_pod_that_the_user_made_is_marked_before_it_counts() -> None:
    """The watch shows marked pods only: what becomes of another would not be seen."""
    seen = target_pod(has_finalizer=True, pairs=(GPU0, GPU1), claims=begun().claims)
    assert only(plan(seen)) == StartTargetPod()
    assert plan(replace(seen, move=replace(seen.move, made=True))).step == "PrepareSources"


def test_the_counterparts_name_is_written_down_with_the_pairs() -> None:
    named = Move(True, SOURCE, counterpart="web-1")
    seen = begun(move=named)
    status = build(seen, plan(seen), Measured(), "2026-11-22T10:00:00Z", {})
    assert status["workload"]["targetPod"] == {"name": "web-1"}
    early = asked(move=named)
    assert "targetPod" not in build(early, plan(early), Measured(), "2026-11-22T10:00:00Z", {})["workload"]


@pytest.mark.parametrize("case", REFUSED)
def test_a_pod_that_cannot_be_moved_is_refused(case: str) -> None:
    move, reason, message = REFUSED[case]
    failure = resolve(asked(move=move, active=frozenset({"uid-9"}))).failure
    assert failure is not None
    assert (failure.reason, failure.message) == (reason, message)


def test_what_a_migration_that_has_ended_left_on_a_pod_is_no_obstacle() -> None:
    move, _, _ = REFUSED["moving"]
    assert resolve(asked(move=move, active=frozenset())).failure is None


def test_some_of_a_pods_devices_are_refused_and_the_others_named() -> None:
    failure = resolve(replace(asked(), wish=Wish((GPU0,)))).failure
    assert failure is not None
    assert failure.reason is Reason.POD_DEVICES_SPLIT
    assert failure.message == (
        "pair gpu0: device gpu0 on node node-a is used by pod team/web, which also has gpu1: devices of one pod move "
        "together; name these, too, or use spec.source.podName"
    )


def test_a_device_that_the_pod_may_have_closed_meanwhile_is_looked_for_first() -> None:
    split = replace(asked(), wish=Wish((GPU0,)), authorized=(GPU0,))
    assert plan(replace(split, inventory_settled=False)).step == "AwaitInventory"
    assert plan(split).step == "Refused"


def test_a_pod_with_a_device_that_cannot_migrate_keeps_all_of_them() -> None:
    rigid = record("node-a", "gpu7", holder="pod team/web", pod_uid=SOURCE.uid, pod="team/web", migratable=False)
    seen = asked()
    failure = resolve(replace(seen, inventory={**seen.inventory, ("node-a", "gpu7"): rigid})).failure
    assert failure is not None
    assert failure.reason is Reason.DEVICE_NOT_MIGRATABLE
    assert failure.message == (
        "spec.source: pod web on node node-a has device gpu7, which cannot migrate: its driver does not implement VFIO "
        "migration; a pod's devices move together or not at all, and it has 2 more"
    )


def test_what_a_pod_still_has_of_a_move_is_no_source() -> None:
    seen = asked()
    stopped = {end: replace(d, state="STOP") if d.pod_uid else d for end, d in seen.inventory.items()}
    failure = resolve(replace(seen, inventory=stopped)).failure
    assert failure is not None
    assert failure.reason is Reason.SOURCE_NOT_HELD
    assert "is in STOP, not in RUNNING: it was moved away" in failure.message


def test_the_counterpart_runs_before_a_source_is_prepared() -> None:
    assert only(plan(begun())) == StartTargetPod()
    waiting = begun(move=Move(True, SOURCE, replace(TARGET, running=False), made=True))
    assert (plan(waiting).step, plan(waiting).actions) == ("TargetPod", ())
    assert plan(begun(move=Move(True, SOURCE, TARGET, made=True))).step == "PrepareSources"


ENDED = {
    "source deleted": (replace(SOURCE, deleted=True), TARGET, Reason.POD_GONE, "pod team/web is being deleted"),
    "source gone": (None, TARGET, Reason.POD_GONE, "pod team/web is gone: it was deleted or evicted"),
    "source ended": (replace(SOURCE, phase="Failed"), TARGET, Reason.POD_GONE, "pod team/web has ended (Failed)"),
    "target gone": (SOURCE, None, Reason.TARGET_POD_FAILED, "the counterpart of pod team/web was deleted"),
    "target crashed": (
        SOURCE,
        replace(TARGET, trouble="a container ended: Error (exit code 1)", running=False),
        Reason.TARGET_POD_FAILED,
        "pod team/web-1, the counterpart of team/web, does not run on node node-b: a container ended: Error ",
    ),
}


@pytest.mark.parametrize("case", ENDED)
def test_a_pod_that_ends_on_the_way_ends_the_migration(case: str) -> None:
    source, target, reason, message = ENDED[case]
    seen = begun(move=Move(True, source, target, made=True))
    failure = first_failure(seen)
    assert failure is not None
    assert failure.reason is reason
    assert failure.message.startswith(message)
    assert plan(seen).phase is Phase.ROLLING_BACK
    committed = replace(seen, switchover=Switchover(True, Outcome.COMMIT))
    assert first_failure(committed) is None, "after Commit only the decision rules"
    assert first_failure(replace(seen, rehearsed=True)) is None, "it has shown what it was to show"


def test_a_pod_that_the_migration_has_let_go_fails_nothing() -> None:
    assert pods_failure(begun(move=Move(True, None, None, made=True, done=True))) is None
    assert pods_failure(begun(move=Move(True, SOURCE, None))) is None, "it is not made yet"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            replace(TARGET, node="", running=False, unscheduled="0/2 nodes are available: 1 Insufficient vfio/gpu"),
            "pod team/web-1 did not run within 120 s: it cannot be scheduled: 0/2 nodes are available: 1 Insufficient "
            "vfio/gpu; the source runs on",
        ),
        (replace(TARGET, node="", running=False), "pod team/web-1 did not run within 120 s: it is not scheduled yet; "),
        (
            replace(TARGET, running=False),
            "pod team/web-1 did not run within 120 s: its containers do not run on node node-b yet; look at kubectl ",
        ),
        (None, "the counterpart of the pod did not run within 120 s: it could not be created; the source runs on"),
    ],
)
def test_a_counterpart_that_is_late_says_what_it_waits_for(target: PodRecord | None, message: str) -> None:
    failure = target_pod_late(begun(move=Move(True, SOURCE, target, made=True)))
    assert failure.reason is Reason.TARGET_POD_FAILED
    assert failure.message.startswith(message)


def test_the_pods_change_places_after_the_targets_run_and_before_the_sources_are_given_up() -> None:
    names = [step.name for step in FORWARD]
    places = [names.index(name) for name in ("BarrierD", "KeepPod", "AwaitReady", "SwitchPods", "ReleaseSources")]
    assert places == sorted(places)
    assert names.index("Claim") < names.index("TargetPod") < names.index("PrepareSources")
    back = [step.name for step in ROLLBACK]
    assert back.index("Restore") < back.index("ReleasePods"), "the source runs before anything is tidied up"
    assert back.index("ReleasePods") < back.index("BlankTargets"), "the counterpart has the targets open"
    assert "SwitchPods" in [step.name for step in LOST]
    assert "ReleasePods" in [step.name for step in REHEARSAL_BACK]
    for ladder, name, action in ((FORWARD, "SwitchPods", SwitchPods()), (ROLLBACK, "ReleasePods", ReleasePods())):
        (step,) = [step for step in ladder if step.name == name]
        seen = begun(move=Move(True, SOURCE, TARGET, made=True))
        assert not step.done(seen)
        assert step.actions(seen) == (action,)
        assert step.done(replace(seen, move=replace(seen.move, done=True)))
        assert step.done(replace(seen, wish=Wish((GPU0,)))), "without a pod there is nothing to do"


def test_a_counterpart_that_runs_the_workload_does_not_end_with_the_migration() -> None:
    (keep,) = [step for step in FORWARD if step.name == "KeepPod"]
    owned = replace(TARGET, owner="VFIOMigration move")
    assert not keep.done(begun(move=Move(True, SOURCE, owned, made=True)))
    for kept in (replace(TARGET, owner=""), replace(TARGET, owner="ReplicaSet web"), None):
        assert keep.done(begun(move=Move(True, SOURCE, kept, made=True)))


def test_giving_up_does_not_leave_the_pods_half_moved() -> None:
    owned = replace(TARGET, owner="VFIOMigration move")
    given_up = begun(move=Move(True, SOURCE, owned, made=True), exhausted=True)
    committed = replace(given_up, switchover=Switchover(True, Outcome.COMMIT))
    assert plan(committed).step == "KeepPod"
    kept = replace(committed, move=replace(committed.move, target=replace(owned, owner="")))
    assert plan(kept).step == "SwitchPods"
    assert plan(replace(kept, move=replace(kept.move, done=True))).step == "GiveUp"
    aborted = replace(given_up, switchover=Switchover(True, Outcome.ABORT))
    assert plan(aborted).step == "ReleasePods"
    assert plan(replace(aborted, move=replace(aborted.move, done=True))).step == "GiveUp"


def test_a_plan_touches_no_pod() -> None:
    found = resolve(asked())
    seen = asked(wish=wish_of(migration(mode="Plan")), authorized=found.pairs)
    assert isinstance(only(plan(seen)), Finish)


def migration(**spec: Any) -> dict[str, Any]:
    made = {"source": {"podName": "web"}, "target": {"nodeName": "node-b"}, **spec}
    return {"metadata": {"name": "move", "namespace": "team", "uid": "uid-1"}, "spec": made}


def test_a_pod_that_is_moved_is_frozen_unless_the_spec_says_otherwise() -> None:
    assert wish_of(migration()).pausing.method is PauseMethod.FREEZE
    assert wish_of(migration(workload={"pause": {"method": "None"}})).pausing.method is PauseMethod.NONE
    node = migration(source={"nodeName": "node-a"})
    assert wish_of(node).pausing.method is PauseMethod.NONE
    assert not wish_of(node).moves_pod


def test_agents_are_told_of_the_pods_by_uid() -> None:
    hook = {"pause": {"method": "Hook", "timeoutSeconds": 2, "hook": {"port": 8099, "path": "/vfio", "retries": 0}}}
    wish = wish_of(migration(workload=hook))
    seen = begun(move=Move(True, SOURCE, TARGET, made=True), wish=wish)
    asks = Hook("10.0.0.1", 8099, "/vfio", 5_000, 0)
    said = Workload("pod-a", "team", "web", PauseMethod.HOOK, 2_000, asks, moved=True)
    assert workloads(seen, "node-a", Role.SOURCE) == (said,)
    there = replace(said, pod_uid="pod-b", pod_name="web-1", hook=Hook("10.0.0.2", 8099, "/vfio", 5_000, 0))
    assert workloads(seen, "node-b", Role.TARGET) == (there,)
    assert pod_of(seen, GPU0) == "pod-a"


@pytest.mark.parametrize(("ladder", "name"), [(FORWARD, "BarrierD"), (ROLLBACK, "Restore"), (LOST, "RestRuns")])
def test_who_is_resumed_by_a_hook_has_the_time_that_its_spec_gives_it(ladder: tuple[Step, ...], name: str) -> None:
    """Given up earlier, a pod that runs a moment later would be told to be lost."""
    step = next(each for each in ladder if each.name == name)
    hook = {"pause": {"method": "Hook", "hook": {"port": 8099, "timeoutSeconds": 60, "retries": 3}}}
    hooked = begun(wish=wish_of(migration(workload=hook)))
    assert step.timeout(begun()) == begun().limits.prepare_seconds
    assert step.timeout(hooked) == begun().limits.prepare_seconds + 4 * 60 + 0.05 + 0.1 + 0.2


def test_devices_that_are_named_are_paused_by_the_pods_that_have_them() -> None:
    named = begun(wish=Wish((GPU0, GPU1), pausing=Pausing(PauseMethod.FREEZE)), move=Move())
    assert workloads(named, "node-a", Role.SOURCE) == (
        Workload("pod-a", "team", "web", PauseMethod.FREEZE, 5_000, None),
    )
    assert workloads(named, "node-b", Role.TARGET) == ()
    unpaused = replace(named, wish=Wish((GPU0, GPU1)))
    assert workloads(unpaused, "node-a", Role.SOURCE) == ()
    assert pod_of(unpaused, GPU0) == "pod-a", "it is adopted all the same"
