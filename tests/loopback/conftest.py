"""Two nodes per module of tests, whose simulators and keepers are processes of their own; a bench for one stream."""

from collections.abc import Iterator

import pytest

from loopback.agents_world import Node
from loopback.stream_bench import Bench


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Node]]:
    made = [Node(tmp_path_factory.mktemp("nodes") / name) for name in ("a", "b")]
    yield made[0], made[1]
    for node in made:
        node.end()


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()
