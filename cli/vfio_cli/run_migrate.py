"""migrate, plan, rehearse and cancel: what changes something."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from vfio_api.models_migration import Mode, OnConvergenceTimeout, PreCopy
from vfio_cli.cluster import MIGRATIONS, Cluster, connect
from vfio_cli.fields import full_name, has_succeeded, is_committed, is_finished, phase_of
from vfio_cli.follow import print_changes, report, show_progress, wait_for_end
from vfio_cli.manifest import build, from_document, selection, wrong
from vfio_cli.options import (
    Context,
    Form,
    Kubeconfig,
    Name,
    Namespace,
    Output,
    bare,
    emit,
    node_names,
)
from vfio_cli.problems import FAILED, UserError
from vfio_cli.terminal import View

Json = dict[str, Any]
_END = "NODE/DEVICE, or NAME=NODE/DEVICE. May be repeated."
NewName = Annotated[str | None, typer.Argument(help="Name of the new VFIOMigration; made up if left out.")]
Sources = Annotated[list[str] | None, typer.Option("--from", help=f"A source: {_END}")]
Targets = Annotated[list[str] | None, typer.Option("--to", help=f"Its target: {_END}")]
FromNode = Annotated[
    str | None, typer.Option(help="All migratable devices in use on this node.", autocompletion=node_names)
]
FromPod = Annotated[str | None, typer.Option(help="All migratable devices of this pod of the namespace.")]
ToNode = Annotated[str | None, typer.Option(help="The node that takes them.", autocompletion=node_names)]
File = Annotated[str | None, typer.Option("--filename", "-f", help="A VFIOMigration in YAML or JSON; - is stdin.")]
DowntimeLimit = Annotated[int | None, typer.Option("--downtime-limit", metavar="MS", help="Longest downtime planned.")]
PreCopies = Annotated[PreCopy | None, typer.Option("--pre-copy", help="Whether to copy while devices run.")]
Convergence = Annotated[int | None, typer.Option("--convergence-timeout", metavar="SECONDS", help="Longest pre-copy.")]
OnConvergence = Annotated[
    OnConvergenceTimeout | None, typer.Option("--on-convergence-timeout", help="What happens after that.")
]
Acknowledge = Annotated[
    bool | None,
    typer.Option("--switchover-ack/--no-switchover-ack", help="Whether initial bytes are loaded before any stop."),
]
Switchover = Annotated[int | None, typer.Option("--switchover-timeout", metavar="SECONDS", help="Longest switchover.")]
Bandwidth = Annotated[str | None, typer.Option("--bandwidth-limit", metavar="BYTES", help="Per second, such as 500M.")]
Ttl = Annotated[int | None, typer.Option("--ttl", metavar="SECONDS", help="Delete it so long after its end.")]
Timeout = Annotated[float | None, typer.Option("--timeout", min=0, help="Seconds to wait at most; by default forever.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Have it checked by the API server, create nothing.")]
Keep = Annotated[bool, typer.Option("--keep", help="Do not delete the object afterwards.")]


def _strategy(
    limit: int | None,
    pre_copy: PreCopy | None,
    convergence: int | None,
    on_convergence: OnConvergenceTimeout | None,
    acknowledge: bool | None,
    switchover: int | None,
    bandwidth: str | None,
) -> Json:
    return {
        "downtimeLimitMilliseconds": limit,
        "preCopy": pre_copy and pre_copy.value,
        "convergenceTimeoutSeconds": convergence,
        "onConvergenceTimeout": on_convergence and on_convergence.value,
        "switchoverAck": acknowledge,
        "switchoverTimeoutSeconds": switchover,
        "bandwidthLimitBytesPerSecond": bandwidth,
    }


def migrate(
    name: NewName = None,
    sources: Sources = None,
    targets: Targets = None,
    from_node: FromNode = None,
    from_pod: FromPod = None,
    to_node: ToNode = None,
    file: File = None,
    downtime_limit: DowntimeLimit = None,
    pre_copy: PreCopies = None,
    convergence_timeout: Convergence = None,
    on_convergence_timeout: OnConvergence = None,
    switchover_ack: Acknowledge = None,
    switchover_timeout: Switchover = None,
    bandwidth_limit: Bandwidth = None,
    ttl: Ttl = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it has ended.")] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show its progress until it has ended.")] = False,
    timeout: Timeout = None,
    dry_run: DryRun = False,
    output: Output = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> int:
    """Move devices to another node: create a VFIOMigration, and wait for it if asked to."""
    strategy = _strategy(
        downtime_limit,
        pre_copy,
        convergence_timeout,
        on_convergence_timeout,
        switchover_ack,
        switchover_timeout,
        bandwidth_limit,
    )
    ends = (sources or [], targets or [], from_node, from_pod, to_node)
    made = _wanted(Mode.MIGRATE, name, file, ends, strategy, ttl)
    cluster = connect(context, kubeconfig, namespace)
    space = _namespace(cluster, made, namespace)
    body = cluster.create(MIGRATIONS, made, space, dry_run=dry_run)
    if output is not None and not (wait or watch):
        emit(output, body)
    elif output is None:
        suffix = " (server dry run)" if dry_run else ""
        print(f"vfiomigration.vfiomigration.io/{body['metadata']['name']} created{suffix}", flush=True)
    if dry_run or not (wait or watch):
        return 0
    return _ended(cluster, body, output, watch=watch, timeout=timeout)


def _ended(cluster: Cluster, body: Json, form: Form | None, *, watch: bool, timeout: float | None) -> int:
    if form is not None and watch:
        body = print_changes(cluster, body, form, timeout)
    elif form is not None:
        body = wait_for_end(cluster, body, timeout)
        emit(form, body)
    else:
        view = View()
        body = show_progress(cluster, body, view, timeout) if watch else wait_for_end(cluster, body, timeout)
        report(view, body)
    return 0 if has_succeeded(body) else FAILED


def _wanted(
    mode: Mode,
    name: str | None,
    file: str | None,
    ends: tuple[list[str], list[str], str | None, str | None, str | None],
    strategy: Json,
    ttl: int | None,
) -> Json:
    """The object that flags or a file describe. Raises UserError."""
    if file is None:
        return build(mode, name, selection(*ends), strategy, ttl)
    if name or any(ends) or ttl is not None or any(value is not None for value in strategy.values()):
        raise wrong("-f", "expected no name and no flags that say what to migrate or how, found some beside the file")
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
        documents = [document for document in yaml.safe_load_all(text) if document is not None]
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        why = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"file {file}", f"expected readable YAML, found: {why}", "correct or rename it") from error
    if len(documents) != 1:
        raise UserError(f"file {file}", f"expected one object, found {len(documents)}", "use kubectl apply for several")
    return from_document(documents[0], f"file {file}", None if mode is Mode.MIGRATE else mode)


def _namespace(cluster: Cluster, made: Json, flag: str | None) -> str:
    """Where it goes: as the flag says, else the file, else the context. Raises UserError if they disagree."""
    said = made["metadata"].get("namespace")
    if said and flag and said != flag:
        raise wrong(f"-n {flag}", f"expected the namespace of the file, found {said} there", "leave -n out")
    return str(said or cluster.namespace)


def plan(
    sources: Sources = None,
    targets: Targets = None,
    from_node: FromNode = None,
    from_pod: FromPod = None,
    to_node: ToNode = None,
    file: File = None,
    downtime_limit: DowntimeLimit = None,
    pre_copy: PreCopies = None,
    keep: Keep = False,
    timeout: Timeout = None,
    output: Output = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> int:
    """Check whether a migration could be done, and predict its downtime. Nothing is touched."""
    strategy = _strategy(downtime_limit, pre_copy, None, None, None, None, None)
    ends = (sources or [], targets or [], from_node, from_pod, to_node)
    made = _wanted(Mode.PLAN, None, file, ends, strategy, None)
    return _try_out(connect(context, kubeconfig, namespace), made, namespace, output, keep=keep, timeout=timeout)


def rehearse(
    sources: Sources = None,
    targets: Targets = None,
    from_node: FromNode = None,
    from_pod: FromPod = None,
    to_node: ToNode = None,
    file: File = None,
    downtime_limit: DowntimeLimit = None,
    pre_copy: PreCopies = None,
    convergence_timeout: Convergence = None,
    on_convergence_timeout: OnConvergence = None,
    bandwidth_limit: Bandwidth = None,
    keep: Keep = False,
    timeout: Timeout = None,
    output: Output = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> int:
    """Do everything up to the switchover with the real targets, measure, then let the sources run on."""
    strategy = _strategy(
        downtime_limit, pre_copy, convergence_timeout, on_convergence_timeout, None, None, bandwidth_limit
    )
    ends = (sources or [], targets or [], from_node, from_pod, to_node)
    made = _wanted(Mode.REHEARSE, None, file, ends, strategy, None)
    return _try_out(connect(context, kubeconfig, namespace), made, namespace, output, keep=keep, timeout=timeout)


def _try_out(
    cluster: Cluster, made: Json, namespace: str | None, form: Form | None, *, keep: bool, timeout: float | None
) -> int:
    """Create it, see it through, show what it came to, and clean up."""
    body = cluster.create(MIGRATIONS, made, _namespace(cluster, made, namespace))
    with _deleted_afterwards(cluster, body, keep=keep):
        if form is None and made["spec"]["mode"] == Mode.REHEARSE.value:
            view = View()
            body = show_progress(cluster, body, view, timeout)
        else:
            body = wait_for_end(cluster, body, timeout)
        if form is not None:
            emit(form, body)
        else:
            report(View(), body)
    if keep and form is None:
        print(f"kept as vfiomigration.vfiomigration.io/{body['metadata']['name']}", flush=True)
    return 0 if has_succeeded(body) else FAILED


@contextlib.contextmanager
def _deleted_afterwards(cluster: Cluster, body: Json, *, keep: bool) -> Iterator[None]:
    """Delete what was created only to look, also if that was interrupted: deletion cancels it."""
    try:
        yield
    except UserError as problem:
        if not keep:
            next_step = "it is deleted, which cancels it"
            raise UserError(problem.subject, problem.found, next_step, code=problem.code) from problem
        raise
    finally:
        if not keep:
            try:
                cluster.delete(MIGRATIONS, body["metadata"]["name"], body["metadata"]["namespace"])
            except UserError as problem:
                print(f"warning: {full_name(body)} is not deleted: {problem}", file=sys.stderr)


def cancel(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until every source runs again.")] = False,
    timeout: Timeout = None,
    output: Output = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> int:
    """Give a migration up: its sources run on. Works until the decision is Commit."""
    cluster = connect(context, kubeconfig, namespace)
    body = cluster.get(MIGRATIONS, bare(name), cluster.namespace)
    subject = f"VFIOMigration {full_name(body)}"
    if is_finished(body):
        found = f"expected a migration that is under way, found one that has ended: {phase_of(body)}"
        raise UserError(subject, found, f"nothing is left to cancel; see kubectl vfio explain {bare(name)}")
    if is_committed(body):
        found = "expected one that is not decided, found the decision Commit: the targets are being started"
        raise UserError(subject, found, f"wait for its end: kubectl vfio watch {bare(name)}")
    if not yes:
        _ask(subject, body)
    body = cluster.change(MIGRATIONS, bare(name), cluster.namespace, {"spec": {"cancel": True}})
    if wait:
        body = wait_for_end(cluster, body, timeout)
    if output is not None:
        emit(output, body)
    else:
        print(f"vfiomigration.vfiomigration.io/{bare(name)} is told to cancel", flush=True)
        if wait:
            report(View(), body)
    # it may have been decided in the meantime: then it has not been cancelled
    return FAILED if wait and phase_of(body) != "Cancelled" else 0


def _ask(subject: str, body: Json) -> None:
    if not sys.stdin.isatty():
        raise wrong(subject, "expected a terminal to ask for confirmation, found none", "add --yes")
    if not typer.confirm(f"{subject} is {phase_of(body)}. Cancel it, so that its sources run on?", err=True):
        raise UserError(subject, "not cancelled", "it goes on")
