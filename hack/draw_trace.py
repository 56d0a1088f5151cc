"""Runs a migration on a real control plane with a collector of traces, and puts the trace into docs/tracing.md.

`make traces` calls it.
"""

import contextlib
import json
import os
import tempfile
from pathlib import Path

from devtools.collector import Collected, Collector, tree
from devtools.stack import SimulatedDevice, Stack, migration
from vfio_agent.broker import request_device

TARGET = Path(__file__).resolve().parents[1] / "docs/tracing.md"
BEGIN, END = "<!-- drawn by make traces, do not edit -->\n", "<!-- end -->"
PAIRS = [(f"gpu{n}", "node-a", f"sim{n}", "node-b", f"sim{n}") for n in range(2)]
STEPS = {"Source Released", "Target Released", "migration default/drawing"}


def traced() -> list[Collected]:
    """The trace of two devices that move from node-a to node-b."""
    with contextlib.ExitStack() as closing:
        collector = closing.enter_context(Collector(Path(closing.enter_context(tempfile.TemporaryDirectory()))))
        stack = closing.enter_context(Stack(["node-a", "node-b"]))
        size, rate = 32 << 20, 1 << 20
        devices = [SimulatedDevice(f"sim{n}", size, rate) for n in range(2)]
        operator = stack.start_operator("operator-0", OTLP_ENDPOINT=collector.endpoint)
        for name in ("node-a", "node-b"):
            stack.add_node(name, devices).start_agent(OTLP_ENDPOINT=collector.endpoint)
        operator.wait_for('"event": "leading"')
        stack.devices_published(4)
        for _, node, address, _, _ in PAIRS:
            for fd in request_device(stack.nodes[node].broker_socket, address, "drawing")[1]:
                os.close(fd)
        stack.kubectl("apply", "-f", "-", input=json.dumps(migration("drawing", PAIRS)))
        stack.kubectl("wait", "--for=condition=Succeeded", "vfm/drawing", "--timeout=60s")
        trace_id = stack.get("vfm", "drawing")["status"]["traceID"]
        stack.wait_until(lambda: {span.name for span in collector.trace(trace_id)} >= STEPS, "the whole trace", 60)
        return collector.trace(trace_id)


def main() -> None:
    """Run and draw."""
    drawn = "\n".join(["```text", *tree(traced()), "```", ""])
    head, _, rest = TARGET.read_text().partition(BEGIN)
    TARGET.write_text(f"{head}{BEGIN}{drawn}{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
