"""From flags, or a file, to the VFIOMigration that is created. Pure; values are for the API server to check."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vfio_api import API_GROUP, API_VERSION
from vfio_api.models_migration import Mode
from vfio_cli.problems import USAGE, UserError

Json = dict[str, Any]
_END = re.compile(r"(?:(?P<name>[^=/]+)=)?(?P<node>[^=/]+)/(?P<device>[^/]+)")
_HELP = "see kubectl vfio migrate --help"


def wrong(subject: str, found: str, next_step: str = _HELP) -> UserError:
    """A mistake in how the command was called."""
    return UserError(subject, found, next_step, code=USAGE)


def ends(flag: str, values: Sequence[str]) -> list[tuple[str, Json]]:
    """(name of the pair or "", end) of each NODE/DEVICE or NAME=NODE/DEVICE. Raises UserError."""
    found = []
    for value in values:
        match = _END.fullmatch(value)
        if match is None:
            raise wrong(f"{flag} {value}", "expected NODE/DEVICE or NAME=NODE/DEVICE, such as gpu0=node-a/0000:3b:00.2")
        found.append((match["name"] or "", {"nodeName": match["node"], "device": match["device"]}))
    return found


def pair_up(sources: Sequence[str], targets: Sequence[str]) -> list[Json]:
    """spec.devices of the values of --from and --to: by name where they have names, else in their order."""
    left, right = ends("--from", sources), ends("--to", targets)
    if len(left) != len(right):
        raise wrong("--from and --to", f"expected one --to for each --from, found {len(left)} and {len(right)}")
    for flag, side in (("--from", left), ("--to", right)):
        names = [name for name, _ in side if name]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise wrong(f"{flag} {twice[0]}=...", "expected each name once, found it twice")
    named = {name for name, _ in right if name}
    for name, _ in left:
        if named and name not in named:
            found = f"expected one of the names in --to, found {', '.join(sorted(named))} there"
            raise wrong(f"--from {name or 'without a name'}", found)
    targets_by_name = dict(right)
    return [
        {"name": name or f"device{n}", "source": end, "target": targets_by_name[name] if named else right[n][1]}
        for n, (name, end) in enumerate(left)
    ]


def selection(
    sources: Sequence[str], targets: Sequence[str], from_node: str | None, from_pod: str | None, to_node: str | None
) -> Json:
    """The part of the spec that says what moves where: pairs, or the shorthand. Raises UserError."""
    shorthand = [v for v in (from_node, from_pod, to_node) if v]
    if sources or targets:
        if shorthand:
            raise wrong("--from/--to with --from-node, --from-pod or --to-node", "expected either of them, found both")
        return {"devices": pair_up(sources, targets)}
    if bool(from_node) == bool(from_pod) or not to_node:
        raise wrong(
            "what is to be migrated",
            "expected --from NODE/DEVICE --to NODE/DEVICE, or --from-node (or --from-pod) with --to-node, or -f FILE, "
            f"found {'neither' if not shorthand else 'part of it'}",
        )
    source = {"nodeName": from_node} if from_node else {"podName": from_pod}
    return {"source": source, "target": {"nodeName": to_node}}


def build(mode: Mode, name: str | None, spec: Mapping[str, Any], strategy: Mapping[str, Any], ttl: int | None) -> Json:
    """The object; without a name the API server makes one up."""
    given = {key: value for key, value in strategy.items() if value is not None}
    whole = {**spec, "mode": mode.value, **({"strategy": given} if given else {})}
    return {
        "apiVersion": f"{API_GROUP}/{API_VERSION}",
        "kind": "VFIOMigration",
        "metadata": {"name": name} if name else {"generateName": f"{mode.value.lower()}-"},
        "spec": whole if ttl is None else whole | {"ttlSecondsAfterFinished": ttl},
    }


def from_document(document: object, where: str, mode: Mode | None) -> Json:
    """A VFIOMigration out of a file; with a mode, as that, under a name that the API server makes up.

    Raises UserError.
    """
    if not isinstance(document, dict) or document.get("kind") != "VFIOMigration":
        kind = document.get("kind", "no kind") if isinstance(document, dict) else type(document).__name__
        raise UserError(where, f"expected a VFIOMigration, found {kind}", "see examples/migrate-simulated.yaml")
    spec, metadata = document.get("spec"), document.get("metadata") or {}
    if not isinstance(spec, dict) or not isinstance(metadata, dict):
        raise UserError(where, "expected metadata and spec with fields, found none", "see kubectl explain vfm.spec")
    if mode is None or mode == spec.get("mode", Mode.MIGRATE.value):
        return document
    base = metadata.get("name") or metadata.get("generateName") or "migration"
    rest = {key: value for key, value in metadata.items() if key not in ("name", "generateName")}
    return document | {
        "metadata": rest | {"generateName": f"{mode.value.lower()}-{base}"[:50].rstrip("-.") + "-"},
        "spec": spec | {"mode": mode.value},
    }
