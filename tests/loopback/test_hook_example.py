"""examples/hook/hook.py does what agents ask of a hook: paused, saved, loaded into another, resumed."""

import contextlib
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from devtools.ports import free_port
from vfio_agent import hooks
from vfio_agent.pods import PodRef
from vfio_api.errors import WorkloadError
from vfio_api.types import Hook

PROGRAM = Path(__file__).resolve().parents[2] / "examples/hook/hook.py"
POD = PodRef("uid", "lab", "worker")
SECONDS = 30


class Worker:
    """The example as a process of its own."""

    def __init__(self, port: int):
        self.port = port

    def step(self, step: str, body: bytes = b"", *, path: str = "/vfio") -> bytes:
        return hooks.call(Hook("127.0.0.1", self.port, path, 5_000, 0), POD, step, body)

    def count(self) -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/count", timeout=SECONDS) as answer:
            return int(answer.read())

    def goes_on(self) -> None:
        """Wait until it has counted further."""
        before, deadline = self.count(), time.monotonic() + SECONDS
        while self.count() <= before:
            assert time.monotonic() < deadline, "it does not count"


@contextlib.contextmanager
def started(**environment: str) -> Iterator[Worker]:
    port = free_port()
    command = [sys.executable, "-I", "-S", str(PROGRAM), str(port)]
    process = subprocess.Popen(command, env={**os.environ, **environment}, stderr=subprocess.DEVNULL)
    try:
        worker, deadline = Worker(port), time.monotonic() + SECONDS
        while True:
            try:
                worker.count()
                break
            except OSError:
                assert time.monotonic() < deadline, "it does not answer"
        yield worker
    finally:
        process.kill()
        process.wait()


def test_what_was_counted_goes_along_and_nobody_counts_meanwhile() -> None:
    with started() as source, started(VFIO_MIGRATION_INCOMING="lab/m") as target:
        source.goes_on()
        source.step(hooks.PAUSE)
        state = source.step(hooks.SAVE)
        assert state == source.step(hooks.SAVE), "each step may come again"
        assert target.count() == 0, "a counterpart waits"
        target.step(hooks.LOAD, state)
        assert target.count() == source.count() == int(state)
        target.step(hooks.RESUME)
        target.goes_on()
        assert source.count() == int(state)


def test_a_source_that_is_resumed_goes_on() -> None:
    with started() as source:
        source.step(hooks.PAUSE)
        source.step(hooks.RESUME)
        source.goes_on()
        with pytest.raises(WorkloadError, match="404"):
            source.step(hooks.PAUSE, path="/other")
