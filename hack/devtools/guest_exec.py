"""The command runner inside a guest: takes requests from files in the share, answers with files.

Started by guest_init.sh in the chroot, on the standard library alone. Beside ``.guest`` in the share, a file
``stop`` ends it, and the guest with it. Within ``.guest``:

    req-N.json   {op: exec | spawn | signal | waiting, ...}  written by the host under another name, then renamed
    res-N.json   the answer: {rc, stdout, stderr, waited} of exec, {pid} of spawn, {} of signal, {waited}, or {error}
    exit-N.json  {rc} of the job that request N spawned, once it has ended
    ready        exists as soon as requests are taken
    boot.json    {env, command}; with a command, its end is the guest's end and its exit code the runner's
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, Any

POLL_SECONDS = 0.05
STOP_GRACE_SECONDS = 2.0
WAIT_FRAMES = 12
REQUEST = re.compile(r"req-(\d+)\.json")


class Runner:
    """Runs what the host asks for, every request in a thread of its own."""

    def __init__(self, share: Path) -> None:
        self._share = share
        self._folder = share / ".guest"
        boot = json.loads((self._folder / "boot.json").read_text())
        self._env: dict[str, str] = boot["env"]
        self._command: list[str] | None = boot["command"]
        self._jobs: dict[int, subprocess.Popen[bytes]] = {}
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()

    def run(self) -> int:
        """Serve until the stop file is there or the guest's own command has ended; returns the exit code."""
        main = None
        if self._command is not None:
            main = self._start({"argv": self._command}, sys.stdout.buffer, subprocess.STDOUT)
        (self._folder / "ready").touch()
        while not (self._share / "stop").exists():
            if main is not None and main.poll() is not None:
                break
            self._take_requests()
            time.sleep(POLL_SECONDS)
        code = main.poll() if main is not None else 0
        self._end_all()
        return exit_code(code if code is not None else -signal.SIGTERM)

    def _take_requests(self) -> None:
        for name in sorted(os.listdir(self._folder)):
            found = REQUEST.fullmatch(name)
            if found:
                request = json.loads((self._folder / name).read_text())
                (self._folder / name).unlink()
                threading.Thread(target=self._serve, args=(int(found[1]), request), daemon=True).start()

    def _serve(self, number: int, request: dict[str, Any]) -> None:
        serve = {"exec": self._exec, "spawn": self._spawn, "signal": self._signal, "waiting": self._waiting}
        try:
            answer = serve[request["op"]](number, request)
        except (OSError, ValueError, LookupError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        self._answer(f"res-{number}.json", answer)

    def _exec(self, number: int, request: dict[str, Any]) -> dict[str, Any]:
        # Files, not pipes: a daemon that the command leaves behind would keep a pipe open for ever.
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            process = self._start(request, out, err)
            waited = ""
            try:
                process.wait(request["timeout"])
            except subprocess.TimeoutExpired:
                waited = what_processes_wait_for()
                end_group(process, signal.SIGKILL)
                process.wait()
            self._forget(process)
            out.seek(0)
            err.seek(0)
            texts = [stream.read().decode(errors="replace") for stream in (out, err)]
        return {"rc": process.returncode, "stdout": texts[0], "stderr": texts[1], "waited": waited}

    def _spawn(self, number: int, request: dict[str, Any]) -> dict[str, Any]:
        with (self._share / request["log"]).open("ab", buffering=0) as log:
            process = self._start(request, log, subprocess.STDOUT)
        self._jobs[number] = process
        threading.Thread(target=self._watch, args=(number, process), daemon=True).start()
        return {"pid": process.pid}

    def _watch(self, number: int, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        self._forget(process)
        self._answer(f"exit-{number}.json", {"rc": code})

    def _signal(self, number: int, request: dict[str, Any]) -> dict[str, Any]:
        process = self._jobs[request["job"]]
        if request["group"]:
            end_group(process, request["signal"])
        else:
            process.send_signal(request["signal"])
        return {}

    def _waiting(self, number: int, request: dict[str, Any]) -> dict[str, Any]:
        return {"waited": what_processes_wait_for()}

    def _start(self, request: dict[str, Any], out: IO[bytes], err: IO[bytes] | int) -> subprocess.Popen[bytes]:
        environment = {**os.environ, **self._env, **(request.get("env") or {})}
        process = subprocess.Popen(
            request["argv"], env=environment, cwd=request.get("cwd") or "/", start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=out, stderr=err,
        )  # fmt: skip
        with self._lock:
            self._running.add(process)
        return process

    def _forget(self, process: subprocess.Popen[bytes]) -> None:
        with self._lock:
            self._running.discard(process)

    def _end_all(self) -> None:
        with self._lock:
            processes = [process for process in self._running if process.poll() is None]
        for process in processes:
            end_group(process, signal.SIGTERM)
        deadline = time.monotonic() + STOP_GRACE_SECONDS
        while time.monotonic() < deadline and any(process.poll() is None for process in processes):
            time.sleep(POLL_SECONDS)

    def _answer(self, name: str, answer: dict[str, Any]) -> None:
        partial = self._folder / f"{name}.partial"
        partial.write_text(json.dumps(answer))
        partial.rename(self._folder / name)


def end_group(process: subprocess.Popen[bytes], number: int) -> None:
    """Signal a process and all it started in its session; one that is gone already is no error."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return


def what_processes_wait_for() -> str:
    """A line for each thread of each program: its state, and where in the kernel it is (/proc/PID/task/TID/stack)."""
    lines = ["what every thread waits for:"]
    for task in sorted(Path("/proc").glob("[0-9]*/task/[0-9]*"), key=lambda task: int(task.name)):
        try:
            if not (task / "cmdline").read_bytes():
                continue  # the kernel's own
            name, state = (task / "comm").read_text().strip(), (task / "stat").read_text().rpartition(")")[2].split()[0]
            frames = [line.split()[1].partition("+")[0] for line in (task / "stack").read_text().splitlines()]
        except (OSError, IndexError):
            continue  # it has just ended
        lines.append(f"{task.name} {name} {state} " + " < ".join(frames[:WAIT_FRAMES]))
    return "\n".join(lines)


def exit_code(returned: int) -> int:
    """The code a shell would give: 128 and the signal for a process that a signal ended."""
    return returned if returned >= 0 else 128 - returned


if __name__ == "__main__":
    sys.exit(Runner(Path(sys.argv[1])).run())
