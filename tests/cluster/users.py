"""Real users of the real API server: ServiceAccounts with tokens, and anyone by impersonation."""

import base64
import http.client
import json
import ssl
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devtools.plane import Plane
from devtools.tools import kubectl
from vfio_api.names import REQUESTER_ANNOTATION
from vfio_operator.requester import Requester

Json = dict[str, Any]


@dataclass(frozen=True)
class User:
    """kubectl with the credentials of one user."""

    plane: Plane
    kubeconfig: Path

    def try_kubectl(self, *arguments: str, manifest: Json | None = None) -> subprocess.CompletedProcess[str]:
        """Run kubectl, with the manifest on its stdin."""
        return subprocess.run(
            [kubectl(), f"--kubeconfig={self.kubeconfig}", *arguments],
            input=json.dumps(manifest) if manifest is not None else "",
            env=self.plane.environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def kubectl(self, *arguments: str, manifest: Json | None = None) -> str:
        """Run kubectl, which must succeed; what it printed."""
        result = self.try_kubectl(*arguments, manifest=manifest)
        assert result.returncode == 0, f"kubectl {' '.join(arguments)}: {result.stderr}"
        return result.stdout

    def refused(self, *arguments: str, manifest: Json | None = None) -> str:
        """Run kubectl, which must fail; what it said."""
        result = self.try_kubectl(*arguments, manifest=manifest)
        assert result.returncode != 0, f"kubectl {' '.join(arguments)}: {result.stdout}"
        return result.stderr

    def patch(self, path: str, change: Any) -> tuple[int, Json]:
        """A merge patch, or a JSON patch if `change` is a list: the status code, and what came with it.

        Not kubectl, which reads a subresource before it patches it: agents may not.
        """
        config = json.loads(self.kubeconfig.read_text())
        ca = base64.b64decode(config["clusters"][0]["cluster"]["certificate-authority-data"]).decode()
        server = config["clusters"][0]["cluster"]["server"].removeprefix("https://")
        headers = {
            "Authorization": f"Bearer {config['users'][0]['user']['token']}",
            "Content-Type": f"application/{'json' if isinstance(change, list) else 'merge'}-patch+json",
        }
        connection = http.client.HTTPSConnection(server, timeout=30, context=ssl.create_default_context(cadata=ca))
        try:
            connection.request("PATCH", path, json.dumps(change), headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def me(self) -> Requester:
        """Who the API server says this user is."""
        found = json.loads(self.kubectl("auth", "whoami", "-o", "json"))["status"]["userInfo"]
        extra = {key: tuple(values) for key, values in found.get("extra", {}).items()}
        return Requester(
            found["username"], found.get("uid", ""), tuple(found.get("groups", ())), tuple(sorted(extra.items()))
        )

    def may(self, verb: str, resource: str, *flags: str) -> bool:
        """What `kubectl auth can-i` says."""
        return self.try_kubectl("auth", "can-i", verb, resource, *flags).stdout.strip() == "yes"


def service_account(plane: Plane, namespace: str, name: str, folder: Path) -> User:
    """A new ServiceAccount with a token of its own."""
    plane.kubectl("create", "serviceaccount", name, "-n", namespace)
    path = folder / f"{namespace}-{name}.kubeconfig"
    plane.service_account_kubeconfig(namespace, name, path)
    return User(plane, path)


def impersonated(plane: Plane, folder: Path, requester: Requester) -> User:
    """Any user at all, as `kubectl --as` by the administrator: the API server knows no difference.

    It is a kubeconfig, since there are no flags for a user's extra.
    """
    config = json.loads(plane.kubectl("config", "view", "--raw", "--flatten", "-o", "json"))
    config["users"][0]["user"] |= {
        "as": requester.username,
        "as-uid": requester.uid,
        "as-groups": list(requester.groups),
        "as-user-extra": {key: list(values) for key, values in requester.extra},
    }
    path = folder / f"impersonated-{abs(hash(requester)):x}.kubeconfig"
    path.touch(mode=0o600)
    path.write_text(json.dumps(config))
    return User(plane, path)


def grant(plane: Plane, name: str, rules: list[Json], *, user: str = "", group: str = "", namespace: str = "") -> None:
    """A role with these rules, bound to a user or a group; in a namespace or in the cluster."""
    prefix = "" if namespace else "Cluster"
    metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
    version = "rbac.authorization.k8s.io/v1"
    subject = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User" if user else "Group", "name": user or group}
    items = [
        {"apiVersion": version, "kind": f"{prefix}Role", "metadata": metadata, "rules": rules},
        {
            "apiVersion": version,
            "kind": f"{prefix}RoleBinding",
            "metadata": metadata,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": f"{prefix}Role", "name": name},
            "subjects": [subject],
        },
    ]
    plane.kubectl("apply", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))


def rule(group: str, resource: str, *verbs: str, names: tuple[str, ...] = ()) -> Json:
    """One rule of a role; names are resourceNames."""
    return {
        "apiGroups": [group],
        "resources": [resource],
        "verbs": list(verbs),
        **({"resourceNames": list(names)} if names else {}),
    }


def stamp(body: Json) -> str | None:
    """Who an object says has asked."""
    found = body["metadata"].get("annotations", {}).get(REQUESTER_ANNOTATION)
    assert found is None or isinstance(found, str)
    return found


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 30) -> None:
    """Poll until `condition`: the API server reads RBAC and policies a moment after they were written."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.05)
