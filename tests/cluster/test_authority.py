"""To name a device is a privilege: real users with and without the right, on the real API server."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from kubernetes.aio.client.exceptions import ApiException

from cluster.users import User, grant, impersonated, rule, service_account, stamp, wait_until
from cluster.world import SETS, World, condition, migration, pairs
from devtools.stack import AGENT_NAMESPACE
from devtools.stack import NAMESPACE as OPERATOR_NAMESPACE
from vfio_api.errors import Reason
from vfio_api.models import device_object_name
from vfio_api.names import API, DEVICE_USER_ROLE, REQUESTER_ANNOTATION, REQUESTER_POLICY
from vfio_api.types import Failure, Role
from vfio_operator.authority import forbidden, review
from vfio_operator.kube import OperatorApi
from vfio_operator.requester import Permissions, Requester, Wanted, stamp_of

NAMESPACE = "default"
Json = dict[str, Any]
T = TypeVar("T")
NAMES = [(f"gpu{i}", Role.SOURCE, "node-a", address) for i, address in enumerate(SETS)] + [
    (f"gpu{i}", Role.TARGET, "node-b", address) for i, address in enumerate(SETS)
]
WANTED = [Wanted(pair, role, node, address, device_object_name(node, address)) for pair, role, node, address in NAMES]
SOURCES = tuple(w.object_name for w in WANTED if w.role is Role.SOURCE)
TARGETS = tuple(w.object_name for w in WANTED if w.role is Role.TARGET)
USE = "vfiodevices." + API


@pytest.fixture(scope="module")
def asking(
    world: World, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Callable[[OperatorApi], Awaitable[T]]], T]:
    """Run a coroutine with the API as the operator's own token has it."""
    path = tmp_path_factory.mktemp("operator") / "kubeconfig"
    world.stack.plane.service_account_kubeconfig(OPERATOR_NAMESPACE, "vfio-operator", path)

    def run(question: Callable[[OperatorApi], Awaitable[T]]) -> T:
        async def ask() -> T:
            api = await OperatorApi.connect(path, OPERATOR_NAMESPACE, "test")
            try:
                return await question(api)
            finally:
                await api.close()

        return asyncio.run(ask())

    return run


def body(requester: Requester) -> Json:
    return {"metadata": {"namespace": NAMESPACE, "annotations": {REQUESTER_ANNOTATION: stamp_of(requester)}}}


def user(name: str, *groups: str) -> Requester:
    return Requester(name, groups=(*groups, "system:authenticated"))


def verdict_of(asking: Any, requester: Requester, *, pod: str = "") -> Failure | None:
    found: Failure | None = asking(lambda api: forbidden(api, body(requester), WANTED, pod=pod))
    return found


def granted(world: World, requester: Requester, verb: str, what: str, *flags: str) -> None:
    """Wait until the API server has read the grant."""
    groups = [f"--as-group={g}" for g in requester.groups]
    command = ["auth", "can-i", verb, what, f"--as={requester.username}", *groups, *flags]
    wait_until(lambda: world.stack.kubectl(*command, check=False).strip() == "yes", f"{verb} {what}")


def test_who_has_no_right_is_told_the_first_device(asking: Any) -> None:
    failure = verdict_of(asking, user("nobody"))
    assert failure is not None
    assert (failure.reason, failure.device) == (Reason.FORBIDDEN_DEVICE, "gpu0")
    assert f"the verb use on {USE}/{SOURCES[0]} is missing" in failure.message


def test_the_right_on_every_device_takes_one_question(world: World, asking: Any) -> None:
    everyone = user("boss")
    grant(world.stack.plane, "every", [rule(API, "vfiodevices", "use")], user="boss")
    granted(world, everyone, "use", USE)
    assert asking(lambda api: review(api, everyone, WANTED)) == Permissions(every_device=True)
    assert verdict_of(asking, everyone) is None


def test_the_role_of_the_chart_gives_every_device_to_a_group(world: World, asking: Any) -> None:
    flags = [f"--clusterrole={DEVICE_USER_ROLE}", "--group=gpu-team"]
    world.stack.kubectl("create", "clusterrolebinding", "gpu-team", *flags)
    member = user("ann", "gpu-team")
    granted(world, member, "use", USE)
    assert verdict_of(asking, member) is None
    assert verdict_of(asking, user("ann")) is not None


def test_other_rights_on_devices_are_not_the_right_to_use_them(world: World, asking: Any) -> None:
    owner = user("almost")
    grant(world.stack.plane, "almost", [rule(API, "vfiodevices", "get", "patch", "update", "delete")], user="almost")
    granted(world, owner, "patch", USE)
    assert verdict_of(asking, owner) is not None


