"""What is guarded from people who may do much, and what controllers and the operator can do all the same."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from cluster.guarded import (
    CLAIM,
    CLAIMED,
    COMMITTED,
    NAMESPACE,
    OPEN,
    OPERATOR,
    VERSION,
    Json,
    Patch,
    Tried,
    decide,
    device,
    device_patch,
    done,
    patch,
    switchover,
    versions,
)
from cluster.users import User, grant, rule, service_account, wait_until
from devtools.stack import Stack, migration
from vfio_api.names import API, FINALIZER

OTHERS = ["example.com/theirs", "foregroundDeletion"]
USE_ALL = "a user with the verb use on all vfiodevices.vfiomigration.io"


def vfm(name: str, namespace: str = NAMESPACE, *finalizers: str) -> Json:
    made = migration(name, [("gpu0", "node-a", "own", "node-b", "b")], namespace=namespace)
    made["metadata"]["finalizers"] = list(finalizers)
    return made


@pytest.fixture(scope="module")
def held(guarded: Stack, operator_user: User) -> Iterator[None]:
    """VFIOMigration `held`, with our finalizer and somebody's."""
    guarded.kubectl("create", "-f", "-", input=json.dumps(vfm("held", NAMESPACE, FINALIZER, "example.com/a")))
    yield
    done(operator_user, patch("vfiomigrations", "held", {"metadata": {"finalizers": None}}))
    guarded.kubectl("delete", "vfm", "held", "--ignore-not-found")


def everything() -> list[Json]:
    """All rights on our kinds but `use`."""
    verbs = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")
    kinds = ("vfiomigrations", "vfioswitchovers", "vfiodevices")
    return [rule(API, f"{kind}{sub}", *verbs) for kind in kinds for sub in ("", "/status", "/finalizers")]


def someone(guarded: Stack, name: str, folder: Any, *more: Json) -> User:
    made = service_account(guarded.plane, NAMESPACE, name, folder)
    grant(guarded.plane, f"test-{name}", [*everything(), *more], user=made.me().username)
    wait_until(lambda: made.may("delete", f"vfiodevices.{API}"), "the grant")
    return made


@pytest.fixture(scope="module")
def editor(guarded: Stack, held: None, tmp_path_factory: pytest.TempPathFactory) -> User:
    """May do everything with our objects, but has no right on a device."""
    return someone(guarded, "editor", tmp_path_factory.mktemp("editor"))


@pytest.fixture(scope="module")
def boss(guarded: Stack, held: None, tmp_path_factory: pytest.TempPathFactory) -> User:
    """May `use` every device besides."""
    return someone(guarded, "boss", tmp_path_factory.mktemp("boss"), rule(API, "vfiodevices", "use"))


