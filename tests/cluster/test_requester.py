"""Who created a VFIOMigration is written by admission, cannot be forged, and is in nobody's way."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.users import User, grant, impersonated, rule, service_account, stamp, wait_until
from devtools.plane import Plane
from devtools.stack import migration
from devtools.tools import helm
from vfio_api.names import API, REQUESTER_ANNOTATION, REQUESTER_POLICY
from vfio_operator.requester import Requester, requester_of, stamp_of

NAMESPACE = "test-requester"
CHART = Path(__file__).resolve().parents[2] / "charts" / "vfio-migration"
FORGED = stamp_of(Requester("system:admin", groups=("system:masters",)))
Json = dict[str, Any]


def manifest(name: str, annotations: dict[str, str] | None = None, **spec: Any) -> Json:
    made = migration(name, [("gpu0", "node-a", "sim0", "node-b", "sim0")], namespace=NAMESPACE, **spec)
    made["metadata"] |= {"annotations": annotations} if annotations is not None else {}
    return made


@pytest.fixture(scope="module")
def policies(crds: Plane) -> Iterator[list[Json]]:
    """The chart's admission policies, active."""
    files = [f"--show-only=templates/policies-{name}.yaml" for name in ("requester", "status")]
    command = [str(helm()), "template", "r", str(CHART), f"--namespace={NAMESPACE}", *files]
    rendered = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    crds.kubectl("create", "namespace", NAMESPACE)
    crds.kubectl("apply", "-f", "-", input=rendered)
    wait_until(lambda: _stamped(crds), "the stamp is written")
    crds.kubectl("create", "-f", "-", input=json.dumps(manifest("guarded")))
    admin = User(crds, crds.kubeconfig)
    forge = ["annotate", "vfm/guarded", "-n", NAMESPACE, "--overwrite", f"{REQUESTER_ANNOTATION}=", "--dry-run=server"]
    wait_until(lambda: admin.try_kubectl(*forge).returncode != 0, "the stamp is guarded")
    yield [item for item in yaml.safe_load_all(rendered) if item]
    crds.kubectl("delete", "-f", "-", input=rendered)
    crds.kubectl("delete", "namespace", NAMESPACE, "--wait=false")
    wait_until(lambda: not _stamped(crds), "the stamp is no longer written")


def _stamped(plane: Plane) -> bool:
    probe = json.dumps(manifest("probe"))
    made = plane.kubectl("create", "--dry-run=server", "-f", "-", "-o", "json", input=probe, check=False)
    return bool(made) and stamp(json.loads(made)) is not None


@pytest.fixture(scope="module")
def users(policies: list[Json], crds: Plane, tmp_path_factory: pytest.TempPathFactory) -> tuple[User, User]:
    """Two who may do anything with VFIOMigrations here."""
    folder = tmp_path_factory.mktemp("users")
    found = []
    for name in ("jane", "kim"):
        found.append(service_account(crds, NAMESPACE, name, folder))
        account = f"system:serviceaccount:{NAMESPACE}:{name}"
        grant(crds, name, [rule(API, "vfiomigrations", "*")], user=account, namespace=NAMESPACE)
        wait_until(lambda: found[-1].may("create", "vfiomigrations"), "the grant")
    return found[0], found[1]


@pytest.fixture
def jane(users: tuple[User, User]) -> User:
    """Who creates."""
    return users[0]


@pytest.fixture
def kim(users: tuple[User, User]) -> User:
    """A colleague."""
    return users[1]


def read(user: User, name: str) -> Json:
    found: Json = json.loads(user.kubectl("get", "vfm", name, "-o", "json"))
    return found


MADE_BY = {
    "create": ["create"],
    "apply": ["apply"],
    "server-side apply": ["apply", "--server-side"],
    "replace --force": ["replace", "--force"],
}
ANNOTATIONS = {
    "none": None,
    "another": {"a": "b"},
    "a forged stamp": {REQUESTER_ANNOTATION: FORGED},
    "an empty stamp": {REQUESTER_ANNOTATION: ""},
}


