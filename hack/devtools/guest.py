"""Virtual machines (QEMU's TCG, no KVM and no root needed) in which the project's code meets real VFIO
devices.

A guest boots the kernel of `devtools.kernel` with the host's root as its own, read-only, so that this
interpreter and this checkout are there under the same paths; it has a folder in common with the host
(`GUEST_SHARE` in the guest), and runs commands on request. It reaches the host's loopback at `HOST`, and
another guest by a direct `Link` on eth1.

    with Guest.start("node-a", link=Link(sock, server=True, address="10.99.0.1")) as guest:
        guest.exec([sys.executable, str(WORKLOAD), "create", uuid]).check()
        print(guest.driver_trace())
"""

from __future__ import annotations

import itertools
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from devtools.guest_boot import Link, launch, qemu_command, write_boot_files
from devtools.kernel import KernelArtefacts, ensure_qemu, kernel_artefacts
from devtools.mtty_trace import Arc, parse_driver_trace

__all__ = [
    "GUEST_SHARE",
    "HOST",
    "WORKLOAD",
    "Arc",
    "Completed",
    "Guest",
    "GuestError",
    "GuestStalledError",
    "Job",
    "Link",
    "parse_driver_trace",
]

HOST = "10.0.2.2"
GUEST_SHARE = "/run/share"
WORKLOAD = Path(__file__).with_name("mtty_workload.py")
BOOT_SECONDS = 90.0
STOP_SECONDS = 10.0
POLL_SECONDS = 0.02


class GuestError(RuntimeError):
    """A guest died, did not answer, or could not do what was asked; it quotes the console's last lines."""


class GuestStalledError(GuestError):
    """What was started runs on and on, and does not do what it was to do; nothing has failed."""


T = TypeVar("T")


@dataclass(frozen=True)
class Completed:
    """What became of a command; ``rc`` is negative for one that a signal ended."""

    argv: tuple[str, ...]
    rc: int
    stdout: str
    stderr: str

    def check(self) -> Self:
        """This, or `GuestError` if the command failed."""
        if self.rc != 0:
            raise GuestError(f"{list(self.argv)}: exit code {self.rc}\n{self.stdout}{self.stderr}")
        return self


class Job:
    """A command that runs in the background of a guest; it ends with the guest at the latest."""

    def __init__(self, guest: Guest, number: int, pid: int, log: Path) -> None:
        self._guest = guest
        self._number = number
        self._rc: int | None = None
        self.pid = pid
        """The process, by the guest's numbering."""
        self.log = log
        """Standard output and error, on the host."""

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        if self._rc is None:
            ended = self._guest.take_answer(f"exit-{self._number}.json")
            self._rc = None if ended is None else int(ended["rc"])
        return self._rc

    def wait(self, timeout: float) -> int:
        """The exit code, once it has ended. Raises `GuestError` if that takes too long."""
        return self._guest.await_value(self.poll, timeout, f"the end of process {self.pid}")

    def signal(self, number: int, *, group: bool = False) -> None:
        """Send a signal to the process alone, or to all that it started and that did not leave its group."""
        self._guest.request({"op": "signal", "job": self._number, "signal": int(number), "group": group}, 10)

    def kill(self) -> None:
        """SIGKILL the whole group."""
        self.signal(signal.SIGKILL, group=True)


