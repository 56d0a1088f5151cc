"""devices, nodes, history and version: what there is."""

import sys
from importlib import metadata
from typing import Annotated, Any

import typer

from vfio_api import API_GROUP, API_VERSION
from vfio_cli.checks import is_agent
from vfio_cli.cluster import DEVICES, MIGRATIONS, NODES, PODS, Cluster
from vfio_cli.fields import columns
from vfio_cli.lists import (
    DEVICE_HEAD,
    HISTORY_HEAD,
    NODE_HEAD,
    device_rows,
    ended,
    history_rows,
    node_facts,
    node_rows,
)
from vfio_cli.naming import check_namespace
from vfio_cli.options import Access, Everywhere, Output, Printing, emit, many, node_names
from vfio_cli.problems import UserError
from vfio_cli.terminal import View

AgentNamespace = Annotated[str, typer.Option("--agent-namespace", help="Namespace of the agents.")]
OperatorNamespace = Annotated[str, typer.Option("--operator-namespace", help="Namespace of the operator.")]
AGENTS_IN, OPERATOR_IN = "vfio-migration-agents", "vfio-migration"
Node = Annotated[str | None, typer.Argument(help="Only of this node.", autocompletion=node_names)]


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]], nothing: str) -> None:
    view = View()
    if not rows:
        view.line(nothing)
        return
    for number, line in enumerate(columns(head, rows)):
        view.line(line, "bold" if number == 0 else "")


def devices(node: Node = None, *, printing: Printing, access: Access) -> int:
    """List the devices of all nodes, who uses them, and what they can."""
    cluster = access.connect()
    found = cluster.list(DEVICES)
    if node:
        found = [device for device in found if device["spec"]["nodeName"] == node]
        if not found and cluster.find(NODES, node) is None:
            raise UserError(f"Node {node}", "expected a node of that name, found none", "see kubectl vfio nodes")
    if printing.form is not None:
        printing.emit(many(found))
        return 0
    nothing = "No device is published: see kubectl vfio doctor"
    _table(DEVICE_HEAD, device_rows(found), f"Node {node} has no device" if node else nothing)
    return 0


def nodes(
    agent_namespace: AgentNamespace = AGENTS_IN,
    output: Output = None,
    *,
    access: Access,
) -> int:
    """List the nodes that have devices or an agent, with how many devices are free there."""
    check_namespace(agent_namespace, "--agent-namespace")
    cluster = access.connect()
    agents = _agents(cluster, agent_namespace)
    facts = node_facts(cluster.list(NODES), cluster.list(DEVICES), agents)
    if output is not None:
        emit(output, {"nodes": facts})
        return 0
    _table(NODE_HEAD, node_rows(facts), "No node has devices or an agent: see kubectl vfio doctor")
    if not agents:
        why = "may not be looked at" if agents is None else "has no agent: is --agent-namespace where they run?"
        print(f"warning: namespace {agent_namespace} {why}", file=sys.stderr)
    return 0


def _agents(cluster: Cluster, namespace: str) -> list[dict[str, Any]] | None:
    """The agents' pods; None if they may not be read."""
    try:
        return [pod for pod in cluster.list(PODS, namespace) if is_agent(pod)]
    except UserError as problem:
        if problem.status == 403:
            return None
        raise


def history(
    everywhere: Everywhere = False,
    *,
    printing: Printing,
    access: Access,
) -> int:
    """List the migrations that have ended, the last one first."""
    cluster = access.connect()
    space = "" if everywhere else cluster.namespace
    found = ended(cluster.list(MIGRATIONS, space))
    if printing.form is not None:
        printing.emit(many(found))
        return 0
    head: tuple[str, ...] = HISTORY_HEAD
    rows = history_rows(found, cluster.now(), View().arrow)
    if everywhere:
        head = ("NAMESPACE", *head)
        rows = [(body["metadata"]["namespace"], *row) for body, row in zip(found, rows, strict=True)]
    where = f" in namespace {space}" if space else ""
    _table(head, rows, f"No migration has ended{where}; those under way: kubectl get vfm{'' if space else ' -A'}")
    return 0


def version(
    client: Annotated[bool, typer.Option("--client", help="Do not ask the API server.")] = False,
    output: Output = None,
    *,
    access: Access,
) -> int:
    """Print the versions of the plugin, the API and the API server."""
    facts = {"plugin": metadata.version("vfio-migration"), "api": f"{API_GROUP}/{API_VERSION}"}
    if not client:
        cluster = access.connect()
        facts["kubernetes"] = str(cluster.raw("/version")["gitVersion"])
        try:
            served = [found["version"] for found in cluster.raw(f"/apis/{API_GROUP}")["versions"]]
        except UserError as problem:
            if problem.status != 404:
                raise
            served = []
        facts["served"] = ", ".join(served) or "none: the chart's CRDs are not installed"
    if output is not None:
        emit(output, facts)
        return 0
    for key, value in facts.items():
        print(f"{key + ':':<12}{value}")
    return 0
