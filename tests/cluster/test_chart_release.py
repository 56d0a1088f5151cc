"""The chart's whole life by the real helm on a real API server: install, upgrade, uninstall, install again. In order.

Its nodes play their kubelets, so pods run without running anything; what the hook's pod does is run here, with the
rights of its service account.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from cluster.rendering import AGENTS, CHART, EVERYTHING, NAMESPACE, ROOT, VALUE_SETS, Object, render
from cluster.users import wait_until
from devtools.chart_tools import foreign_crds
from devtools.images import OPERATOR
from devtools.plane import KubectlError, Plane
from devtools.stack import migration, python_path
from devtools.tools import helm, kubectl
from vfio_api.names import FINALIZER, FINISHED_LABEL

CRD = "vfiomigrations.vfiomigration.io"
FLAGS = [flag for flag in EVERYTHING if not flag.startswith("--api-versions")]


@dataclass(frozen=True)
class Cluster:
    """A control plane with the APIs of cert-manager and of the Prometheus operator, and helm."""

    plane: Plane
    folder: Path

    def helm(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run helm, whatever comes of it."""
        folders = {f"HELM_{name}_HOME": str(self.folder) for name in ("CACHE", "CONFIG", "DATA")}
        environment = self.plane.environment | folders
        command = [helm(), *arguments, "--namespace", NAMESPACE]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    def get(self, *arguments: str) -> Object:
        """`kubectl get`."""
        found: Object = json.loads(self.plane.kubectl("get", *arguments, "-o", "json"))
        return found

    def names(self, kind: str, *arguments: str) -> set[str]:
        """The names of all objects of a kind."""
        return set(self.plane.kubectl("get", kind, *arguments, "-o", "name").split())

    def asked(self, hook: str, *arguments: str) -> tuple[subprocess.CompletedProcess[str], ...]:
        """Run helm, and what its hook's pod would run: what helm said, and what that said."""
        with ThreadPoolExecutor(1) as pool:
            waiting: Future[subprocess.CompletedProcess[str]] = pool.submit(self.helm, *arguments)
            pods = ["pods", "-n", NAMESPACE, "-l", f"app.kubernetes.io/component={hook}"]

            def runs() -> bool:
                assert not waiting.done(), waiting.result().stderr
                return any(pod["status"]["phase"] == "Running" for pod in self.get(*pods)["items"])

            wait_until(runs, "the hook's pod runs", 60)
            (pod,) = [pod for pod in self.get(*pods)["items"] if pod["status"]["phase"] == "Running"]
            done = self._run(pod["spec"])
            phase = "Failed" if done.returncode else "Succeeded"
            path = ["pod", pod["metadata"]["name"], "-n", NAMESPACE, "--subresource=status", "--type=merge"]
            self.plane.kubectl("patch", *path, "-p", json.dumps({"status": {"phase": phase}}))
            return waiting.result(120), done

    def _run(self, spec: Object) -> subprocess.CompletedProcess[str]:
        kubeconfig = self.folder / "hook.kubeconfig"
        self.plane.service_account_kubeconfig(NAMESPACE, spec["serviceAccountName"], kubeconfig)
        (container,) = spec["containers"]
        script, *rest = container["command"]
        module = OPERATOR.scripts[script]  # of the image's
        arguments = [*rest, *container.get("args", []), "--kubeconfig", str(kubeconfig)]
        command = [sys.executable, "-c", f"import {module} as m; m.main()", *arguments]
        environment = self.plane.environment | python_path()
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Plane(fake_nodes=["node-a", "node-b"]) as plane:
        crds = json.dumps({"apiVersion": "v1", "kind": "List", "items": foreign_crds()})
        plane.kubectl("apply", "--server-side", "-f", "-", input=crds)
        plane.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
        labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
        _create(plane, {"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": NAMESPACE, "labels": labels}})
        yield Cluster(plane, tmp_path_factory.mktemp("helm"))


def _create(plane: Plane, item: Object, *flags: str) -> Object:
    made: Object = json.loads(plane.kubectl("create", "-f", "-", "-o", "json", *flags, input=json.dumps(item)))
    return made


