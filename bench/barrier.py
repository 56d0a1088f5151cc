"""How long the barriers A and B take with many agents, against a bare fan-out on as many streams.

    PYTHONPATH=hack:bench:tests .venv/bin/python bench/barrier.py [AGENTS ...]

Agents are a ring: each has four devices that are sources and four blank ones, which are the targets of the agent before
it, and back again with the next migration. All pairs are one migration, by the product's operator on a real control
plane with fsync. The agents are the product's, a few processes hold all of them (bench/fleet.py), and their devices
cost nothing.

What counts is from when the operator begins barrier A until the last device of all has stopped, by the devices' own
clock: barrier A with all of its reports, and barrier B up to its effect. Of the bare fan-out (bench/fanout.py, between
the migrations, in as many processes) it is from the first message of round A until the last client has that of B.
The operator's own time of barrier B is longer: a source reports it when it has sent its state. Each device takes a
while here to give that, so that 256 transfers on this machine's cores are not taken for a barrier.
"""

import json
import sys
import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import measure
from devtools.stack import Stack, migration
from fanout import Fanout
from fleet import DEVICE, Fleet, FleetNode, Reached, fleet
from vfio_api.device import DeviceState, MigrationFlags

AGENTS = (2, 16, 64)
DEVICES = 4
PROCESSES = 2
WARM_UP, MIGRATIONS = 2, 10
BARE_SAMPLES = 10  # before each migration
LIMIT_MILLISECONDS = 60_000  # whatever is forecast, it begins
FIRST_BYTE_SECONDS = 0.2
REST_SECONDS = 1.0
BAR, BAR_AGENTS = 2.0, 64
FLAGS = MigrationFlags.STOP_COPY | MigrationFlags.P2P
Json = dict[str, Any]
Pairs = list[tuple[str, str, str, str, str]]


@dataclass
class Samples:
    """Of one number of agents, in milliseconds, one of each a migration; bare: of the fan-out, more of them.

    whole: from the beginning of barrier A until the last device has stopped. a: the operator's time of barrier A. b:
    from its end until the last device has stopped. skew: between the first and the last device.
    """

    whole: list[float] = field(default_factory=list)
    a: list[float] = field(default_factory=list)
    b: list[float] = field(default_factory=list)
    operator_b: list[float] = field(default_factory=list)
    skew_a: list[float] = field(default_factory=list)
    skew_b: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    bare_a: list[float] = field(default_factory=list)
    bare_both: list[float] = field(default_factory=list)

    def add(self, status: Json, reached: list[Reached], bare: list[tuple[float, float, float]]) -> None:
        """One migration, and what was measured of the bare fan-out before it."""
        timings = {timing["step"]: timing for timing in status["timings"]}
        began = datetime.fromisoformat(timings["BarrierA"]["startTime"]).timestamp() - time.time() + time.monotonic()
        stopped = [each.moment for each in reached if _device_in(each, DeviceState.STOP_COPY)]
        quiet = [each.moment for each in reached if _device_in(each, DeviceState.RUNNING_P2P)]
        quiet = [moment for moment in quiet if moment < min(stopped)]  # not the targets' later ones
        assert len(stopped) == len(quiet) == len(status["pairs"])
        self.a.append(timings["BarrierA"]["durationMicroseconds"] / 1000)
        self.operator_b.append(timings["BarrierB"]["durationMicroseconds"] / 1000)
        self.whole.append((max(stopped) - began) * 1000)
        self.b.append(self.whole[-1] - self.a[-1])
        self.skew_a.append((max(quiet) - min(quiet)) * 1000)
        self.skew_b.append((max(stopped) - min(stopped)) * 1000)
        self.bare_a += [a * 1000 for a, _, _ in bare]
        self.bare += [there * 1000 for _, there, _ in bare]
        self.bare_both += [both * 1000 for _, _, both in bare]


def _device_in(reached: Reached, state: DeviceState) -> bool:
    return reached.role == DEVICE and reached.goal == state.name


def node(number: int, agents: int) -> str:
    """The name of a node of the ring."""
    return f"node-{number % agents:02}"


def pairs(agents: int, *, back: bool) -> Pairs:
    """Of the whole ring: d0 to d3 of each node to d4 to d7 of the next one, or back."""
    found = []
    for number in range(agents):
        for device in range(DEVICES):
            here, there = (node(number, agents), f"d{device}"), (node(number + 1, agents), f"d{device + DEVICES}")
            source, target = (there, here) if back else (here, there)
            found.append((f"p{number}-{device}", *source, *target))
    return found


