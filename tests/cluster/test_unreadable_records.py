"""A damaged record of an agent: the migration ends, devices stay claimed and untouched until somebody has looked."""

import json
from pathlib import Path

import pytest

from cluster.test_rollback import SLOW
from cluster.world import SETS, World, condition, mark, migration, pairs
from vfio_api.types import Role


def claims(world: World, node: str) -> set[str]:
    return {
        d["spec"]["address"]
        for d in world.stack.get("vfd")["items"]
        if d["spec"]["nodeName"] == node and "claimRef" in d["spec"]
    }


def damage(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("role", [Role.SOURCE, Role.TARGET], ids=str)
def test_a_migration_ends_and_nothing_is_done_with_devices_of_which_nothing_is_known(world: World, role: Role) -> None:
    name = f"unreadable-{role.lower()}"
    node = world.stack.nodes["node-a" if role is Role.SOURCE else "node-b"]
    with world.workload():
        world.apply(migration(name, pairs(), **SLOW))
        world.in_pre_copy(name)
        assert node.agent is not None
        node.agent.kill()
        uid = world.stack.get("vfm", name)["metadata"]["uid"]
        records = [folder / "sessions" / f"{uid}.{role.lower()}.json" for folder in node.records]
        damage(records[1])
        epoch = json.loads((node.dir / "state" / "epoch.json").read_text())["epoch"]
        damage(node.dir / "state" / "epoch.json")
        before = world.states(node.name)
        node.start_agent().wait_for('"event": "connected"')
        found = world.finished(name, 120)
        assert found["status"]["phase"] == "Failed"
        if role is Role.SOURCE:  # without its target it has gone back before the target's agent is there again
            assert "cannot be read" in condition(found, "Succeeded")["message"]
        assert world.states(node.name) == before, "the agent has touched what it knows nothing of"
        assert claims(world, node.name) == set(SETS)
        assert json.loads((node.dir / "state" / "epoch.json").read_text())["epoch"] >= epoch, "the Lease's counts"
        # somebody has looked: the record is not needed any more
        for path in records:
            path.unlink()
        node.agent.kill()
        node.start_agent().wait_for('"event": "connected"')
        world.stack.wait_until(lambda: not claims(world, node.name), "claims are dropped", 60)
        assert condition(found, "Finished")["status"] == "True"
        if role is Role.SOURCE:
            assert world.marks("node-a", SETS) == [mark(address) for address in SETS], "nothing is lost"
