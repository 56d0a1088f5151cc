"""The demo from beginning to end, for any scene."""

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from devtools.demo_scene import Scene
from devtools.demo_view import Steps
from devtools.demo_watch import watch
from devtools.gobuild import BuildError
from devtools.plane import KubectlError, PlaneError
from devtools.processes import ProcessError
from devtools.tools import MissingToolError, kubectl
from vfio_api.errors import VFIOMigrationError
from vfio_cli.fields import condition, size_text
from vfio_cli.live import MigrationView
from vfio_cli.progress import Scale
from vfio_cli.terminal import View
from vfio_cli.waterfall import chart, duration_text, overview, switchover

# What can go wrong without being a mistake in the demo: said in a sentence, without a traceback.
EXPECTED = (
    MissingToolError,
    BuildError,
    PlaneError,
    KubectlError,
    ProcessError,
    VFIOMigrationError,
    TimeoutError,
    OSError,
    subprocess.CalledProcessError,
)
NAME, NAMESPACE = "demo", "default"
MIGRATION_SECONDS, INVENTORY_SECONDS, POLL_SECONDS = 120.0, 30.0, 0.1
TAIL_LINES, TAIL_COLUMNS = 8, 240
WORSE = ("warning", "error", "critical", "exception")
Json = dict[str, Any]


def run(scene: Scene, view: View, *, keep: bool = False) -> int:
    """Show the whole of it; returns the exit code. The caller closes the scene."""
    began = time.monotonic()
    view.line(f"VFIO live migration: {scene.title}", "bold")
    view.line()
    with Steps(view) as steps:
        scene.start(steps)
    view.line(f"   ready after {time.monotonic() - began:.1f} s", "dim")
    body = _migrate(scene, view)
    if condition(body, "Succeeded") == "True":
        _settle(scene, body)
    _results(scene, view)
    _timeline(view, body)
    good = _verdict(scene, view, body)
    view.line(f"   {time.monotonic() - began:.1f} s in all", "dim")
    if not good:
        tell_logs(scene.logs(), view)
    if keep:
        _keep(scene, view, body)
    return 0 if good else 1


def _migrate(scene: Scene, view: View) -> Json:
    """Apply the manifest and show its progress until it is finished."""
    path = scene.manifest
    view.command(f"kubectl apply -f {'/'.join(path.parts[-2:])}")
    view.line(scene.plane.kubectl("apply", "-f", str(path)).rstrip())
    view.command(f"kubectl get vfm {NAME} --watch")
    with MigrationView(view, Scale(scene.sizes, arrow=view.arrow)) as progress:
        for body in watch("vfm", NAME, NAMESPACE, scene.plane.environment, MIGRATION_SECONDS):
            progress.show(body.get("status", {}))
            if condition(body, "Finished") == "True":
                return body
    raise AssertionError("a watch ends with an error, or is left")


def settled(body: Json, devices: Iterable[Json]) -> bool:
    """Whether the VFIODevices show what a migration that succeeded left behind.

    The agents publish it by themselves, a moment after the migration is Finished: no holder at its sources, the keeper
    at its targets, no claim.
    """
    found = {(d["spec"]["nodeName"], d["spec"]["address"]): d for d in devices}
    for pair in body["spec"]["devices"]:
        for end, holder in (("source", ""), ("target", "keeper")):
            device = found.get((pair[end]["nodeName"], pair[end]["device"]), {})
            if device.get("status", {}).get("holder") != holder or device["spec"].get("claimRef"):
                return False
    return True


def _settle(scene: Scene, body: Json) -> None:
    """Wait for that. Raises TimeoutError."""
    deadline = time.monotonic() + INVENTORY_SECONDS
    while not settled(body, json.loads(scene.plane.kubectl("get", "vfd", "-o", "json"))["items"]):
        if time.monotonic() > deadline:
            raise TimeoutError(f"`kubectl get vfd` does not show what {NAME} left after {INVENTORY_SECONDS:g} s")
        time.sleep(POLL_SECONDS)


def _results(scene: Scene, view: View) -> None:
    """What a user of kubectl sees afterwards."""

    def show(*arguments: str) -> None:
        view.command(f"kubectl {' '.join(arguments)}")
        view.line(scene.plane.kubectl(*arguments).rstrip())

    show("get", "vfm", NAME, "-o", "wide")
    show("get", "vfd")
    view.command(f"kubectl describe vfm {NAME}   # its conditions, in short, and events")
    described = scene.plane.kubectl("describe", "vfm", NAME)
    view.line("\n".join([*_conditions(described), *_section(described, "Events:", 0)]))


def _section(described: str, title: str, indent: int) -> list[str]:
    """The part of kubectl's description below a title, with it."""
    lines = described.splitlines()
    start = next((n for n, line in enumerate(lines) if line.startswith(" " * indent + title)), None)
    if start is None:
        return []
    found = [lines[start]]
    for line in lines[start + 1 :]:
        if line.strip() and len(line) - len(line.lstrip()) <= indent:
            break
        found.append(line)
    return found


