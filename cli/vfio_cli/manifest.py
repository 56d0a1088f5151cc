"""From flags, or a file, to the VFIOMigration that is created. Pure; values are for the API server to check."""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from vfio_api import API_GROUP, API_VERSION
from vfio_api.models_migration import Mode
from vfio_api.types import PauseMethod
from vfio_cli.problems import UserError, wrong

Json = dict[str, Any]
# The fields of spec.strategy by their flags.
STRATEGY: Mapping[str, str] = {
    "--downtime-limit": "downtimeLimitMilliseconds",
    "--pre-copy": "preCopy",
    "--convergence-timeout": "convergenceTimeoutSeconds",
    "--on-convergence-timeout": "onConvergenceTimeout",
    "--switchover-ack": "switchoverAck",
    "--switchover-timeout": "switchoverTimeoutSeconds",
    "--bandwidth-limit": "bandwidthLimitBytesPerSecond",
}
_HOOK = re.compile(r"(?P<port>\d+)(?P<path>(?:/[^/]+)*)")
_END = re.compile(r"(?:(?P<name>[^=/]+)=)?(?P<node>[^=/]+)/(?P<device>[^/]+)")


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
    sources: Sequence[str],
    targets: Sequence[str],
    from_node: str | None,
    from_pod: str | None,
    to_node: str | None,
    to_pod: str | None = None,
) -> Json:
    """The part of the spec that says what moves where: pairs, or the shorthand. Raises UserError."""
    shorthand = [v for v in (from_node, from_pod, to_node, to_pod) if v]
    if sources or targets:
        if shorthand:
            raise wrong("--from/--to with --from-node, --from-pod or --to-node", "expected either of them, found both")
        return {"devices": pair_up(sources, targets)}
    if bool(from_node) == bool(from_pod) or bool(to_node) == bool(to_pod):
        raise wrong(
            "what is to be migrated",
            "expected --from NODE/DEVICE --to NODE/DEVICE, or --from-node (or --from-pod) with --to-node, or -f FILE, "
            f"found {'neither' if not shorthand else 'part of it'}",
        )
    if to_pod and not from_pod:
        raise wrong("--to-pod", "expected --from-pod beside it, whose devices it takes over, found none")
    source = {"nodeName": from_node} if from_node else {"podName": from_pod}
    return {"source": source, "target": {"nodeName": to_node} if to_node else {"podName": to_pod}}


def pausing(method: PauseMethod | None, hook: str | None, seconds: int | None, *, moves_pod: bool) -> Json:
    """spec.workload of the flags about it; nothing if none is given. moves_pod: --from-pod is. Raises UserError."""
    if (method is PauseMethod.HOOK) != (hook is not None):
        found = "--pause hook without --hook" if hook is None else "--hook without --pause hook"
        raise wrong("how the pod is paused", f"expected both or neither, found {found}", "such as --hook 8080/vfio")
    if method is PauseMethod.HOOK and not moves_pod:
        raise wrong("--pause hook", "expected --from-pod beside it, found none", "use --pause freeze")
    if method is None and seconds is None:
        return {}
    if method is None and moves_pod:
        method = PauseMethod.FREEZE  # as without any flag
    if method is None or method is PauseMethod.NONE:
        if seconds is not None:
            raise wrong("--pause-timeout", "expected --pause freeze or --pause hook beside it, found none of them")
        return {"workload": {"pause": {"method": PauseMethod.NONE.value}}}
    pause: Json = {"method": method.value} | ({"timeoutSeconds": seconds} if seconds is not None else {})
    if hook is not None:
        match = _HOOK.fullmatch(hook)
        if match is None:
            raise wrong(f"--hook {hook}", "expected PORT or PORT/PATH at the pod's address, such as 8080/vfio")
        pause["hook"] = {"port": int(match["port"])} | ({"path": match["path"]} if match["path"] else {})
    return {"workload": {"pause": pause}}


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


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a key that is said twice is a mistake, not the last one's."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[object] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    problem = f"found the key {key.value!r} twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def documents(text: str) -> list[object]:
    """What is in a file of YAML or JSON, without what is empty. Raises yaml.YAMLError, also for a key that is there
    twice."""
    # bandit: the loader is a SafeLoader
    return [found for found in yaml.load_all(text, _StrictLoader) if found is not None]


def from_document(document: object, where: str, mode: Mode | None) -> Json:
    """A VFIOMigration out of a file; with a mode, as that, under a name that the API server makes up.

    Raises UserError.
    """
    if not isinstance(document, dict) or document.get("kind") != "VFIOMigration":
        kind = document.get("kind", "no kind") if isinstance(document, dict) else type(document).__name__
        raise UserError(where, f"expected a VFIOMigration, found {kind}", "see examples/migrate-simulated.yaml")
    spec, metadata = document.get("spec"), document.get("metadata")
    if not isinstance(spec, dict) or not isinstance(metadata, dict | None):
        raise UserError(where, "expected metadata and spec with fields, found none", "see kubectl explain vfm.spec")
    named = {key: metadata[key] for key in ("name", "generateName", "namespace") if metadata and key in metadata}
    for key, value in named.items():
        if not isinstance(value, str):
            raise UserError(where, f"expected text in metadata.{key}, found {value!r}", "put it between quotes")
    base = named.get("name") or named.get("generateName")
    if mode is None or mode == spec.get("mode", Mode.MIGRATE.value):
        if not base:
            raise UserError(where, "expected metadata.name, found none", "give it one, or metadata.generateName")
        return document
    rest = {key: value for key, value in (metadata or {}).items() if key not in ("name", "generateName")}
    return document | {
        "metadata": rest | {"generateName": f"{mode.value.lower()}-{base or 'migration'}"[:50].rstrip("-.") + "-"},
        "spec": spec | {"mode": mode.value},
    }


def migrate_command(spec: Mapping[str, Any], flags: Sequence[str], file: str | None = None) -> str:
    """The command that migrates what was planned or rehearsed. flags: of the API server and the namespace."""
    words = ["kubectl", "vfio", "migrate", *(["-f", file] if file is not None else _flags(spec)), *flags]
    return shlex.join(words)


def _flags(spec: Mapping[str, Any]) -> Iterator[str]:
    """The flags that a spec comes from."""
    pairs = spec.get("devices", [])
    named = any(pair["name"] != f"device{n}" for n, pair in enumerate(pairs))
    for pair in pairs:
        for flag, side in (("--from", "source"), ("--to", "target")):
            end = f"{pair[side]['nodeName']}/{pair[side]['device']}"
            yield from (flag, f"{pair['name']}={end}" if named else end)
    shorthand = {
        "--from-node": spec.get("source", {}).get("nodeName"),
        "--from-pod": spec.get("source", {}).get("podName"),
        "--to-node": spec.get("target", {}).get("nodeName"),
        "--to-pod": spec.get("target", {}).get("podName"),
    }
    strategy = {flag: spec.get("strategy", {}).get(field) for flag, field in STRATEGY.items()}
    for flag, value in (shorthand | strategy).items():
        if isinstance(value, bool):
            yield flag if value else f"--no-{flag[2:]}"
        elif value is not None:
            yield from (flag, str(value))