NOT_CREATED = "a VFIOSwitchover is created by the operator only, when a migration begins to switch over"
NOT_DECIDED = "is written by the operator, or by the agent of a source node that hears nothing from it"
NOT_DELETED = "a VFIOSwitchover goes with its migration, since it holds the decision: delete VFIOMigration m instead"
NOT_STRIPPED = (
    "finalizer vfiomigration.io/migration is removed by the operator, when the devices of the migration are free"
)
IN_USE = (
    "the device is claimed by VFIOMigration default/m: wait until it has finished, or cancel it (spec.cancel: true), "
    "then delete the VFIODevice; to delete it now, " + USE_ALL.replace("a user with", "a user needs")
)
# Neither of the two may.
NOBODY = {
    "create a switchover": Tried(["create", "-f", "-"], NOT_CREATED, switchover("u-theirs")),
    "Commit": Tried(decide(OPEN, "Commit", "operator-0"), NOT_DECIDED),
    "Abort": Tried(decide(OPEN, "Abort", "vfio-agent/node-a"), NOT_DECIDED),
    "take a decision back": Tried(
        patch("vfioswitchovers", COMMITTED, {"status": None}, "/status"), "status.decision is written once"
    ),
    "give a switchover other nodes": Tried(
        patch("vfioswitchovers", OPEN, {"spec": {"sourceNodes": ["node-b"]}}), "spec cannot be changed after creation"
    ),
    "claim for another migration": Tried(
        device_patch(CLAIMED, {"spec": {"claimRef": {**CLAIM, "uid": "u-2"}}}), "claimed by another migration"
    ),
}
# Only the second may.
EDITOR = {
    "delete a switchover": Tried(["delete", "vfs", OPEN, "--wait=false"], NOT_DELETED),
    "delete all switchovers": Tried(["delete", "vfs", "--all", "--wait=false"], NOT_DELETED),
    "strip a switchover": Tried(patch("vfioswitchovers", OPEN, {"metadata": {"finalizers": None}}), NOT_STRIPPED),
    "strip a migration": Tried(patch("vfiomigrations", "held", {"metadata": {"finalizers": None}}), NOT_STRIPPED),
    "strip by JSON patch": Tried(
        patch("vfiomigrations", "held", [{"op": "remove", "path": "/metadata/finalizers/0"}]), NOT_STRIPPED
    ),
    "strip by putting another": Tried(
        patch("vfiomigrations", "held", {"metadata": {"finalizers": OTHERS[:1]}}), NOT_STRIPPED
    ),
    "replace a migration without it": Tried(["replace", "-f", "-"], NOT_STRIPPED, vfm("held")),
    "delete a claimed device": Tried(["delete", "vfd", CLAIMED], IN_USE),
}


@pytest.mark.parametrize("tried", [*NOBODY.values(), *EDITOR.values()], ids=[*NOBODY, *EDITOR])
def test_who_may_edit_everything_may_not(guarded: Stack, editor: User, tried: Tried) -> None:
    before = versions(guarded)
    assert tried.said in tried.refused(editor)
    assert versions(guarded) == before


@pytest.mark.parametrize("tried", NOBODY.values(), ids=NOBODY)
def test_who_may_use_every_device_may_not(guarded: Stack, boss: User, tried: Tried) -> None:
    before = versions(guarded)
    assert tried.said in tried.refused(boss)
    assert versions(guarded) == before


def test_who_may_use_every_device_may_clear_away_what_is_left(guarded: Stack, boss: User) -> None:
    """As when the operator is gone for good."""
    guarded.kubectl("create", OPERATOR, "-f", "-", input=json.dumps(switchover("u-left")))
    guarded.kubectl("create", "-f", "-", input=json.dumps(vfm("left", NAMESPACE, FINALIZER)))
    guarded.kubectl("create", "-f", "-", input=json.dumps(device("node-a", "left", claimRef=CLAIM)))
    left = device("node-a", "left")["metadata"]["name"]
    for kind, name in (("vfioswitchovers", "u-left"), ("vfiomigrations", "left")):
        boss.kubectl("delete", kind, name, "--wait=false")
        boss.patch(f"/apis/{VERSION}/namespaces/{NAMESPACE}/{kind}/{name}", {"metadata": {"finalizers": None}})
    boss.kubectl("delete", "vfd", left)
    there = guarded.kubectl("get", "vfs,vfm,vfd", "-A", "-o", "name")
    assert not [name for name in ("u-left", "/left", left) if name in there]


def test_other_finalizers_are_everybodys(guarded: Stack, editor: User) -> None:
    for kind, name in (("vfiomigrations", "held"), ("vfioswitchovers", OPEN)):
        for wanted in ([FINALIZER, *OTHERS], [OTHERS[0], FINALIZER, "orphan"], [FINALIZER]):
            stored = done(editor, patch(kind, name, {"metadata": {"finalizers": wanted}}))
            assert stored["metadata"]["finalizers"] == wanted


def test_a_device_that_is_not_claimed_may_be_deleted(guarded: Stack, editor: User) -> None:
    free = device("node-a", "free")
    guarded.kubectl("create", "-f", "-", input=json.dumps(free))
    editor.kubectl("delete", "vfd", free["metadata"]["name"])


