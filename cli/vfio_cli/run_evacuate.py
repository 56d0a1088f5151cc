"""evacuate: a node is emptied of its migratable devices, and of the pods that use them."""

import sys
import time
from typing import Annotated, Any

import typer

from vfio_api.models_evacuation import EvacuationPhase
from vfio_cli.cluster import EVACUATIONS, NODES, Cluster
from vfio_cli.evacuations import build, changes, next_step, outcome, under_way
from vfio_cli.fields import has_succeeded, is_finished, phase_of
from vfio_cli.follow import told_once
from vfio_cli.knobs import Copying, Limits, Priority, Switching, Ttl, strategy_of
from vfio_cli.options import Access, Printing, Timeout, node_names
from vfio_cli.problems import FAILED, INTERRUPTED, UserError, wrong
from vfio_cli.terminal import View

Json = dict[str, Any]


def evacuate(
    node: Annotated[str, typer.Argument(metavar="NODE", help="The node to empty.", autocompletion=node_names)],
    to_node: Annotated[
        list[str] | None,
        typer.Option(help="A node that may take it; any if not given. May be repeated.", autocompletion=node_names),
    ] = None,
    cancel: Annotated[
        bool, typer.Option("--cancel", help="Stop the one that runs: what moves is moved, what waits stays.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow it until it has ended.")] = True,
    timeout: Timeout = None,
    *,
    limits: Limits,
    copying: Copying,
    switching: Switching,
    priority: Priority = None,
    ttl: Ttl = None,
    printing: Printing,
    access: Access,
) -> int:
    """Move everything that uses VFIO devices away from a node, and follow that; one that runs already is followed.

    The node is not cordoned by it. The exit code is 0 only if all of it was moved; of --cancel, if it ended so.
    """
    made = build(node, to_node or [], strategy_of(limits, copying, switching), priority, ttl)
    cluster = access.connect()
    running = under_way(cluster.list(EVACUATIONS), node)
    if cancel:
        body = _cancelled(cluster, running, made)
    elif running is not None:
        body = _joined(running, made)
    else:
        _warn_if_open(cluster, node)
        body = cluster.create(EVACUATIONS, made)
    if printing.form is None:
        what = "is told to cancel" if cancel else "is under way" if running is not None else "created"
        print(f"vfioevacuation.vfiomigration.io/{body['metadata']['name']} {what}", flush=True)
    if wait:
        body = _followed(cluster, body, timeout, quiet=printing.form is not None)
    if printing.form is not None:
        printing.emit(body)
    elif wait:
        _report(View(), body)
    done = phase_of(body) == EvacuationPhase.CANCELLED or has_succeeded(body) if cancel else has_succeeded(body)
    return 0 if done or not wait else FAILED


def _cancelled(cluster: Cluster, running: Json | None, asked: Json) -> Json:
    node = asked["spec"]["nodeName"]
    if set(asked["spec"]) != {"nodeName"}:
        raise wrong("--cancel", "expected no flags that say how a node is emptied, found some", "leave them out")
    if running is None:
        found = "expected an evacuation of it that is under way, found none"
        raise UserError(f"Node {node}", found, "see kubectl get vfe")
    return cluster.change(EVACUATIONS, running["metadata"]["name"], "", {"spec": {"cancel": True}})


def _joined(running: Json, asked: Json) -> Json:
    """The one that runs, if nothing was asked for that it may not do."""
    name, node = running["metadata"]["name"], asked["spec"]["nodeName"]
    if set(asked["spec"]) != {"nodeName"}:
        found = f"expected a node that nobody empties, found VFIOEvacuation {name} under way"
        step = f"leave the other flags out to follow that, or stop it: kubectl vfio evacuate {node} --cancel"
        raise UserError(f"Node {node}", found, step)
    return running


def _warn_if_open(cluster: Cluster, name: str) -> None:
    """Raises UserError if there is no such node; who may not read nodes is told nothing."""
    try:
        node = cluster.find(NODES, name)
    except UserError as problem:
        if problem.status != 403:
            raise
        return
    if node is None:
        raise UserError(f"Node {name}", "expected a node of that name, found none", "see kubectl vfio nodes")
    if not node["spec"].get("unschedulable"):
        print(f"warning: node {name} takes new pods meanwhile: kubectl cordon {name}", file=sys.stderr, flush=True)


def _followed(cluster: Cluster, body: Json, seconds: float | None, *, quiet: bool) -> Json:
    """The evacuation when it has ended; each item is told when it comes further, unless quiet. Raises UserError."""
    view, began = View(), time.monotonic()
    before: Json = {}
    name = body["metadata"]["name"]
    try:
        for found in cluster.follow(name, "", kind=EVACUATIONS, seconds=seconds, away=told_once()):
            status = found.get("status", {})
            for line in changes(before, status) if not quiet else ():
                view.line(f"  {time.monotonic() - began:6.1f} s  {line}")
            before = status
            if is_finished(found):
                return found
    except KeyboardInterrupt:
        node = body["spec"]["nodeName"]
        step = f"kubectl vfio evacuate {node} follows it again, with --cancel it stops"
        raise UserError(
            EVACUATIONS.called(name), "not waited for any longer, it goes on", step, code=INTERRUPTED
        ) from None
    raise AssertionError("an evacuation is followed until its end, or until a UserError")


def _report(view: View, body: Json) -> None:
    for line in outcome(body, view.arrow):
        view.result(line.good, line.label, line.text)
    view.line(f" {view.arrow} next: {next_step(body)}")
