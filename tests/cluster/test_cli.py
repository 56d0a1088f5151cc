"""`kubectl vfio` against the real API server, operator and agents: what a user does and sees."""

import json
from errno import EIO
from pathlib import Path

import pytest
import yaml

from cluster.cli_world import Plugin, as_plugin, ended, first_line, interrupt
from cluster.users import grant, rule, service_account, wait_until
from cluster.world import SETS, World, mark, migration, pairs
from vfio_api.device import DeviceState as S
from vfio_api.names import API
from vfio_cli.checks import crd_names

SLOW = ("--bandwidth-limit", "1M")
NODES = ("--from-node", "node-a", "--to-node", "node-b")


@pytest.fixture
def plugin(world: World) -> Plugin:
    return Plugin(world.stack.plane.kubeconfig)


def test_migrate_with_watch_moves_the_devices_and_says_so(world: World, plugin: Plugin) -> None:
    with world.workload():
        ends = [flag for n in range(4) for flag in ("--from", f"g{n}=node-a/sim{n}", "--to", f"g{n}=node-b/sim{n}")]
        out = plugin.good("migrate", "cli-moved", *ends, "--downtime-limit", "5000", "--watch")
        lines = out.splitlines()
        assert lines[0] == "vfiomigration.vfiomigration.io/cli-moved created"
        assert any("Succeeded  g0=" in line for line in lines)
        assert any(line.startswith(" ✓ downtime: ") and "limit 5000 ms" in line for line in lines)
        assert "\x1b" not in out
        assert world.marks("node-b", SETS) == [mark(address) for address in SETS]
    spec = world.stack.get("vfm", "cli-moved")["spec"]
    assert spec["strategy"]["downtimeLimitMilliseconds"] == 5000
    assert [p["name"] for p in spec["devices"]] == ["g0", "g1", "g2", "g3"]

    # and what can be seen of it afterwards
    drawn = plugin.good("timeline", "cli-moved")
    assert "D  targets RUNNING" in drawn
    assert "SWITCHOVER" in drawn
    steps = plugin.run("timeline", "vfm/cli-moved", "-o", "json").data()
    assert {"pre-copy", "SWITCHOVER"} <= {step["step"] for step in steps["steps"]}
    told = plugin.good("explain", "cli-moved")
    assert told.startswith("VFIOMigration default/cli-moved: Succeeded, ended ")
    assert "The decision of the switchover is Commit, by operator-0" in told
    assert "Normal Switched: every device runs at its target" in told
    row = next(line for line in plugin.good("history").splitlines() if line.startswith("cli-moved "))
    assert row.split()[1:4] == ["Migrate", "Succeeded", "Succeeded"]
    assert "default     cli-moved" in plugin.good("history", "-A")
    found = yaml.safe_load(plugin.good("history", "-o", "yaml"))["items"]
    assert all(any(c["type"] == "Finished" and c["status"] == "True" for c in m["status"]["conditions"]) for m in found)
    assert plugin.run("watch", "cli-moved").code == 0  # it has ended: no waiting
    assert "expected a migration that is under way, found one that has ended: Succeeded" in plugin.refused(
        "cancel", "cli-moved", "--yes"
    )


def test_a_timeline_as_a_page_and_as_a_picture(world: World, plugin: Plugin, tmp_path: Path) -> None:
    with world.workload("node-a", ["sim0"]):
        plugin.good("migrate", "cli-drawn", "--from", "node-a/sim0", "--to", "node-b/sim0", "--wait")
    page, picture = tmp_path / "t.html", tmp_path / "t.png"
    drawn = plugin.good("timeline", "default/cli-drawn", "--html", str(page), "--png", str(picture))
    assert drawn == f"wrote {page}\nwrote {picture}\n"
    assert page.read_text().count("<rect") > 8
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "cannot" not in plugin.refused("timeline", "cli-drawn", "--html", "/nowhere/t.html")
    assert "/nowhere/t.png: expected a file that can be written, found: No such file" in plugin.refused(
        "timeline", "cli-drawn", "--png", "/nowhere/t.png"
    )


def test_watch_on_a_terminal_draws_bars_and_ends_with_the_migration(world: World, plugin: Plugin) -> None:
    with world.workload():
        world.apply(migration("cli-bars", pairs(), strategy={"bandwidthLimitBytesPerSecond": 8 << 20}))
        code, written = plugin.on_terminal("watch", "cli-bars")
        assert code == 0, written
        assert "\x1b[" in written
        assert "gpu3" in written
        assert "PRE_COPY → RESUMING" in written
        assert "Pending" in written
        assert "downtime" in written


