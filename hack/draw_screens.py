"""Runs `kubectl vfio` on the demo's cluster and stores what was on the terminal in docs/screens/.

Everything is real output of real commands: as text, and with its colours as SVG. `make screens` calls it.
"""

import io
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from errno import EIO
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0:0] = [str(ROOT / folder) for folder in ("hack", "api", "agent", "cli")]

from rich.console import Console  # noqa: E402
from rich.text import Text  # noqa: E402

from devtools.demo_scene import SimulatedScene  # noqa: E402
from devtools.demo_view import Steps  # noqa: E402
from devtools.stack import AGENT_NAMESPACE, NAMESPACE, Stack, chart_objects, python_path  # noqa: E402
from devtools.terminal import frames, on_terminal, plain  # noqa: E402
from devtools.tools import kubectl  # noqa: E402
from vfio_agent.devices.simulated import SimulatorControl  # noqa: E402
from vfio_api.device import DeviceState as S  # noqa: E402
from vfio_cli.terminal import View  # noqa: E402

FOLDER, PAGE = ROOT / "docs/screens", ROOT / "docs/screens.md"
COLUMNS = 110
FORTH, BACK = ("--from-node", "node-a", "--to-node", "node-b"), ("--from-node", "node-b", "--to-node", "node-a")
MID = 50  # percent: of the frames of a watch, the one that is nearest
HEAD = """# Screens

Written by `make screens`: commands of the plugin as they were run on the demo's cluster, a real control plane with an
operator and two agents as processes and four simulated devices on each node. Only the pods that `doctor` looks at are
made up, since that cluster runs none. The same with colours is beside each as SVG. Do not edit.

Every command takes `--context`, `--kubeconfig`, `--as` and `--as-group` as kubectl has them, behind the command. `-n`
says where a migration is; `devices`, `nodes`, `evacuate` and `version` take it and need none, since what they are
about belongs to no namespace, and `doctor` asks for your rights there. A migration is called `NAME`, `vfm/NAME` or
`NAMESPACE/NAME`. Times are `90s`, `5m` or `300ms`; a plain number is milliseconds for `--downtime-limit`, and seconds
for all others; `--timeout 0` looks once. The exit code is 0, or 1 if it failed, 2 if it was called wrongly, 130 after
Ctrl-C. `doctor` ends with 1 if anything has failed or if less than half of it could be looked at; warnings alone do
not count.
"""


@dataclass(frozen=True)
class Screen:
    """One command and what it showed, with its colours."""

    name: str
    title: str
    command: str
    shown: str


class Recorder:
    """Runs commands as a user does: by kubectl, which finds the plugin beside this Python."""

    def __init__(self, environment: dict[str, str]):
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self._environment = {**environment, **python_path(), "PATH": path}

    def record(self, name: str, title: str, *arguments: str, code: int = 0) -> Screen:
        """Run a command that must end with this exit code."""
        written = self.written(*arguments, code=code)
        return Screen(name, title, f"kubectl vfio {' '.join(arguments)}", written.strip("\n"))

    def written(self, *arguments: str, code: int = 0) -> str:
        """All that a command writes to its terminal."""
        found, written = on_terminal([str(kubectl()), "vfio", *arguments], self._environment, columns=COLUMNS)
        if found != code:
            raise SystemExit(f"kubectl vfio {' '.join(arguments)}: exit code {found}, not {code}:\n{plain(written)}")
        return written

    def watched(self, name: str, title: str, migration: str) -> list[Screen]:
        """A watch: in the middle of pre-copy, and its end."""
        command = ("watch", migration)
        shown = frames(self.written(*command))
        copying = {frame: _percent(frame) for frame in shown if "PRE_COPY" in plain(frame)}
        middle = min(copying, key=lambda frame: abs(copying[frame] - MID))
        text = f"kubectl vfio {' '.join(command)}"
        return [
            Screen(name, title, text, middle),
            Screen(f"{name}-end", f"{title} (at its end)", text, shown[-1]),
        ]


