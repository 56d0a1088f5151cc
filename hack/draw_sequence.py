"""Runs three migrations on a real control plane and draws docs/sequences.md from what was recorded.

Device arcs are from the simulators' traces, decisions from the API server, steps and goals from the logs: all stamped
by clocks of this one machine. `make sequences` calls it.
"""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from errno import EIO
from pathlib import Path

from devtools.processes import Child
from devtools.stack import Json, SimulatedDevice, Stack, migration
from vfio_agent.broker import close_device, request_device
from vfio_agent.devices.simulated import SimulatorControl
from vfio_api.device import DeviceState as S

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs/sequences.md"
SOURCES, TARGETS = ("node-a", "node-b"), ("node-c",)
PAIRS = [("gpu0", "node-a", "sim0", "node-c", "sim0"), ("gpu1", "node-b", "sim1", "node-c", "sim1")]
ONE_NODE = [("gpu0", "node-a", "sim0", "node-c", "sim0"), ("gpu1", "node-a", "sim1", "node-c", "sim1")]
STRATEGY = {"switchoverTimeoutSeconds": 2}
SECONDS = 60.0
STEPS = {
    "PrepareSources": "prepare sources",
    "PrepareTargets": "prepare targets",
    "PreCopy": "pre-copy",
    "BarrierA": "barrier A: quiesce P2P",
    "BarrierB": "barrier B: stop, send to the end",
    "BarrierC": "barrier C: RUNNING_P2P",
    "BarrierD": "barrier D: RUNNING",
    "ReloadTargets": "prepare once more what was lost",
    "ResendSources": "send it once more",
    "RestoreP2P": "rollback barrier: RUNNING_P2P",
    "Restore": "RUNNING",
    "BlankTargets": "reset the targets",
    "ReleaseSources": "release the sources",
    "ReleaseTargets": "hand over the targets",
    "EndSources": "end the sources' sessions",
}

HEAD = """# Sequences of real runs

Drawn by `make sequences` from three migrations of two simulated devices on a real control plane: operator and agents as
processes, device arcs as the simulators traced them. Milliseconds are since the first line. Do not edit.
"""


@dataclass(frozen=True, order=True)
class Line:
    """One line of a drawing, at a time of day (seconds)."""

    at: float
    text: str


class Scene:
    """Three nodes with two devices each; the operator is started anew for each drawing that killed it."""

    def __init__(self, stack: Stack):
        self.stack = stack
        self.operators: list[Child] = []
        devices = [SimulatedDevice(f"sim{n}") for n in range(2)]
        for name in (*SOURCES, *TARGETS):
            stack.add_node(name, devices, {"rate_per_second": 0, "latency_us": 500})
        self.lead()
        for node in stack.nodes.values():
            node.start_agent()
        stack.devices_published(6)

    def lead(self) -> None:
        """Start an operator and wait until it leads."""
        self.operators.append(self.stack.start_operator(f"operator-{len(self.operators)}"))
        self.operators[-1].wait_for('"event": "leading"')

    def control(self, node: str) -> SimulatorControl:
        """A node's simulator."""
        return SimulatorControl(self.stack.nodes[node].simulator_socket)

    def open(self, pairs: list[tuple[str, str, str, str, str]]) -> None:
        """A workload opens the sources."""
        for _, name, address, _, _ in pairs:
            node = self.stack.nodes[name]
            _, fds = request_device(node.broker_socket, address, "drawing")
            for fd in fds:
                os.close(fd)
        self.stack.wait_until(
            lambda: sum(1 for d in self.stack.get("vfd")["items"] if d["status"].get("holder")) >= len(pairs), "open"
        )

    def apply(self, name: str, pairs: list[tuple[str, str, str, str, str]]) -> float:
        """Apply a migration; returns when."""
        began = time.time()
        self.stack.kubectl("apply", "-f", "-", input=json.dumps(migration(name, pairs, strategy=STRATEGY)))
        return began

    def finished(self, name: str) -> Json:
        """Wait for the end."""
        self.stack.kubectl("wait", "--for=condition=Finished", f"vfm/{name}", f"--timeout={SECONDS:g}s")
        return self.stack.get("vfm", name)

    def lines(self, name: str, began: float) -> list[Line]:
        """Everything that was recorded of a migration."""
        found: list[Line] = []
        for operator in self.operators:
            found += [line for entry in _entries(operator) for line in _of_operator(entry, name)]
        for node in self.stack.nodes.values():
            assert node.agent is not None
            found += [line for entry in _entries(node.agent) for line in _of_agent(entry, name, node.name)]
            offset = time.time() - time.monotonic()
            found += [line for arc in node.arcs() for line in _of_device(arc, node.name, offset)]
        return sorted(line for line in found if line.at >= began)


def _entries(child: Child) -> Iterator[Json]:
    for line in child.text().splitlines():
        if line.startswith("{"):
            yield json.loads(line)


def _at(entry: Json) -> float:
    return datetime.fromisoformat(entry["timestamp"]).timestamp()


