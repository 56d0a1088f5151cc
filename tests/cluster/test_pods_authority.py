"""To have a pod moved takes the rights to do it by hand; real users with and without them, on the real API server."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.pods_world import PodsWorld, claim, failed, move, untouched
from cluster.users import User, grant, rule, service_account, stamp, wait_until
from vfio_api.models import device_object_name
from vfio_api.names import API, REQUESTER_ANNOTATION

Json = dict[str, Any]
DEVICES = ("sim0", "sim1")
NAMESPACE = "default"


@pytest.fixture(autouse=True)
def clean(pods: PodsWorld) -> Iterator[None]:
    """Every test begins with free devices and no pods."""
    yield
    pods.clean()


@pytest.fixture(scope="module")
def jane(pods: PodsWorld, tmp_path_factory: pytest.TempPathFactory) -> User:
    """May create VFIOMigrations here, and nothing else."""
    made = service_account(pods.stack.plane, NAMESPACE, "jane", tmp_path_factory.mktemp("jane"))
    rules = [rule(API, "vfiomigrations", "create", "get")]
    grant(pods.stack.plane, "jane", rules, user=made.me().username, namespace=NAMESPACE)
    wait_until(lambda: made.may("create", f"vfiomigrations.{API}"), "the grant")
    return made


@pytest.fixture
def allow(pods: PodsWorld, jane: User) -> Iterator[Callable[..., None]]:
    """Let jane do something with pods (or a device), and wait until the API server knows; taken away at the end."""
    plane, given = pods.stack.plane, []

    def give(verb: str, group: str, resource: str, *names: str) -> None:
        role, namespace = f"jane-{verb}-{len(given)}", "" if group else NAMESPACE
        grant(plane, role, [rule(group, resource, verb, names=names)], user=jane.me().username, namespace=namespace)
        given.append((role, namespace))
        what = f"{resource}.{group}" if group else resource
        wait_until(lambda: jane.may(verb, f"{what}/{names[0]}" if names else what), f"{verb} {what}")

    yield give
    for role, namespace in given:
        kind = "rolebinding" if namespace else "clusterrolebinding"
        plane.kubectl("delete", kind, role, *(["-n", namespace] if namespace else []))


def asked(pods: PodsWorld, who: User, manifest: Json) -> Json:
    """Create it as a user; the object when it has finished."""
    who.kubectl("create", "-f", "-", manifest=manifest)
    return pods.finished(str(manifest["metadata"]["name"]))


def test_the_requester_must_be_allowed_to_delete_the_pod_and_to_create_pods(
    pods: PodsWorld, jane: User, allow: Callable[..., None]
) -> None:
    source, who = pods.with_devices("web"), jane.me().username
    arcs = [len(node.arcs()) for node in pods.stack.nodes.values()]
    message = failed(asked(pods, jane, move("no-right", "web")), "ForbiddenPod")
    assert message == (
        f"spec.source: user {who} may not delete pod default/web, and a pod that is moved is deleted in the end: the "
        "verb delete on pods/web in namespace default is missing; check with `kubectl auth can-i delete pods/web "
        f"-n default --as={who}`, have a role with that verb bound, then delete and create the migration again"
    )
    allow("delete", "", "pods", "web")
    message = failed(asked(pods, jane, move("delete-only", "web")), "ForbiddenPod")
    words = "may not create pods in namespace default, and pod default/web gets a counterpart: the verb create on pods"
    assert message.startswith(f"spec.source: user {who} {words} in namespace default is missing; ")
    assert f"check with `kubectl auth can-i create pods -n default --as={who}`" in message
    allow("create", "", "pods")
    found = asked(pods, jane, move("no-target", "web"))
    message = failed(found, "ForbiddenDevice")
    assert message.startswith(f"pair sim0: user {who} may not use target device sim0 on node node-b")
    assert "source" not in message, "the sources are the pod's own"
    assert [len(node.arcs()) for node in pods.stack.nodes.values()] == arcs
    untouched(pods, source, DEVICES)
    allow("use", API, "vfiodevices", *(device_object_name("node-b", address) for address in DEVICES))
    found = asked(pods, jane, move("allowed", "web"))
    assert found["status"]["phase"] == "Succeeded", found["status"]["message"]
    assert who in str(stamp(found))


def test_the_right_to_use_every_device_is_none_on_a_pod(
    pods: PodsWorld, jane: User, allow: Callable[..., None]
) -> None:
    source = pods.with_devices("web")
    allow("use", API, "vfiodevices")
    assert "may not delete pod default/web" in failed(asked(pods, jane, move("all-devices", "web")), "ForbiddenPod")
    untouched(pods, source, DEVICES)


def test_who_may_not_move_a_pod_is_not_told_what_there_is_of_it(
    pods: PodsWorld, jane: User, allow: Callable[..., None]
) -> None:
    """Absent, belonging to a DaemonSet, mounting volumes: the answer is the same, and the status names no node."""
    source = pods.with_devices("web", volumes=[claim(pods, "data", "ReadWriteOncePod")])
    said = set()
    for name in ("web", "nobody"):
        found = asked(pods, jane, move(f"curious-{name}", name, mode="Plan"))
        said.add(failed(found, "ForbiddenPod").replace(name, "NAME"))
        assert "workload" not in found["status"]
        assert found["status"].get("feasibility", []) == []
    assert len(said) == 1
    allow("delete", "", "pods")  # of another's name is not enough, of all is
    assert "may not create pods" in failed(asked(pods, jane, move("curious", "web")), "ForbiddenPod")
    untouched(pods, source, DEVICES)


# Evacuations are done for who asked for them.


def evacuation(name: str, node: str = "node-a", annotations: Json | None = None) -> Json:
    return {
        "apiVersion": f"{API}/v1alpha1",
        "kind": "VFIOEvacuation",
        "metadata": {"name": name, **({"annotations": annotations} if annotations else {})},
        "spec": {"nodeName": node},
    }


def test_an_evacuation_moves_what_its_requester_may_move(
    pods: PodsWorld, jane: User, allow: Callable[..., None]
) -> None:
    """The operator makes the migrations, and may do anything; they are reviewed as hers all the same."""
    who = jane.me().username
    allow("create", API, "vfioevacuations")
    pods.with_devices("web")
    jane.kubectl("create", "-f", "-", manifest=evacuation("empty"))
    made = pods.stack.get("vfe", "empty")
    assert who in str(stamp(made))

    def tried() -> Json:
        items = pods.stack.get("vfe", "empty").get("status", {}).get("items", [])
        return next((item for item in items if item.get("message")), {})

    pods.stack.wait_until(lambda: bool(tried()), "the first attempt is refused")
    assert f"user {who} may not delete pod default/web" in tried()["message"]
    first = pods.stack.get("vfm", tried()["migration"])
    assert stamp(first) == stamp(made)
    pods.stack.kubectl("delete", "vfe", "empty")
    source = pods.there("web")
    untouched(pods, source, DEVICES)
    for verb in ("delete", "create"):
        allow(verb, "", "pods")
    allow("use", API, "vfiodevices", *(device_object_name("node-b", address) for address in DEVICES))
    jane.kubectl("create", "-f", "-", manifest=evacuation("again"))
    pods.stack.kubectl("wait", "--for=condition=Finished", "vfe/again", "--timeout=60s")
    ended = pods.stack.get("vfe", "again")
    assert ended["status"]["phase"] == "Succeeded", ended["status"]
    assert pods.get_pod("web") is None


def test_nobody_says_that_an_evacuation_is_anothers(pods: PodsWorld, jane: User, allow: Callable[..., None]) -> None:
    for verb in ("create", "patch", "get"):
        allow(verb, API, "vfioevacuations")
    forged = '{"username":"system:admin","uid":"","groups":["system:masters"],"extra":{}}'
    manifest = evacuation("forged", "node-z", {REQUESTER_ANNOTATION: forged})
    made = json.loads(jane.kubectl("create", "-f", "-", "-o", "json", manifest=manifest))
    assert jane.me().username in str(stamp(made))
    said = jane.refused("annotate", "vfe/forged", "--overwrite", f"{REQUESTER_ANNOTATION}={forged}")
    assert "says who created this VFIOEvacuation and cannot be changed, added or removed; leave it out" in said


def test_only_the_operator_says_for_whom_it_creates_a_migration(pods: PodsWorld, jane: User, tmp_path: Path) -> None:
    forged = move("for-another", "web")
    theirs = '{"username":"ann","uid":"","groups":[],"extra":{}}'
    forged["metadata"]["annotations"] = {REQUESTER_ANNOTATION: theirs}
    path = tmp_path / "operator.kubeconfig"
    pods.stack.plane.service_account_kubeconfig("vfio-migration", "vfio-operator", path)
    create = ["create", "--dry-run=server", "-f", "-", "-o", "json"]
    by_operator = json.loads(User(pods.stack.plane, path).kubectl(*create, "-n", NAMESPACE, manifest=forged))
    assert stamp(by_operator) == theirs
    by_jane = json.loads(jane.kubectl(*create, manifest=forged))
    assert jane.me().username in str(stamp(by_jane))
    admin = json.loads(pods.stack.kubectl(*create, input=json.dumps(forged)))
    assert stamp(admin) != theirs
    forged["metadata"]["annotations"] = {REQUESTER_ANNOTATION: ""}
    nobody = json.loads(User(pods.stack.plane, path).kubectl(*create, "-n", NAMESPACE, manifest=forged))
    assert stamp(nobody) == "", "of an evacuation of nobody: refused when it is looked at"
