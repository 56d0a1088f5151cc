"""What the API server's audit log says of one replica of the operator."""

import base64
import json
from pathlib import Path

from devtools.stack import Json, Stack


def token_id(stack: Stack, name: str) -> str:
    """The credential id of a replica's token, as the audit log shows it."""
    kubeconfig = json.loads((stack.dir / f"{name}.kubeconfig").read_text())
    payload = kubeconfig["users"][0]["user"]["token"].split(".")[1]
    return "JTI=" + json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["jti"]


def entries(folder: Path, token: str) -> list[Json]:
    """The audit events of all requests that were made with a token, in their order."""
    found = [json.loads(line) for line in (folder / "audit.log").read_text().splitlines()]
    key = "authentication.kubernetes.io/credential-id"
    return [entry for entry in found if token in entry["user"].get("extra", {}).get(key, [])]


def requests(folder: Path, token: str) -> list[tuple[str, str]]:
    """(verb, resource) of each of them."""
    return [(entry["verb"], entry.get("objectRef", {}).get("resource", "")) for entry in entries(folder, token)]
