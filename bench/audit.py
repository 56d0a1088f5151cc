"""What the API server's audit log says of a run: who wrote what, how often and when."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

OPERATOR = "system:serviceaccount:vfio-migration:vfio-operator"
AGENT = "system:serviceaccount:vfio-migration-agents:vfio-agent"
WRITES = frozenset({"create", "update", "patch", "delete"})
# What is answered and not kept.
REVIEWS = frozenset({"subjectaccessreviews", "tokenreviews"})
# Everything of the operator, the writes of agents, and when migrations were made.
POLICY = f"""apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
  users: ["{OPERATOR}"]
- level: Metadata
  users: ["{AGENT}"]
  verbs: ["create", "update", "patch", "delete"]
- level: Metadata
  verbs: ["create"]
  resources: [{{group: vfiomigration.io, resources: ["vfiomigrations"]}}]
- level: None
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """One request that was answered. resource: with its subresource; began, ended: POSIX seconds."""

    user: str
    verb: str
    resource: str
    namespace: str
    name: str
    code: int
    began: float
    ended: float

    @property
    def writes(self) -> bool:
        """Whether it changed what is stored."""
        return self.verb in WRITES and self.code < 300 and self.resource not in REVIEWS


class Audit:
    """The audit log of a stack that was made with `flags`."""

    def __init__(self, folder: Path):
        self._policy, self._log = folder / "audit-policy.yaml", folder / "audit.log"
        self._policy.write_text(POLICY)
        self._log.touch()

    @property
    def flags(self) -> list[str]:
        """Of the API server."""
        return [
            f"--audit-policy-file={self._policy}",
            f"--audit-log-path={self._log}",
            "--audit-log-mode=batch",
            "--audit-log-maxsize=4096",  # MiB: `since` reads one file
            "--audit-log-batch-max-size=400",
            "--audit-log-batch-max-wait=1s",
        ]

    def mark(self) -> int:
        """Where the log ends now, for `since`."""
        return self._log.stat().st_size

    def since(self, mark: int) -> list[Entry]:
        """What was logged after a mark."""
        with self._log.open("rb") as log:
            log.seek(mark)
            lines = log.read().rpartition(b"\n")[0].splitlines()
        return [_entry(line) for line in lines]


def _entry(line: bytes) -> Entry:
    said = json.loads(line)
    what = said.get("objectRef", {})
    sub = what.get("subresource", "")
    return Entry(
        user=said["user"]["username"],
        verb=said["verb"],
        resource=what.get("resource", said.get("requestURI", "")) + (f"/{sub}" if sub else ""),
        namespace=what.get("namespace", ""),
        name=what.get("name", ""),
        code=said.get("responseStatus", {}).get("code", 0),
        began=datetime.fromisoformat(said["requestReceivedTimestamp"]).timestamp(),
        ended=datetime.fromisoformat(said["stageTimestamp"]).timestamp(),
    )


def counted(entries: Iterable[Entry]) -> Counter[tuple[str, str, str]]:
    """How often who (operator, agent, other) did what: by who, verb and resource; refused ones are marked."""
    names = {OPERATOR: "operator", AGENT: "agent"}
    return Counter(
        (names.get(e.user, "other"), e.verb + ("" if e.code < 300 else f" ({e.code})"), e.resource) for e in entries
    )


def claims(entries: Iterable[Entry]) -> Counter[str]:
    """How often the operator changed each VFIODevice: a claim and a release make two."""
    return Counter(e.name for e in entries if e.user == OPERATOR and e.writes and e.resource == "vfiodevices")


def whole(entries: Iterable[Entry]) -> dict[str, tuple[float, float]]:
    """Of each migration by name: when its creation was asked for, and when its last write was answered."""
    began: dict[str, float] = {}
    ended: dict[str, float] = {}
    for entry in entries:
        if entry.resource.partition("/")[0] != "vfiomigrations" or not entry.writes:
            continue
        if entry.verb == "create":
            began[entry.name] = entry.began
        else:
            ended[entry.name] = max(ended.get(entry.name, 0.0), entry.ended)
    return {name: (moment, ended[name]) for name, moment in began.items() if name in ended}
