"""The eviction webhook asked by a real API server, for a real `kubectl drain`: at a replica that does not lead.

No agent runs: what the inventory shows was written by hand, and a migration waits for agents as long as the test needs.
"""

import base64
import datetime
import ipaddress
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cluster.guarded import device
from cluster.rendering import EVICTIONS, of_kind, render
from devtools.processes import Child
from devtools.stack import Stack
from devtools.tools import kubectl
from vfio_api.names import REQUESTER_ANNOTATION

Json = dict[str, Any]


@dataclass(frozen=True)
class Drained:
    """A control plane with a webhook, a leader and a standby, which is the one that is asked."""

    stack: Stack
    leader: Child
    standby: Child

    def drain(self, *flags: str, seconds: int = 60) -> subprocess.CompletedProcess[str]:
        """`kubectl drain node-a`, whatever comes of it."""
        wanted = ["drain", "node-a", "--ignore-daemonsets", "--force", f"--timeout={seconds}s", *flags]
        pods = ["--pod-selector=drained=yes"]  # not those that stand for the agents of a stack
        command, environment = [str(kubectl()), *wanted, *pods], self.stack.plane.environment
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    def pod(self, name: str) -> str:
        """A pod that runs on node-a, without a controller; its UID."""
        metadata = {"name": name, "namespace": "default", "labels": {"drained": "yes"}}
        spec = {"nodeName": "node-a", "containers": [{"name": "c", "image": "c"}], "terminationGracePeriodSeconds": 0}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
        made = self.stack.kubectl("create", "-f", "-", "-o", "json", input=json.dumps(body))
        return str(json.loads(made)["metadata"]["uid"])

    def there(self, name: str) -> bool:
        """Whether the pod is there and is not to end."""
        found = self.stack.kubectl("get", "pod", name, "-o", "json", "--ignore-not-found")
        return bool(found) and "deletionTimestamp" not in json.loads(found)["metadata"]

    def shows(self, address: str, node: str, pod: str = "", uid: str = "") -> None:
        """The inventory shows a device, of a pod."""
        body = device(node, address)
        user = {"holder": f"pod default/{pod}", "pod": {"uid": uid, "namespace": "default", "name": pod}} if pod else {}
        status = {"driver": "vfio-sim", "model": "vf", "migratable": True, "migrationFlags": ["STOP_COPY"], **user}
        self.stack.kubectl("apply", "-f", "-", input=json.dumps(body))
        name = body["metadata"]["name"]
        change = json.dumps({"status": status})
        self.stack.kubectl("patch", "vfd", name, "--subresource=status", "--type=merge", "-p", change)

    def migrations(self) -> list[Json]:
        """Those that were made."""
        return list(self.stack.get("vfm", "-n", "default")["items"])


def certificate(folder: Path) -> bytes:
    """A certificate for this host, its own authority, as the operator looks for it."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "webhook")])
    moment = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(moment - datetime.timedelta(days=1))
        .not_valid_after(moment + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (folder / "tls.key").write_bytes(key.private_bytes(encoding, form, serialization.NoEncryption()))
    (folder / "tls.crt").write_bytes(made.public_bytes(encoding))
    return made.public_bytes(encoding)


def configuration(operator: Child, authority: bytes) -> Json:
    """The chart's, but that it leads to a process on this host."""
    (body,) = of_kind(render(EVICTIONS), "ValidatingWebhookConfiguration")
    started = next(line for line in operator.text().splitlines() if '"operator started"' in line)
    url = f"https://127.0.0.1:{json.loads(started)['eviction_port']}/evict"
    body["webhooks"][0]["clientConfig"] = {"url": url, "caBundle": base64.b64encode(authority).decode()}
    return body