def test_a_failed_one_is_watched_to_its_end_and_explained(world: World, plugin: Plugin) -> None:
    with world.workload():
        world.control("node-a").fault("sim2", "arc", arc=(S.PRE_COPY_P2P, S.STOP_COPY), error=EIO)
        world.apply(migration("cli-failed", pairs()))
        ran = plugin.run("watch", "cli-failed")
        assert ran.code == 1
        assert " ✗ Failed: ArcFailed: device" in ran.out
        told = plugin.run("explain", "cli-failed", "-o", "json").data()
        assert told["headline"].startswith("VFIOMigration default/cli-failed: Failed")
        arc = "Pair gpu2, node-a/sim2 to node-b/sim2, refused the arc PRE_COPY_P2P -> STOP_COPY with errno 5 (EIO)."
        assert arc in told["sentences"]
        assert any("The decision of the switchover is Abort" in sentence for sentence in told["sentences"])
        assert told["nextSteps"][0].startswith("Look at the device, arc and errno in the message")
        documents = plugin.run("watch", "cli-failed", "-o", "json")
        assert documents.code == 1
        assert json.loads(documents.out)["status"]["phase"] == "Failed"


def test_plan_says_of_each_pair_why_not_and_leaves_nothing(world: World, plugin: Plugin) -> None:
    with world.workload("node-a", ["sim0", "sim1"]):
        before = {m["metadata"]["name"] for m in world.stack.get("vfm")["items"]}
        good = plugin.good("plan", *NODES, "-n", "default")
        assert " ✓ sim1: node-a/sim1 → node-b/sim1" in good
        assert "of downtime, " in good
        assert good.splitlines()[-1] == f" → next: kubectl vfio migrate {' '.join(NODES)} -n default"
        limited = plugin.good("plan", *NODES, "--downtime-limit", "1ms")
        assert "over the limit 1 ms, if all state were sent while stopped; pre-copy sends most" in limited
        assert f"next: kubectl vfio migrate {' '.join(NODES)} --downtime-limit 1\n" in limited
        bad = ("--from", "a=node-a/sim0", "--to", "a=node-b/sim0", "--from", "b=node-a/sim1", "--to", "b=node-b/other")
        ran = plugin.run("plan", *bad)
        assert ran.code == 1
        assert " ✓ a: node-a/sim0 → node-b/sim0\n" in ran.out
        assert " ✗ b: node-a/sim1 → node-b/other: IncompatibleDevices: pair b: model differs" in ran.out
        assert " → next: Choose a target of the same kind" in ran.out
        assert {m["metadata"]["name"] for m in world.stack.get("vfm")["items"]} == before


def test_rehearse_measures_from_a_file_and_can_be_kept(world: World, plugin: Plugin, tmp_path: Path) -> None:
    with world.workload("node-a", ["sim0"]):
        manifest = tmp_path / "m.yaml"
        manifest.write_text(json.dumps(migration("from-a-file", pairs(["sim0"]))))
        found = plugin.run("rehearse", "-f", str(manifest), "--keep", "-o", "json").data()
        assert found["status"]["phase"] == "Succeeded"
        assert found["spec"]["mode"] == "Rehearse"
        name = found["metadata"]["name"]
        assert name.startswith("rehearse-from-a-file-")
        assert world.stack.get("vfm", name)["status"]["predictedDowntimeMicroseconds"] > 0
        world.stack.kubectl("delete", "vfm", name)
        assert f"next: kubectl vfio migrate -f {manifest}\n" in plugin.good("rehearse", "-f", str(manifest))
        out = plugin.good("rehearse", "-f", "-", stdin=manifest.read_text())
        assert "rehearsed; every source runs on" in out
        assert "PreCopy" in out
        assert world.states("node-a", ["sim0"]) == ["RUNNING"]


