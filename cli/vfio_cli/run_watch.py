"""watch, timeline and explain: what one migration does or did."""

from pathlib import Path
from typing import Annotated, Any

import typer

from vfio_cli.cluster import DEVICES, EVENTS, SWITCHOVERS, Cluster
from vfio_cli.explain import Case, Story
from vfio_cli.explain import explain as tell
from vfio_cli.fields import full_name, has_succeeded, phase_of, route_of
from vfio_cli.follow import print_changes, report, show_progress
from vfio_cli.options import Access, Name, Output, Printing, Timeout, emit
from vfio_cli.pictures import draw_png, page
from vfio_cli.problems import FAILED, UserError
from vfio_cli.terminal import View
from vfio_cli.waterfall import Bar, chart, duration_text, overview, switchover

Json = dict[str, Any]


def watch(
    name: Name,
    timeout: Timeout = None,
    *,
    printing: Printing,
    access: Access,
) -> int:
    """Follow a migration until it has ended. The exit code is 0 only if it succeeded."""
    cluster, body = access.migration(name)
    if printing.form is not None:
        body = print_changes(cluster, body, printing, timeout)
    else:
        view = View()
        body = show_progress(cluster, body, view, timeout)
        report(view, body)
    return 0 if has_succeeded(body) else FAILED


def timeline(
    name: Name,
    output: Output = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page to this file instead.")] = None,
    png: Annotated[Path | None, typer.Option("--png", help="Write a picture to this file instead.")] = None,
    *,
    access: Access,
) -> int:
    """Show how long each step took, and what the downtime was made of."""
    _, body = access.migration(name)
    timings = body.get("status", {}).get("timings", [])
    whole, down = overview(timings), switchover(timings)
    if output is not None:
        facts = {"name": full_name(body), "phase": phase_of(body)}
        emit(output, facts | {"steps": _rows(whole), "switchover": _rows(down)})
        return 0
    if not timings:
        found = f"expected steps that were timed, found none: it is {phase_of(body)}"
        own, namespace = body["metadata"]["name"], body["metadata"]["namespace"]
        next_step = f"see kubectl vfio explain {own} -n {namespace}"
        raise UserError(f"VFIOMigration {full_name(body)}", found, next_step)
    microseconds = body["status"].get("downtimeMicroseconds")
    detail = f"The switchover in detail: {_downtime(microseconds)}"
    charts = [("The whole migration", whole), (detail, down)]
    title = f"VFIOMigration {full_name(body)}"
    if html is not None:
        _write(html, page(title, _facts(body), charts))
    if png is not None:
        try:
            draw_png(png, title, charts)
        except OSError as error:
            raise _unwritable(png, error) from error
    for path in (html, png):
        if path is not None:
            print(f"wrote {path}", flush=True)
    if html is None and png is None:
        _draw(View(), body, charts, microseconds)
    return 0


def _draw(view: View, body: Json, charts: list[tuple[str, list[Bar]]], down: int | None) -> None:
    (_, whole), (detail, switched) = charts
    view.line(f"{full_name(body)}  {phase_of(body)}  {route_of(body, view.arrow)}", "bold")
    view.heading("Timeline (status.timings)")
    view.rows(chart(whole, view.width, ascii_only=view.ascii_only))
    if switched:
        view.heading(detail)
        view.rows(chart(switched, view.width, total=down or 0, ascii_only=view.ascii_only))


def _downtime(microseconds: int | None) -> str:
    return "no downtime was recorded" if microseconds is None else f"{duration_text(microseconds)} of downtime"


def _rows(bars: list[Bar]) -> list[Json]:
    return [
        {
            "step": bar.label.strip(),
            "startMicroseconds": bar.start,
            "durationMicroseconds": bar.duration,
            "downtime": bar.down,
        }
        for bar in bars
    ]


def _facts(body: Json) -> dict[str, str]:
    status = body["status"]
    predicted = status.get("predictedDowntimeMicroseconds")
    return {
        "Phase": phase_of(body),
        "From and to": route_of(body),
        "Created": body["metadata"]["creationTimestamp"],
        "Downtime": _downtime(status.get("downtimeMicroseconds")),
        "Predicted": "" if predicted is None else duration_text(predicted),
        "Message": status.get("message", ""),
    }


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> UserError:
    found = f"expected a file that can be written, found: {error.strerror}"
    return UserError(str(path), found, "name another file")


def explain(
    name: Name,
    output: Output = None,
    *,
    access: Access,
) -> int:
    """Say in sentences why a migration is where it is, and what to do next."""
    cluster, body = access.migration(name)
    story = tell(_case(cluster, body))
    if output is not None:
        parts = {"headline": story.headline, "sentences": list(story.sentences), "events": list(story.events)}
        emit(output, {"name": full_name(body), **parts, "nextSteps": list(story.next_steps)})
        return 0
    _print(View(), story)
    return 0


def _case(cluster: Cluster, body: Json) -> Case:
    """Everything that is held of it; what may not be read is left out, but the migration itself."""
    namespace, uid = body["metadata"]["namespace"], body["metadata"]["uid"]

    def all_of(kind: Any, space: str = "", **selectors: str) -> list[Json]:
        try:
            return cluster.list(kind, space, **selectors)
        except UserError as problem:
            if problem.status in (403, 404):
                return []
            raise

    try:
        switchover = cluster.find(SWITCHOVERS, uid, namespace)
    except UserError as problem:
        if problem.status != 403:
            raise
        switchover = None
    devices = all_of(DEVICES)
    events = all_of(EVENTS, namespace, fieldSelector=f"regarding.name={body['metadata']['name']}")
    return Case(body, switchover, devices, events, cluster.now())


def _print(view: View, story: Story) -> None:
    view.line(story.headline, "bold")
    for sentence in story.sentences:
        view.line(f"  {sentence}")
    if story.events:
        view.heading("Events")
        for event in story.events:
            view.line(f"  {event}")
    view.heading("Next")
    for step in story.next_steps:
        view.line(f"  {step}")
