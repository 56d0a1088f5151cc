"""Pods move with their devices between the nodes, and what they count goes on."""

import statistics
import time
from collections.abc import Callable, Iterator

import pytest

from e2e.counters import Mover, allow_counters, endpoints, service
from e2e.installation import Installation

MOVES = 20
Say = Callable[[str], None]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Prints a line into the run's own output."""

    def line(text: str) -> None:
        with capsys.disabled():
            print(f"\n    {text}", flush=True)

    return line


@pytest.fixture
def mover(installed: Installation, request: pytest.FixtureRequest) -> Iterator[Mover]:
    """A counter that is moved on and on; deployed: by a Deployment."""
    allow_counters(installed)
    service(installed)
    made = Mover(installed, deployed=getattr(request, "param", "") == "deployed")
    yield made
    made.end()


def test_a_pod_moves_there_and_back_and_loses_no_count(installed: Installation, mover: Mover, say: Say) -> None:
    mover.start("node-a")
    began, downtimes = time.monotonic(), []
    with endpoints(installed) as sides:
        for number in range(MOVES):
            source, target = ("node-a", "node-b") if number % 2 == 0 else ("node-b", "node-a")
            ended = mover.move(f"move-{number}", source, target)
            downtimes.append(ended["status"]["downtimeMicroseconds"] / 1000)
    assert {len(side) for side in sides} == {1}, sides
    assert len(dict.fromkeys(sides)) == MOVES + 1, "each of them had the Service's traffic"
    say(f"EndpointSlices: {len(sides)} changes, each with exactly one pod to go to")
    cuts = statistics.quantiles(downtimes, n=100, method="inclusive")
    say(
        f"{MOVES} moves in {time.monotonic() - began:.0f} s, {mover.counted} counts, none lost or repeated; "
        f"downtime p50 {cuts[49]:.1f} ms, p99 {cuts[98]:.1f} ms"
    )


@pytest.mark.parametrize("mover", ["deployed"], indirect=True)
def test_a_deployments_pod_moves_and_no_other_is_made(mover: Mover) -> None:
    mover.start("node-a")
    for number, target in enumerate(("node-b", "node-a") * 3):
        mover.move(f"deployed-{number}", "node-a" if target == "node-b" else "node-b", target)
