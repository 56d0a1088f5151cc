"""How the demo shows what it prepares: live with a terminal, in plain lines without one."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import RenderableType
from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.progress_bar import ProgressBar
from rich.text import Text

from vfio_cli.terminal import View

PLAIN_BUILD_SECONDS = 10.0


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
