"""Every refusal before anything is touched: its reason and the whole message that the user sees."""

from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest

from vfio_api.device import NO_FLAGS, MigrationFlags
from vfio_api.errors import Reason
from vfio_api.models_status import Phase
from vfio_api.types import MigrationKey
from vfio_operator.actions import Finish, Look
from vfio_operator.observe import wish_of
from vfio_operator.observed import DeviceRecord, Observed, Pair, Strategy, Wish
from vfio_operator.plan import plan
from vfio_operator.resolve import resolve

ALL = MigrationFlags.STOP_COPY | MigrationFlags.P2P | MigrationFlags.PRE_COPY
NO_P2P = MigrationFlags.STOP_COPY | MigrationFlags.PRE_COPY
NO_PRE_COPY = MigrationFlags.STOP_COPY | MigrationFlags.P2P
GPU0 = Pair("gpu0", "node-a", "0000:3b:00.2", "node-b", "0000:5e:00.2")
GPU1 = Pair("gpu1", "node-a", "0000:3b:00.3", "node-b", "0000:5e:00.3")


def record(node: str, address: str, **changes: Any) -> DeviceRecord:
    holder = "workload" if node == "node-a" else ""
    made = DeviceRecord(f"{node}-{address}", node, address, "mlx5_vfio_pci", "15b3:101e", ALL, True, holder)
    return replace(made, **changes)


def good(*pairs: Pair, strategy: Strategy | None = None) -> Observed:
    """A migration that nothing is wrong with."""
    pairs = pairs or (GPU0,)
    ends = [(p.source_node, p.source_device) for p in pairs] + [(p.target_node, p.target_device) for p in pairs]
    return Observed(
        key=MigrationKey("uid-1", "team", "move"),
        wish=Wish(pairs, strategy or Strategy()),
        nodes=frozenset({"node-a", "node-b"}),
        connected=frozenset({"node-a", "node-b"}),
        inventory=MappingProxyType({end: record(*end) for end in ends}),
    )


def with_source(**changes: object) -> Observed:
    return with_device("node-a", "0000:3b:00.2", **changes)


def with_target(**changes: object) -> Observed:
    return with_device("node-b", "0000:5e:00.2", **changes)


def with_device(node: str, address: str, **changes: object) -> Observed:
    observed = good()
    return replace(observed, inventory={**observed.inventory, (node, address): record(node, address, **changes)})


def without_device(node: str, address: str) -> Observed:
    observed = good()
    rest = {end: found for end, found in observed.inventory.items() if end != (node, address)}
    return replace(observed, inventory=rest)


def lacking(flags: MigrationFlags, *pairs: Pair, strategy: Strategy | None = None) -> Observed:
    """The devices of the last pair have `flags`."""
    observed = good(*pairs, strategy=strategy)
    last = observed.wish.pairs[-1]
    changed = {
        end: replace(observed.inventory[end], flags=flags)
        for end in ((last.source_node, last.source_device), (last.target_node, last.target_device))
    }
    return replace(observed, inventory={**observed.inventory, **changed})