def _of_operator(entry: Json, name: str) -> Iterator[Line]:
    if entry.get("migration") != f"default/{name}":
        return
    if entry["event"] == "finished":
        yield Line(_at(entry), f"operator->>API: status {entry['phase']}")
    if entry["event"] != "step":
        return
    step = entry["step"]
    if step == "BeginSwitchover":
        yield Line(_at(entry), "operator->>API: create VFIOSwitchover (the intent)")
    elif step in ("Decide", "Abort"):
        yield Line(_at(entry), f"operator->>API: decision {'Commit' if step == 'Decide' else 'Abort'} (if unset)")
    elif step == "Vote":
        yield Line(_at(entry), "Note over operator: waits for the votes")
    elif step in STEPS:
        yield Line(_at(entry), f"Note over operator: {STEPS[step]}")


def _of_agent(entry: Json, name: str, node: str) -> Iterator[Line]:
    if entry.get("migration") != f"default/{name}":
        return
    if entry["event"] == "goal reached":
        yield Line(_at(entry), f"{node}-->>operator: {entry['role']} {entry['goal']}")
    elif entry["event"] == "voted":
        yield Line(_at(entry), f"{node}-->>operator: Target Loaded, the vote")
    elif entry["event"] == "nothing was heard of the switchover" and entry["asks"] == "Abort":
        yield Line(_at(entry), f"{node}->>API: decision Abort (if unset)")
    elif entry["event"] == "decision read":
        yield Line(_at(entry), f"API-->>{node}: {entry['decision']}")
    elif entry["event"] == "session failed":
        yield Line(_at(entry), f"{node}-->>operator: failed: {entry['reason']}")


def _of_device(arc: Json, node: str, offset: float) -> Iterator[Line]:
    if arc["event"] == "arc":
        came = f"failed, now {arc['state']}" if arc["errno"] else arc["to"]
        yield Line(arc["t"] + offset, f"Note right of {node}: {arc['device']} {arc['from']} → {came}")
    elif arc["event"] in ("reset", "close"):
        yield Line(arc["t"] + offset, f"Note right of {node}: {arc['device']} {arc['event']}")


def draw(title: str, words: str, lines: list[Line], nodes: tuple[str, ...]) -> str:
    """One drawing."""
    made = [f"## {title}", "", words, "", "```mermaid", "sequenceDiagram", "    participant API as API server"]
    made += ["    participant operator", *(f"    participant {node} as agent on {node}" for node in nodes)]
    first = lines[0].at
    for line in lines:
        stamp = f" [{(line.at - first) * 1000:.0f} ms]"
        made.append(f"    {line.text}{stamp}")
    return "\n".join([*made, "```", ""])


def whole(scene: Scene) -> str:
    """Two source nodes, one target node, nothing goes wrong."""
    scene.open(PAIRS)
    began = scene.apply("whole", PAIRS)
    assert scene.finished("whole")["status"]["phase"] == "Succeeded"
    words = "Sources on two nodes, so that barriers A and B are the operator's; one target node runs C and D by itself."
    return draw("A whole migration", words, scene.lines("whole", began), (*SOURCES, *TARGETS))


def silence(scene: Scene) -> str:
    """The leader is killed after the sources were stopped."""
    scene.open(ONE_NODE)
    scene.control("node-c").fault("sim1", "arc", arc=(S.RESUMING, S.STOP), delay_us=4_000_000)
    began = scene.apply("silence", ONE_NODE)

    def stopped() -> bool:
        return scene.control("node-a").stats()["devices"]["sim1"]["state"] == "STOP_COPY"

    scene.stack.wait_until(stopped, "sources stopped")
    killed = time.time()
    scene.operators[-1].kill()

    def running() -> bool:
        return all(d["state"] == "RUNNING" for d in scene.control("node-a").stats()["devices"].values())

    scene.stack.wait_until(running, "sources run")
    scene.lead()
    assert scene.finished("silence")["status"]["phase"] == "Failed"
    words = "The leader is killed when the sources are stopped; `switchoverTimeoutSeconds` is 2."
    lines = [*scene.lines("silence", began), Line(killed, "Note over operator: killed")]
    return draw("The leader dies in the middle of a switchover", words, sorted(lines), ("node-a", "node-c"))


def reload(scene: Scene) -> str:
    """A target falls into ERROR after Commit, on its way out of STOP."""
    scene.control("node-c").fault("sim1", "arc", arc=(S.STOP, S.RUNNING_P2P), error=EIO, to_error=True)
    began = scene.apply("reload", ONE_NODE)
    assert scene.finished("reload")["status"]["phase"] == "Succeeded"
    words = "The target's sim1 fails into ERROR after Commit; the source still has the whole state and sends it again."
    return draw("A target loses its state after Commit", words, scene.lines("reload", began), ("node-a", "node-c"))


def main() -> None:
    """Run and draw."""
    with Stack([*SOURCES, *TARGETS]) as stack:
        scene = Scene(stack)
        made = [whole(scene)]
        for number in range(2):  # free what the first one moved
            node = stack.nodes["node-c"]
            close_device(node.broker_socket, f"sim{number}")
        made += [silence(scene), reload(scene)]
    TARGET.write_text("\n".join([HEAD, *made]))


if __name__ == "__main__":
    main()
