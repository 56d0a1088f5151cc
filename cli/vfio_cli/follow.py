"""To stay with a migration until it has ended."""

import sys
from collections.abc import Callable
from typing import Any

from vfio_api.models_migration import Mode
from vfio_cli.cluster import DEVICES, Cluster
from vfio_cli.fields import downtime_limit, full_name, is_finished, moment, route_of
from vfio_cli.live import MigrationView
from vfio_cli.options import Form, Printing
from vfio_cli.outcome import next_step_of, outcome
from vfio_cli.problems import INTERRUPTED, UserError
from vfio_cli.progress import Scale, estimates, sizes_of
from vfio_cli.terminal import View

Json = dict[str, Any]


def _where(body: Json) -> tuple[str, str]:
    return body["metadata"]["name"], body["metadata"]["namespace"]


def _ended(
    cluster: Cluster,
    body: Json,
    seconds: float | None,
    seen: Callable[[Json], None],
    away: Callable[[UserError, float], None],
) -> Json:
    """The migration when it has ended; `seen` is told of each change, `away` of an API server that does not answer.

    Raises UserError.
    """
    try:
        for found in cluster.follow(*_where(body), seconds=seconds, away=away):
            seen(found)
            if is_finished(found):
                return found
    except KeyboardInterrupt:
        raise left(body) from None
    raise AssertionError("a migration is followed until its end, or until a UserError")


def told_once() -> Callable[[UserError, float], None]:
    """Says on stderr, once, that the API server is away."""
    told: list[str] = []

    def away(problem: UserError, _: float) -> None:
        if not told:
            print(f"{problem}\nwaiting for it", file=sys.stderr)
            told.append(str(problem))

    return away


def wait_for_end(cluster: Cluster, body: Json, seconds: float | None = None) -> Json:
    """The migration when it has ended; nothing is shown. Raises UserError."""
    return _ended(cluster, body, seconds, lambda _: None, told_once())


def print_changes(cluster: Cluster, body: Json, printing: Printing, seconds: float | None = None) -> Json:
    """The migration when it has ended; each change is a document on stdout. Raises UserError."""

    versions: set[str] = set()

    def show(found: Json) -> None:
        if found["metadata"]["resourceVersion"] in versions:
            return  # an API server that is back shows the same again
        versions.add(found["metadata"]["resourceVersion"])
        if printing.form is Form.YAML:
            print("---")
        printing.emit(found)

    return _ended(cluster, body, seconds, show, told_once())


def show_progress(cluster: Cluster, body: Json, view: View, seconds: float | None = None) -> Json:
    """The migration when it has ended, with its progress as it comes. Raises UserError."""
    with MigrationView(view, scale_of(cluster, body, view)) as shown:
        once = told_once()

        def away(problem: UserError, silent: float) -> None:
            if not view.live:
                once(problem, silent)
            shown.away(silent)

        return _ended(cluster, body, seconds, lambda found: shown.show(found.get("status", {})), away)


def scale_of(cluster: Cluster, body: Json, view: View) -> Scale:
    """What the picture of a migration needs besides its status."""
    try:
        held = estimates(cluster.list(DEVICES))
    except UserError:  # who may not read the inventory sees bars without their ends
        held = {}
    spec = body["spec"]
    mode = spec.get("mode", Mode.MIGRATE)
    title = f"{full_name(body)}  {mode}  {route_of(body, view.arrow)}"
    limit = downtime_limit(body)
    created = moment(body["metadata"]["creationTimestamp"])
    return Scale(sizes_of(spec.get("devices", []), held), title, mode, limit, view.arrow, held, created)


def report(view: View, body: Json, next_step: str | None = None) -> None:
    """How it ended, and what to do next: as told, else by the reason for its end."""
    for line in outcome(body, view.arrow):
        view.result(line.good, line.label, line.text)
    if then := next_step or next_step_of(body):
        view.line(f" {view.arrow} next: {then}")


def left(body: Json) -> UserError:
    """Ctrl-C: only this command ends."""
    name, namespace = _where(body)
    found = "not waited for any longer, it goes on"
    next_step = f"kubectl vfio watch {name} -n {namespace}, or give it up: kubectl vfio cancel {name} -n {namespace}"
    return UserError(f"VFIOMigration {namespace}/{name}", found, next_step, code=INTERRUPTED)
