"""A migration's progress on a terminal, or in plain lines where there is none."""

import time

from rich.console import RenderableType
from rich.live import Live

from vfio_cli.fields import Json
from vfio_cli.progress import Scale, frame, plain_line
from vfio_cli.terminal import View

PLAIN_SECONDS = 1.0
REFRESHES = 8


class MigrationView:
    """Shows each status that it is given; also between two of them, time goes on."""

    def __init__(self, view: View, scale: Scale):
        self._view, self._scale = view, scale
        self._began = time.monotonic()
        self._said, self._phase = 0.0, ""
        self._status: Json = {}
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
        return frame(self._status, self._scale, time.monotonic() - self._began)

    def show(self, status: Json) -> None:
        """The newest status."""
        self._status = status
        if self._live is not None:
            self._live.refresh()
            return
        now, phase = time.monotonic(), status.get("phase", "Pending")
        if phase == self._phase and now - self._said < PLAIN_SECONDS:
            return
        self._phase, self._said = phase, now
        self._view.line(plain_line(status, now - self._began))