def _percent(frame: str) -> int:
    found = re.search(r"^  all .*?(\d+)%", plain(frame), re.MULTILINE)
    return int(found[1]) if found else 0


def _pods(stack: Stack) -> None:
    """The chart's workloads, whose pods only seem to run: for the doctor."""
    items = [item for item in chart_objects(NAMESPACE) if item["kind"] in ("Deployment", "DaemonSet")]
    stack.kubectl("apply", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))

    def ready() -> bool:
        deployment = stack.get("deployment", "vfio-operator", "-n", NAMESPACE)["status"]
        daemons = [item["status"] for item in stack.get("daemonsets", "-n", AGENT_NAMESPACE)["items"]]
        return deployment.get("readyReplicas") == 2 and all(status.get("numberReady") for status in daemons)

    stack.wait_until(ready, "every pod of the chart seems to run", 60)


def _recorded(scene: SimulatedScene) -> Iterator[Screen]:
    stack = scene.stack
    recorder = Recorder(scene.plane.environment)
    _pods(stack)
    yield recorder.record("doctor", "Is it installed as it should be?", "doctor")
    yield recorder.record("devices", "What there is", "devices")
    yield recorder.record("nodes", "Where there is room", "nodes")
    yield recorder.record("plan", "Could it be done?", "plan", *FORTH)
    yield recorder.record("rehearse-end", "How long would it be down?", "rehearse", *FORTH)
    yield recorder.record("migrate", "Do it", "migrate", "move-gpus", *FORTH, "--downtime-limit", "100")
    yield from recorder.watched("watch", "How far is it?", "move-gpus")
    yield recorder.record("timeline", "Where did the time go?", "timeline", "move-gpus")
    SimulatorControl(stack.nodes["node-b"].simulator_socket).fault(
        "sim2", "arc", arc=(S.PRE_COPY_P2P, S.STOP_COPY), error=EIO
    )
    recorder.written("migrate", "move-back", *BACK, "--wait", code=1)
    yield recorder.record("explain-failed", "Why did it fail?", "explain", "move-back")
    yield recorder.record("evacuate", "Empty a node", "evacuate", "node-b")
    yield recorder.record("history", "What has been done", "history", "-A")


def _store(screen: Screen) -> None:
    """As text and as SVG, which needs no font from elsewhere."""
    last = frames(screen.shown)[-1] if "\x1b[2K" in screen.shown else screen.shown
    prompt = Text("$ ", "dim") + Text(screen.command, "bold cyan")
    text = plain(last)
    (FOLDER / f"{screen.name}.txt").write_text(f"$ {screen.command}\n{text}\n")
    width = max(len(line) for line in (*text.splitlines(), prompt.plain)) + 1
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True, highlight=False, emoji=False)
    console.print(prompt)
    console.print(Text.from_ansi(last), soft_wrap=True)
    svg = console.export_svg(title=screen.title, unique_id=screen.name)
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    (FOLDER / f"{screen.name}.svg").write_text("\n".join(line.rstrip() for line in svg.splitlines()) + "\n")


def main() -> None:
    """Run and store."""
    scene, view = SimulatedScene(), View()
    try:
        with Steps(view) as steps:
            scene.start(steps)
        screens = []
        for screen in _recorded(scene):
            view.result(True, "recorded", screen.command)
            screens.append(screen)
    finally:
        scene.close()
    FOLDER.mkdir(exist_ok=True)
    parts = [HEAD]
    for screen in screens:
        _store(screen)
        body = (FOLDER / f"{screen.name}.txt").read_text()
        parts.append(f"## {screen.title}\n\n```console\n{body}```\n\n[with colours](screens/{screen.name}.svg)\n")
    PAGE.write_text("\n".join(parts))


if __name__ == "__main__":
    main()
