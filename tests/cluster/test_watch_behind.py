"""A leader begins without asking again for what its watch shows, and finds out if that is old before it does harm."""

from pathlib import Path

import pytest

from cluster.audited import requests, token_id
from cluster.world import SETS, World, condition, mark, migration, pairs

SLOW = {"bandwidthLimitBytesPerSecond": 8 << 20}


def test_what_is_seen_when_it_is_made_is_not_asked_for_again(world: World, audit_folder: Path) -> None:
    token = token_id(world.stack, world.operator.name)
    with world.workload():
        since = len(requests(audit_folder, token))
        assert world.run(migration("as-seen", pairs()))["status"]["phase"] == "Succeeded"
    made = requests(audit_folder, token)[since:]
    assert ("patch", "vfiomigrations") in made
    assert ("get", "vfiomigrations") not in made
    assert ("get", "namespaces") not in made, "there is no policy that could ask for the namespace's labels"


def test_a_leader_whose_watch_is_behind_goes_on_with_what_is_stored(
    world: World, audit_folder: Path, request: pytest.FixtureRequest
) -> None:
    with world.workload():
        world.apply(migration("behind", pairs(), strategy=SLOW))
        world.in_pre_copy("behind")
        begun = condition(world.stack.get("vfm", "behind"), "Validated")
        world.operator.kill()
        world.operator = world.stack.start_operator("operator-behind", module="mutants.operator_whose_watch_is_behind")

        def another() -> None:
            world.operator.stop()
            world.operator = world.stack.start_operator("operator-0")
            world.operator.wait_for('"event": "leading"', 60)

        request.addfinalizer(another)
        found = world.finished("behind", 90)
        assert found["status"]["phase"] == "Succeeded", found["status"]["message"]
        assert found["status"]["decision"]["by"] == "operator-behind"
        assert condition(found, "Validated")["lastTransitionTime"] == begun["lastTransitionTime"]
        assert world.marks("node-b", SETS) == [mark(address) for address in SETS]

        back = world.run(migration("behind-back", pairs(SETS, "node-b", "node-a")))
        assert back["status"]["phase"] == "Succeeded", back["status"]["message"]
        assert world.marks("node-a", SETS) == [mark(address) for address in SETS]
    made = requests(audit_folder, token_id(world.stack, "operator-behind"))
    assert made.count(("get", "vfiomigrations")) == 2, "each of the two was read, once its watch was found to be behind"