def test_cancel_asks_then_gives_the_migration_up(world: World, plugin: Plugin) -> None:
    with world.workload():
        plugin.good("migrate", "cli-cancelled", *NODES, *SLOW)
        world.in_pre_copy("cli-cancelled")
        told = plugin.good("explain", "cli-cancelled")
        assert "It is not Converged yet." in told
        assert "To give up: kubectl vfio cancel cli-cancelled -n default" in told
        assert "expected a terminal to ask for confirmation, found none; add --yes" in plugin.refused(
            "cancel", "cli-cancelled", code=2
        )
        assert "found 'vfd' before the name" in plugin.refused("cancel", "vfd/cli-cancelled", "--yes", code=2)
        code, asked = plugin.on_terminal("cancel", "cli-cancelled", typed="n\n")
        assert code == 0
        assert asked.endswith("VFIOMigration default/cli-cancelled is not cancelled: it goes on\n")
        assert not world.stack.get("vfm", "cli-cancelled")["spec"].get("cancel")
        out = plugin.good("cancel", "default/cli-cancelled", "--yes", "--wait")
        assert out.startswith("vfiomigration.vfiomigration.io/cli-cancelled is told to cancel\n ! Cancelled: ")
        assert "Cancelled: Cancelled" not in out
        assert "forecast" not in out
        assert world.states("node-a") == ["RUNNING"] * 4
        ran = plugin.run("watch", "cli-cancelled")
        assert ran.code == 1
        assert not ran.out.startswith("   0.0 s")  # how long it took, not how long it was watched


def test_ctrl_c_leaves_a_migration_alone_and_takes_a_rehearsal_back(world: World, plugin: Plugin) -> None:
    with world.workload():
        plugin.good("migrate", "cli-left", *NODES, *SLOW)
        with plugin.start("watch", "cli-left") as watching:
            ran = interrupt(watching)
        assert ran.code == 130
        assert ran.error.startswith(
            "error: VFIOMigration default/cli-left: not waited for any longer, it goes on; kubectl"
        )
        assert ran.error.count("\n") == 1
        assert not world.stack.get("vfm", "cli-left")["spec"].get("cancel")
        plugin.good("cancel", "cli-left", "-y", "--wait")

        before = {m["metadata"]["name"] for m in world.stack.get("vfm")["items"]}
        with plugin.start("rehearse", *NODES, *SLOW) as rehearsing:
            ran = interrupt(rehearsing)
        assert ran.code == 130
        assert "not waited for any longer; it is deleted, which cancels it" in ran.error
        world.stack.wait_until(
            lambda: {m["metadata"]["name"] for m in world.stack.get("vfm")["items"]} == before, "it is gone", 60
        )
        assert world.states("node-a") == ["RUNNING"] * 4


def test_a_wait_that_is_over_and_a_migration_that_is_deleted_meanwhile(world: World, plugin: Plugin) -> None:
    with world.workload():
        plugin.good("migrate", "cli-deleted", *NODES, *SLOW)
        ran = plugin.run("watch", "cli-deleted", "--timeout", "1")
        assert ran.code == 1
        assert "expected it to finish within 1 s, found it in P" in ran.error
        assert "it goes on: kubectl vfio watch cli-deleted -n default" in ran.error
        once = plugin.run("watch", "cli-deleted", "--timeout", "0")
        assert (once.code, once.out.count("\n")) == (1, 1)
        assert "expected one that has finished, found it in P" in once.error
        with plugin.start("watch", "cli-deleted") as watching:
            first_line(watching)
            world.stack.kubectl("delete", "vfm", "cli-deleted", "--wait=false")
            ran = ended(watching)
        # its last status may be seen before it goes; either way it did not succeed
        assert ran.code == 1


def test_a_dry_run_is_checked_by_admission_and_stores_nothing(world: World, plugin: Plugin) -> None:
    out = plugin.good("migrate", "cli-dry", "--from", "node-a/x", "--to", "node-b/x", "--dry-run")
    assert out == "vfiomigration.vfiomigration.io/cli-dry created (server dry run)\n"
    spans = ("--ttl", "5m", "--downtime-limit", "0.2s", "--convergence-timeout", "1m30s", "--switchover-timeout", "20")
    made = yaml.safe_load(plugin.good("migrate", "default/cli-dry", *NODES, *spans, "--dry-run", "-o", "yaml"))
    assert made["spec"]["ttlSecondsAfterFinished"] == 300
    assert made["spec"]["strategy"]["downtimeLimitMilliseconds"] == 200
    assert made["spec"]["strategy"]["convergenceTimeoutSeconds"] == 90
    assert made["spec"]["strategy"]["switchoverTimeoutSeconds"] == 20
    assert "managedFields" not in made["metadata"]
    assert "managedFields:" in plugin.good(
        "migrate", "cli-dry", *NODES, "--dry-run", "-o", "yaml", "--show-managed-fields"
    )
    assert made["metadata"]["annotations"]  # the requester, which admission has written
    assert "expected an object of that name, found none" in plugin.refused("watch", "cli-dry")


