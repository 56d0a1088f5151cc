"""Child processes of the demo and the tests: started with a log file, ended by pid, never left behind."""

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


class ProcessError(RuntimeError):
    """A child ended or did not become ready; the message ends with its log's tail."""


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Child:
    """One child process whose output goes to `log`. With `ready`, start waits for that text in the log."""

    def __init__(
        self, name: str, argv: Sequence[str], log: Path, env: Mapping[str, str], ready: str = "", timeout: float = 90
    ):
        self.name, self.log, self.argv = name, log, list(argv)
        with log.open("ab") as out:
            self._offset = out.tell()
            self._popen = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **env},
                preexec_fn=_die_with_parent,
            )
        if ready:
            self.wait_for(ready, timeout)

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._popen.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._popen.poll() is None

    def text(self) -> str:
        """What it has printed since it was started."""
        return self.log.read_bytes()[self._offset :].decode(errors="replace")

    def wait_for(self, text: str, timeout: float = 30) -> None:
        """Wait until `text` is in its output. Raises ProcessError."""
        deadline = time.monotonic() + timeout
        while text not in self.text():
            if not self.running and text in self.text():
                return  # its last words
            if not self.running or time.monotonic() > deadline:
                state = "is running" if self.running else f"ended with {self._popen.returncode}"
                raise ProcessError(f"{self.name} {state} and has not printed {text!r}:\n{self.text()[-3000:]}")
            time.sleep(0.02)

    def signal(self, number: int) -> None:
        """Send a signal if it still runs."""
        if self.running:
            self._popen.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait."""
        self.signal(signal.SIGKILL)
        self._popen.wait(10)

    def ended(self, timeout: float = 60) -> int:
        """Wait until it ends by itself; its exit code. Raises ProcessError."""
        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise ProcessError(f"{self.name} has not ended within {timeout:g} s:\n{self.text()[-3000:]}") from None

    def stop(self, timeout: float = 15) -> int:
        """SIGTERM, and SIGKILL after `timeout` seconds; returns the exit code."""
        self.signal(signal.SIGTERM)
        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._popen.returncode

    def __enter__(self) -> "Child":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
