"""The shorthand: which devices move onto which, always the same way, and what is said if there is no way."""

import itertools
import random
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from vfio_api.device import MigrationFlags
from vfio_api.errors import Reason
from vfio_api.types import Failure, MigrationKey
from vfio_operator.observed import DeviceRecord, Observed, Shorthand, Wish
from vfio_operator.pairing import kind, pair_up
from vfio_operator.plan import plan
from vfio_operator.resolve import resolve

ALL = MigrationFlags.STOP_COPY | MigrationFlags.P2P | MigrationFlags.PRE_COPY
WANTED = Shorthand("a", "b")


def record(node: str, address: str, **changes: Any) -> DeviceRecord:
    made = DeviceRecord(f"{node}-{address}", node, address, "mlx5_vfio_pci", "15b3:101e", ALL, True)
    return replace(made, holder="workload" if node == "a" else "", **changes)


def world(*records: DeviceRecord, **changes: Any) -> Observed:
    return Observed(
        key=MigrationKey("uid-1", "team", "move"),
        wish=Wish((), shorthand=WANTED),
        nodes=frozenset("ab"),
        connected=frozenset("ab"),
        inventory=MappingProxyType({(r.node, r.address): r for r in records}),
        **{"shows_all": True, "authorized": ()} | changes,
    )


def pairs(observed: Observed) -> list[tuple[str, str]]:
    found, failure = pair_up(observed, WANTED)
    assert failure is None, failure
    return [(p.source_device, p.target_device) for p in found]


def refused(observed: Observed) -> str:
    found, failure = pair_up(observed, WANTED)
    assert found == ()
    assert failure is not None
    return f"{failure.reason.value}: {failure.message}"


def test_namesakes_first_then_in_the_order_of_the_addresses() -> None:
    sources = [record("a", f"gpu{n}") for n in (10, 2, 1)]
    targets = [record("b", f"gpu{n}") for n in (11, 10, 3)]
    assert pairs(world(*sources, *targets)) == [("gpu1", "gpu3"), ("gpu2", "gpu11"), ("gpu10", "gpu10")]


def test_only_what_is_in_use_and_migratable_moves() -> None:
    idle = replace(record("a", "idle"), holder="")
    rigid = replace(record("a", "rigid"), migratable=False)
    assert pairs(world(record("a", "x"), idle, rigid, record("b", "y"))) == [("x", "y")]


def test_a_target_that_is_claimed_held_or_chosen_already_is_passed_over() -> None:
    taken = [
        record("b", "claimed", claim_uid="other", claim_name="team/other"),
        replace(record("b", "held"), holder="workload w"),
        record("b", "chosen"),
        replace(record("b", "rigid"), migratable=False, message="its driver does not implement VFIO migration"),
        record("b", "model", model="10de:2335"),
    ]
    reserved = frozenset({("b", "chosen")})
    assert pairs(world(record("a", "x"), *taken, record("b", "free"), reserved=reserved)) == [("x", "free")]
    assert refused(world(record("a", "x"), *taken, reserved=reserved)) == (
        "NoCompatibleTarget: source device x on node a (mlx5_vfio_pci 15b3:101e STOP_COPY|P2P|PRE_COPY) finds no free "
        "compatible device on node b for a set of 1 (chosen: chosen by another migration; claimed: claimed by "
        "migration team/other; held: held by workload w; rigid: its driver does not implement VFIO migration; model: "
        "it is mlx5_vfio_pci 10de:2335 STOP_COPY|P2P|PRE_COPY); free one, or name pairs in spec.devices"
    )


def test_a_set_that_is_larger_than_what_is_free_is_refused_as_a_whole() -> None:
    message = refused(world(record("a", "x"), record("a", "y"), record("b", "z")))
    assert message.startswith("NoCompatibleTarget: source device y on node a")
    assert "for a set of 2 (z: taken by another device of this set)" in message


def test_no_target_at_all_and_no_source_at_all() -> None:
    assert "on node b for a set of 1 (it has none at all)" in refused(world(record("a", "x")))
    idle = replace(record("a", "x"), holder="")
    assert refused(world(idle, record("b", "z"))) == (
        "NothingToMigrate: spec.source: node a has no migratable device in use (x: not open); `kubectl get vfd` lists "
        "what there is"
    )


def test_more_than_a_migration_takes_is_said() -> None:
    many = [record("a", f"gpu{n}") for n in range(257)]
    assert refused(world(*many)).startswith(
        "UnsupportedSpec: spec.source: node a has 257 migratable devices in use, one migration takes at most 256"
    )


