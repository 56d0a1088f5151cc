"""One small HTTP server for probes and metrics, in threads: an event loop that hangs does not take its probes along.

/metrics: the registry, as OpenMetrics with exemplars for who accepts that. /healthz: 200 unless the process had better
be restarted. /readyz: 200 if it does its work. Both say in one line why not (503).
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from prometheus_client import CollectorRegistry, Gauge, make_wsgi_app

from vfio_api.addresses import listener

BEAT_SECONDS = 1.0
STALL_SECONDS = 15.0  # an event loop that has not turned for so long hangs
REQUEST_SECONDS = 10.0
Check = Callable[[], str]  # "" if all is well, else why not in one line; called in any thread


class Heartbeat:
    """Whether an event loop turns, as other threads see it. Until `run` has begun, it is taken to.

    Blocking work belongs in threads and so does not count: a device may take its time for an arc. The clock stands
    still while the machine is suspended.
    """

    def __init__(self, stall_seconds: float = STALL_SECONDS, clock: Callable[[], float] = time.monotonic):
        self._stall_seconds, self._clock = stall_seconds, clock
        self._beat: float | None = None

    async def run(self) -> None:
        """Beat on this event loop until cancelled; then it is not judged any more."""
        try:
            while True:
                self._beat = self._clock()
                await asyncio.sleep(BEAT_SECONDS)
        finally:
            self._beat = None

    def check(self) -> str:
        """See Check."""
        beat = self._beat
        silent = 0.0 if beat is None else self._clock() - beat
        return f"the event loop has not turned for {silent:.0f} s" if silent >= self._stall_seconds else ""


def show_tasks(gauge: Gauge) -> None:
    """Have a gauge tell at each scrape, which is in any thread, how many tasks the running event loop has."""
    loop = asyncio.get_running_loop()
    gauge.set_function(lambda: len(asyncio.all_tasks(loop)))


class _Handler(WSGIRequestHandler):
    timeout = REQUEST_SECONDS  # a client that says nothing does not keep its thread

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Say nothing: probes come every few seconds."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: it is a client that went away."""


class WebServer:
    """Serves until `close`. Raises OSError if the port cannot be had."""

    def __init__(self, host: str, port: int, checks: Mapping[str, Check], registry: CollectorRegistry | None = None):
        pages: dict[str, WSGIApplication] = {path: _page(check) for path, check in checks.items()}
        if registry is not None:
            pages["/metrics"] = make_wsgi_app(registry)
        socket = listener(host, port)
        self._server = _Server(socket.getsockname(), _Handler, bind_and_activate=False)
        self._server.socket.close()
        self._server.socket = socket
        self._server.server_name, self._server.server_port = "vfio", int(socket.getsockname()[1])
        self._server.setup_environ()
        self._server.set_app(_routes(pages))
        self._thread = threading.Thread(target=self._server.serve_forever, name="web", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port listened on."""
        return self._server.server_port

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _routes(pages: Mapping[str, WSGIApplication]) -> WSGIApplication:
    def route(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return _answer(start, HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD")
        page = pages.get(environ["PATH_INFO"])
        if page is None:
            return _answer(start, HTTPStatus.NOT_FOUND, f"there are {', '.join(sorted(pages))}")
        return page(environ, start)

    return route


def _page(check: Check) -> WSGIApplication:
    def page(_environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        wrong = check()
        return _answer(start, HTTPStatus.SERVICE_UNAVAILABLE if wrong else HTTPStatus.OK, wrong or "ok")

    return page


def _answer(start: StartResponse, status: HTTPStatus, text: str) -> Iterable[bytes]:
    body = f"{text}\n".encode()
    headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
    start(f"{status.value} {status.phrase}", headers)
    return [body]
