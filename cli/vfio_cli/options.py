"""The options that commands share, as kubectl has them, and how objects are printed for programs."""

import json
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from vfio_cli.cluster import DEVICES, MIGRATIONS, Cluster, Kind
from vfio_cli.kubeconfig import log_in
from vfio_cli.problems import UserError

COMPLETION_SECONDS = 2.0


class Form(StrEnum):
    """How objects are printed for programs."""

    JSON = "json"
    YAML = "yaml"


def migration_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of migrations for the shell's completion; none rather than an error or a long wait."""
    return _names(ctx, MIGRATIONS, incomplete)


def node_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of nodes that have devices, for the shell's completion."""
    try:
        found = {d["spec"]["nodeName"] for d in _cluster(ctx).list(DEVICES)}
    except UserError:
        return []
    return sorted(name for name in found if name.startswith(incomplete))


def _names(ctx: typer.Context, kind: Kind, incomplete: str) -> list[str]:
    try:
        cluster = _cluster(ctx)
        return [
            found["metadata"]["name"]
            for found in cluster.list(kind, cluster.namespace)
            if found["metadata"]["name"].startswith(incomplete)
        ]
    except UserError:
        return []


def _cluster(ctx: typer.Context) -> Cluster:
    given = (ctx.params.get(key) for key in ("context", "kubeconfig", "namespace"))
    return Cluster(log_in(*given), read_seconds=COMPLETION_SECONDS)


Namespace = Annotated[
    str | None, typer.Option("--namespace", "-n", help="Namespace; by default that of the kubeconfig's context.")
]
Everywhere = Annotated[bool, typer.Option("--all-namespaces", "-A", help="All namespaces.")]
Context = Annotated[str | None, typer.Option("--context", help="Context of the kubeconfig.")]
Kubeconfig = Annotated[Path | None, typer.Option("--kubeconfig", help="Path of the kubeconfig.")]
Output = Annotated[Form | None, typer.Option("--output", "-o", help="For programs: json or yaml.")]
Name = Annotated[str, typer.Argument(help="Name of the VFIOMigration.", autocompletion=migration_names)]


def bare(name: str) -> str:
    """A name also of what kubectl prints with -o name: "vfiomigration.vfiomigration.io/x" is x."""
    return name.rpartition("/")[2]


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
