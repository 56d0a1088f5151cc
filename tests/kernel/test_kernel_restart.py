"""Agents that die while they hold devices. The last test by each way, as it leaves agents that go the other way."""

import time

from devtools.kernel_stack import KernelStack
from kernel.figures import Figures
from kernel.sides import PATHS, assert_source, assert_target, migrate, sides


def test_devices_of_agents_that_die_stay_as_they_were_opened(stack: KernelStack, path: str, figures: Figures) -> None:
    """The next agents take the fds from the keepers, though they would open devices another way, and migrate."""
    source, target = sides(stack)
    marks = source.mark(130)
    stack.settled(source.ends, target.ends)
    opened = source.node.opened()
    other = next(way for way in PATHS if way != path)
    began = time.monotonic()
    stack.restart_agents(other)
    seconds = time.monotonic() - began
    assert source.node.opened() == opened
    found = migrate(stack, source, target)
    assert found["status"]["phase"] == "Succeeded", found["status"]
    assert_source(source.arcs(), source)  # nothing was reset
    assert_target(target.arcs(), target)
    assert target.read() == marks
    figures.same(path, "agents killed", "taken back from the keeper, migrated, opened the other way at the target")
    figures.measured(path, "agents started again in", f"{seconds:.1f} s")