def test_a_role_in_a_namespace_gives_no_device(world: World, asking: Any) -> None:
    grant(
        world.stack.plane,
        "local",
        [rule(API, "vfiodevices", "use"), rule(API, "vfiomigrations", "create")],
        user="local",
        namespace=NAMESPACE,
    )
    granted(world, user("local"), "create", f"vfiomigrations.{API}", "-n", NAMESPACE)
    assert verdict_of(asking, user("local")) is not None


def test_each_device_needs_the_right(world: World, asking: Any) -> None:
    some = user("some")
    grant(world.stack.plane, "some", [rule(API, "vfiodevices", "use", names=(*SOURCES, *TARGETS[:3]))], user="some")
    granted(world, some, "use", f"{USE}/{SOURCES[0]}")
    failure = verdict_of(asking, some)
    assert failure is not None
    assert failure.message.startswith("pair gpu3: user some may not use target device sim3 on node node-b: ")
    answers = dict(asking(lambda api: review(api, some, WANTED)).devices)
    assert {name for name, access in answers.items() if not access.allowed} == {TARGETS[3]}


def test_who_may_delete_the_pod_may_move_its_devices_but_onto_no_others(world: World, asking: Any) -> None:
    owner = user("pod-owner")
    plane = world.stack.plane
    grant(plane, "pods", [rule("", "pods", "delete", names=("vm-1",))], user="pod-owner", namespace=NAMESPACE)
    granted(world, owner, "delete", "pods/vm-1", "-n", NAMESPACE)
    failure = verdict_of(asking, owner, pod="vm-1")
    assert failure is not None
    assert "may not use target device sim0 on node node-b" in failure.message
    assert "source device sim0" in str(verdict_of(asking, owner, pod="vm-2"))
    assert "source device sim0" in str(verdict_of(asking, owner))
    grant(plane, "targets", [rule(API, "vfiodevices", "use", names=TARGETS)], user="pod-owner")
    granted(world, owner, "use", f"{USE}/{TARGETS[0]}")
    assert verdict_of(asking, owner, pod="vm-1") is None


def test_512_devices_are_asked_for_one_by_one(asking: Any) -> None:
    many = [Wanted(f"gpu{i}", Role.TARGET, "node-b", f"vf{i}", f"node-b-vf{i}") for i in range(512)]
    found = asking(lambda api: review(api, user("nobody"), many))
    assert [name for name, _ in found.devices] == [w.object_name for w in many]
    assert not any(access.allowed for _, access in found.devices)


def test_an_error_of_the_api_server_is_no_answer(world: World, tmp_path: Path) -> None:
    """Here because who asks may not ask: an agent's token. The caller tries again."""
    path = tmp_path / "kubeconfig"
    world.stack.plane.service_account_kubeconfig(AGENT_NAMESPACE, "vfio-agent", path)

    async def ask() -> None:
        api = await OperatorApi.connect(path, OPERATOR_NAMESPACE, "test")
        try:
            await review(api, user("jane"), WANTED)
        finally:
            await api.close()

    with pytest.raises(ApiException, match="403"):
        asyncio.run(ask())


# Whole migrations.


@pytest.fixture(scope="module")
def jane(world: World, tmp_path_factory: pytest.TempPathFactory) -> User:
    """May create VFIOMigrations, and has no right on a device."""
    made = service_account(world.stack.plane, NAMESPACE, "jane", tmp_path_factory.mktemp("jane"))
    grant(world.stack.plane, "jane", [rule(API, "vfiomigrations", "*")], user=made.me().username, namespace=NAMESPACE)
    wait_until(lambda: made.may("create", f"vfiomigrations.{API}"), "the grant")
    return made


@pytest.fixture
def opened(world: World) -> Iterator[None]:
    """A workload has two devices of node-a."""
    with world.workload("node-a", SETS[:2]):
        yield


def run(world: World, who: User, manifest: Json) -> Json:
    """Create it as a user; the object when it has finished."""
    who.kubectl("create", "-f", "-", manifest=manifest)
    return world.finished(str(manifest["metadata"]["name"]))


def assert_refused(world: World, found: Json, reason: str, message: str) -> None:
    """It failed with this reason and message, and nothing was touched."""
    validated, succeeded = condition(found, "Validated"), condition(found, "Succeeded")
    assert (validated["status"], validated["reason"]) == ("False", reason)
    assert (succeeded["status"], succeeded["reason"]) == ("False", reason)
    assert message in succeeded["message"]
    assert "finalizers" not in found["metadata"]
    assert all("claimRef" not in d["spec"] for d in world.stack.get("vfd")["items"])


