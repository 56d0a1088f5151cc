"""The options that commands share, as kubectl has them, and how objects are printed for programs."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from vfio_cli.cluster import DEVICES, MIGRATIONS, READ_SECONDS, Cluster
from vfio_cli.durations import seconds
from vfio_cli.kubeconfig import log_in
from vfio_cli.naming import check_namespace, existing
from vfio_cli.problems import UserError, wrong

COMPLETION_SECONDS = 2.0


class Form(StrEnum):
    """How objects are printed for programs."""

    JSON = "json"
    YAML = "yaml"


def migration_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of migrations for the shell's completion; none rather than an error or a long wait."""
    try:
        cluster = _cluster(ctx)
        names = [found["metadata"]["name"] for found in cluster.list(MIGRATIONS, cluster.namespace)]
    except UserError:
        return []
    return [name for name in names if name.startswith(incomplete)]


def node_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of nodes that have devices, for the shell's completion."""
    try:
        found = {d["spec"]["nodeName"] for d in _cluster(ctx).list(DEVICES)}
    except UserError:
        return []
    return sorted(name for name in found if name.startswith(incomplete))


def pod_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of the namespace's pods that use devices, for the shell's completion."""
    try:
        cluster = _cluster(ctx)
        users = [found.get("status", {}).get("pod", {}) for found in cluster.list(DEVICES)]
    except UserError:
        return []
    own = {str(pod["name"]) for pod in users if pod.get("name") and pod.get("namespace") == cluster.namespace}
    return sorted(name for name in own if name.startswith(incomplete))


def _cluster(ctx: typer.Context) -> Cluster:
    given = {field.name: ctx.params[field.name] for field in fields(Access) if field.name in ctx.params}
    return Access(**given).connect(read_seconds=COMPLETION_SECONDS)


@dataclass(frozen=True, slots=True)
class Access:
    """Which API server is asked, as whom, and which namespace is meant if none is named: as kubectl has it."""

    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", help="Namespace; by default that of the kubeconfig's context.")
    ] = None
    context: Annotated[str | None, typer.Option("--context", help="Context of the kubeconfig.")] = None
    kubeconfig: Annotated[Path | None, typer.Option("--kubeconfig", help="Path of the kubeconfig.")] = None
    user: Annotated[str | None, typer.Option("--as", metavar="USER", help="Act as this user.")] = None
    groups: Annotated[
        list[str] | None, typer.Option("--as-group", metavar="GROUP", help="And in this group. May be repeated.")
    ] = None

    def connect(self, namespace: str = "", *, read_seconds: float = READ_SECONDS) -> Cluster:
        """A client; nothing is asked of it yet. namespace: said in another way than by -n. Raises UserError."""
        if self.namespace:
            check_namespace(self.namespace)
        if self.groups and not self.user:
            raise wrong("--as-group", "expected --as beside it, found none", "add --as USER")
        login = log_in(self.context, self.kubeconfig, namespace or self.namespace, self.user, self.groups or ())
        return Cluster(login, read_seconds=read_seconds)

    def migration(self, name: str) -> tuple[Cluster, dict[str, Any]]:
        """A client, and the migration that a user calls so. Raises UserError."""
        named = existing(name, self.namespace)
        cluster = self.connect(named.namespace)
        return cluster, cluster.get(MIGRATIONS, named.name, cluster.namespace)

    def flags(self) -> list[str]:
        """The same on a command line."""
        single = {"-n": self.namespace, "--context": self.context, "--kubeconfig": self.kubeconfig, "--as": self.user}
        given = [part for flag, value in single.items() if value for part in (flag, str(value))]
        return given + [part for group in self.groups or () for part in ("--as-group", group)]


@dataclass(frozen=True, slots=True)
class Printing:
    """How objects are printed for programs; form None: for people."""

    form: Annotated[Form | None, typer.Option("--output", "-o", help="For programs: json or yaml.")] = None
    managed_fields: Annotated[
        bool, typer.Option("--show-managed-fields", help="Do not leave metadata.managedFields out of json and yaml.")
    ] = False

    def emit(self, document: dict[str, Any]) -> None:
        """Print an object or a list of them; there must be a form."""
        assert self.form is not None
        emit(self.form, document if self.managed_fields else _without_managed_fields(document))


Everywhere = Annotated[bool, typer.Option("--all-namespaces", "-A", help="All namespaces.")]
Output = Annotated[Form | None, typer.Option("--output", "-o", help="For programs: json or yaml.")]
Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="The VFIOMigration: NAME, vfm/NAME or NAMESPACE/NAME.",
        autocompletion=migration_names,
    ),
]
Timeout = Annotated[
    float | None,
    typer.Option(
        "--timeout",
        metavar="TIME",
        parser=seconds,
        help="Longest wait, such as 90s or 15m (a plain number is seconds); 0 looks once. By default forever.",
    ),
]


def _without_managed_fields(document: dict[str, Any]) -> dict[str, Any]:
    if isinstance(document.get("items"), list):
        return document | {"items": [_without_managed_fields(item) for item in document["items"]]}
    metadata = {key: value for key, value in document.get("metadata", {}).items() if key != "managedFields"}
    return document | ({"metadata": metadata} if metadata else {})


def as_text(form: Form, document: Any) -> str:
    """A document as kubectl prints it."""
    if form is Form.JSON:
        return json.dumps(document, indent=4, ensure_ascii=False)
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True).rstrip("\n")


def emit(form: Form, document: Any) -> None:
    """Print a document."""
    print(as_text(form, document), flush=True)


def many(items: Iterable[Any]) -> dict[str, Any]:
    """A list as kubectl prints it."""
    return {"apiVersion": "v1", "kind": "List", "items": list(items)}
