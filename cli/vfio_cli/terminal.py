"""Where text goes: a terminal that takes control characters, or a pipe that gets plain lines."""

import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from vfio_cli.waterfall import Row

WIDEST = 110


class View:
    """Output for people. `live`: there is a terminal that takes control characters."""

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
        return min(self.console.width, WIDEST)

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