def _patch(plane: Plane, name: str, change: Mapping[str, object], *flags: str) -> None:
    plane.kubectl("patch", "vfm", name, "-n", "default", "--type=merge", "-p", json.dumps(change), *flags)


def _running(plane: Plane, name: str) -> Object:
    """A migration that the operator has begun."""
    item = migration(name, [("gpu0", "node-a", "sim0", "node-b", "sim0")])
    made = _create(plane, item)
    _patch(plane, name, {"metadata": {"finalizers": [FINALIZER]}})
    _patch(plane, name, {"status": {"phase": "PreCopy"}}, "--subresource=status")
    return made


def test_install(cluster: Cluster) -> None:
    """Operator pods are admitted where nothing but restricted ones are, agents where the chart puts them."""
    done = cluster.helm("install", "release", str(CHART), "--wait", "--timeout=120s", *FLAGS)
    assert done.returncode == 0, done.stderr
    assert "PodSecurity" not in done.stderr
    assert "kubectl create clusterrolebinding vfio-users" in done.stdout
    operator = cluster.get("deployment", "vfio-operator", "-n", NAMESPACE)
    assert operator["status"]["readyReplicas"] == 2
    for name in ("vfio-agent", "vfio-keeper", "vfio-simulator"):
        assert cluster.get("daemonset", name, "-n", AGENTS)["status"]["numberReady"] == 2
    assert cluster.names("servicemonitor", "-n", NAMESPACE)
    assert cluster.names("podmonitor", "-n", AGENTS)
    wanted = {f"certificate.cert-manager.io/vfio-operator-{name}" for name in ("ca", "evictions", "tls")}
    assert cluster.names("certificate", "-n", NAMESPACE) == wanted


def test_the_webhooks_own_certificate_is_made_once(cluster: Cluster) -> None:
    """And again if somebody damages it; the API server is always told whom to trust."""

    def rendered() -> tuple[Object, str]:
        chosen = ["--set=evictionWebhook.enabled=true", "--show-only=templates/evictions.yaml", "--dry-run=server"]
        found = yaml.safe_load_all(cluster.helm("template", "release", str(CHART), *chosen).stdout)
        items = {item["kind"]: item for item in found}
        secret = items["Secret"]
        bundle = items["ValidatingWebhookConfiguration"]["webhooks"][0]["clientConfig"]["caBundle"]
        assert bundle == secret["data"]["ca.crt"]
        return secret, bundle

    secret, bundle = rendered()
    owner = {"meta.helm.sh/release-name": "release", "meta.helm.sh/release-namespace": NAMESPACE}
    _create(cluster.plane, secret | {"metadata": secret["metadata"] | {"annotations": owner}})
    assert rendered() == (secret, bundle)
    name = ["secret", secret["metadata"]["name"], "-n", NAMESPACE]
    cluster.plane.kubectl("patch", *name, "--type=merge", "-p", json.dumps({"data": {"ca.crt": ""}}))
    assert rendered()[1] not in ("", bundle)
    cluster.plane.kubectl("delete", *name)