@pytest.mark.parametrize("annotations", ANNOTATIONS.values(), ids=ANNOTATIONS)
@pytest.mark.parametrize("command", MADE_BY.values(), ids=MADE_BY)
def test_whoever_creates_it_is_written_down(jane: User, command: list[str], annotations: dict[str, str] | None) -> None:
    made = json.loads(jane.kubectl(*command, "-f", "-", "-o", "json", manifest=manifest("made", annotations)))
    jane.kubectl("delete", "vfm", "made")
    me = jane.me()
    assert me.uid
    assert me.extra  # the token's id
    assert requester_of(made) == me
    assert made["metadata"]["annotations"].get("a") == (annotations or {}).get("a")


ANYONE = {
    "quotes and commas": Requester(
        'we"ird,\\user', 'u"1', ("a,b", '","', "\\", "system:authenticated"), (("scopes.example.com/a", ("v,1", '"')),)
    ),
    "tries to end the list": Requester('x","groups":["system:masters"],"extra":{}}', "", ("system:authenticated",)),
    "not ASCII": Requester("zoë", "", ("größe", "system:authenticated"), (("b", ("x",)), ("a", ("y", "z")))),
    "a thousand groups": Requester(
        "many", "", (*(f"cn=group-{i:04},ou=teams,dc=example,dc=com" for i in range(1000)), "system:authenticated")
    ),
}


@pytest.mark.parametrize("who", ANYONE.values(), ids=ANYONE)
def test_any_name_can_be_written_down(policies: list[Json], crds: Plane, tmp_path: Path, who: Requester) -> None:
    grant(crds, "anyone", [rule(API, "vfiomigrations", "create")], group="system:authenticated", namespace=NAMESPACE)
    user = impersonated(crds, tmp_path, who)
    wait_until(lambda: user.may("create", "vfiomigrations", "-n", NAMESPACE), "the grant")
    made = json.loads(user.kubectl("create", "--dry-run=server", "-f", "-", "-o", "json", manifest=manifest("any")))
    assert requester_of(made) == user.me()
    assert user.me().groups == who.groups


@pytest.fixture
def made(jane: User) -> Iterator[Json]:
    """One that jane created with server-side apply."""
    yield json.loads(jane.kubectl("apply", "--server-side", "-f", "-", "-o", "json", manifest=manifest("m")))
    jane.kubectl("delete", "vfm", "m")


CHANGES: dict[str, list[str]] = {
    "annotate": ["annotate", "vfm/m", "--overwrite", f"{REQUESTER_ANNOTATION}={FORGED}"],
    "empty it": ["annotate", "vfm/m", "--overwrite", f"{REQUESTER_ANNOTATION}="],
    "patch": ["patch", "vfm/m", "--type=json", "-p", json.dumps(
        [{"op": "replace", "path": f"/metadata/annotations/{REQUESTER_ANNOTATION.replace('/', '~1')}", "value": FORGED}]
    )],
}  # fmt: skip


@pytest.mark.parametrize("command", CHANGES.values(), ids=CHANGES)
def test_it_cannot_be_changed(jane: User, kim: User, made: Json, command: list[str]) -> None:
    for user in (jane, kim):
        said = user.refused(*command)
        assert "says who created this VFIOMigration and cannot be changed, added or removed; leave it out" in said
    assert stamp(read(jane, "m")) == stamp(made)


def test_it_cannot_be_changed_by_manifest(kim: User, made: Json) -> None:
    forged = manifest("m", {REQUESTER_ANNOTATION: FORGED})
    for command in (["apply"], ["apply", "--server-side", "--force-conflicts"], ["replace"]):
        assert "cannot be changed" in kim.refused(*command, "-f", "-", manifest=forged)
    assert stamp(read(kim, "m")) == stamp(made)