def _conditions(described: str) -> list[str]:
    """kubectl's conditions with each on one line: it prints six for each."""
    entries: list[dict[str, str]] = [{}]
    for line in _section(described, "Conditions:", 2)[1:]:
        key, _, value = line.strip().partition(":")
        entries[-1][key] = value.strip()
        if key == "Type":  # kubectl sorts the keys
            entries.append({})
    rows = [("Type", "Status", "Reason", "Message")]
    rows += [tuple(entry.get(key, "") for key in rows[0]) for entry in entries if "Type" in entry]  # type: ignore[misc]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    table = ["    " + "  ".join(f"{c:<{w}}" for c, w in zip(row, [*widths, 0], strict=True)).rstrip() for row in rows]
    return ["Conditions:", *table] if len(rows) > 1 else []


def _timeline(view: View, body: Json) -> None:
    timings = body.get("status", {}).get("timings", [])
    view.heading("Timeline (status.timings)")
    view.rows(chart(overview(timings), view.width, ascii_only=view.ascii_only))
    zoomed = switchover(timings)
    if zoomed:
        down = int(body["status"].get("downtimeMicroseconds", 0))
        view.heading(f"The switchover in detail: {duration_text(down)} of downtime")
        view.rows(chart(zoomed, view.width, total=down, ascii_only=view.ascii_only))


def _verdict(scene: Scene, view: View, body: Json) -> bool:
    """The figures that count; True if the migration succeeded and nothing is lost."""
    status: Json = body.get("status", {})
    succeeded = condition(body, "Succeeded") == "True"
    view.heading("Result")
    view.result(succeeded, str(status.get("phase", "")), str(status.get("message", "")))
    if not succeeded:
        return False
    limit = body["spec"]["strategy"]["downtimeLimitMilliseconds"]
    down, forecast = (int(status.get(f"{key}Microseconds", 0)) for key in ("downtime", "predictedDowntime"))
    text = f"{down / 1000:.1f} ms (forecast {forecast / 1000:.1f} ms, limit {limit} ms)"
    # the limit is kept by forecast: a busy machine may miss it, which is worth a look but no failure
    view.result(True if down <= 1000 * limit else None, "downtime", text)
    moved, total = int(status.get("progress", {}).get("bytes", 0)), sum(scene.sizes.values())
    view.result(True, "bytes moved", size_text(moved) + (f" for {size_text(total)} of device state" if total else ""))
    findings = scene.verdict()
    for finding in findings:
        view.result(finding.good, finding.label, finding.text)
    return all(finding.good for finding in findings)


def hints(body: Json, kubeconfig: Path, programs: Sequence[Path], metrics: Mapping[str, int]) -> list[str]:
    """What to type into another terminal after a migration; `programs` are in the folders that its PATH needs."""
    folders = dict.fromkeys(str(program.parent) for program in programs)
    source, target = (body["spec"]["devices"][0][end]["nodeName"] for end in ("source", "target"))
    return [
        f"export KUBECONFIG={kubeconfig}",
        f"export PATH={':'.join(folders)}:$PATH",
        f"kubectl vfio timeline {NAME}",
        "kubectl vfio devices",
        f"kubectl vfio migrate back --from-node {target} --to-node {source} --watch",
        "kubectl vfio doctor   # it also looks for the chart's Deployment and DaemonSets: these fail here, as expected",
        *(f"curl http://127.0.0.1:{port}/metrics   # {who}" for who, port in sorted(metrics.items())),
    ]


def _keep(scene: Scene, view: View, body: Json) -> None:
    """Leave the cluster running until the user has seen enough."""
    view.heading("The cluster runs on until Ctrl-C. In another terminal:")
    for line in hints(body, scene.plane.kubeconfig, [Path(sys.executable), kubectl()], scene.metrics()):
        view.line(f"  {line}")
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()
    view.line()
    view.line("stopping everything", "bold")


def tell_logs(logs: Sequence[Path], view: View) -> None:
    """Copy the logs to where they stay, and show what was complained about, else how they end."""
    written = [log for log in logs if log.is_file() and log.stat().st_size]
    if not written:
        return
    folder = Path(tempfile.mkdtemp(prefix="vfio-demo-logs-"))
    view.heading(f"Logs are kept in {folder}")
    shown = 0
    for log in written:
        name = log.name if log.name.startswith("operator") else f"{log.parent.name}-{log.name}"
        shutil.copy(log, folder / name)
        lines = [_log_line(line) for line in log.read_text(errors="replace").splitlines() if line.strip()]
        worse = [text for bad, text in lines if bad]
        if worse or not shown:
            shown += 1
            view.line(f"{name} {'complains' if worse else 'ends with'}:", "bold")
            for text in (worse or [text for _, text in lines])[-TAIL_LINES:]:
                view.line(f"  {text[:TAIL_COLUMNS]}")


def _log_line(line: str) -> tuple[bool, str]:
    """(whether it is a warning or worse, the line for people)."""
    try:
        entry = json.loads(line)
        level, event, stamp = (str(entry.pop(key, "")) for key in ("level", "event", "timestamp"))
    except (ValueError, AttributeError, TypeError):
        return "Error" in line or "error" in line, line
    rest = " ".join(f"{key}={value}" for key, value in entry.items() if key not in ("uid", "pod", "node", "epoch"))
    return level in WORSE, f"{stamp[11:23]} {level}: {event} {rest}"