def test_devices_and_nodes(world: World, plugin: Plugin) -> None:
    with world.workload("node-a", ["sim0"]):
        rows = [line.split() for line in plugin.good("devices", "node-a").splitlines()]
        assert rows[0][:3] == ["NODE", "DEVICE", "DRIVER"]
        assert {row[0] for row in rows[1:]} == {"node-a"}
        assert next(row for row in rows if row[1] == "sim0")[5:8] == ["workload", "test", "RUNNING"]
        listed = plugin.run("devices", "-n", "default", "-o", "json").data()["items"]
        assert len(listed) == 16
        assert not any("managedFields" in item["metadata"] for item in listed)
        nodes = {fact["node"]: fact for fact in plugin.run("nodes", "-o", "json").data()["nodes"]}
        assert (nodes["node-a"]["inUse"], nodes["node-a"]["notMigratable"], nodes["node-a"]["agent"]) == (1, 1, True)
        assert "node-b   yes     yes" in plugin.good("nodes")
        assert plugin.run("nodes", "--agent-namespace", "default").error == (
            "warning: namespace default has no agent: is --agent-namespace where they run?\n"
        )


def test_kubectl_finds_the_plugin_and_completes_it(world: World, tmp_path: Path) -> None:
    plane = world.stack.plane
    world.stack.kubectl("apply", "-f", "-", input=json.dumps(migration("cli-named", pairs(), mode="Plan")))
    assert "vfiomigration.io/v1alpha1" in as_plugin(plane, tmp_path, "vfio", "version")
    assert "watch" in as_plugin(plane, tmp_path, "__complete", "vfio", "wa").splitlines()
    words = as_plugin(plane, tmp_path, "__complete", "vfio", "explain", "cli-na").splitlines()
    assert words == ["cli-named", ":4"]
    assert "node-b" in as_plugin(plane, tmp_path, "__complete", "vfio", "devices", "").splitlines()
    world.stack.kubectl("delete", "vfm", "cli-named")


def test_a_user_with_few_rights_is_told_which_one_is_missing(world: World, tmp_path: Path) -> None:
    reader = service_account(world.stack.plane, "default", "cli-reader", tmp_path)
    grant(world.stack.plane, "cli-reader", [rule(API, "vfiomigrations", "get", "list")], user=reader.me().username)
    plugin = Plugin(reader.kubeconfig)
    wait_until(lambda: plugin.run("history").code == 0, "the grant is known")
    refused = plugin.refused("devices")
    assert "expected the right to do this, found that vfiodevices.vfiomigration.io is forbidden: User" in refused
    assert "ask an administrator for that right" in refused
    assert "VFIOMigration default/mine: expected the right" in plugin.refused("migrate", "mine", *NODES)
    findings = json.loads(plugin.run("doctor", "-o", "json").out)["findings"]
    rights = [row["found"] for row in findings if row["subject"] == "your rights"]
    assert any("you may not use vfiodevices" in text for text in rights)
    assert any("you may not create vfiomigrations in namespace default" in text for text in rights)
    assert rights[-1].startswith("2 of ")


def test_to_act_as_somebody_else_is_as_with_kubectl(world: World, plugin: Plugin) -> None:
    rules = [rule(API, "vfiomigrations", "get", "list")]
    grant(world.stack.plane, "cli-crowd", rules, group="cli-second")
    crowd = ("--as", "someone", "--as-group", "cli-first", "--as-group", "cli-second")
    wait_until(lambda: plugin.run("history", *crowd).code == 0, "the grant is known")
    for command in ("devices", "nodes"):
        refused = plugin.refused(command, *crowd)
        assert 'User "someone" cannot list resource' in refused
    assert 'User "someone" cannot list resource' in plugin.refused("history", *crowd[:4])
    few = plugin.run("doctor", *crowd)
    assert few.code == 1
    assert "ClusterRole vfio-device-viewer to you" in few.out
    assert f"could not be looked at, since you may not read them: {len(crd_names())} CRD, " in few.out
    assert " ✗ the whole: only 0 of " in few.out
    assert "kubectl vfio doctor lists" not in few.out
