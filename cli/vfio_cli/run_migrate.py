"""migrate, plan, rehearse and cancel: what changes something."""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from vfio_api.models_migration import Mode
from vfio_api.models_status import Phase
from vfio_cli.cluster import MIGRATIONS, Cluster
from vfio_cli.fields import full_name, has_succeeded, is_committed, is_finished, phase_of
from vfio_cli.follow import print_changes, report, show_progress, wait_for_end
from vfio_cli.knobs import Copying, Limits, Pausing, Priority, Switching, Ttl, strategy_of
from vfio_cli.manifest import STRATEGY, build, documents, from_document, migrate_command, pausing, selection
from vfio_cli.naming import split
from vfio_cli.options import Access, Name, Printing, Timeout, node_names, pod_names
from vfio_cli.problems import FAILED, INTERRUPTED, UserError, wrong
from vfio_cli.terminal import View

Json = dict[str, Any]
_END = "NODE/DEVICE, or NAME=NODE/DEVICE. May be repeated."
NewName = Annotated[str | None, typer.Argument(help="Name of the new VFIOMigration; made up if left out.")]
File = Annotated[str | None, typer.Option("--filename", "-f", help="A VFIOMigration in YAML or JSON; - is stdin.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Have it checked by the API server, create nothing.")]
Keep = Annotated[bool, typer.Option("--keep", help="Do not delete the object afterwards.")]


@dataclass(frozen=True, slots=True)
class Ends:
    """What moves where."""

    sources: Annotated[list[str] | None, typer.Option("--from", help=f"A source: {_END}")] = None
    targets: Annotated[list[str] | None, typer.Option("--to", help=f"Its target: {_END}")] = None
    from_node: Annotated[
        str | None, typer.Option(help="All migratable devices in use on this node.", autocompletion=node_names)
    ] = None
    from_pod: Annotated[
        str | None,
        typer.Option(help="This pod of the namespace, with all of its devices.", autocompletion=pod_names),
    ] = None
    to_node: Annotated[str | None, typer.Option(help="The node that takes them.", autocompletion=node_names)] = None
    to_pod: Annotated[
        str | None, typer.Option(help="A pod that was made to take them over, instead of one that is made for it.")
    ] = None


def migrate(
    name: NewName = None,
    *,
    ends: Ends,
    file: File = None,
    limits: Limits,
    copying: Copying,
    switching: Switching,
    pauses: Pausing,
    priority: Priority = None,
    ttl: Ttl = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it has ended.")] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show its progress until it has ended.")] = False,
    timeout: Timeout = None,
    dry_run: DryRun = False,
    printing: Printing,
    access: Access,
) -> int:
    """Move devices, or a pod with them, to another node: create a VFIOMigration, and wait for it if asked to."""
    strategy, more = strategy_of(limits, copying, switching), {"--ttl": ttl, "--priority": priority}
    made = _wanted(Mode.MIGRATE, name, file, ends, strategy, access, more=more, pauses=pauses)
    cluster, space = _place(access, made)
    body = cluster.create(MIGRATIONS, made, space, dry_run=dry_run)
    if printing.form is not None and not (wait or watch):
        printing.emit(body)
    elif printing.form is None:
        suffix = " (server dry run)" if dry_run else ""
        print(f"vfiomigration.vfiomigration.io/{body['metadata']['name']} created{suffix}", flush=True)
    if dry_run or not (wait or watch):
        return 0
    return _ended(cluster, body, printing, watch=watch, timeout=timeout)


def _ended(cluster: Cluster, body: Json, printing: Printing, *, watch: bool, timeout: float | None) -> int:
    if printing.form is not None and watch:
        body = print_changes(cluster, body, printing, timeout)
    elif printing.form is not None:
        body = wait_for_end(cluster, body, timeout)
        printing.emit(body)
    else:
        view = View()
        body = show_progress(cluster, body, view, timeout) if watch else wait_for_end(cluster, body, timeout)
        report(view, body)
    return 0 if has_succeeded(body) else FAILED