@pytest.fixture(scope="module")
def drained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drained]:
    folder = tmp_path_factory.mktemp("tls")
    authority = certificate(folder)
    with Stack(["node-a", "node-b"]) as stack:
        leader = stack.start_operator("operator-0", EVICTION_TLS_DIR=str(folder), SETTLE_SECONDS="600")
        leader.wait_for('"event": "leading"')
        standby = stack.start_operator("operator-1", EVICTION_TLS_DIR=str(folder))
        made = Drained(stack, leader, standby)
        roles = [
            role for role in of_kind(render(EVICTIONS), "ClusterRole") if role["metadata"]["name"] == "vfio-operator"
        ]
        stack.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", input=json.dumps(roles[0]))
        made.shows("free", "node-b")
        body = configuration(standby, authority)
        stack.kubectl("apply", "-f", "-", input=json.dumps(body))
        made.pod("probe")
        evict = ["--raw", "/api/v1/namespaces/default/pods/probe/eviction", "-f", "-"]
        review = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "probe"}}
        uid = json.loads(stack.kubectl("get", "pod", "probe", "-o", "json"))["metadata"]["uid"]
        made.shows("probed", "node-a", "probe", uid)
        stack.kubectl("cordon", "node-a")

        def asked() -> bool:
            review["deleteOptions"] = {"dryRun": ["All"]}
            return "would be moved" in _complaints(stack, ["create", *evict], review)

        stack.wait_until(asked, "the API server asks the webhook, which knows the inventory", 60)
        stack.kubectl("delete", "pod", "probe", "--wait=true")
        stack.kubectl("delete", "vfd", device("node-a", "probed")["metadata"]["name"])
        yield made


def _complaints(stack: Stack, arguments: list[str], body: Json) -> str:
    command, environment = [str(kubectl()), *arguments], stack.plane.environment
    done = subprocess.run(command, env=environment, input=json.dumps(body), capture_output=True, text=True, check=False)
    return done.stderr


def test_drain_waits_for_a_pod_with_devices_and_evicts_others(drained: Drained) -> None:
    uid = drained.pod("web")
    drained.pod("plain")
    drained.shows("d0", "node-a", "web", uid)
    drained.stack.wait_until(
        lambda: "would be moved with its 1 VFIO devices" in drained.drain("--dry-run=server").stderr,
        "the standby knows of it",
    )
    assert drained.there("web")
    assert drained.migrations() == [], "who only tries it has nothing moved"
    done = drained.drain(seconds=20)
    assert done.returncode != 0
    assert "pod default/web moves with its VFIO devices" in done.stderr
    assert "(will retry after 5s)" in done.stderr
    assert drained.there("web")
    assert not drained.there("plain")
    (made,) = drained.migrations()
    assert made["spec"]["source"] == {"podName": "web"}
    assert made["spec"]["target"] == {"nodeName": "node-b"}
    assert "vfio-operator" in made["metadata"]["annotations"][REQUESTER_ANNOTATION]
    assert '"pod that is to be evicted is moved"' in drained.standby.text(), "it does not lead, and made it"
    # as a migration does at its end
    drained.stack.kubectl("delete", "pod", "web", "--wait=true")
    assert drained.drain().returncode == 0
    drained.stack.kubectl("delete", "vfm", "--all", "--wait=false")
    drained.stack.kubectl("delete", "vfd", device("node-a", "d0")["metadata"]["name"])


def test_a_pod_on_a_node_that_takes_pods_is_evicted_with_a_warning(drained: Drained) -> None:
    uid = drained.pod("stays")
    drained.shows("d1", "node-a", "stays", uid)
    path = ["create", "--raw", "/api/v1/namespaces/default/pods/stays/eviction", "-f", "-"]
    review = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "stays"}}
    drained.stack.kubectl("uncordon", "node-a")
    tried = review | {"deleteOptions": {"dryRun": ["All"]}}
    drained.stack.wait_until(
        lambda: "is evicted, not moved: node node-a takes pods" in _complaints(drained.stack, path, tried), "it knows"
    )
    assert drained.there("stays")
    assert "is evicted, not moved: node node-a takes pods" in _complaints(drained.stack, path, review)
    drained.stack.wait_until(lambda: not drained.there("stays"), "it was evicted")
    drained.stack.kubectl("delete", "vfd", device("node-a", "d1")["metadata"]["name"])


def test_nodes_can_be_drained_without_an_operator(drained: Drained) -> None:
    """The last test: nobody answers any more."""
    uid = drained.pod("lost")
    drained.shows("d2", "node-a", "lost", uid)
    drained.standby.stop()
    assert drained.drain().returncode == 0
    assert not drained.there("lost")
