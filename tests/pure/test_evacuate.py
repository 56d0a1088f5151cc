"""An evacuation: what moves as one, where it goes, and that it ends, with each item's outcome."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pure.test_resolve import record
from vfio_api.models_evacuation import EvacuationPhase, ItemPhase
from vfio_operator.evacuate import (
    FIRST_BACKOFF_SECONDS,
    MAX_ATTEMPTS,
    NOWHERE_SECONDS,
    Item,
    Outcome,
    Scene,
    advance,
    less,
    migration_name,
    node_is_left,
    phase_of,
    units_on,
)
from vfio_operator.observed import DeviceRecord

DONE, GONE_WRONG = Outcome(True, True), Outcome(True, False, "the network broke", 60.0)


def used(address: str, pod: str = "", holder: str = "keeper") -> DeviceRecord:
    if pod:
        return record("node-a", address, holder=f"pod team/{pod}", pod_uid=f"uid-{pod}", pod=f"team/{pod}")
    return record("node-a", address, holder=holder)


def free(node: str, count: int) -> list[DeviceRecord]:
    return [record(node, f"free{number}", holder="") for number in range(count)]


def scene(*devices: DeviceRecord, **nodes: int) -> Scene:
    room = {node: free(node, count) for node, count in nodes.items()}
    return Scene("evac-uid", "empty-a", "node-a", units_on("node-a", devices), room, {}, namespace="ops")


def test_a_pod_moves_as_one_and_what_the_keeper_holds_each_on_its_own() -> None:
    units = units_on(
        "node-a",
        [
            used("g1", "web"),
            used("g0", "web"),
            used("k0"),
            used("k1"),
            used("w0", holder="workload db"),
            used("w1", holder="workload db"),
            record("node-a", "idle", holder=""),
            record("node-a", "rigid", holder="x", migratable=False),
            record("node-b", "other", holder="keeper"),
        ],
    )
    assert [(unit.name, [d.address for d in unit.devices], unit.pod) for unit in units] == [
        ("device k0", ["k0"], ("", "")),
        ("device k1", ["k1"], ("", "")),
        ("device w0", ["w0", "w1"], ("", "")),
        ("pod team/web", ["g0", "g1"], ("team", "web")),
    ]


def test_each_goes_where_most_is_free_and_what_is_promised_is_not_free() -> None:
    step = advance(scene(used("a", "p"), used("b", "q"), used("c", "r"), b=2, c=1), ())
    assert [(c.unit.name, c.target, c.namespace) for c in step.creations] == [
        ("pod team/p", "b", "team"),
        ("pod team/q", "b", "team"),
        ("pod team/r", "c", "team"),
    ]
    assert all(item.phase is ItemPhase.MOVING for item in step.items)


def test_a_pod_needs_room_for_all_its_devices_on_one_node() -> None:
    seen = scene(used("a", "p"), used("b", "p"), b=1, c=1)
    step = advance(seen, ())
    assert step.creations == ()
    assert step.items[0].message == "no node has 2 x mlx5_vfio_pci 15b3:101e free; looked at: b, c"
    assert phase_of(seen, step.items) == (
        EvacuationPhase.RUNNING,
        "0 of 1 moved, 0 moving; pod team/p waits: no node has 2 x mlx5_vfio_pci 15b3:101e free; looked at: b, c",
    )
    late = advance(replace(seen, idle_seconds=NOWHERE_SECONDS), step.items)
    assert late.items[0].phase is ItemPhase.FAILED
    assert phase_of(seen, late.items)[0] is EvacuationPhase.FAILED


def test_another_attempt_comes_later_and_goes_elsewhere_and_the_last_one_is_the_last() -> None:
    seen = scene(used("a", "p"), b=3, c=1)
    items = advance(seen, ()).items
    assert items[0].target == "b"
    for attempt in range(1, MAX_ATTEMPTS + 1):
        name = items[0].migration
        early = replace(seen, outcomes={name: replace(GONE_WRONG, ended_seconds=0.0)})
        late = replace(seen, outcomes={name: GONE_WRONG})
        if attempt < MAX_ATTEMPTS:
            assert advance(early, items).creations == ()
            step = advance(late, items)
            assert step.creations[0].name == migration_name(seen.uid, seen.name, "uid-p", attempt + 1) != name
            assert step.items[0].target != items[0].target
            items = step.items
        else:
            items = advance(late, items).items
    (item,) = items
    assert (item.phase, item.message, item.attempts) == (ItemPhase.FAILED, "the network broke", MAX_ATTEMPTS)
    assert FIRST_BACKOFF_SECONDS > 0


def test_cancel_stops_what_has_not_started_only() -> None:
    moving = Item("uid-p", "pod team/p", 1, ItemPhase.MOVING, "b", "m", "team", 1)
    waiting = Item("uid-q", "pod team/q", 1)
    seen = replace(scene(used("a", "p"), used("b", "q"), b=5), cancelled=True)
    step = advance(seen, (moving, waiting))
    assert step.creations == ()
    assert [item.phase for item in step.items] == [ItemPhase.MOVING, ItemPhase.CANCELLED]
    ended = advance(replace(seen, outcomes={"m": DONE}), step.items).items
    assert phase_of(seen, ended) == (
        EvacuationPhase.CANCELLED,
        "cancelled: 1 of 2 moved, the others stay on node node-a",
    )


def test_cancel_takes_the_queued_ones_out_of_the_queue() -> None:
    seen = scene(used("a", "p"), used("b", "q"), used("c", "r"), b=5)
    items = advance(seen, ()).items
    names = [item.migration for item in items]
    queued = Outcome(queued=True, message="number 1 of 1")
    outcomes = dict(zip(names, (Outcome(), queued, Outcome(absent=True)), strict=True))
    seen = replace(seen, outcomes=outcomes)
    assert advance(seen, items).cancellations == ()
    step = advance(replace(seen, cancelled=True), items)
    assert step.cancellations == (("team", names[1]),)
    assert step.creations == (), "what was written down, and not made yet, is not made any more"
    assert [item.phase for item in step.items] == [ItemPhase.MOVING, ItemPhase.MOVING, ItemPhase.CANCELLED]
    assert phase_of(seen, step.items)[1] == "0 of 3 moved, 1 moving, 1 queued"
    outcomes[names[1]] = replace(outcomes[names[1]], cancelled=True)
    again = advance(replace(seen, cancelled=True, outcomes=outcomes), step.items)
    assert again.cancellations == (), "once is enough"
    outcomes |= {names[0]: DONE, names[1]: Outcome(True, message="cancelled", cancelled=True)}
    done = advance(replace(seen, cancelled=True, outcomes=outcomes), again.items).items
    assert phase_of(seen, done) == (
        EvacuationPhase.CANCELLED,
        "cancelled: 1 of 3 moved, the others stay on node node-a",
    )


def test_a_migration_that_somebody_cancelled_is_not_made_again() -> None:
    seen = scene(used("a", "p"), b=1)
    items = advance(seen, ()).items
    seen = replace(seen, outcomes={items[0].migration: Outcome(True, message="cancelled", cancelled=True)})
    step = advance(seen, items)
    assert (step.creations, step.items[0].phase) == ((), ItemPhase.CANCELLED)


def test_what_is_claimed_is_not_counted_twice() -> None:
    """The target's device is not shown as free once it is claimed; what else is free is for the next one."""
    seen = scene(used("a", "p"), used("b", "q"), b=2)
    moving = advance(seen, ()).items[0]
    claimed = replace(used("a", "p"), claim_uid="m")
    seen = replace(scene(claimed, used("b", "q"), b=1), outcomes={moving.migration: Outcome()})
    step = advance(seen, (moving, Item("uid-q", "pod team/q", 1)))
    assert [item.phase for item in step.items] == [ItemPhase.MOVING, ItemPhase.MOVING]


