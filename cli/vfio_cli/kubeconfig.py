"""How the API server is found: --kubeconfig, --context and -n as kubectl has them, else the pod that this runs in."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from kubernetes import client, config

from vfio_cli.problems import UserError

Json = dict[str, Any]
_config: Any = config  # it has no types
_IN_POD = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_IMPERSONATE = {"as": "Impersonate-User", "as-uid": "Impersonate-Uid"}


@dataclass(frozen=True, slots=True)
class Login:
    """A client that is set up, the namespace that is meant if none is named, and the context it comes from."""

    api: Any
    namespace: str
    context: str


def log_in(
    context: str | None = None,
    kubeconfig: Path | None = None,
    namespace: str | None = None,
    user: str | None = None,
    groups: Sequence[str] = (),
) -> Login:
    """Read the credentials; nothing is asked of the API server yet. user, groups: whom to act as. Raises UserError."""
    login = _found(context, kubeconfig, namespace)
    if user:
        for header in [name for name in login.api.default_headers if name.lower().startswith("impersonate-")]:
            del login.api.default_headers[header]
        _impersonate(login.api, {"Impersonate-User": user}, groups)
    return login


def _found(context: str | None, kubeconfig: Path | None, namespace: str | None) -> Login:
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    files = str(kubeconfig) if kubeconfig else os.environ.get("KUBECONFIG") or str(Path.home() / ".kube/config")
    found = [part for part in files.split(os.pathsep) if part and Path(part).exists()]
    if not found and not kubeconfig and not context and "KUBERNETES_SERVICE_HOST" in os.environ:
        return _from_pod(namespace)
    if not found:
        next_step = "name one with --kubeconfig or $KUBECONFIG"
        raise UserError(f"kubeconfig {files}", "expected a readable file, found none", next_step)
    try:
        documents = [yaml.safe_load(Path(part).read_text(encoding="utf-8")) for part in found]
        if not all(isinstance(document, dict) for document in documents):
            raise ValueError("a file that is no kubeconfig")
        users = [user for document in documents for user in document.get("users") or []]
        return _from_files(os.pathsep.join(found), users, context, namespace)
    except (config.ConfigException, yaml.YAMLError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = " ".join(str(error).split()) or type(error).__name__
        subject = f"kubeconfig {files}" + (f" with context {context}" if context else "")
        raise UserError(subject, f"expected one that can be used, found: {why}", "see kubectl config view") from error


def _from_files(files: str, users: list[Json], context: str | None, namespace: str | None) -> Login:
    settings = client.Configuration()
    _config.load_kube_config(files, context, settings, persist_config=False)
    settings.retries = False
    contexts, current = _config.list_kube_config_contexts(files)
    chosen = next(c for c in contexts if c["name"] == context) if context else current
    api: Any = client.ApiClient(settings)
    # the client passes over `as`: whoever works as somebody else must not be the administrator here
    _impersonate(api, *_impersonation(users, chosen["context"].get("user", "")))
    return Login(api, namespace or chosen["context"].get("namespace") or "default", chosen["name"])


def _impersonation(users: list[Json], name: str) -> tuple[dict[str, str], Sequence[str]]:
    """Headers and groups for a kubeconfig user that acts as another. Raises UserError for what cannot be said so."""
    found = next((entry.get("user") or {} for entry in users if entry.get("name") == name), {})
    if found.get("as-user-extra"):
        reason = "expected `as` without as-user-extra, found more of it than this plugin can pass on"
        raise UserError(f"kubeconfig user {name}", reason, "use a context that does not impersonate")
    return {header: found[key] for key, header in _IMPERSONATE.items() if found.get(key)}, found.get("as-groups") or ()


def _impersonate(api: Any, headers: Mapping[str, str], groups: Sequence[str]) -> None:
    """The client keeps headers in a dict: each group goes by a spelling of its own, which all mean the same header."""
    for header, value in headers.items():
        api.set_default_header(header, value)
    for number, group in enumerate(groups):
        spelling = (c.upper() if number >> place & 1 else c for place, c in enumerate("impersonate-group"))
        api.set_default_header("".join(spelling), group)


def _from_pod(namespace: str | None) -> Login:
    settings = client.Configuration()
    try:
        _config.load_incluster_config(settings)
        own = _IN_POD.read_text(encoding="utf-8").strip()
    except (config.ConfigException, OSError) as error:
        next_step = "mount one, or name a file with --kubeconfig"
        found = f"expected a readable one, found: {error}"
        raise UserError("ServiceAccount token of this pod", found, next_step) from error
    settings.retries = False
    return Login(client.ApiClient(settings), namespace or own or "default", "")
