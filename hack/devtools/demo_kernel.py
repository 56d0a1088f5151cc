"""The demo with the kernel's own VFIO devices: two QEMU guests are the nodes."""

import json
import secrets
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from devtools.demo_scene import Finding, prepare_tools
from devtools.demo_view import Steps
from devtools.guest import GuestError
from devtools.kernel import KernelBuildError, MissingToolError, ensure_qemu, kernel_artefacts
from devtools.kernel_apt import PackageError
from devtools.kernel_stack import KernelStack
from devtools.kernel_workload import PORTS, Marks, WorkloadError
from devtools.mtty_patch import PatchError
from devtools.mtty_trace import Arc, Outcome, by_device
from devtools.mtty_workload import Mark
from devtools.plane import Plane
from devtools.stack import ROOT

DEVICES = 2
MARK_BYTES = 8


def barrier_finding(label: str, arcs: Sequence[Arc], quiescent: Sequence[str], beyond: str) -> Finding:
    """Whether every device was in a P2P state before the first left it; times are of one guest's kernel."""
    taken = [arc for arc in arcs if arc.outcome is Outcome.TAKEN]
    into = {arc.device: arc.time for arc in taken if arc.new in quiescent}
    out = [arc.time for arc in taken if arc.old in quiescent and arc.new == beyond]
    devices = {arc.device for arc in taken}
    held = bool(out) and into.keys() == devices and max(into.values()) <= min(out)
    state = " or ".join(quiescent)
    words = f"all {len(devices)} devices in {state} before any in {beyond}"
    return Finding(held, label, words if held else f"NOT {words}")


class KernelScene:
    """Two guests with mtty devices; there is no P2P traffic, so marks and the driver's own log are the proof."""

    title = f"{DEVICES} kernel VFIO devices (mtty), QEMU guest to guest"
    manifest = ROOT / "examples" / "migrate-kernel.yaml"
    sizes: Mapping[str, int] = {f"mtty{i}": 0 for i in range(DEVICES)}
    expected: tuple[type[Exception], ...] = (
        GuestError,
        KernelBuildError,
        MissingToolError,
        PackageError,
        PatchError,
        WorkloadError,
    )

    def __init__(self) -> None:
        self._stack: KernelStack | None = None
        self._marks: list[Marks] = [
            tuple(Mark(secrets.randbelow(255) + 1, secrets.token_bytes(MARK_BYTES)) for _ in range(PORTS))
            for _ in range(DEVICES)
        ]

    @property
    def stack(self) -> KernelStack:
        """The guests and the control plane, once started."""
        assert self._stack is not None
        return self._stack

    @property
    def plane(self) -> Plane:
        """The control plane."""
        return self.stack.plane

    def start(self, steps: Steps) -> None:
        """Build what is missing, start both guests, mark the devices of the first."""
        with ThreadPoolExecutor(1) as pool:
            prepare_tools(steps, pool)
        with steps.step("QEMU, kernel and driver for the guests (the first time: minutes)"):
            kernel_artefacts()
            ensure_qemu()
        with steps.step("control plane, operator, two guests with their agents"):
            self._stack = KernelStack(DEVICES)
            self._stack.__enter__()
        source, target = self.stack.nodes.values()
        with steps.step(f"workload in {source.name}: {DEVICES} devices open, {DEVICES * PORTS} ports marked"):
            for address, marks in zip(source.devices, self._marks, strict=True):
                source.workload.mark(address, marks)
            for node in (source, target):
                node.workload.arcs()  # what was before does not count

    def verdict(self) -> Sequence[Finding]:
        """The driver's log of both guests, then the marks."""
        source, target = self.stack.nodes.values()
        left, right = source.workload.arcs(), target.workload.arcs()
        findings = [
            Finding(True, f"{device[-4:]} in {node.name}", " > ".join(path))
            for node, arcs in ((source, left), (target, right))
            for device, path in by_device(arcs).items()
        ]
        findings += [
            barrier_finding("barriers A, B", left, ("PRE_COPY_P2P", "RUNNING_P2P"), "STOP_COPY"),
            barrier_finding("barriers C, D", right, ("RUNNING_P2P",), "RUNNING"),
        ]
        found = [target.workload.read(address) for address in target.devices]
        pairs = zip(sum(self._marks, ()), sum(found, ()), strict=True)
        intact, total = sum(ours == theirs for ours, theirs in pairs), DEVICES * PORTS
        words = f"{intact} of {total} written in {source.name} found intact in {target.name}"
        return [*findings, Finding(intact == total, "markers", words)]

    def metrics(self) -> Mapping[str, int]:
        """Both agents, through the guests' forwarded ports, and the operator, which logs its own."""
        ports = {f"agent {node.name}": node.metrics_port() for node in self.stack.nodes.values()}
        for line in (self.stack.dir / "operator-0.log").read_text().splitlines():
            if '"operator started"' in line:
                ports["operator"] = int(json.loads(line)["metrics_port"])
        return ports

    def logs(self) -> Sequence[Path]:
        """The operator's, then what the guests' processes wrote."""
        if self._stack is None:
            return []
        found = self._stack.dir.rglob("*.log")
        return sorted(found, key=lambda path: (not path.name.startswith("operator"), str(path)))

    def close(self) -> None:
        """Stop and remove everything."""
        if self._stack is not None:
            self._stack.closing.close()