def test_a_migration_needs_the_right_on_sources_and_targets(world: World, jane: User, opened: None) -> None:
    before = [len(node.arcs()) for node in world.stack.nodes.values()]
    wanted = pairs(SETS[:2])
    found = run(world, jane, migration("no-right", wanted))
    assert_refused(world, found, "ForbiddenDevice", "may not use source device sim0 on node node-a")
    who = jane.me().username
    plane = world.stack.plane
    grant(plane, "jane-devices", [rule(API, "vfiodevices", "use", names=SOURCES)], user=who)
    wait_until(lambda: jane.may("use", f"{USE}/{SOURCES[0]}"), "the grant")
    found = run(world, jane, migration("sources-only", wanted))
    assert_refused(world, found, "ForbiddenDevice", f"user {who} may not use target device sim0 on node node-b")
    assert [len(node.arcs()) for node in world.stack.nodes.values()] == before
    grant(plane, "jane-devices", [rule(API, "vfiodevices", "use", names=(*SOURCES, *TARGETS))], user=who)
    wait_until(lambda: jane.may("use", f"{USE}/{TARGETS[0]}"), "the grant")
    found = run(world, jane, migration("both", wanted))
    assert found["status"]["phase"] == "Succeeded", found["status"]
    assert who in str(stamp(found))  # the operator's own writes have not changed it


def test_the_right_may_be_a_groups(world: World, opened: None, tmp_path: Path) -> None:
    plane = world.stack.plane
    for name, rules, namespace in (
        ("movers", [rule(API, "vfiodevices", "use")], ""),
        ("movers", [rule(API, "vfiomigrations", "create")], NAMESPACE),
    ):
        grant(plane, name, rules, group="movers", namespace=namespace)
    member = impersonated(plane, tmp_path, user("bob", "movers"))
    wait_until(lambda: member.may("use", USE) and member.may("create", f"vfiomigrations.{API}"), "the grants")
    assert run(world, member, migration("group", pairs(SETS[:2])))["status"]["phase"] == "Succeeded"


def test_a_right_lost_later_stops_nothing_that_has_begun(world: World, jane: User, opened: None) -> None:
    plane, who = world.stack.plane, jane.me().username
    grant(plane, "jane-devices", [rule(API, "vfiodevices", "use")], user=who)
    wait_until(lambda: jane.may("use", USE), "the grant")
    slow = migration("lost-right", pairs(["sim0"]), strategy={"bandwidthLimitBytesPerSecond": 4 << 20})
    jane.kubectl("create", "-f", "-", manifest=slow)
    world.stack.wait_until(
        lambda: world.stack.get("vfm", "lost-right").get("status", {}).get("phase") == "PreCopy", "pre-copy"
    )
    plane.kubectl("delete", "clusterrolebinding", "jane-devices")
    wait_until(lambda: not jane.may("use", USE), "the right is gone")
    assert world.finished("lost-right")["status"]["phase"] == "Succeeded"


def test_who_asked_is_not_who_cancels(world: World, jane: User, opened: None) -> None:
    """The administrator's migration stays the administrator's: no right of jane's matters to it."""
    world.apply(migration("admins", pairs(["sim0"]), strategy={"bandwidthLimitBytesPerSecond": 1 << 20}))
    world.stack.wait_until(
        lambda: world.stack.get("vfm", "admins").get("status", {}).get("phase") == "PreCopy", "pre-copy"
    )
    before = stamp(world.stack.get("vfm", "admins"))
    jane.kubectl("patch", "vfm", "admins", "--type=merge", "-p", '{"spec":{"cancel":true}}')
    found = world.finished("admins")
    assert (found["status"]["phase"], stamp(found)) == ("Cancelled", before)


@pytest.fixture
def no_mutating_policy(world: World) -> Iterator[None]:
    """The policy that stamps is gone."""
    kind = "mutatingadmissionpolicy"
    policy = world.stack.get(kind, REQUESTER_POLICY)
    for field in ("uid", "resourceVersion", "creationTimestamp", "generation", "managedFields"):
        policy["metadata"].pop(field, None)
    world.stack.kubectl("delete", kind, REQUESTER_POLICY)
    wait_until(lambda: probe(world) is None, "no stamp")
    yield
    world.stack.kubectl("create", "-f", "-", input=json.dumps(policy))
    wait_until(lambda: probe(world) is not None, "a stamp")


def probe(world: World) -> str | None:
    made = world.stack.kubectl(
        "create", "--dry-run=server", "-f", "-", "-o", "json", input=json.dumps(migration("probe", pairs(["sim0"])))
    )
    return stamp(json.loads(made))


def test_a_migration_of_nobody_is_refused(world: World, jane: User, opened: None, no_mutating_policy: None) -> None:
    found = run(world, jane, migration("unstamped", pairs(["sim0"])))
    assert stamp(found) is None
    assert_refused(world, found, "RequesterUnknown", f"annotation {REQUESTER_ANNOTATION} is absent")
    forged = migration("forged", pairs(["sim0"]))
    forged["metadata"]["annotations"] = {REQUESTER_ANNOTATION: stamp_of(user("system:admin", "system:masters"))}
    assert "names another user" in jane.refused("create", "-f", "-", manifest=forged)