def migrate(stack: Stack, name: str, wanted: Pairs) -> Json:
    """One migration, which must succeed; its last status. It is deleted."""
    made = migration(name, wanted, strategy={"downtimeLimitMilliseconds": LIMIT_MILLISECONDS})
    stack.kubectl("create", "-f", "-", input=json.dumps(made))
    stack.kubectl("wait", "--for=condition=Finished", f"vfm/{name}", "--timeout=120s")
    status: Json = stack.get("vfm", name)["status"]
    if status["phase"] != "Succeeded":
        raise RuntimeError(f"migration {name} of {len(wanted)} pairs: {status['phase']}: {status['message']}")
    stack.kubectl("delete", "vfm", name)
    return status


def rounds(stack: Stack, made: Fleet, bare: Fanout, agents: int, warm_up: int, migrations: int) -> Samples:
    """Migrations there and back, and bare fan-outs between them."""
    samples = Samples()
    for number in range(warm_up + migrations):
        made.settle()
        time.sleep(REST_SECONDS)  # for the operator, to have seen what was published
        fanned = bare.samples(BARE_SAMPLES)
        made.reached()
        status = migrate(stack, f"ring-{time.time_ns()}", pairs(agents, back=number % 2 == 1))
        if number >= warm_up:
            samples.add(status, made.reached(), fanned)
    return samples


def ring(agents: int, migrations: int = MIGRATIONS) -> Samples:
    """A fleet of so many agents, and what its barriers took."""
    devices = tuple(f"d{device}" for device in range(2 * DEVICES))
    nodes = [FleetNode(node(number, agents), devices, devices[:DEVICES]) for number in range(agents)]
    processes = min(PROCESSES, agents)
    options: Json = {"processes": processes, "flags": FLAGS}
    options["first_byte_seconds"] = FIRST_BYTE_SECONDS
    warm_up = WARM_UP + (migrations + WARM_UP) % 2  # what is measured again begins where the ring began
    with fleet(nodes, **options) as (stack, made), Fanout(agents, processes) as bare:
        return measure.undisturbed(
            lambda: rounds(stack, made, bare, agents, warm_up, migrations), f"barriers of {agents} agents"
        )


def results(agents: int, samples: Samples) -> list[measure.Result]:
    """The figures of one number of agents."""
    where, peer = f"barrier/{agents}-agents", f"a bare fan-out on {agents} gRPC streams over TLS"
    at_most = BAR if agents == BAR_AGENTS else None
    ratio = measure.p50(samples.whole) / measure.p50(samples.bare)
    made = [measure.result(f"{where}/a+b/p50", ratio, "x peer", at_most=at_most, peer=peer)]
    for name, values in vars(samples).items():
        called = f"{where}/{'a+b' if name == 'whole' else name.replace('_', '-')}"
        made.append(measure.result(f"{called}/p50-time", measure.p50(values), "ms", samples=values))
        made.append(measure.result(f"{called}/p99-time", measure.p99(values), "ms"))
    return made


def bench(agents: tuple[int, ...] = AGENTS) -> None:
    """Measure every number of agents, print a table, and keep the figures."""
    figures: list[measure.Result] = []
    raw = {}
    print("| agents | pairs | A ms | to B ms | A+B p50/p99 ms | bare p50/p99 ms | ratio p50 | skew A/B ms |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|")
    for count in agents:
        samples = ring(count)
        figures += results(count, samples)
        raw[str(count)] = vars(samples)
        whole, bare = samples.whole, samples.bare
        print(
            f"| {count} | {count * DEVICES} | {measure.p50(samples.a):.1f} | {measure.p50(samples.b):.1f} | "
            f"{measure.p50(whole):.1f}/{measure.p99(whole):.1f} | {measure.p50(bare):.1f}/{measure.p99(bare):.1f} | "
            f"{measure.p50(whole) / measure.p50(bare):.2f} | "
            f"{measure.p50(samples.skew_a):.1f}/{measure.p50(samples.skew_b):.1f} |",
            flush=True,
        )
    measure.save("barrier", figures, raw)


if __name__ == "__main__":
    bench(tuple(int(each) for each in sys.argv[1:]) or AGENTS)