class Guest:
    """One running virtual machine. Make it with `start`; leave its context, or `close` it, to end it."""

    def __init__(self, name: str, share: Path, process: subprocess.Popen[bytes], *, own_share: bool) -> None:
        self.name = name
        self.share = share
        """The common folder, on the host."""
        self.console = share / "console.log"
        self._folder = share / ".guest"
        self._process = process
        self._own_share = own_share
        self._numbers = itertools.count()
        self._ready = False

    @classmethod
    def start(
        cls,
        name: str,
        *,
        command: Sequence[str] | None = None,
        share: Path | None = None,
        memory_mib: int = 512,
        env: Mapping[str, str] | None = None,
        hostfwd: Mapping[int, int] | None = None,
        link: Link | None = None,
        visible: Sequence[Path] = (),
        disk: Path | None = None,
        processors: int = 1,
        artefacts: KernelArtefacts | None = None,
    ) -> Self:
        """Start a guest and return at once, before it has booted (so start all of them, then use them).

        ``command`` is run first of all, and the guest ends with it; without one it lives until `close`.
        ``share`` is made if it does not exist, and is a temporary folder if not given. ``env`` is the
        environment of every command. ``hostfwd`` maps TCP ports of the guest to ports of 127.0.0.1 here
        (`devtools.ports.free_port`). ``visible`` are more paths of the host to be seen in the guest although they are
        below /run, /tmp, /var/tmp or /mnt. ``disk`` is an image that it has as /dev/vda; what it writes there is gone
        with it. The host's files are read through a cache: what changes outside the share after the start may not be
        seen.

        Raises what `devtools.kernel.kernel_artefacts` and `ensure_qemu` raise.
        """
        artefacts = artefacts or kernel_artefacts()
        qemu = ensure_qemu()
        own_share = share is None
        share = Path(tempfile.mkdtemp(prefix=f"guest-{name}-")) if share is None else share
        write_boot_files(share / ".guest", name, command, env or {}, link, visible)
        argv = qemu_command(qemu, artefacts, share, memory_mib, hostfwd or {}, link, disk, processors)
        return cls(name, share, launch(argv, share / "qemu.log"), own_share=own_share)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """QEMU's process: SIGKILL it to lose the node, SIGSTOP it to cut it off."""
        return self._process.pid

    def wait_ready(self, timeout: float = BOOT_SECONDS) -> Self:
        """Return when the guest takes commands. Raises `GuestError`."""
        if not self._ready:
            self.await_value(lambda: (self._folder / "ready").exists() or None, timeout, "its boot")
            self._ready = True
        return self

    def exec(
        self,
        argv: Sequence[str],
        timeout: float = 60,
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
    ) -> Completed:
        """Run a command in the guest to its end; may be called from several threads at once.

        Raises `GuestError` if the command cannot be started, `GuestStalledError` if it takes longer than ``timeout``
        seconds; its group is killed.
        """
        request = _request("exec", argv, env, cwd) | {"timeout": timeout}
        answer = self.request(request, timeout + BOOT_SECONDS)
        if answer["waited"]:
            raise GuestStalledError(
                f"{list(argv)} took over {timeout} s\n{answer['stdout']}{answer['stderr']}\n{answer['waited']}"
            )
        return Completed(tuple(argv), answer["rc"], answer["stdout"], answer["stderr"])

    def spawn(
        self,
        argv: Sequence[str],
        *,
        log: str = "",
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
    ) -> Job:
        """Start a command in the background; ``log`` is a file name in the share. Raises `GuestError`."""
        number = next(self._numbers)
        log = log or f"job-{number}.log"
        request = _request("spawn", argv, env, cwd) | {"log": log}
        answer = self.request(request, BOOT_SECONDS, number)
        return Job(self, number, answer["pid"], self.share / log)

    def waiting(self) -> str:
        """What each program of the guest waits for, by its kernel: a report on one that does not answer."""
        waited: str = self.request({"op": "waiting"}, STOP_SECONDS)["waited"]
        return waited

    def driver_trace(self) -> list[Arc]:
        """Every arc of every mtty device since the boot, out of the kernel's log (`devtools.mtty_trace`)."""
        log = self.exec([sys.executable, "-E", "-S", str(WORKLOAD), "kmsg"]).check()
        return parse_driver_trace(log.stdout)

    def inside(self, path: Path) -> str:
        """What a path in the share is called in the guest."""
        return f"{GUEST_SHARE}/{path.relative_to(self.share)}"

    def wait(self, timeout: float) -> int:
        """The exit code, once it has powered off: its command's, or 0. Raises `GuestError` if it died."""
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise self._error(f"did not end within {timeout} s") from None
        try:
            return int((self._folder / "rc").read_text())
        except (OSError, ValueError):
            raise self._error(f"died (QEMU's exit code {self._process.returncode})") from None

    def stop(self, timeout: float = STOP_SECONDS) -> int:
        """Have all commands end and the guest power off; returns as `wait`."""
        (self.share / "stop").touch()
        return self.wait(timeout)

    def kill(self) -> None:
        """End the guest at once, as if its power was cut."""
        self._process.kill()
        self._process.wait()
        self.close()

    def close(self) -> None:
        """End the guest, by force if need be, and remove its share if temporary. Safe to call twice."""
        try:
            if self._process.poll() is None and (self._folder / "ready").exists():
                self.stop()
        except GuestError:
            pass
        finally:
            if self._process.poll() is None:
                self._process.kill()
            self._process.wait()
            if self._own_share:
                shutil.rmtree(self.share, ignore_errors=True)

    def request(self, request: Mapping[str, Any], timeout: float, number: int | None = None) -> dict[str, Any]:
        """Hand a request to the guest's runner (guest_exec.py) and return its answer. Raises `GuestError`."""
        self.wait_ready()
        number = next(self._numbers) if number is None else number
        partial = self._folder / f"req-{number}.partial"
        partial.write_text(json.dumps(request))
        partial.rename(self._folder / f"req-{number}.json")
        answer = self.await_value(lambda: self.take_answer(f"res-{number}.json"), timeout, "an answer")
        if "error" in answer:
            raise GuestError(f"guest {self.name}: {request.get('argv') or request['op']}: {answer['error']}")
        return answer

    def take_answer(self, name: str) -> dict[str, Any] | None:
        """Read and remove an answer's file; None if there is none yet."""
        path = self._folder / name
        if not path.exists():
            return None
        answer: dict[str, Any] = json.loads(path.read_text())
        path.unlink()
        return answer

    def await_value(self, get: Callable[[], T | None], timeout: float, what: str) -> T:
        """Call until there is a value; raises `GuestError` when time is up or the guest has died."""
        deadline = time.monotonic() + timeout
        while (value := get()) is None:
            if self._process.poll() is not None:
                raise self._error(f"ended before {what} (QEMU's exit code {self._process.returncode})")
            if time.monotonic() > deadline:
                raise self._error(f"kept us waiting over {timeout} s for {what}")
            time.sleep(POLL_SECONDS)
        return value

    def _error(self, what: str) -> GuestError:
        texts = [_tail(self.share / name) for name in ("qemu.log", "console.log")]
        return GuestError("\n".join([f"guest {self.name} {what}", *filter(None, texts)]))


def _request(
    operation: str, argv: Sequence[str], env: Mapping[str, str] | None, cwd: str | Path | None
) -> dict[str, Any]:
    return {"op": operation, "argv": list(argv), "env": dict(env or {}), "cwd": str(cwd) if cwd else None}


def _tail(path: Path, lines: int = 25) -> str:
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""