def _dry_run(cluster: Cluster, items: list[Object]) -> str:
    """What the API server warns of, if it accepts them all."""
    command = [kubectl(), "apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-"]
    listed = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
    done = subprocess.run(
        command, input=listed, env=cluster.plane.environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def doctor(cluster: Cluster) -> None:
    """The account of the test's pod, which is there only while the test runs."""
    cluster.plane.kubectl("create", "serviceaccount", "vfio-doctor", "-n", NAMESPACE)


@pytest.mark.usefixtures("doctor")
@pytest.mark.parametrize("flags", VALUE_SETS.values(), ids=VALUE_SETS)
def test_the_api_server_accepts_it_without_a_warning(cluster: Cluster, flags: tuple[str, ...]) -> None:
    assert _dry_run(cluster, render(*flags)) == ""


def test_an_agent_beside_the_operator_would_be_warned_of(cluster: Cluster) -> None:
    """The check above could find what it is there for."""
    (agent,) = [item for item in render() if item["metadata"]["name"] == "vfio-agent" and item["kind"] == "DaemonSet"]
    agent["metadata"]["namespace"] = NAMESPACE
    assert "would violate PodSecurity" in _dry_run(cluster, [agent])


@pytest.mark.parametrize(
    ("role", "verb", "resource", "answer"),
    [
        ("view", "list", CRD, "yes"),
        ("view", "get", "vfioswitchovers.vfiomigration.io", "yes"),
        ("view", "create", CRD, "no"),
        ("edit", "watch", CRD, "yes"),
        ("edit", "create", CRD, "yes"),
        ("edit", "deletecollection", CRD, "yes"),
        ("edit", "patch", f"{CRD} --subresource=status", "no"),
        ("edit", "create", "vfioswitchovers.vfiomigration.io", "no"),
        ("edit", "patch", "vfioswitchovers.vfiomigration.io --subresource=status", "no"),
        ("admin", "create", CRD, "yes"),
        ("admin", "update", f"{CRD} --subresource=status", "no"),
        ("admin", "use", "vfiodevices.vfiomigration.io", "no"),
        ("admin", "use", CRD, "no"),
    ],
)
def test_roles_of_people(cluster: Cluster, role: str, verb: str, resource: str, answer: str) -> None:
    user = f"user-of-{role}"
    binding = ["create", "rolebinding", user, f"--clusterrole={role}", f"--user={user}", "-n", "default"]
    cluster.plane.kubectl(*binding, check=False)

    def may(wanted: str, what: str) -> str:
        return cluster.plane.kubectl("auth", "can-i", wanted, *what.split(), f"--as={user}", check=False).strip()

    wait_until(lambda: may("get", CRD) == "yes", "the role is in force")  # aggregated a moment later
    wait_until(lambda: role == "view" or may("create", CRD) == "yes", "the role is in force")
    assert may(verb, resource) == answer


def test_helm_test(cluster: Cluster) -> None:
    """The doctor may read all that it looks at; no operator leads here, so it finds something."""
    cluster.plane.kubectl("delete", "serviceaccount", "vfio-doctor", "-n", NAMESPACE, "--ignore-not-found")
    helm_said, doctor_said = cluster.asked("doctor", "test", "release", "--timeout=120s")
    assert (helm_said.returncode != 0) == (doctor_said.returncode != 0)
    assert doctor_said.returncode == 1, doctor_said.stderr
    said = doctor_said.stdout
    assert "forbidden" not in said, said
    assert "CustomResourceDefinition" in said or "vfiomigrations" in said, said
    assert "Traceback" not in doctor_said.stderr


def test_upgrade(cluster: Cluster, tmp_path: Path) -> None:
    """CRDs are upgraded with the chart, objects stay, and the leader keeps its Lease."""
    changed = tmp_path / "chart"
    shutil.copytree(CHART, changed)  # with what links point to
    path = changed / "crd-files/vfiomigrations.yaml"
    crd = yaml.safe_load(path.read_text())
    column = {"name": "Newest", "type": "string", "jsonPath": ".spec.mode"}
    crd["spec"]["versions"][0]["additionalPrinterColumns"].append(column)
    path.write_text(yaml.safe_dump(crd))
    _create(cluster.plane, migration("stays", [("gpu0", "node-a", "sim0", "node-b", "sim0")]))
    lease = ["lease", "vfio-operator", "-n", NAMESPACE]
    held = {"spec": {"holderIdentity": "operator-0"}, "metadata": {"annotations": {"vfiomigration.io/epoch": "7"}}}
    cluster.plane.kubectl("patch", *lease, "--type=merge", "-p", json.dumps(held))
    keepers = cluster.names("pods", "-n", AGENTS, "-l", "app.kubernetes.io/component in (keeper, simulator)")
    flags = [*FLAGS, "--set=agent.logLevel=debug,operator.logLevel=debug"]
    done = cluster.helm("upgrade", "release", str(changed), "--wait", "--timeout=120s", *flags)
    assert done.returncode == 0, done.stderr
    columns = cluster.get("crd", CRD)["spec"]["versions"][0]["additionalPrinterColumns"]
    assert column in columns
    assert "vfiomigration.vfiomigration.io/stays" in cluster.names("vfm", "-n", "default")
    assert cluster.get(*lease)["spec"]["holderIdentity"] == "operator-0"
    assert cluster.get(*lease)["metadata"]["annotations"]["vfiomigration.io/epoch"] == "7"
    assert len(keepers) == 4
    assert cluster.names("pods", "-n", AGENTS, "-l", "app.kubernetes.io/component in (keeper, simulator)") == keepers


def test_uninstall_refuses_while_a_migration_runs(cluster: Cluster) -> None:
    before = cluster.names("deployment,daemonset,clusterrole", "-A")
    _running(cluster.plane, "runs")
    helm_said, hook_said = cluster.asked("uninstall", "uninstall", "release", "--timeout=120s")
    assert helm_said.returncode != 0
    assert "vfio-uninstall" in helm_said.stderr, helm_said.stderr
    assert hook_said.returncode == 1
    assert "VFIOMigration default/runs is PreCopy" in hook_said.stderr
    assert "kubectl wait vfm --namespace default runs --for=condition=Finished" in hook_said.stderr
    assert "kubectl patch vfm --namespace default runs" in hook_said.stderr
    assert "default/stays" not in hook_said.stderr  # it has not begun, and waits for the next operator
    assert cluster.names("deployment,daemonset,clusterrole", "-A") >= before
    assert "serviceaccount/vfio-uninstall" not in cluster.names("serviceaccount", "-n", NAMESPACE)  # nor its rights
    assert "clusterrole.rbac.authorization.k8s.io/vfio-uninstall" not in cluster.names("clusterrole")


def test_uninstall(cluster: Cluster) -> None:
    """What has finished lets go; objects and their definitions stay, everything else goes."""
    runs = cluster.get("vfm", "runs", "-n", "default")
    switchover = {
        "apiVersion": "vfiomigration.io/v1alpha1",
        "kind": "VFIOSwitchover",
        "metadata": {"name": runs["metadata"]["uid"], "namespace": "default", "finalizers": [FINALIZER]},
        "spec": {
            "migrationName": "runs",
            "migrationUID": runs["metadata"]["uid"],
            "epoch": 1,
            "sourceNodes": ["node-a"],
            "targetNodes": ["node-b"],
            "timeoutSeconds": 10,
        },
    }
    _create(cluster.plane, switchover, f"--as=system:serviceaccount:{NAMESPACE}:vfio-operator")
    condition = {"type": "Finished", "status": "True", "reason": "Succeeded", "message": "done"}
    condition |= {"lastTransitionTime": "2026-01-01T00:00:00Z"}
    status = {"status": {"phase": "Succeeded", "conditions": [condition]}}
    _patch(cluster.plane, "runs", status, "--subresource=status")

    helm_said, hook_said = cluster.asked("uninstall", "uninstall", "release", "--timeout=120s", "--wait")
    assert hook_said.returncode == 0, hook_said.stderr
    assert helm_said.returncode == 0, helm_said.stderr
    assert "0 migrations run, 1 wait, 2 objects let go" in hook_said.stdout
    assert cluster.names("vfm", "-n", "default") == {f"vfiomigration.vfiomigration.io/{n}" for n in ("runs", "stays")}
    for kind in ("vfm", "vfioswitchover"):
        assert not [item for item in cluster.get(kind, "-A")["items"] if item["metadata"].get("finalizers")]
    assert cluster.get("vfm", "runs", "-n", "default")["metadata"]["labels"] == {FINISHED_LABEL: "true"}
    left = cluster.names(
        "deployment,daemonset,job,serviceaccount,lease,clusterrole,clusterrolebinding,"
        "validatingadmissionpolicy,mutatingadmissionpolicy",
        "-A",
        "-l",
        "helm.sh/chart",
    )
    assert left == set()


def test_install_again(cluster: Cluster) -> None:
    wait_until(lambda: f"namespace/{AGENTS}" not in cluster.names("namespace"), "the agents' namespace is gone", 60)
    done = cluster.helm("install", "release", str(CHART), "--set=uninstall.force=true")
    assert done.returncode == 0, done.stderr
    assert "helm uninstall asks nothing" in done.stdout


def test_uninstall_by_force(cluster: Cluster) -> None:
    _running(cluster.plane, "stranded")
    helm_said, hook_said = cluster.asked("uninstall", "uninstall", "release", "--timeout=120s")
    assert (helm_said.returncode, hook_said.returncode) == (0, 0), helm_said.stderr + hook_said.stderr
    assert cluster.get("vfm", "stranded", "-n", "default")["metadata"]["finalizers"] == [FINALIZER]


def test_into_namespaces_that_are_there_for_their_secrets(cluster: Cluster, tmp_path: Path) -> None:
    """By the commands that the example has, which begin in a cluster without any of it."""
    wait_until(lambda: f"namespace/{AGENTS}" not in cluster.names("namespace"), "the agents' namespace is gone", 60)
    cluster.plane.kubectl("create", "namespace", AGENTS)
    refused = cluster.helm("install", "release", str(CHART))
    assert f'Namespace "{AGENTS}" in namespace "" exists and cannot be imported' in refused.stderr, refused.stderr
    cluster.plane.kubectl("delete", "namespace", AGENTS, NAMESPACE)
    example = (ROOT / "examples/values/airgapped.yaml").read_text()
    script = "".join(line.removeprefix("#  ") + "\n" for line in example.splitlines() if line.startswith("#   "))
    script = script.replace("mirror.json", str(tmp_path / "mirror.json"))
    script = script.replace("helm install vfio", "helm install release")  # whose the definitions are that stayed
    (tmp_path / "mirror.json").write_text('{"auths": {}}')
    path = os.pathsep.join(map(str, (Path(helm()).parent, Path(kubectl()).parent, os.environ["PATH"])))
    done = subprocess.run(
        ["sh", "-e", "-c", script],
        cwd=ROOT,
        env=cluster.plane.environment | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"kubectl label namespace {AGENTS} pod-security.kubernetes.io/enforce=privileged" in done.stdout
    for namespace in (NAMESPACE, AGENTS):
        assert "secret/mirror" in cluster.names("secret", "-n", namespace)
    assert cluster.get("daemonset", "vfio-agent", "-n", AGENTS)["status"]["numberReady"] == 2


def test_quota(cluster: Cluster) -> None:
    """The example's quota counts migrations, and refuses one too many."""
    quota = yaml.safe_load((ROOT / "examples/quota.yaml").read_text())
    namespace, key = quota["metadata"]["namespace"], "count/vfiomigrations.vfiomigration.io"
    limit, name = int(quota["spec"]["hard"][key]), ["resourcequota", quota["metadata"]["name"], "-n", namespace]
    cluster.plane.kubectl("create", "namespace", namespace)
    _create(cluster.plane, quota)

    def used() -> str:
        status = cluster.get(*name).get("status", {})
        return str(status.get("used", {}).get(key))

    def counts() -> bool:
        """The quota controller looks for new kinds twice a minute, and at a quota when it changes."""
        for hard in ({key: str(limit)}, {key: str(limit), "pods": "1"}):
            cluster.plane.kubectl("patch", *name, "--type=merge", "-p", json.dumps({"spec": {"hard": hard}}))
        return used() == "0"

    wait_until(counts, "the quota is in force", 90)
    pairs = [("gpu0", "node-a", "sim0", "node-b", "sim0")]
    items = [migration(f"m{number}", pairs, namespace=namespace) for number in range(limit)]
    listed = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
    cluster.plane.kubectl("create", "-f", "-", input=listed)
    with pytest.raises(KubectlError, match=f"exceeded quota: vfio-migrations.*limited: {key}={limit}"):
        _create(cluster.plane, migration("one-too-many", pairs, namespace=namespace))
    cluster.plane.kubectl("delete", "namespace", namespace, "--wait=false")
