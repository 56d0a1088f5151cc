"""Agents in a guest that start in a second: each is forked from a process that has imported all that an agent imports.

Imports take an emulated machine ten seconds and more, and a test of agents that are killed starts many. `serve` runs
inside the guest: it is the parent of every agent there, forks them and sends them signals, as the host asks; `Agents`
is its caller on the host. What is forked goes through the agent's own `main`, with its own environment, log and
process group.
"""

import argparse
import contextlib
import gc
import json
import os
import runpy
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

MAX_REQUEST = 64 * 1024
REQUEST_SECONDS = 60.0
POLL_SECONDS = 0.02
AGENT = "vfio_agent"


class AgentsError(RuntimeError):
    """The process that starts a guest's agents could not do what was asked for."""


@dataclass(frozen=True)
class Agents:
    """The host's end for one guest, at a forwarded port of 127.0.0.1."""

    name: str
    port: int

    def start(self, env: Mapping[str, str], log: Path, inside: str, module: str) -> "ForkedAgent":
        """Start an agent; it logs to `log`, which the guest calls `inside`. Raises AgentsError.

        module: vfio_agent, or another program that is an agent.
        """
        reply = self.ask({"op": "start", "env": dict(env), "log": inside, "module": module})
        return ForkedAgent(self, int(reply["pid"]), log)

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """One request. Raises AgentsError, or OSError if nobody listens."""
        with socket.create_connection(("127.0.0.1", self.port), REQUEST_SECONDS) as sock:
            sock.sendall(json.dumps(request).encode() + b"\n")
            with sock.makefile("rb") as answer:
                raw = answer.read()
        if not raw:
            raise AgentsError(f"whoever starts the agents in {self.name} does not answer")
        reply: dict[str, Any] = json.loads(raw)
        if "error" in reply:
            raise AgentsError(f"agents in {self.name}: {reply['error']}")
        return reply


class ForkedAgent:
    """An agent's process, to be handled like `devtools.guest.Job`."""

    def __init__(self, agents: Agents, pid: int, log: Path):
        self.pid, self.log = pid, log
        self._agents = agents
        self._rc: int | None = None

    def poll(self) -> int | None:
        """The exit code, or None while it runs; negative for one that a signal ended."""
        if self._rc is None:
            self._rc = self._agents.ask({"op": "poll", "pid": self.pid})["rc"]
        return self._rc

    def wait(self, timeout: float) -> int:
        """The exit code, once it has ended. Raises AgentsError if that takes over `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise AgentsError(f"agent {self.pid} in {self._agents.name} has not ended within {timeout:g} s")
            time.sleep(POLL_SECONDS)
        return code

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self._agents.ask({"op": "signal", "pid": self.pid, "number": int(number)})


class _Server:
    """What the guest's end does for each request. The only thread of its process, so that it may fork."""

    def __init__(self) -> None:
        self._ended: dict[int, int] = {}

    def answer(self, request: Mapping[str, Any], connections: tuple[socket.socket, ...]) -> dict[str, Any]:
        match request["op"]:
            case "start":
                pid = os.fork()
                if not pid:
                    _become_agent(request["module"], request["env"], request["log"], connections)
                return {"pid": pid}
            case "poll":
                return {"rc": self._poll(request["pid"])}
            case "signal":
                if self._poll(request["pid"]) is None:
                    os.kill(request["pid"], request["number"])
                return {}
            case unknown:
                return {"error": f"unknown request {unknown!r}"}

    def _poll(self, pid: int) -> int | None:
        if pid not in self._ended:
            found, status = os.waitpid(pid, os.WNOHANG)
            if not found:
                return None
            self._ended[pid] = os.waitstatus_to_exitcode(status)
        return self._ended[pid]


def _become_agent(module: str, env: Mapping[str, str], log: str, connections: tuple[socket.socket, ...]) -> NoReturn:
    """In the child: what a new process would have, then the agent until its end."""
    from vfio_agent.__main__ import main as run_agent

    code = 1
    try:
        os.setsid()
        for connection in connections:  # detached, not closed: a file made of it would keep it open
            os.close(connection.detach())
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for fd in (1, 2):
            os.dup2(output, fd)
        os.close(output)
        os.environ.update(env)
        if module == AGENT:
            run_agent()
        else:
            runpy.run_module(module, run_name="__main__")
        code = 0
    except SystemExit as end:
        print(end.code, file=sys.stderr, flush=True)
    except BaseException as error:
        print(f"agent: {error!r}", file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def serve(port: int) -> None:
    """Answer requests on all addresses, until killed."""
    from kubernetes.aio import client

    import vfio_agent.__main__  # noqa: F401 - what takes long, once for all

    for name in ("CoreV1Api", "CoordinationV1Api", "CustomObjectsApi"):  # imported when first looked at
        getattr(client, name)
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    server = _Server()
    with socket.create_server(("", port)) as listener:
        print("ready", flush=True)
        while True:
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as lines:
                try:
                    reply = server.answer(json.loads(lines.readline(MAX_REQUEST)), (listener, connection))
                except (OSError, ValueError, LookupError) as error:
                    reply = {"error": f"{type(error).__name__}: {error}"}
                with contextlib.suppress(OSError):
                    connection.sendall(json.dumps(reply).encode())


def main(argv: list[str] | None = None) -> int:
    """Entry point in the guest."""
    parser = argparse.ArgumentParser(description="Starts agents, each forked from this process.")
    parser.add_argument("--port", type=int, required=True)
    serve(parser.parse_args(argv).port)
    return 0


if __name__ == "__main__":
    sys.exit(main())