def test_the_status_does_not_lead_to_it(kim: User, made: Json, crds: Plane) -> None:
    """Of a status write the API server takes the status alone."""
    change = json.dumps({"metadata": {"annotations": {REQUESTER_ANNOTATION: FORGED}}, "status": {"message": "x"}})
    crds.kubectl("patch", "vfm/m", "--subresource=status", "--type=merge", "-n", NAMESPACE, "-p", change)
    found = read(kim, "m")
    assert found["status"]["message"] == "x"
    assert stamp(found) == stamp(made)


def test_who_may_write_all_of_a_namespace_may_not_say_which_devices_were_taken(
    jane: User, made: Json, crds: Plane, tmp_path: Path
) -> None:
    """status.pairs are what a new leader goes on with; a namespace's administrator often has every right in it."""
    folder = tmp_path / "operator"
    folder.mkdir()
    grant(crds, "all-of-it", [rule("*", "*", "*")], user=jane.me().username, namespace=NAMESPACE)
    wait_until(lambda: jane.may("patch", "vfiomigrations", "--subresource=status"), "the grant")
    change = ["patch", "vfm/m", "--subresource=status", "--type=merge", "-p"]
    pairs = json.dumps({"status": {"pairs": made["spec"]["devices"]}})
    wait_until(lambda: jane.try_kubectl(*change, pairs, "--dry-run=server").returncode != 0, "the policy")
    said = jane.refused(*change, pairs)
    assert "the status of a VFIOMigration is written by the operator" in said
    operator = service_account(crds, NAMESPACE, "vfio-operator", folder)
    account = operator.me().username
    rights = [rule(API, "vfiomigrations/status", "get", "patch"), rule(API, "vfiomigrations", "get")]
    grant(crds, "status", rights, user=account, namespace=NAMESPACE)
    wait_until(lambda: operator.may("get", "vfiomigrations"), "the grant")
    operator.kubectl(*change, pairs)
    assert read(jane, "m")["status"]["pairs"] == made["spec"]["devices"]


def test_it_cannot_be_removed(kim: User, made: Json) -> None:
    kim.kubectl("annotate", "vfm/m", f"{REQUESTER_ANNOTATION}-")
    assert stamp(read(kim, "m")) == stamp(made)
    kim.kubectl("patch", "vfm/m", "--type=merge", "-p", '{"metadata":{"annotations":null}}')
    assert stamp(read(kim, "m")) == stamp(made)
    kim.kubectl("replace", "-f", "-", manifest=manifest("m"))
    assert stamp(read(kim, "m")) == stamp(made)


@pytest.mark.parametrize("flags", [[], ["--server-side"]], ids=["client-side", "server-side"])
def test_the_same_manifest_can_be_applied_again_by_anyone(jane: User, kim: User, flags: list[str]) -> None:
    first = json.loads(jane.kubectl("apply", *flags, "-f", "-", "-o", "json", manifest=manifest("again")))
    try:
        for user in (jane, kim, jane):
            same = json.loads(user.kubectl("apply", *flags, "-f", "-", "-o", "json", manifest=manifest("again")))
            assert stamp(same) == stamp(first)
            assert same["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"] or not flags
        other = json.loads(
            kim.kubectl(
                "apply", *flags, "-f", "-", "-o", "json", manifest=manifest("again", {"note": "b"}, cancel=True)
            )
        )
        assert other["spec"]["cancel"] is True
        assert (stamp(other), other["metadata"]["annotations"]["note"]) == (stamp(first), "b")
    finally:
        jane.kubectl("delete", "vfm", "again")


def test_server_side_apply_may_name_it_and_leave_it_out_again(kim: User, made: Json) -> None:
    """What was read from the cluster is applied, then what is in git: by then the field has an owner who drops it."""
    apply = ["apply", "--server-side", "--field-manager=git", "-f", "-", "-o", "json"]
    named = json.loads(kim.kubectl(*apply, manifest=manifest("m", {REQUESTER_ANNOTATION: str(stamp(made))})))
    dropped = json.loads(kim.kubectl(*apply, manifest=manifest("m", {})))
    assert stamp(named) == stamp(dropped) == stamp(made)