def _wanted(
    mode: Mode,
    name: str | None,
    file: str | None,
    ends: Ends,
    strategy: Json,
    access: Access,
    *,
    more: Json | None = None,
    pauses: Pausing | None = None,
) -> Json:
    """The object that flags or a file describe. more: what else is in a spec, by its flag. Raises UserError."""
    pauses, more = pauses or Pausing(), more or {}
    if file is None:
        named = split(name, access.namespace) if name is not None else None
        what = selection(
            ends.sources or [], ends.targets or [], ends.from_node, ends.from_pod, ends.to_node, ends.to_pod
        )
        what |= pausing(pauses.pause, pauses.hook, pauses.pause_timeout, moves_pod=bool(ends.from_pod))
        what |= {"priority": more["--priority"]} if more.get("--priority") is not None else {}
        made = build(mode, named.name if named else None, what, strategy, more.get("--ttl"))
        if named is not None and named.namespace:
            made["metadata"]["namespace"] = named.namespace
        return made
    beside = [f"the name {name!r}"] if name is not None else []
    beside += [flag for flag, value in (_given(ends, strategy, pauses) | more).items() if value is not None]
    if beside:
        expected = "expected no name and no flags that say what to migrate or how"
        raise wrong("-f", f"{expected}, found {', '.join(beside)} beside the file")
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
        found = documents(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        said = getattr(error, "strerror", None) or " ".join(str(error).split())
        why = said.replace('in "<unicode string>", ', "at ")
        raise UserError(f"file {file}", f"expected readable YAML, found: {why}", "correct or rename it") from error
    if len(found) != 1:
        raise UserError(f"file {file}", f"expected one object, found {len(found)}", "use kubectl apply for several")
    return from_document(found[0], f"file {file}", None if mode is Mode.MIGRATE else mode)


def _given(ends: Ends, strategy: Json, pauses: Pausing) -> Json:
    """The values of the flags that a file takes the place of."""
    where = {
        "--from": ends.sources or None,
        "--to": ends.targets or None,
        "--from-node": ends.from_node,
        "--from-pod": ends.from_pod,
        "--to-node": ends.to_node,
        "--to-pod": ends.to_pod,
        "--pause": pauses.pause,
        "--hook": pauses.hook,
        "--pause-timeout": pauses.pause_timeout,
    }
    return where | {flag: strategy[field] for flag, field in STRATEGY.items()}


def _place(access: Access, made: Json) -> tuple[Cluster, str]:
    """Where it goes: as the flag says, else its own name or file, else the context. Raises UserError."""
    said, flag = made["metadata"].get("namespace"), access.namespace
    if said and flag and said != flag:
        raise wrong(f"-n {flag}", f"expected the namespace of the file, found {said} there", "leave -n out")
    cluster = access.connect(said or "")
    return cluster, cluster.namespace


def plan(
    *,
    ends: Ends,
    file: File = None,
    limits: Limits,
    keep: Keep = False,
    timeout: Timeout = None,
    printing: Printing,
    access: Access,
) -> int:
    """Check whether a migration could be done, and predict its downtime. Nothing is touched."""
    made = _wanted(Mode.PLAN, None, file, ends, strategy_of(limits), access)
    return _try_out(access, made, file, printing, keep=keep, timeout=timeout)


def rehearse(
    *,
    ends: Ends,
    file: File = None,
    limits: Limits,
    copying: Copying,
    keep: Keep = False,
    timeout: Timeout = None,
    printing: Printing,
    access: Access,
) -> int:
    """Do everything up to the switchover with the real targets, measure, then let the sources run on."""
    made = _wanted(Mode.REHEARSE, None, file, ends, strategy_of(limits, copying), access)
    return _try_out(access, made, file, printing, keep=keep, timeout=timeout)


def _try_out(
    access: Access, made: Json, file: str | None, printing: Printing, *, keep: bool, timeout: float | None
) -> int:
    """Create it, see it through, show what it came to, and clean up."""
    cluster, space = _place(access, made)
    body = cluster.create(MIGRATIONS, made, space)
    with _deleted_afterwards(cluster, body, keep=keep):
        if printing.form is None and made["spec"]["mode"] == Mode.REHEARSE.value:
            body = show_progress(cluster, body, View(), timeout)
        else:
            body = wait_for_end(cluster, body, timeout)
        if printing.form is not None:
            printing.emit(body)
        else:
            report(View(), body, _then(access, made, file) if has_succeeded(body) else None)
    if keep and printing.form is None:
        print(f"kept as vfiomigration.vfiomigration.io/{body['metadata']['name']}", flush=True)
    return 0 if has_succeeded(body) else FAILED


def _then(access: Access, made: Json, file: str | None) -> str:
    """The command that does what was tried out."""
    command = migrate_command(made["spec"], access.flags(), file)
    # what is tried out under a name of its own says so in the file
    own_mode = file is not None and "name" in made["metadata"]
    return f"{command} (with mode: Migrate in that file)" if own_mode else command


@contextlib.contextmanager
def _deleted_afterwards(cluster: Cluster, body: Json, *, keep: bool) -> Iterator[None]:
    """Delete what was created only to look, also if that was interrupted: deletion cancels it."""
    if keep:
        yield
        return
    try:
        yield
    except UserError as problem:
        found = "not waited for any longer" if problem.code == INTERRUPTED else problem.found
        kept = _delete(cluster, body)
        next_step = f"it goes on: {kept}" if kept else "it is deleted, which cancels it"
        raise UserError(problem.subject, found, next_step, code=problem.code) from problem
    except BaseException:
        _delete(cluster, body)
        raise
    if kept := _delete(cluster, body):
        print(f"warning: {full_name(body)} is there still: {kept}", file=sys.stderr)


def _delete(cluster: Cluster, body: Json) -> str:
    """Delete it; if that fails, why, and how to do it by hand."""
    name, namespace = body["metadata"]["name"], body["metadata"]["namespace"]
    try:
        cluster.delete(MIGRATIONS, name, namespace)
    except UserError as problem:
        return f"deleting it failed ({problem.found}); kubectl delete vfm {name} -n {namespace}"
    return ""


def cancel(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until every source runs again.")] = False,
    timeout: Timeout = None,
    *,
    printing: Printing,
    access: Access,
) -> int:
    """Give a migration up: its sources run on. Works until the decision is Commit."""
    cluster, body = access.migration(name)
    own, namespace = body["metadata"]["name"], body["metadata"]["namespace"]
    subject = f"VFIOMigration {full_name(body)}"
    if is_finished(body):
        found = f"expected a migration that is under way, found one that has ended: {phase_of(body)}"
        raise UserError(subject, found, f"nothing is left to cancel; see kubectl vfio explain {own} -n {namespace}")
    if is_committed(body):
        found = "expected one that is not decided, found the decision Commit: the targets are being started"
        raise UserError(subject, found, f"wait for its end: kubectl vfio watch {own} -n {namespace}")
    if not yes and not _agreed(subject, body):
        print(f"{subject} is not cancelled: it goes on", flush=True)
        return 0
    body = cluster.change(MIGRATIONS, own, namespace, {"spec": {"cancel": True}})
    if printing.form is None:
        print(f"vfiomigration.vfiomigration.io/{own} is told to cancel", flush=True)
    if wait:
        body = wait_for_end(cluster, body, timeout)
    if printing.form is not None:
        printing.emit(body)
    elif wait:
        report(View(), body)
    # it may have been decided in the meantime: then it has not been cancelled
    return FAILED if wait and phase_of(body) != Phase.CANCELLED else 0


def _agreed(subject: str, body: Json) -> bool:
    if not sys.stdin.isatty():
        raise wrong(subject, "expected a terminal to ask for confirmation, found none", "add --yes")
    return typer.confirm(f"{subject} is {phase_of(body)}. Cancel it, so that its sources run on?", err=True)