def test_what_is_promised_is_not_free_for_others() -> None:
    (unit,) = units_on("node-a", [used("a", "p"), used("b", "p")])
    left = less({"b": free("b", 3), "c": free("c", 1)}, [(unit, "b"), (unit, "gone")])
    assert {node: len(devices) for node, devices in left.items()} == {"b": 1, "c": 1}


TAINT = {"key": "gone", "value": "soon", "effect": "NoSchedule"}


@pytest.mark.parametrize(
    ("node", "tolerations", "left"),
    [
        ({}, [], False),
        ({"unschedulable": True}, [{"operator": "Exists"}], True),
        ({"taints": [TAINT]}, [], True),
        ({"taints": [{**TAINT, "effect": "PreferNoSchedule"}]}, [], False),
        ({"taints": [TAINT]}, [{"key": "gone", "operator": "Exists"}], False),
        ({"taints": [TAINT]}, [{"key": "gone", "value": "soon"}], False),
        ({"taints": [TAINT]}, [{"key": "gone", "value": "later"}], True),
        ({"taints": [TAINT]}, [{"key": "gone", "operator": "Exists", "effect": "NoExecute"}], True),
        ({"taints": [TAINT]}, [{"operator": "Exists"}], False),
        ({"taints": [TAINT, {**TAINT, "key": "other"}]}, [{"key": "gone", "operator": "Exists"}], True),
    ],
)
def test_a_node_is_left_if_it_is_cordoned_or_would_not_take_the_pod_again(
    node: dict[str, object], tolerations: list[dict[str, str]], left: bool
) -> None:
    assert node_is_left({"spec": {"tolerations": tolerations}}, {"spec": node}) is left


