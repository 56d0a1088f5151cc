"""To stay with a migration until it has ended."""

import sys
from typing import Any

from vfio_api.models_migration import Mode
from vfio_cli.cluster import DEVICES, Cluster
from vfio_cli.fields import full_name, is_finished, route_of
from vfio_cli.live import MigrationView
from vfio_cli.options import Form, emit
from vfio_cli.outcome import next_step_of, outcome
from vfio_cli.problems import INTERRUPTED, UserError
from vfio_cli.progress import Scale, estimates, sizes_of
from vfio_cli.terminal import View

Json = dict[str, Any]


def _where(body: Json) -> tuple[str, str]:
    return body["metadata"]["name"], body["metadata"]["namespace"]


def wait_for_end(cluster: Cluster, body: Json, seconds: float | None = None) -> Json:
    """The migration when it has ended; nothing is shown. Raises UserError."""
    try:
        for found in cluster.follow(*_where(body), seconds=seconds):
            if is_finished(found):
                return found
    except KeyboardInterrupt:
        raise left(body) from None
    raise AssertionError("a migration is followed until its end, or until a UserError")


def print_changes(cluster: Cluster, body: Json, form: Form, seconds: float | None = None) -> Json:
    """The migration when it has ended; each change is a document on stdout. Raises UserError."""
    try:
        for found in cluster.follow(*_where(body), seconds=seconds):
            if form is Form.YAML:
                print("---")
            emit(form, found)
            if is_finished(found):
                return found
    except KeyboardInterrupt:
        raise left(body) from None
    raise AssertionError("a migration is followed until its end, or until a UserError")


def show_progress(cluster: Cluster, body: Json, view: View, seconds: float | None = None) -> Json:
    """The migration when it has ended, with its progress as it comes. Raises UserError."""
    told: list[str] = []

    def away(problem: UserError) -> None:
        if not told:
            print(f"{problem}\nwaiting for it", file=sys.stderr)
            told.append(str(problem))

    try:
        with MigrationView(view, scale_of(cluster, body, view)) as shown:
            for found in cluster.follow(*_where(body), seconds=seconds, away=away):
                shown.show(found.get("status", {}))
                if is_finished(found):
                    return found
    except KeyboardInterrupt:
        raise left(body) from None
    raise AssertionError("a migration is followed until its end, or until a UserError")


def scale_of(cluster: Cluster, body: Json, view: View) -> Scale:
    """What the picture of a migration needs besides its status."""
    try:
        held = estimates(cluster.list(DEVICES))
    except UserError:  # who may not read the inventory sees bars without their ends
        held = {}
    spec = body["spec"]
    mode = spec.get("mode", Mode.MIGRATE)
    title = f"{full_name(body)}  {mode}  {route_of(body, view.arrow)}"
    limit = spec.get("strategy", {}).get("downtimeLimitMilliseconds")
    return Scale(sizes_of(spec.get("devices", []), held), title, mode, limit, view.arrow, held)


def report(view: View, body: Json) -> None:
    """How it ended."""
    for line in outcome(body, view.arrow):
        view.result(line.good, line.label, line.text)
    if next_step := next_step_of(body):
        view.line(f" {view.arrow} next: {next_step}")


def left(body: Json) -> UserError:
    """Ctrl-C: only this command ends."""
    name, namespace = _where(body)
    found = "not waited for any longer, it goes on"
    next_step = f"kubectl vfio watch {name} -n {namespace}, or give it up: kubectl vfio cancel {name} -n {namespace}"
    return UserError(f"VFIOMigration {namespace}/{name}", found, next_step, code=INTERRUPTED)
