"""Remembers every version of every VFIOSwitchover and VFIOMigration, so that a decision outlives its object."""

import contextlib
import json
import subprocess
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, Protocol

from devtools.faults.story import DELETED, Decision
from devtools.tools import kubectl

Json = dict[str, Any]
SWITCHOVERS, MIGRATIONS = "vfioswitchovers", "vfiomigrations"
AGAIN_SECONDS = 0.2


class Plane(Protocol):
    """What a witness needs of devtools.plane.Plane."""

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which kubectl talks to it as administrator."""


@dataclass(frozen=True, slots=True)
class Version:
    """An object as it was seen at `t`, in seconds of CLOCK_MONOTONIC. gone: it was deleted."""

    t: float
    body: Mapping[str, Any]
    gone: bool = False


class Record:
    """Every version that was seen, by migration UID. Any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._versions: dict[tuple[str, str], list[Version]] = {}

    def add(self, resource: str, kind: str, body: Json, t: float) -> None:
        """A watch event; the same version once more, as after the watch was begun anew, is left out."""
        metadata = body["metadata"]
        uid = metadata["name"] if resource == SWITCHOVERS else metadata["uid"]
        with self._changed:
            versions = self._versions.setdefault((resource, uid), [])
            last = versions[-1].body["metadata"]["resourceVersion"] if versions else None
            if kind == "DELETED" or metadata["resourceVersion"] != last:
                versions.append(Version(t, body, kind == "DELETED"))
                self._changed.notify_all()

    def versions(self, resource: str, uid: str) -> tuple[Version, ...]:
        """Every version of an object, oldest first."""
        with self._changed:
            return tuple(self._versions.get((resource, uid), ()))

    def decisions(self, uid: str) -> tuple[Decision, ...]:
        """Every different decision of a migration, oldest first: one, if the write-once rule holds."""
        found: list[Decision] = []
        for version in self.versions(SWITCHOVERS, uid):
            made = version.body.get("status", {}).get("decision")
            if made and (decision := _decision(made)) not in found:
                found.append(decision)
        return tuple(found)

    def decision(self, uid: str) -> Decision | None:
        """The decision of a migration, also if its VFIOSwitchover has gone."""
        return next(iter(self.decisions(uid)), None)

    def decided_at(self, uid: str) -> float | None:
        """When the decision was first seen, in seconds of CLOCK_MONOTONIC: it was stored before that."""
        versions = self.versions(SWITCHOVERS, uid)
        return next((v.t for v in versions if v.body.get("status", {}).get("decision")), None)

    def phases(self, uid: str) -> list[tuple[float, str]]:
        """(seconds of CLOCK_MONOTONIC, phase) whenever it changed; story.DELETED at the end of the object."""
        found: list[tuple[float, str]] = []
        for version in self.versions(MIGRATIONS, uid):
            phase = DELETED if version.gone else version.body.get("status", {}).get("phase", "")
            if phase and (not found or found[-1][1] != phase):
                found.append((version.t, phase))
        return found

    def reason(self, uid: str) -> str:
        """The reason of the condition Succeeded as it was last seen."""
        for version in reversed(self.versions(MIGRATIONS, uid)):
            for condition in version.body.get("status", {}).get("conditions", []):
                if condition["type"] == "Succeeded":
                    return str(condition["reason"])
        return ""

    def uid(self, name: str, namespace: str = "default") -> str | None:
        """The UID of the newest migration of that name."""
        with self._changed:
            bodies = [v[0].body["metadata"] for (kind, _), v in self._versions.items() if kind == MIGRATIONS]
        found = [m for m in bodies if (m["namespace"], m["name"]) == (namespace, name)]
        return str(max(found, key=lambda m: m["creationTimestamp"])["uid"]) if found else None

    def wait_for_phase(self, uid: str, phases: frozenset[str], timeout: float) -> str | None:
        """Wait until a migration is or has been in one of `phases`; which one, or None after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                for _, phase in self.phases(uid):
                    if phase in phases:
                        return phase
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                self._changed.wait(left)


class Witness(Record):
    """Watches a control plane from `start` to `stop`; begins anew when the API server goes away."""

    def __init__(self, plane: Plane):
        super().__init__()
        self._plane = plane
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self._threads = [
            threading.Thread(target=self._watch, args=(resource,), daemon=True)
            for resource in (SWITCHOVERS, MIGRATIONS)
        ]

    def __enter__(self) -> "Witness":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Begin to watch."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End; what was seen stays."""
        self._stop.set()
        with self._lock:
            for process in self._processes.values():
                process.terminate()
        for thread in self._threads:
            thread.join()

    def _watch(self, resource: str) -> None:
        arguments = ["get", resource, "--all-namespaces", "--watch", "--output-watch-events", "--output", "json"]
        while not self._stop.is_set():
            with self._lock:
                if self._stop.is_set():
                    return
                process = self._processes[resource] = subprocess.Popen(
                    [kubectl(), *arguments],
                    env=self._plane.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                )
            assert process.stdout is not None
            with process.stdout as lines, contextlib.suppress(json.JSONDecodeError):  # it may end in mid-line
                for seen in map(json.loads, lines):
                    if seen["type"] == "ERROR":
                        break
                    self.add(resource, seen["type"], seen["object"], time.monotonic())
            process.terminate()
            process.wait()
            self._stop.wait(AGAIN_SECONDS)


def wall_minus_monotonic() -> float:
    """How far the time of day is ahead of CLOCK_MONOTONIC, in seconds; the closest of several looks."""
    looks = []
    for _ in range(5):
        before, wall, after = time.monotonic(), time.time(), time.monotonic()
        looks.append((after - before, wall - (before + after) / 2))
    return min(looks)[1]


def _decision(made: Mapping[str, Any]) -> Decision:
    return Decision(made["outcome"], made["by"], datetime.fromisoformat(made["time"]).timestamp())
