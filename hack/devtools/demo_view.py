"""How the demo shows what happens: live with a terminal, in plain lines without one."""

import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.progress_bar import ProgressBar
from rich.text import Text

from devtools.demo_timeline import Row

PLAIN_SECONDS = 1.0
PLAIN_BUILD_SECONDS = 10.0
Json = Mapping[str, Any]


def size_text(count: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


class View:
    """The demo's output. `live`: there is a terminal that takes control characters."""

    def __init__(self, stream: Any = None):
        stream = stream or sys.stdout
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace", line_buffering=True)
        terminal = Console(file=stream)
        self.live = bool(stream.isatty()) and not terminal.is_dumb_terminal
        self.ascii_only = not terminal.encoding.lower().startswith("utf")
        self.console = Console(file=stream, force_terminal=self.live, highlight=False, emoji=False)
        self.tick, self.cross, self.arrow = ("ok", "FAILED", "->") if self.ascii_only else ("✓", "✗", "→")

    @property
    def width(self) -> int:
        """Columns to use: a chart is not clearer for being wider."""
        return min(self.console.width, 110)

    def line(self, text: str = "", style: str = "") -> None:
        """A line of its own, wrapped by the terminal only."""
        self.console.print(Text(text, style=style), soft_wrap=True)

    def result(self, good: bool | None, label: str, text: str) -> None:
        """A line with a tick or a cross, or with a mark of attention if it is neither."""
        signs = {True: (self.tick, "bold green"), False: (self.cross, "bold red"), None: ("!", "bold yellow")}
        mark = Text(f" {signs[good][0]} ", style=signs[good][1])
        self.console.print(mark + Text(f"{label}: ", style="bold") + Text(text), soft_wrap=True)

    def command(self, text: str) -> None:
        """A command that the reader could type."""
        self.line()
        self.console.print(Text("$ ", style="dim") + Text(text, style="bold cyan"), soft_wrap=True)

    def heading(self, text: str) -> None:
        """What follows."""
        self.line()
        self.line(text, "bold")

    def rows(self, rows: Sequence[Row]) -> None:
        """A chart; what is downtime stands out."""
        for row in rows:
            text = Text(row.text)
            if row.duration:
                style = "bold magenta" if row.down else "cyan"
                start = text.plain.index(row.label) + len(row.label)
                text.stylize(style, start, len(text.plain) - len(row.duration))
            else:
                text.stylize("dim")
            self.console.print(text, soft_wrap=True)


class _KnownBar(ProgressColumn):
    """A bar for tasks of known length, nothing for others."""

    def render(self, task: Task) -> RenderableType:
        if not task.total:
            return Text("")
        return ProgressBar(total=task.total, completed=task.completed, width=24)


class _Elapsed(ProgressColumn):
    """How far a task of known length is, and for how long any has lasted."""

    def render(self, task: Task) -> RenderableType:
        percent = f"{task.percentage:3.0f}%  " if task.total else ""
        return Text(f"{percent}{task.elapsed or 0:.0f} s", style="dim")


class Step:
    """One thing that is being done; `report` may be called from any thread."""

    def __init__(self, steps: "Steps", text: str, task: TaskID | None):
        self._steps, self._task = steps, task
        self.text, self.began = text, time.monotonic()
        self._said = self.began

    def report(self, done: int, total: int) -> None:
        """So many of so many; the total may grow."""
        if self._task is not None and self._steps.progress is not None:
            self._steps.progress.update(self._task, completed=done, total=total)
        elif time.monotonic() - self._said >= PLAIN_BUILD_SECONDS:
            self._said = time.monotonic()
            self._steps.view.line(f"   {self.text}: {100 * done // max(1, total)}% ({done}/{total})")


class Steps:
    """What is under way, each with its time; done ones stay as lines. Threads may have steps side by side."""

    def __init__(self, view: View):
        self.view = view
        self.progress: Progress | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> "Steps":
        if self.view.live:
            text = TextColumn("{task.description}", markup=False)
            spinner = SpinnerColumn("line" if self.view.ascii_only else "dots", style="cyan")
            self.progress = Progress(spinner, text, _KnownBar(), _Elapsed(), console=self.view.console, transient=True)
            self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    @contextmanager
    def step(self, text: str) -> Iterator[Step]:
        """Do one thing; `text` may be changed on the Step until it is done."""
        task = self.progress.add_task(text, total=None) if self.progress else None
        step = Step(self, text, task)
        try:
            yield step
        except BaseException:
            self._done(step, self.view.cross, "bold red")
            raise
        else:
            self._done(step, self.view.tick, "bold green")
        finally:
            if task is not None and self.progress is not None:
                self.progress.remove_task(task)

    def _done(self, step: Step, mark: str, style: str) -> None:
        seconds = f"{time.monotonic() - step.began:5.1f} s"
        room = max(20, min(self.view.console.width, 80) - len(mark) - len(seconds) - 4)
        line = Text(f" {mark} ", style=style) + Text(f"{step.text:<{room}}") + Text(seconds, style="dim")
        with self._lock:
            self.view.console.print(line, soft_wrap=True)


class _Bar(ProgressColumn):
    def __init__(self, width: int):
        super().__init__()
        self._width = width

    def render(self, task: Task) -> RenderableType:
        style = "bold magenta" if task.fields.get("total_row") else "cyan"
        return ProgressBar(
            task.total, task.completed, self._width, complete_style=style, finished_style=style, style="grey37"
        )


class MigrationView:
    """A migration's progress, from its status as the API server has it. `sizes`: bytes of each device's state."""

    def __init__(self, view: View, sizes: Mapping[str, int]):
        self._view, self._sizes = view, sizes
        self._began = time.monotonic()
        self._said = 0.0
        self._phase = ""
        self._tasks: dict[str, TaskID] = {}
        self._progress: Progress | None = None

    def __enter__(self) -> "MigrationView":
        if self._view.live:
            columns = TextColumn("  {task.description}"), _Bar(26), TextColumn("{task.fields[text]}")
            self._progress = Progress(*columns, console=self._view.console)
            for name, size in self._sizes.items():
                self._tasks[name] = self._progress.add_task(name, total=size or 1, text="")
            self._tasks[""] = self._progress.add_task("all", total=100, text="", total_row=True)
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def show(self, status: Json) -> None:
        """The newest status."""
        if self._progress is None:
            self._plain(status)
            return
        for device in status.get("devices", []):
            if device["name"] in self._tasks:
                done, text = device.get("bytes", 0), self.device_text(device)
                size = max(self._sizes[device["name"]], done, 1)
                self._progress.update(self._tasks[device["name"]], completed=done, total=size, text=text)
        progress = status.get("progress", {})
        self._progress.update(self._tasks[""], completed=progress.get("percent", 0), text=self.total_text(status))

    def device_text(self, device: Json) -> str:
        """Bytes and the states of both sides."""
        states = [device[side] for side in ("sourceState", "targetState") if side in device]
        return f"{size_text(device.get('bytes', 0)):>8}  {f' {self._view.arrow} '.join(states)}"

    @staticmethod
    def total_text(status: Json) -> str:
        """Percent, bytes, rate, time left and the phase."""
        progress = status.get("progress", {})
        parts = [f"{progress.get('percent', 0):>3}%", size_text(progress.get("bytes", 0))]
        if status.get("phase") == "PreCopy" and progress.get("bytesPerSecond"):
            parts.append(f"{size_text(progress['bytesPerSecond'])}/s")
            parts += [f"ETA {progress['etaSeconds']} s"] if "etaSeconds" in progress else []
        return "  ".join([*parts, status.get("phase", "Pending")])

    def _plain(self, status: Json) -> None:
        now, phase = time.monotonic(), status.get("phase", "Pending")
        if phase == self._phase and now - self._said < PLAIN_SECONDS:
            return
        self._phase, self._said = phase, now
        devices = " ".join(f"{d['name']}={size_text(d.get('bytes', 0))}" for d in status.get("devices", []))
        self._view.line(f"  {now - self._began:4.1f} s  {self.total_text(status)}  {devices}".rstrip())