def owned(guarded: Stack, name: str, namespace: str) -> Patch:
    """A migration with its switchover as the operator makes them; the patch that takes its finalizer from either."""
    made = json.loads(
        guarded.kubectl("create", "-f", "-", "-o", "json", input=json.dumps(vfm(name, namespace, FINALIZER)))
    )
    uid = made["metadata"]["uid"]
    owner = {"apiVersion": VERSION, "kind": "VFIOMigration", "name": name, "uid": uid}
    owners = [{**owner, "controller": True, "blockOwnerDeletion": True}]
    manifest = switchover(uid, namespace, ownerReferences=owners)
    guarded.kubectl("create", OPERATOR, "-f", "-", input=json.dumps(manifest))
    return Patch(f"/apis/{VERSION}/namespaces/{namespace}/vfioswitchovers/{uid}", {"metadata": {"finalizers": None}})


def gone(guarded: Stack, namespace: str, uid: str) -> None:
    """Wait until a switchover and every migration of its namespace but `held` are gone."""

    def there() -> list[str]:
        found = guarded.get(f"vfiomigrations.{API},vfioswitchovers.{API}", "-n", namespace)["items"]
        return [item["metadata"]["name"] for item in found if item["metadata"]["name"] in (uid, "going")]

    wait_until(lambda: not there(), f"{uid} is gone")


@pytest.mark.parametrize("cascade", ["background", "foreground"])
def test_a_switchover_goes_with_its_migration(guarded: Stack, editor: User, operator_user: User, cascade: str) -> None:
    release = owned(guarded, "going", NAMESPACE)
    uid = release.path.rpartition("/")[2]
    editor.kubectl("delete", "vfm", "going", f"--cascade={cascade}", "--wait=false")
    done(operator_user, release)
    found = guarded.get("vfm", "going")["metadata"].get("finalizers", [])
    others = [name for name in found if name != FINALIZER]
    done(operator_user, patch("vfiomigrations", "going", {"metadata": {"finalizers": others}}))
    gone(guarded, NAMESPACE, uid)


def test_a_migration_may_be_orphaned(guarded: Stack, editor: User, operator_user: User) -> None:
    """The garbage collector takes the owner from the switchover, and its own finalizer from the migration."""
    release = owned(guarded, "going", NAMESPACE)
    uid = release.path.rpartition("/")[2]
    editor.kubectl("delete", "vfm", "going", "--cascade=orphan", "--wait=false")
    wait_until(lambda: "ownerReferences" not in guarded.get("vfs", uid)["metadata"], "the switchover has no owner")
    wait_until(
        lambda: guarded.get("vfm", "going")["metadata"]["finalizers"] == [FINALIZER], "only our finalizer is left"
    )
    done(operator_user, patch("vfiomigrations", "going", {"metadata": {"finalizers": None}}))
    done(operator_user, release)
    operator_user.refused("delete", "vfs", uid)  # RBAC: it has no use for that
    guarded.kubectl("delete", "vfs", uid)
    gone(guarded, NAMESPACE, uid)


def test_a_namespace_can_be_deleted(guarded: Stack, operator_user: User) -> None:
    guarded.kubectl("create", "namespace", "going")
    release = owned(guarded, "going", "going")
    guarded.kubectl("delete", "namespace", "going", "--wait=false")
    uid = release.path.rpartition("/")[2]
    wait_until(lambda: "deletionTimestamp" in guarded.get("vfs", uid, "-n", "going")["metadata"], "it is to be deleted")
    done(operator_user, release)
    path = f"/apis/{VERSION}/namespaces/going/vfiomigrations/going"
    done(operator_user, Patch(path, {"metadata": {"finalizers": None}}))
    guarded.kubectl("wait", "--for=delete", "namespace/going", "--timeout=60s")
