"""What is left when the project is to be uninstalled: what forbids it, and what lets go first. Pure."""

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vfio_api.types import MigrationKey
from vfio_operator import observe

GONE = "gone, and agents have not come back yet that may have to ask for its decision"
NAMED = 20  # migrations that a message names


@dataclass(frozen=True, slots=True)
class Remains:
    """Migrations that hold something (with their phases), finished ones with our finalizer, and switchovers likewise.

    waiting: those that have not begun. switchovers are named by their migrations' keys.
    """

    running: tuple[tuple[MigrationKey, str], ...]
    finished: tuple[MigrationKey, ...]
    switchovers: tuple[MigrationKey, ...]
    waiting: tuple[MigrationKey, ...]


def remains_of(migrations: Iterable[observe.Body], switchovers: Iterable[observe.Body]) -> Remains:
    """What these objects are to an uninstall.

    A migration takes nothing before it has our finalizer, and has ended when it is finished: what was kept beyond that
    goes with the rest. A switchover whose migration is gone holds the decision that sessions may still wait for.
    """
    running: list[tuple[MigrationKey, str]] = []
    finished: list[MigrationKey] = []
    waiting: list[MigrationKey] = []
    ended: set[str] = set()
    for body in migrations:
        key = observe.key_of(body)
        if observe.is_finished(body):
            ended.add(key.uid)
        if not observe.has_finalizer(body):
            if not observe.is_finished(body):
                waiting.append(key)
        elif observe.is_finished(body):
            finished.append(key)
        else:
            running.append((key, body.get("status", {}).get("phase", "Pending")))
    known = {key.uid for key, _ in running}
    kept = [
        MigrationKey(body["metadata"]["name"], body["metadata"]["namespace"], body["spec"]["migrationName"])
        for body in switchovers
        if observe.has_finalizer(body)
    ]
    left = [key for key in kept if key.uid in ended]
    running += [(key, GONE) for key in kept if key.uid not in known | ended]
    return Remains(tuple(running), tuple(finished), tuple(left), tuple(waiting))


def summary(remains: Remains) -> str:
    """That it may be uninstalled, and what becomes of what is there; lines for people."""
    running, waiting = len(remains.running), len(remains.waiting)
    let_go = len(remains.switchovers) + len(remains.finished)
    lines = [f"may be uninstalled: {running} migrations run, {waiting} wait, {let_go} objects let go"]
    if waiting:
        lines.append("These wait for the next operator, and begin when it comes (delete them if they must not):")
        lines += [f"  VFIOMigration {key}" for key in remains.waiting[:NAMED]]
    if waiting > NAMED:
        lines.append(f"  and {waiting - NAMED} more: kubectl get vfm --all-namespaces")
    return "\n".join(lines)


def refusal(running: Sequence[tuple[MigrationKey, str]]) -> str:
    """Why it is not uninstalled, and what to do; lines for people."""
    there = [key for key, phase in running if phase != GONE]
    named = [f"  VFIOMigration {each} is {phase}" for each, phase in running[:NAMED]]
    if len(running) > NAMED:
        named.append(f"  and {len(running) - NAMED} more: kubectl get vfm --all-namespaces")
    lines = [
        f"vfio-migration is not uninstalled: {len(running)} migration{'s' * (len(running) > 1)} would be stranded, "
        "since only operator and agents can end what has begun.",
        *named,
    ]
    if there:
        lines += _ways_to_end(there[0], several=len(there) > 1)
    if len(there) < len(running):
        lines.append("Have the agents back that are away; their nodes: kubectl get vfioswitchovers -A --output yaml")
    return "\n".join(
        [
            *lines,
            "then uninstall again. To uninstall all the same, and leave devices as they are: helm uninstall --no-hooks",
            "Before helm upgrades what it was to uninstall: helm rollback, to the last revision of helm history",
        ]
    )


def _ways_to_end(key: MigrationKey, *, several: bool) -> tuple[str, str]:
    which = f"vfm --namespace {shlex.quote(key.namespace)} {shlex.quote(key.name)}"
    each = "each" if several else "it"
    return (
        f"Wait for {each}:  kubectl wait {which} --for=condition=Finished --timeout=10m",
        f"or cancel {each}: kubectl patch {which} --type=merge " """--patch='{"spec":{"cancel":true}}'""",
    )
