"""One pair against 256 in one migration: downtime, the decision, claims, and how large the status gets.

    make bench-size, or: PYTHONPATH=hack .venv/bin/python bench/size.py [OUTPUT.json]

Two nodes with 256 simulated devices each, the whole product on a real control plane with fsync. The decision is the
step Decide, as the operator's clock saw it (it shares this machine's cores with both agents and simulators), and the
patch itself as the API server's audit log has it; writes within the switchover are counted there too.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from devtools.stack import SimulatedDevice, Stack, migration
from vfio_agent.broker import close_device, request_device

PAIRS = (1, 16, 64, 256)
ROUNDS = 3
SIZE_BYTES = 1 << 20
# the operator's own writes to migrations while a switchover is under way
AUDIT = """apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
  users: ["system:serviceaccount:vfio-migration:vfio-operator"]
  resources:
  - group: vfiomigration.io
    resources: ["vfiomigrations/status", "vfioswitchovers", "vfioswitchovers/status"]
- level: None
"""


@dataclass(frozen=True)
class Row:
    """Medians over the rounds, in milliseconds but where the name says otherwise."""

    pairs: int
    downtime: float
    decide: float
    decision_at_server: float
    barrier_b: float
    claim: float
    whole_seconds: float
    status_bytes: int
    status_writes_in_switchover: int


@dataclass(frozen=True)
class Run:
    """One migration: its last status, and what the audit log shows of its switchover."""

    status: dict[str, Any]
    seconds: float
    writes_in_switchover: int
    decision_milliseconds: float


def steps(status: dict[str, Any]) -> dict[str, float]:
    """Step -> milliseconds."""
    return {t["step"]: t["durationMicroseconds"] / 1000 for t in status["timings"]}


def run(stack: Stack, count: int, turn: int, audit: Path) -> Run:
    """Migrate `count` devices."""
    source, target = stack.nodes["node-a"], stack.nodes["node-b"]
    addresses = [f"sim{n:03}" for n in range(count)]
    for address in addresses:
        for fd in request_device(source.broker_socket, address, "bench")[1]:
            os.close(fd)  # the keeper holds it
    stack.wait_until(lambda: _held(stack, "node-a") == count, f"{count} sources are held", 120)
    name = f"size-{count}-{turn}"
    since = audit.stat().st_size
    strategy = {"downtimeLimitMilliseconds": 10_000, "switchoverTimeoutSeconds": 120}
    wanted = [(f"pair-{n:03}", "node-a", a, "node-b", a) for n, a in enumerate(addresses)]
    began = time.monotonic()
    stack.kubectl("apply", "--server-side", "-f", "-", input=json.dumps(migration(name, wanted, strategy=strategy)))
    stack.kubectl("wait", "--for=condition=Finished", f"vfm/{name}", "--timeout=300s")
    seconds = time.monotonic() - began
    found = stack.get("vfm", name)
    if found["status"]["phase"] != "Succeeded":
        raise RuntimeError(f"{name}: {found['status']['message']}")
    for address in addresses:
        close_device(target.broker_socket, address)
    stack.wait_until(lambda: _held(stack, "node-a") == _held(stack, "node-b") == 0, "all devices are free", 120)
    return Run(found["status"], seconds, *_in_switchover(audit, since))


def _held(stack: Stack, node: str) -> int:
    devices = stack.get("vfd")["items"]
    return sum(1 for d in devices if d["spec"]["nodeName"] == node and d.get("status", {}).get("holder"))


def _in_switchover(audit: Path, since: int) -> tuple[int, float]:
    """Status writes of migrations between the intent and the decision, and how many ms the decision's patch took."""
    with audit.open("rb") as log:
        log.seek(since)
        entries = [json.loads(line) for line in log.read().decode().splitlines()]
    made = {(e["objectRef"]["resource"], e["objectRef"].get("subresource"), e["verb"]): e for e in entries}
    begun = made["vfioswitchovers", None, "create"]["requestReceivedTimestamp"]
    decided = made["vfioswitchovers", "status", "patch"]["stageTimestamp"]
    writes = sum(
        1
        for e in entries
        if e["objectRef"]["resource"] == "vfiomigrations"
        and e["stageTimestamp"] > begun
        and e["requestReceivedTimestamp"] < decided
    )
    asked = made["vfioswitchovers", "status", "patch"]["requestReceivedTimestamp"]
    return writes, (datetime.fromisoformat(decided) - datetime.fromisoformat(asked)).total_seconds() * 1000


def main() -> None:
    """Run every size and print a table; write it as JSON if asked to."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="vfio-bench-") as folder:
        policy, audit = Path(folder) / "policy.yaml", Path(folder) / "audit.log"
        policy.write_text(AUDIT)
        flags = [f"--audit-policy-file={policy}", f"--audit-log-path={audit}", "--audit-log-mode=blocking"]
        with Stack(["node-a", "node-b"], fsync=True, apiserver_args=flags) as stack:
            operator = stack.start_operator()
            for node in ("node-a", "node-b"):
                devices = [SimulatedDevice(f"sim{n:03}", SIZE_BYTES) for n in range(max(PAIRS))]
                stack.add_node(node, devices, {"rate_per_second": 0, "latency_us": 500}).start_agent()
            operator.wait_for('"event": "leading"')
            stack.devices_published(2 * max(PAIRS), 180)
            run(stack, 1, -1, audit)  # warms the interpreters up; not counted
            print(
                "| pairs | downtime ms | decide ms | at the server | barrier B ms | claim ms | whole s | status KiB | "
                "status writes |"
            )
            print("|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
            for count in PAIRS:
                runs = [run(stack, count, turn, audit) for turn in range(ROUNDS)]
                rows.append(row := _row(count, runs))
                print(
                    f"| {row.pairs} | {row.downtime:.1f} | {row.decide:.1f} | {row.decision_at_server:.1f} | "
                    f"{row.barrier_b:.1f} | {row.claim:.0f} | "
                    f"{row.whole_seconds:.1f} | {row.status_bytes / 1024:.1f} | {row.status_writes_in_switchover} |",
                    flush=True,
                )
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def _row(count: int, runs: list[Run]) -> Row:
    def median(step: str) -> float:
        return statistics.median(steps(r.status)[step] for r in runs)

    return Row(
        pairs=count,
        downtime=statistics.median(r.status["downtimeMicroseconds"] / 1000 for r in runs),
        decide=median("Decide"),
        decision_at_server=statistics.median(r.decision_milliseconds for r in runs),
        barrier_b=median("BarrierB"),
        claim=median("Claim"),
        whole_seconds=statistics.median(r.seconds for r in runs),
        status_bytes=max(len(json.dumps(r.status)) for r in runs),
        status_writes_in_switchover=max(r.writes_in_switchover for r in runs),
    )


if __name__ == "__main__":
    main()
