"""Migrations there and back leave nothing behind in any process: no file descriptor, no thread, no task."""

import time

from cluster.world import SETS, World, migration, pairs
from devtools.footprint import Watched, of_stack

WARM_UP, MIGRATIONS = 4, 16
NODES = ("node-a", "node-b")
SETTLE_SECONDS = 60
IDLE_SECONDS = 20  # connections to the API server are kept for 15, kopf's workers of an object for 5
# A pool takes a thread more whenever more of its calls than ever before happen to be made at once. One thread left
# behind by every session of one side would be twice as many.
POOL_THREADS = 3

Counts = dict[Watched, dict[str, int]]


def there_and_back(world: World, numbers: range) -> None:
    """Migrate the set once for each number, and delete what is finished."""
    for number in numbers:
        source, target = NODES[number % 2], NODES[1 - number % 2]
        found = world.run(migration(f"soak-{number}", pairs(SETS, source, target)))
        assert found["status"]["phase"] == "Succeeded", found["status"]["message"]
        world.stack.kubectl("delete", "vfm", f"soak-{number}")


def counts(process: Watched) -> dict[str, int]:
    """What must not grow, without the memory, which is a matter of hours: see bench/soak.py."""
    found = process.footprint()
    return {"fds": found.fds, "threads": found.threads, "tasks": found.tasks or 0}


def least(seen: Counts, now: Counts) -> Counts:
    """The least of each that was seen: what comes every second and goes at once does not count."""
    return {each: {what: min(count, seen[each][what]) for what, count in found.items()} for each, found in now.items()}


def at_rest(processes: list[Watched]) -> Counts:
    """The least that each has while nothing is under way: what is kept for reuse for a while goes meanwhile."""
    found = {each: counts(each) for each in processes}
    until = time.monotonic() + IDLE_SECONDS
    while time.monotonic() < until:
        time.sleep(0.5)
        found = least(found, {each: counts(each) for each in processes})
    return found


def more(had: dict[str, int], has: dict[str, int]) -> dict[str, int]:
    """What there is more of than there was, beyond what pools may take."""
    allowed = {**had, "threads": had["threads"] + POOL_THREADS}
    return {what: count - had[what] for what, count in has.items() if count > allowed[what]}


def left_behind(world: World) -> dict[str, dict[str, int]]:
    """By process, what it has more of after migrations there and back than after the first few, once what is on its way
    out has had its time. Whatever pools and connections a process keeps, it has by then.
    """
    processes = of_stack(world.stack, world.operator)
    with world.workload():
        there_and_back(world, range(WARM_UP))
        before = at_rest(processes)
        there_and_back(world, range(WARM_UP, MIGRATIONS))
        after = {each: counts(each) for each in processes}
        until = time.monotonic() + SETTLE_SECONDS
        while (left := _left(before, after)) and time.monotonic() < until:
            time.sleep(0.5)
            after = least(after, {each: counts(each) for each in processes})
        return left


def _left(before: Counts, after: Counts) -> dict[str, dict[str, int]]:
    found = {each.name: more(had, after[each]) for each, had in before.items()}
    return {name: left for name, left in found.items() if left}


def test_migrations_there_and_back_leave_no_descriptor_thread_or_task_behind(world: World) -> None:
    assert left_behind(world) == {}


def test_what_an_agent_leaves_behind_is_noticed(world: World) -> None:
    node = world.stack.nodes["node-b"]
    assert node.agent is not None
    node.agent.stop()
    try:
        node.start_agent(module="mutants.agent_that_leaks").wait_for('"event": "connected"')
        found = left_behind(world)
    finally:
        assert node.agent is not None
        node.agent.stop()
        node.start_agent().wait_for('"event": "connected"')
    assert found.keys() == {"agent of node-b"}
    assert found["agent of node-b"].keys() == {"fds", "threads", "tasks"}