REFUSALS: dict[str, tuple[Callable[[], Observed], Reason, str]] = {
    "unsupported spec": (
        lambda: replace(
            good(), wish=Wish((GPU0,), unsupported="spec.workload.pause.method is Hook; this version does None only")
        ),
        Reason.UNSUPPORTED_SPEC,
        "spec.workload.pause.method is Hook; this version does None only",
    ),
    "source equals target": (
        lambda: good(Pair("gpu0", "node-a", "0000:3b:00.2", "node-a", "0000:3b:00.2")),
        Reason.SOURCE_EQUALS_TARGET,
        "pair gpu0: source and target are both device 0000:3b:00.2 on node node-a; name another device or node as "
        "its target",
    ),
    "one source twice": (
        lambda: good(GPU0, replace(GPU1, source_device="0000:3b:00.2")),
        Reason.DUPLICATE_DEVICE,
        "device 0000:3b:00.2 on node node-a is both pair gpu0 source and pair gpu1 source; a device may appear once "
        "in a migration",
    ),
    "one target twice": (
        lambda: good(GPU0, replace(GPU1, target_device="0000:5e:00.2")),
        Reason.DUPLICATE_DEVICE,
        "device 0000:5e:00.2 on node node-b is both pair gpu0 target and pair gpu1 target; a device may appear once "
        "in a migration",
    ),
    "a target that is another's source": (
        lambda: good(GPU0, Pair("back", "node-b", "0000:5e:00.2", "node-a", "0000:3b:00.9")),
        Reason.DUPLICATE_DEVICE,
        "device 0000:5e:00.2 on node node-b is both pair gpu0 target and pair back source; a device may appear once "
        "in a migration",
    ),
    "unknown node": (
        lambda: replace(good(), nodes=frozenset({"node-a"}), connected=frozenset({"node-a"})),
        Reason.UNKNOWN_NODE,
        "pair gpu0: target node node-b does not exist; `kubectl get nodes` lists what there is",
    ),
    "agent not connected": (
        lambda: replace(good(), connected=frozenset({"node-b"})),
        Reason.AGENT_NOT_CONNECTED,
        "pair gpu0: source node node-a has no connected vfio-agent; look at its agent pod and its log",
    ),
    "unknown source": (
        lambda: without_device("node-a", "0000:3b:00.2"),
        Reason.UNKNOWN_DEVICE,
        "pair gpu0: source device 0000:3b:00.2 does not exist on node node-a; `kubectl get vfd` lists what there is",
    ),
    "unknown target": (
        lambda: without_device("node-b", "0000:5e:00.2"),
        Reason.UNKNOWN_DEVICE,
        "pair gpu0: target device 0000:5e:00.2 does not exist on node node-b; `kubectl get vfd` lists what there is",
    ),
    "not migratable, nothing known": (
        lambda: with_target(migratable=False, driver=""),
        Reason.DEVICE_NOT_MIGRATABLE,
        "pair gpu0: target device 0000:5e:00.2 on node node-b (driver unknown) cannot migrate: it does not offer "
        "STOP_COPY",
    ),
    "not migratable, the agent says why": (
        lambda: with_source(migratable=False, driver="vfio-pci", message="VFIO_DEVICE_FEATURE: ENOTTY"),
        Reason.DEVICE_NOT_MIGRATABLE,
        "pair gpu0: source device 0000:3b:00.2 on node node-a (driver vfio-pci) cannot migrate: "
        "VFIO_DEVICE_FEATURE: ENOTTY",
    ),
    "claimed": (
        lambda: with_source(claim_uid="uid-2", claim_name="other/first"),
        Reason.DEVICE_CLAIMED,
        "pair gpu0: source device 0000:3b:00.2 on node node-a is claimed by migration other/first; wait for it to "
        "finish or cancel it",
    ),
    "source not held": (
        lambda: with_source(holder=""),
        Reason.SOURCE_NOT_HELD,
        "pair gpu0: source device 0000:3b:00.2 on node node-a is not open, so it carries no state to migrate; open "
        "it through the agent's socket first",
    ),
    "target has a holder": (
        lambda: with_target(holder="pod team/db"),
        Reason.TARGET_HAS_HOLDER,
        "pair gpu0: target device 0000:5e:00.2 on node node-b is held by pod team/db; a target must be free, since "
        "loading overwrites it",
    ),
    "another driver": (
        lambda: with_target(driver="vfio-pci"),
        Reason.INCOMPATIBLE_DEVICES,
        "pair gpu0: driver differs: source 0000:3b:00.2 has mlx5_vfio_pci, target 0000:5e:00.2 has vfio-pci; choose "
        "a target of the same kind",
    ),
    "another model": (
        lambda: with_target(model="15b3:101a"),
        Reason.INCOMPATIBLE_DEVICES,
        "pair gpu0: model differs: source 0000:3b:00.2 has 15b3:101e, target 0000:5e:00.2 has 15b3:101a; choose a "
        "target of the same kind",
    ),
    "other flags": (
        lambda: with_target(flags=NO_FLAGS),
        Reason.INCOMPATIBLE_DEVICES,
        "pair gpu0: migration flags differs: source 0000:3b:00.2 has STOP_COPY|P2P|PRE_COPY, target 0000:5e:00.2 "
        "has none; choose a target of the same kind",
    ),
    "one of two without P2P": (
        lambda: lacking(NO_P2P, GPU0, GPU1),
        Reason.P2P_UNSUPPORTED,
        "pair gpu1: device 0000:3b:00.3 on node node-a does not support P2P (flags STOP_COPY|PRE_COPY); 2 devices "
        "migrate together only if every one does: migrate it alone",
    ),
    "pre-copy required but absent": (
        lambda: lacking(NO_PRE_COPY, GPU0, strategy=Strategy(pre_copy="Required")),
        Reason.PRE_COPY_UNSUPPORTED,
        "pair gpu0: strategy.preCopy is Required, device 0000:3b:00.2 on node node-a has flags STOP_COPY|P2P; use "
        "preCopy: Auto",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_names_what_is_wrong_and_the_next_step(case: str) -> None:
    make, reason, message = REFUSALS[case]
    found = resolve(make()).failure
    assert found is not None
    assert (found.reason, found.message) == (reason, message)


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_ends_the_migration_before_anything_is_touched(case: str) -> None:
    make, reason, message = REFUSALS[case]
    observed = make()
    planned = plan(replace(observed, authorized=observed.wish.pairs))
    (finish,) = planned.actions
    assert isinstance(finish, Finish)
    assert (finish.phase, planned.sentence) == (Phase.FAILED, message)
    assert finish.failure is not None
    assert finish.failure.reason is reason


def test_every_reason_of_a_refusal_has_a_case() -> None:
    before_anything = {
        Reason.UNKNOWN_NODE,
        Reason.AGENT_NOT_CONNECTED,
        Reason.UNKNOWN_DEVICE,
        Reason.DEVICE_NOT_MIGRATABLE,
        Reason.DEVICE_CLAIMED,
        Reason.SOURCE_NOT_HELD,
        Reason.TARGET_HAS_HOLDER,
        Reason.SOURCE_EQUALS_TARGET,
        Reason.DUPLICATE_DEVICE,
        Reason.INCOMPATIBLE_DEVICES,
        Reason.P2P_UNSUPPORTED,
        Reason.PRE_COPY_UNSUPPORTED,
        Reason.UNSUPPORTED_SPEC,
    }
    assert {reason for _, reason, _ in REFUSALS.values()} == before_anything


@pytest.mark.parametrize(
    "observed",
    [
        good(),
        good(GPU0, GPU1),
        lacking(NO_P2P, GPU0),
        lacking(NO_PRE_COPY, GPU0),
        lacking(NO_PRE_COPY, GPU0, strategy=Strategy(pre_copy="Disabled")),
        with_source(claim_uid="uid-1", claim_name="team/move"),
        replace(good(), nodes=frozenset()),
    ],
    ids=[
        "one",
        "two",
        "one without P2P",
        "one without pre-copy",
        "pre-copy disabled",
        "claimed by itself",
        "nodes not listed but connected",
    ],
)
def test_what_can_be_done_is_not_refused(observed: Observed) -> None:
    assert resolve(observed).failure is None


@pytest.mark.parametrize(
    ("case", "unsettled"),
    [
        ("unknown node", {"settled": False}),
        ("agent not connected", {"settled": False}),
        ("unknown source", {"inventory_settled": False}),
    ],
)
def test_what_may_still_appear_is_awaited_for_a_moment(case: str, unsettled: dict[str, bool]) -> None:
    make, _, message = REFUSALS[case]
    observed = make()
    planned = plan(replace(observed, authorized=observed.wish.pairs, **unsettled))
    nodes = observed.wish.nodes & observed.connected
    assert (planned.step, planned.actions) == ("AwaitInventory", (Look(nodes),))
    assert planned.sentence == f"waiting for the inventory: {message}"


def test_a_refusal_does_not_stop_what_has_begun() -> None:
    """Claims or persisted pairs are there: the holder of the source has changed through the migration itself."""
    begun = replace(with_target(holder="migration team/move"), pairs=(GPU0,), has_finalizer=True)
    assert resolve(begun).failure is not None
    assert plan(begun).step == "Claim"


# --- what this version cannot do


def migration(**spec: object) -> dict[str, object]:
    devices = [
        {
            "name": "gpu0",
            "source": {"nodeName": "node-a", "device": "0000:3b:00.2"},
            "target": {"nodeName": "node-b", "device": "0000:5e:00.2"},
        }
    ]
    return {
        "metadata": {"uid": "uid-1", "namespace": "team", "name": "move"},
        "spec": {"devices": devices, **spec},
    }


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"devices": None, "source": {"nodeName": "node-a"}},
            "spec.devices is absent; name the pairs there, or give both spec.source and spec.target",
        ),
    ],
)
def test_an_unsupported_spec_says_what_this_version_does(spec: dict[str, object], message: str) -> None:
    body = migration(**spec)
    body["spec"] = {name: value for name, value in body["spec"].items() if value is not None}  # type: ignore[attr-defined]
    found = resolve(replace(good(), wish=wish_of(body))).failure
    assert found is not None
    assert (found.reason, found.message) == (Reason.UNSUPPORTED_SPEC, message)


def test_a_spec_that_does_not_fit_the_model_is_refused_with_its_field() -> None:
    wish = wish_of(migration(mode="Teleport"))
    assert wish.unsupported.startswith("the spec is not valid: spec.mode: ")
    assert wish_of(migration()).unsupported == ""
    # in our words, without those of the library that checks
    rate = wish_of(migration(strategy={"bandwidthLimitBytesPerSecond": "5 GB"})).unsupported
    assert rate.startswith("the spec is not valid: spec.strategy.bandwidthLimitBytesPerSecond: '5 GB' is not a")