def test_what_goes_by_itself_needs_no_migration() -> None:
    step = advance(scene(b=1), (Item("uid-p", "pod team/p", 1),))
    assert (step.items[0].phase, step.creations) == (ItemPhase.MOVED, ())


def test_an_empty_node_is_evacuated() -> None:
    seen = scene(b=1)
    assert phase_of(seen, advance(seen, ()).items)[0] is EvacuationPhase.SUCCEEDED


def test_a_node_that_is_not_there_was_not_emptied() -> None:
    assert phase_of(replace(scene(b=1), absent=True), ()) == (
        EvacuationPhase.FAILED,
        "there is no node node-a: look at spec.nodeName",
    )


@pytest.mark.parametrize("name", ["short", "x" * 100])
def test_names_fit_and_follow_from_evacuation_item_and_attempt(name: str) -> None:
    seen = replace(scene(), name=name)
    names = {migration_name(seen.uid, seen.name, key, attempt) for key in ("a", "b") for attempt in (1, 2)}
    assert len(names) == 4
    assert all(len(each) <= 63 for each in names)
    assert migration_name(seen.uid, seen.name, "a", 1) in names


@given(
    st.lists(st.integers(1, 3), max_size=6),
    st.dictionaries(st.sampled_from(["b", "c", "d"]), st.integers(0, 4)),
    st.randoms(use_true_random=False),
)
def test_it_ends_and_never_promises_a_device_twice(pods: list[int], nodes: dict[str, int], rng: object) -> None:
    """Migrations end in any way, in any order; what was moved takes its room at the target."""
    devices = [used(f"d{pod}-{n}", f"p{pod}") for pod, count in enumerate(pods) for n in range(count)]
    room, items, outcomes = dict(nodes), (), {}
    there = {unit.key: unit for unit in units_on("node-a", devices)}
    for _ in range(200):
        seen = scene(**room)
        seen = replace(seen, units=tuple(there.values()), outcomes=outcomes, idle_seconds=NOWHERE_SECONDS)
        step = advance(seen, items)
        items = step.items
        moving = [item for item in items if item.phase is ItemPhase.MOVING]
        for node, count in room.items():
            assert sum(item.devices for item in moving if item.target == node) <= count
        if all(item.over for item in items):
            break
        for item in moving:
            good = rng.random() < 0.6  # type: ignore[attr-defined]
            outcomes = {**outcomes, item.migration: DONE if good else GONE_WRONG}
            if good:
                room[item.target] -= item.devices
                del there[item.key]
    assert all(item.over for item in items)


def test_a_migration_that_was_written_down_and_not_made_is_made() -> None:
    seen = scene(used("a", "p"), used("b", "q"), b=2)
    items = advance(seen, ()).items
    absent = {items[0].migration: Outcome(absent=True), items[1].migration: Outcome()}
    step = advance(replace(seen, outcomes=absent), items)
    assert [(c.name, c.unit.name) for c in step.creations] == [(items[0].migration, "pod team/p")]
    gone = replace(seen, outcomes=absent, units=())
    assert advance(gone, items).items[0].phase is ItemPhase.MOVED


def test_what_was_promised_to_one_that_was_not_made_may_be_gone_by_then() -> None:
    written = Item("uid-p", "pod team/p", 1, ItemPhase.MOVING, "b", "m", "team", 1)
    seen = replace(scene(used("a", "p"), b=0, c=1), outcomes={"m": Outcome(absent=True)})
    step = advance(seen, (written,))
    assert [(creation.target, creation.unit.name) for creation in step.creations] == [("c", "pod team/p")]
    assert step.items[0].attempts == 2
    nowhere = advance(replace(seen, free={"b": []}), (written,))
    assert nowhere.creations == ()
    assert nowhere.items[0].phase is ItemPhase.WAITING


def test_a_migration_that_somebody_deleted_rests_no_longer() -> None:
    waiting = Item("uid-p", "pod team/p", 1, ItemPhase.WAITING, "b", "m", "team", 1, "the network broke")
    seen = replace(scene(used("a", "p"), b=1), outcomes={"m": Outcome(absent=True)})
    assert len(advance(seen, (waiting,)).creations) == 1


def test_a_pod_whose_name_nobody_knows_is_told_and_keeps_no_other_from_moving() -> None:
    nameless = record("node-a", "n", holder="pod uid-n", pod_uid="uid-n", pod="uid-n")
    seen = scene(nameless, used("a", "p"), b=5)
    step = advance(seen, ())
    assert [creation.unit.name for creation in step.creations] == ["pod team/p"]
    (failed,) = [item for item in step.items if item.phase is ItemPhase.FAILED]
    assert (failed.name, failed.message) == (
        "pod uid-n",
        "the agent on node node-a finds no name of it in /var/log/pods: the kubelet's podLogsDir is another",
    )
