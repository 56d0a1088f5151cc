"""`kubectl vfio` as a process of its own, as a user runs it: with a terminal, into a pipe, and with wrong input."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devtools.plane import Plane
from devtools.stack import python_path
from devtools.terminal import on_terminal
from devtools.tools import kubectl

SECONDS = 120  # when a hanging command is given up


@dataclass(frozen=True)
class Ran:
    """What a command came to."""

    code: int
    out: str
    error: str

    def data(self) -> Any:
        """Its output as JSON; the command must have succeeded."""
        assert self.code == 0, self.error
        return json.loads(self.out)


class Plugin:
    """The plugin with one kubeconfig."""

    def __init__(self, kubeconfig: Path | str, **environment: str):
        self.environment = {
            **os.environ,
            **python_path(),
            "KUBECONFIG": str(kubeconfig),
            "COLUMNS": "110",
            "PYTHONUNBUFFERED": "",  # with the buffer that users have, whoever runs the tests
            **environment,
        }

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "vfio_cli", *arguments]

    def run(self, *arguments: str, stdin: str = "") -> Ran:
        done = subprocess.run(
            self.command(*arguments),
            input=stdin,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert "Traceback" not in done.stdout + done.stderr, done.stderr
        return Ran(done.returncode, done.stdout, done.stderr)

    def good(self, *arguments: str, stdin: str = "") -> str:
        """It must succeed; what it printed."""
        ran = self.run(*arguments, stdin=stdin)
        assert ran.code == 0, f"{arguments}: {ran.code}: {ran.out}{ran.error}"
        return ran.out

    def refused(self, *arguments: str, code: int = 1, stdin: str = "") -> str:
        """It must fail with nothing but one line on stderr; that line."""
        ran = self.run(*arguments, stdin=stdin)
        assert (ran.code, ran.out) == (code, ""), ran
        assert ran.error.startswith("error: "), ran.error
        assert ran.error.count("\n") == 1, ran.error
        return ran.error.strip()

    @contextmanager
    def start(self, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
        """A command that goes on; it does not outlive the block."""
        process = subprocess.Popen(
            self.command(*arguments),
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # who is started in the background ignores Ctrl-C, and its children do
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def on_terminal(self, *arguments: str, typed: str = "") -> tuple[int, str]:
        """(exit code, everything that it wrote) on a terminal of its own, where something is typed."""
        return on_terminal(self.command(*arguments), self.environment, typed=typed)


def first_line(process: "subprocess.Popen[str]") -> str:
    """Wait until it has said something."""
    assert process.stdout is not None
    return process.stdout.readline()


def ended(process: "subprocess.Popen[str]") -> Ran:
    """What it came to, when it has ended by itself."""
    out, error = process.communicate(timeout=SECONDS)
    assert "Traceback" not in out + error, error
    return Ran(process.returncode, out, error)


def interrupt(process: "subprocess.Popen[str]") -> Ran:
    """Ctrl-C after its first line; what it came to."""
    first_line(process)
    process.send_signal(signal.SIGINT)
    return ended(process)


def as_plugin(plane: Plane, folder: Path, *arguments: str) -> str:
    """What real kubectl prints that finds the plugin by its name in the PATH."""
    for name, module in (("kubectl-vfio", "vfio_cli"), ("kubectl_complete-vfio", "vfio_cli.completion")):
        call = "from vfio_cli.completion import main; main()" if module.endswith("completion") else ""
        script = f"exec {sys.executable} -c '{call}' \"$@\"" if call else f'exec {sys.executable} -m {module} "$@"'
        path = folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    path = os.pathsep.join([str(folder), os.environ["PATH"]])
    environment: Mapping[str, str] = {**plane.environment, **python_path(), "PATH": path}
    done = subprocess.run(
        [kubectl(), *arguments], env=dict(environment), capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
