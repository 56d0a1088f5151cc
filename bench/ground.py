"""Where the control plane's scale is measured: many agents on one machine, and migrations for all of them."""

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kubernetes.aio import client, config

from audit import Audit
from devtools.processes import Child
from devtools.stack import Stack, migration
from fleet import Fleet, FleetNode

GROUP = ("vfiomigration.io", "v1alpha1")
AT_ONCE = 16  # requests of the benchmark itself under way
SETTLE_SECONDS = 30.0
HIGH = {"PARALLEL_MIGRATIONS": "10000", "PARALLEL_MIGRATIONS_PER_NODE": "1000"}
AS_SHIPPED = {"LEASE_SECONDS": "15", "RENEW_DEADLINE_SECONDS": "10", "RETRY_SECONDS": "2"}
Json = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """How large it all is. Of each node's devices the first half may be sources, the others targets."""

    nodes: int = 200
    devices: int = 25
    migrations: int = 1000
    again: int = 200
    rounds: int = 3
    finished: int = 10_000
    processes: int = 2
    held: int = 100
    held_nodes: int = 20
    held_bytes: int = 8 << 20


@dataclass
class Ground:
    """A running control plane with its fleet, and the numbers of the pairs that are to be moved back."""

    size: Size
    stack: Stack
    audit: Audit
    fleet: Fleet
    there: set[int] = field(default_factory=set)
    asked: int = 0
    started: int = 0

    def wanted(self, count: int, label: str, *, peer: bool = False) -> list[Json]:
        """Migrations of one pair each, of devices that no other has, under names of their own; the same ones each time.

        peer: of others, as the peer writes their statuses, of which agents know nothing.
        """
        self.asked += 1
        first = self.size.nodes * (self.size.devices // 4) if peer else 0
        return [self._one(first + n, f"{label}-{self.asked}-{n:04}") for n in range(count)]

    def _one(self, number: int, name: str) -> Json:
        nodes, slot = self.size.nodes, number // self.size.nodes
        here = node(number % nodes), device(slot)
        there = node((number + nodes // 2) % nodes), device(self.size.devices - 1 - slot)
        source, target = (there, here) if number in self.there else (here, there)
        return migration(name, [("pair", *source, *target)], strategy=STRATEGY)

    def moved(self, count: int) -> None:
        """They were moved: the next time they are moved back."""
        self.there ^= set(range(count))


STRATEGY = {"downtimeLimitMilliseconds": 10_000, "switchoverTimeoutSeconds": 120, "convergenceTimeoutSeconds": 600}


def node(number: int) -> str:
    """A node's name."""
    return f"node-{number:03}"


def device(slot: int) -> str:
    """A device's address."""
    return f"sim{slot:02}"


@contextlib.contextmanager
def ground(size: Size, operator: Mapping[str, str], *, size_bytes: int = 1) -> Iterator[tuple[Ground, Child]]:
    """A control plane, an operator that leads, and the fleet."""
    sources = tuple(device(slot) for slot in range(size.devices // 2))
    nodes = [FleetNode(node(n), tuple(device(s) for s in range(size.devices)), sources) for n in range(size.nodes)]
    with tempfile.TemporaryDirectory(prefix="vfio-bench-") as folder:
        log = Audit(Path(folder))
        with Stack([each.name for each in nodes], fsync=True, apiserver_args=log.flags) as stack:
            leader = start_operator(stack, "operator-0", operator)
            many = Fleet(stack, nodes, processes=size.processes, size_bytes=size_bytes)
            with many as fleet:
                yield Ground(size, stack, log, fleet), leader


def start_operator(stack: Stack, name: str, settings: Mapping[str, str]) -> Child:
    """One replica that leads."""
    child = stack.start_operator(name, **{**AS_SHIPPED, **HIGH, **settings})
    child.wait_for('"event": "leading"', 60)
    return child


def started(ground: Ground) -> Child:
    """One more operator, once it leads and every agent is there."""
    ground.started += 1
    operator = start_operator(ground.stack, f"operator-{ground.started}", {})
    deadline = time.monotonic() + SETTLE_SECONDS
    while operator.text().count('"event": "agent connected"') < ground.size.nodes:
        if time.monotonic() > deadline:
            raise TimeoutError(f"not all {ground.size.nodes} agents are there after {SETTLE_SECONDS:g} s")
        time.sleep(0.5)
    return operator


@dataclass
class Tail:
    """Counts a text in what a child has printed since this was made, without reading all of it again."""

    child: Child
    text: bytes
    found: int = 0
    _at: int = field(init=False)

    def __post_init__(self) -> None:
        self._at = self.child.log.stat().st_size

    def count(self) -> int:
        """How often it has been printed by now."""
        with self.child.log.open("rb") as log:
            log.seek(self._at)
            whole = log.read().rpartition(b"\n")
        self._at += len(whole[0]) + len(whole[1])
        self.found += whole[0].count(self.text)
        return self.found

    def wait(self, count: int, seconds: float) -> None:
        """Until it was printed so often. Raises TimeoutError."""
        deadline = time.monotonic() + seconds
        while self.count() < count:
            if time.monotonic() > deadline or not self.child.running:
                raise TimeoutError(f"{self.child.name}: {self.found} of {count} within {seconds:g} s: {self.text!r}")
            time.sleep(0.1)


@contextlib.asynccontextmanager
async def _objects(kubeconfig: Path) -> Any:
    settings: Any = client.Configuration()
    await config.load_kube_config(str(kubeconfig), client_configuration=settings)  # type: ignore[no-untyped-call]
    async with client.ApiClient(settings) as api_client:
        yield client.CustomObjectsApi(api_client)


async def _each(calls: Sequence[Any]) -> None:
    """Await them all, so many at a time."""
    waiting = iter(calls)

    async def some() -> None:
        for call in waiting:
            await call()

    await asyncio.gather(*(some() for _ in range(AT_ONCE)))


async def create(kubeconfig: Path, bodies: Sequence[Json]) -> None:
    """Create these VFIOMigrations through the API, many at a time."""
    async with _objects(kubeconfig) as objects:

        def one(body: Json) -> Any:
            where = (*GROUP, body["metadata"]["namespace"], "vfiomigrations")
            return lambda: objects.create_namespaced_custom_object(*where, body)

        await _each([one(body) for body in bodies])


async def create_finished(kubeconfig: Path, pattern: Json, count: int) -> None:
    """Make so many finished VFIOMigrations like `pattern`, as the operator leaves them, while no operator runs."""
    async with _objects(kubeconfig) as objects:

        def one(number: int) -> Any:
            head = {"name": f"done-{number:05}", "namespace": "default", "labels": pattern["metadata"]["labels"]}
            body = {**{key: pattern[key] for key in ("apiVersion", "kind", "spec")}, "metadata": head}
            where = (*GROUP, "default", "vfiomigrations")

            async def both() -> None:
                await objects.create_namespaced_custom_object(*where, body)
                said = {"status": pattern["status"]}
                merge = {"_content_type": "application/merge-patch+json"}
                await objects.patch_namespaced_custom_object_status(*where, head["name"], said, **merge)

            return both

        await _each([one(number) for number in range(count)])
