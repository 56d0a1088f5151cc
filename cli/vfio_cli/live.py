"""A migration's progress on a terminal, or in plain lines where there is none."""

import time

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from vfio_cli.fields import Json
from vfio_cli.progress import Scale, away_line, frame, plain_line
from vfio_cli.terminal import View

PLAIN_SECONDS, AWAY_SECONDS = 1.0, 5.0
AWAY = "Away"  # no phase: of an API server that does not answer
REFRESHES = 8


class MigrationView:
    """Shows each status that it is given; also between two of them, time goes on."""

    def __init__(self, view: View, scale: Scale):
        self._view, self._scale = view, scale
        self._began = time.monotonic()
        self._said, self._phase = 0.0, ""
        self._status: Json = {}
        self._heard: float | None = None  # by an API server that has gone away since
        self._live: Live | None = None

    def __enter__(self) -> "MigrationView":
        if self._view.live:
            self._live = Live(self, console=self._view.console, refresh_per_second=REFRESHES)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def __rich__(self) -> RenderableType:
        drawn = frame(self._status, self._scale, time.monotonic() - self._began)
        if self._heard is None:
            return drawn
        return Group(drawn, Text(f"  {away_line(self._status, time.monotonic() - self._heard)}", style="bold yellow"))

    def away(self, silent: float) -> None:
        """The API server has not answered for so many seconds: what is shown is old, and says so."""
        now = time.monotonic()
        self._heard = now - silent
        if self._live is not None:
            self._live.refresh()
        elif now - self._said >= AWAY_SECONDS or self._phase != AWAY:
            self._phase, self._said = AWAY, now
            self._view.line(f"  {now - self._began:4.1f} s  {away_line(self._status, silent)}")

    def show(self, status: Json) -> None:
        """The newest status."""
        self._status, self._heard = status, None
        if self._live is not None:
            self._live.refresh()
            return
        now, phase = time.monotonic(), status.get("phase", "Pending")
        if phase == self._phase and now - self._said < PLAIN_SECONDS:
            return
        self._phase, self._said = phase, now
        took = self._scale.took(status)
        self._view.line(plain_line(status, now - self._began if took is None else took))
