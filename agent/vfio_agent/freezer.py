"""Freezes a pod: none of its processes runs until it is thawed, and none of them notices.

By cgroup v2 (cgroup.freeze, cgroup.events; Documentation/admin-guide/cgroup-v2.rst) or by the v1 freezer
(freezer.state; freezer-subsystem.rst). A pod counts as frozen only when the kernel says that it is.
"""

import contextlib
import errno
import os
import select
import signal
import threading
import time
from pathlib import Path

from vfio_agent.pods import PodRef, Pods
from vfio_api.errors import Reason, WorkloadError

_GONE = (errno.ENOENT, errno.ENODEV)  # the folder was removed, before or after its file was opened
LOOK_SECONDS = 0.002  # v1 tells of no change
CALLED_OFF_SECONDS = 0.05  # how often it is looked whether the freeze is still wanted


def freeze(pods: Pods, pod: PodRef, seconds: float, called_off: threading.Event | None = None) -> None:
    """Have the pod frozen within `seconds`. Blocking. called_off: once it is set nothing is frozen any more.

    Raises WorkloadError; the pod may then be frozen in part: thaw it.
    """
    unwanted = called_off or threading.Event()
    folder = folder_of(pods, pod)
    try:
        if (folder / "cgroup.freeze").exists():
            (folder / "cgroup.freeze").write_text("1")
            frozen = _await_events(folder / "cgroup.events", seconds, unwanted)
        else:
            frozen = _freeze_v1(folder / "freezer.state", seconds, unwanted)
    except OSError as error:
        raise WorkloadError(
            f"pod {pod} could not be frozen: {error}; its cgroup is {folder}", reason=Reason.PAUSE_FAILED
        ) from error
    if not frozen and unwanted.is_set():
        raise WorkloadError(f"pod {pod} was not frozen: the migration has turned back", reason=Reason.PAUSE_FAILED)
    if not frozen:
        raise WorkloadError(
            f"pod {pod} was not frozen within {seconds:g} s: one of its processes is in an uninterruptible call; look "
            "at their stacks (/proc/PID/stack) on the node, or use another pause method",
            reason=Reason.PAUSE_FAILED,
        )


def folder_of(pods: Pods, pod: PodRef) -> Path:
    """The pod's cgroup. Raises WorkloadError if it has none, or if that cannot be told."""
    folder = _folder(pods, pod, Reason.PAUSE_FAILED)
    if folder is None:
        raise WorkloadError(
            f"pod {pod} has no cgroup on this node: it has ended; look at kubectl describe pod",
            reason=Reason.POD_GONE,
        )
    return folder


def _folder(pods: Pods, pod: PodRef, reason: Reason) -> Path | None:
    try:
        return pods.cgroup(pod.uid)
    except OSError as error:
        raise WorkloadError(f"the cgroup of pod {pod} could not be looked for: {error}", reason=reason) from error


def thaw(pods: Pods, pod: PodRef) -> bool:
    """Have the pod run again; whether it was there. Blocking, and may be repeated. Raises WorkloadError."""
    folder = _folder(pods, pod, Reason.RESUME_FAILED)
    if folder is None:
        return False
    new, old = folder / "cgroup.freeze", folder / "freezer.state"
    try:
        new.write_text("0") if new.exists() else old.write_text("THAWED")
    except OSError as error:
        if error.errno in _GONE:
            return False  # it ended meanwhile
        raise WorkloadError(
            f"pod {pod} could not be thawed: {error}; write 0 to {new} (or THAWED to {old}) on the node",
            reason=Reason.RESUME_FAILED,
        ) from error
    return True


def end(pods: Pods, pod: PodRef) -> None:
    """Kill every process of a pod that was moved away: a frozen one could not be ended by anybody. Blocking.

    None of them executes another instruction: what is killed is dead when it is thawed. Raises WorkloadError.
    """
    folder = _folder(pods, pod, Reason.RESUME_FAILED)
    if folder is None:
        return
    all_of_it = folder / "cgroup.kill"  # Linux 5.14, version 2; frozen or not
    try:
        if all_of_it.exists():
            all_of_it.write_text("1")
            return
        killed: set[int] = set()
        while new := set(pods.processes(pod.uid)) - killed:  # what came meanwhile would run once it is thawed
            for pid in new:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            killed |= new
    except OSError as error:
        if error.errno in _GONE:
            return  # it has ended
        raise WorkloadError(
            f"pod {pod} could not be ended: {error}; delete it: kubectl delete pod --grace-period=0 --force",
            reason=Reason.RESUME_FAILED,
        ) from error
    thaw(pods, pod)


def _await_events(events: Path, seconds: float, unwanted: threading.Event) -> bool:
    deadline = time.monotonic() + seconds
    with events.open() as file:
        poller = select.poll()
        poller.register(file, select.POLLPRI)
        while True:
            file.seek(0)
            if "frozen 1" in file.read():
                return True
            left = deadline - time.monotonic()
            if left <= 0 or unwanted.is_set():
                return False
            poller.poll(min(left, CALLED_OFF_SECONDS) * 1000)


def _freeze_v1(state: Path, seconds: float, unwanted: threading.Event) -> bool:
    deadline = time.monotonic() + seconds
    while not unwanted.is_set():
        state.write_text("FROZEN")  # again: what was forked meanwhile is frozen by it, too
        if state.read_text().strip() == "FROZEN":
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(LOOK_SECONDS)
    return False
