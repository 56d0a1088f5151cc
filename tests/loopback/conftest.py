"""Two nodes per module of tests: simulators and keepers are processes of their own."""

from collections.abc import Iterator

import pytest

from loopback.agents_world import Node


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Node]]:
    made = [Node(tmp_path_factory.mktemp("nodes") / name) for name in ("a", "b")]
    yield made[0], made[1]
    for node in made:
        node.end()