def test_another_user_may_cancel_it_and_has_not_asked_for_it(kim: User, made: Json) -> None:
    kim.kubectl("patch", "vfm/m", "--type=merge", "-p", '{"spec":{"cancel":true}}')
    kim.kubectl("label", "vfm/m", "a=b")
    found = read(kim, "m")
    assert (found["spec"]["cancel"], stamp(found)) == (True, stamp(made))


def test_who_restores_a_backup_has_asked_for_it(jane: User, kim: User) -> None:
    backup = json.loads(jane.kubectl("create", "-f", "-", "-o", "json", manifest=manifest("backup")))
    jane.kubectl("delete", "vfm", "backup")
    for field in ("uid", "resourceVersion", "managedFields", "creationTimestamp", "generation"):
        backup["metadata"].pop(field, None)
    restored = json.loads(kim.kubectl("create", "-f", "-", "-o", "json", manifest=backup))
    kim.kubectl("delete", "vfm", "backup")
    assert requester_of(backup) == jane.me()
    assert requester_of(restored) == kim.me()


@pytest.fixture
def only_validating(policies: list[Json], crds: Plane) -> Iterator[None]:
    """The mutating policy is gone."""
    crds.kubectl("delete", "mutatingadmissionpolicy", REQUESTER_POLICY)
    wait_until(lambda: not _stamped(crds), "the stamp is no longer written")
    yield
    crds.kubectl("create", "-f", "-", input=json.dumps(policies[0]))
    wait_until(lambda: _stamped(crds), "the stamp is written")


def test_without_the_mutating_policy_a_forged_one_is_refused(only_validating: None, jane: User) -> None:
    said = jane.refused("create", "-f", "-", manifest=manifest("forged", {REQUESTER_ANNOTATION: FORGED}))
    assert "names another user than the one who creates this VFIOMigration; leave it out" in said
    true = {REQUESTER_ANNOTATION: stamp_of(jane.me())}
    jane.kubectl("create", "--dry-run=server", "-f", "-", manifest=manifest("true", true))
    jane.kubectl("create", "-f", "-", manifest=manifest("unstamped"))
    said = jane.refused("annotate", "vfm/unstamped", f"{REQUESTER_ANNOTATION}={stamp_of(jane.me())}")
    assert "cannot be changed, added or removed" in said
    jane.kubectl("delete", "vfm", "unstamped")


def test_without_the_mutating_policy_it_cannot_be_removed_either(only_validating: None, jane: User) -> None:
    apply = ["apply", "--server-side", "-f", "-"]
    jane.kubectl(*apply, manifest=manifest("true", {REQUESTER_ANNOTATION: stamp_of(jane.me())}))
    for said in (
        jane.refused(*apply, manifest=manifest("true", {})),
        jane.refused("replace", "-f", "-", manifest=manifest("true")),
        jane.refused("annotate", "vfm/true", f"{REQUESTER_ANNOTATION}-"),
    ):
        assert "cannot be changed, added or removed" in said
    jane.kubectl(*apply, manifest=manifest("unstamped", {"note": "b"}))
    jane.kubectl(*apply, manifest=manifest("unstamped", {}))  # the last annotation of one that never had a stamp
    jane.kubectl("delete", "vfm", "true", "unstamped")


def test_the_policies_are_type_checked_without_a_warning(policies: list[Json], crds: Plane) -> None:
    def checked(name: str) -> Json:
        found = crds.kubectl("get", "validatingadmissionpolicy", name, "-o", "json")
        status: Json = json.loads(found).get("status", {})
        return status

    for name in (REQUESTER_POLICY, "vfio-migration-status"):
        wait_until(lambda n=name: "typeChecking" in checked(n), "the type check")
        assert checked(name)["typeChecking"] == {}