def test_names_are_labels_made_of_the_addresses_and_unique() -> None:
    addresses = ["0000:3b:00.2", "0000-3b-00.2", "x" * 64]
    found, _ = pair_up(world(*(record("a", x) for x in addresses), *(record("b", x) for x in addresses)), WANTED)
    assert {p.source_device: p.name for p in found} == {
        "0000:3b:00.2": "0000-3b-00-2-2",
        "0000-3b-00.2": "0000-3b-00-2",
        "x" * 64: "x" * 58,
    }


def test_on_one_node_a_device_never_becomes_its_own_target() -> None:
    both = Shorthand("a", "a")
    free = replace(record("a", "y"), holder="")
    found, _ = pair_up(world(record("a", "x"), free), both)
    assert [(p.source_device, p.target_device) for p in found] == [("x", "y")]


@given(st.data())
def test_a_full_assignment_is_found_if_there_is_one_whatever_the_order_of_the_inventory(data: st.DataObject) -> None:
    models = st.sampled_from(["m1", "m2", "m3"])
    sources = [record("a", f"s{n}", model=data.draw(models)) for n in range(data.draw(st.integers(1, 6)))]
    targets = [record("b", f"s{n}", model=data.draw(models)) for n in range(data.draw(st.integers(0, 8)))]
    shuffled = [*sources, *targets]
    random.Random(data.draw(st.integers(0, 99))).shuffle(shuffled)
    found, failure = pair_up(world(*shuffled), WANTED)
    assert (found, failure) == pair_up(world(*sources, *targets), WANTED)
    kinds = [kind(t) for t in targets]
    possible = all(sum(kind(s) == k for s in sources) <= kinds.count(k) for k in {kind(s) for s in sources})
    assert (failure is None) == possible
    if failure is None:
        at = {(r.node, r.address): r for r in shuffled}
        assert len({p.target_device for p in found}) == len(found) == len(sources)
        for pair in found:
            assert kind(at["a", pair.source_device]) == kind(at["b", pair.target_device])


def test_who_may_not_use_all_devices_is_not_told_which_there_are() -> None:
    taken = record("b", "claimed", claim_uid="other", claim_name="secret/other")
    observed = world(record("a", "x"), taken, shows_all=False)
    assert refused(observed) == (
        "NoCompatibleTarget: source device on node a finds no free compatible device on node b for a set of 1 (which "
        "devices there are is told to who may use them all); free one, or name pairs in spec.devices"
    )
    idle = replace(record("a", "x"), holder="")
    assert (
        "x" not in refused(world(idle, record("b", "z"), shows_all=False)).partition("(")[2].partition(")")[0].split()
    )
    denied = Failure(Reason.FORBIDDEN_DEVICE, "no", "x")
    allowed = world(record("a", "x"), record("b", "y"))
    planned = plan(replace(allowed, authorized=resolve(allowed).pairs, forbidden=denied))
    assert (planned.step, planned.pairs, planned.findings) == ("Refused", (), (denied,))


def test_a_long_address_makes_a_label_all_the_same() -> None:
    address = "a" * 57 + ".b"
    found, _ = pair_up(world(record("a", address), record("b", address)), WANTED)
    assert found[0].name == "a" * 57


def test_what_the_shorthand_stands_for_is_checked_like_named_pairs() -> None:
    no_p2p = ALL & ~MigrationFlags.P2P
    records = [record(node, f"x{n}", flags=no_p2p) for node, n in itertools.product("ab", range(2))]
    failure = resolve(world(*records)).failure
    assert failure is not None
    assert failure.reason is Reason.P2P_UNSUPPORTED


def test_nodes_of_the_shorthand_are_named_in_the_refusal() -> None:
    failure = resolve(replace(world(record("a", "x")), connected=frozenset("a"), nodes=frozenset("a"))).failure
    assert failure is not None
    assert failure.message == "spec.target: target node b does not exist; `kubectl get nodes` lists what there is"


def test_rights_are_asked_for_the_pairs_that_will_be_persisted() -> None:
    observed = world(record("a", "x"), record("b", "y"))
    asked = plan(replace(observed, authorized=None))
    assert (asked.step, asked.actions[0].pairs) == ("Authorize", ())  # type: ignore[union-attr]
    assert plan(observed).step == "Authorize"
    found = resolve(observed).pairs
    allowed = replace(observed, authorized=found, has_finalizer=True)
    assert plan(allowed).step == "PersistPairs"
    assert plan(allowed).actions[0].pairs == found  # type: ignore[union-attr]
    # meanwhile somebody else has chosen the device: asked again, for another pair
    moved = replace(world(record("a", "x"), record("b", "y"), record("b", "z")), reserved=frozenset({("b", "y")}))
    assert plan(replace(moved, authorized=found, has_finalizer=True)).step == "Authorize"
