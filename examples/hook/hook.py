"""A workload that is paused by its hook: it counts in its memory, and what it has counted goes along when it is moved.

    hook.py PORT

POST /vfio/pause, /vfio/save, /vfio/load and /vfio/resume; GET /count says how far it is. Each step may come again.
Python's standard library only.
"""

import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PAUSE_SECONDS = 0.01
INCOMING = "VFIO_MIGRATION_INCOMING"  # the operator sets it in the counterpart of a pod


class Work:
    """Counts while it runs; a counterpart begins when it is told to resume."""

    def __init__(self, *, runs: bool):
        self._turn, self._runs, self.count = threading.Condition(), runs, 0

    def go_on(self) -> None:
        """The work itself, without end."""
        while True:
            with self._turn:
                self._turn.wait_for(lambda: self._runs)
                self.count += 1  # here a real one would use its device
                self._turn.wait(PAUSE_SECONDS)

    def set(self, *, runs: bool) -> None:
        """Pause or resume; when it returns, it is so."""
        with self._turn:
            self._runs = runs
            self._turn.notify()


class Hook(BaseHTTPRequestHandler):
    """The four steps: 204 once it is so, 404 for anything else."""

    work: Work

    def do_POST(self) -> None:
        """What the agent asks for."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        step = self.path.removeprefix("/vfio/")
        if step in ("pause", "resume"):
            self.work.set(runs=step == "resume")
        elif step == "load":
            self.work.count = int(body)
        elif step != "save":
            return self.send_error(404)
        return self.answer(str(self.work.count) if step == "save" else "")

    def do_GET(self) -> None:
        """For people."""
        self.answer(str(self.work.count))

    def answer(self, text: str) -> None:
        """200 with a text, or 204 without one."""
        self.send_response(200 if text else 204)
        if text:
            self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


def main() -> None:
    """Work, and answer the agent."""
    Hook.work = Work(runs=not os.environ.get(INCOMING))
    threading.Thread(target=Hook.work.go_on, daemon=True).start()
    ThreadingHTTPServer(("", int(sys.argv[1])), Hook).serve_forever()


if __name__ == "__main__":
    main()
