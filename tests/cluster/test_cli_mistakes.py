"""What a user can do wrong: each is one line that says what was expected, what was found and what to do."""

import base64
import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cluster.cli_world import Plugin, ended, first_line
from cluster.users import wait_until
from cluster.world import World, migration, pairs
from devtools.plane import Plane
from devtools.stack import ROOT, python_path

NODES = ("--from-node", "node-a", "--to-node", "node-b")


@pytest.fixture
def plugin(world: World) -> Plugin:
    return Plugin(world.stack.plane.kubeconfig)


@pytest.fixture(scope="module")
def other() -> Iterator[Plane]:
    """Another cluster, on which nothing of ours is installed."""
    with Plane() as plane:
        yield plane


@pytest.fixture(scope="module")
def bare_kinds() -> Iterator[Plane]:
    """Another cluster, with our kinds and without an operator."""
    with Plane() as plane:
        plane.kubectl("apply", "-f", str(ROOT / "crds"))
        plane.kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", str(ROOT / "crds"))
        yield plane


@pytest.fixture(scope="module")
def bare(other: Plane) -> Plugin:
    """The plugin on that."""
    return Plugin(other.kubeconfig)


def changed(world: World, folder: Path, change: Any) -> Plugin:
    """The plugin with the administrator's kubeconfig, changed."""
    config = json.loads(world.stack.kubectl("config", "view", "--raw", "--flatten", "-o", "json"))
    change(config)
    path = folder / "kubeconfig"
    path.write_text(json.dumps(config))
    return Plugin(path)


NAMED = ("watch", "timeline", "explain", "cancel")
USAGE: list[tuple[tuple[str, ...], str]] = [
    (("watch",), "kubectl vfio watch: Missing argument 'NAME'; see"),
    (("fly",), "kubectl vfio: No such command 'fly'"),
    (("devices", "--fly"), "kubectl vfio devices: No such option: --fly"),
    (("devices", "-o", "xml"), "Invalid value for '--output'"),
    (("migrate",), "expected --from NODE/DEVICE --to NODE/DEVICE, or --from-node"),
    (("migrate", "--from", "a/b"), "expected one --to for each --from, found 1 and 0"),
    (("migrate", "--from", "a", "--to", "b/c"), "--from a: expected NODE/DEVICE"),
    (("migrate", "--from", "a/b", "--to", "b/c", "--to-node", "n"), "expected either of them, found both"),
    (("migrate", "m", "-f", "x.yaml"), "-f: expected no name and no flags"),
    (("migrate", *NODES, "--downtime-limit", "soon"), "Invalid value for '--downtime-limit'"),
    (("migrate", *NODES, "--timeout", "15 m"), "15m (a plain number is seconds), found '15 m'"),
    (("migrate", "m", "--ttl", "5", "-f", "x.yaml"), "found the name 'm', --ttl beside the file"),
    (("--context", "x", "devices"), "put --context behind the command"),
]
NAMES: list[tuple[tuple[str, ...], str]] = [
    *(((command, name), "expected the name of") for command in NAMED for name in ("", "/")),
    *(((command, "vfd/demo"), "found 'vfd' before the name") for command in NAMED),
    (("migrate", "", *NODES), "expected the name of a VFIOMigration, found ''"),
    (("migrate", "pod/m", *NODES), "found 'pod' before the name"),
    (("watch", "a/b/c"), "expected one migration, found a path"),
    (("watch", "lab/m", "-n", "other"), "found lab in the name and other in -n"),
    (("history", "-n", "a/b"), "-n: expected the name of one namespace"),
    (("nodes", "--agent-namespace", "a/b"), "--agent-namespace: expected the name of one namespace"),
    (("devices", "--as-group", "g"), "--as-group: expected --as beside it"),
]


@pytest.mark.parametrize(("arguments", "said"), USAGE, ids=[" ".join(u[0]) for u in USAGE])
def test_a_wrong_call_is_told_without_asking_a_cluster(arguments: tuple[str, ...], said: str) -> None:
    line = Plugin("/nonexistent").refused(*arguments, code=2)
    assert said in line
    assert "--help" in line


@pytest.mark.parametrize(("arguments", "said"), NAMES, ids=[" ".join(u[0]) for u in NAMES])
def test_a_name_that_cannot_be_meant_is_refused_before_anything_is_asked(arguments: tuple[str, ...], said: str) -> None:
    assert said in Plugin("/nonexistent").refused(*arguments, code=2)


def test_a_kubeconfig_that_is_absent_broken_or_without_that_context(world: World, tmp_path: Path) -> None:
    assert "kubeconfig /nonexistent: expected a readable file, found none" in Plugin("/nonexistent").refused("history")
    for text in ("[1", "just words", "{}", '{"current-context": "c"}'):
        broken = tmp_path / "broken"
        broken.write_text(text)
        assert "expected one that can be used, found: " in Plugin(broken).refused("history")
    line = Plugin(world.stack.plane.kubeconfig).refused("history", "--context", "lab")
    assert "with context lab: expected one that can be used, found: " in line


@pytest.mark.parametrize("command", ["history", "devices", "nodes", "doctor", "version"])
def test_an_api_server_that_does_not_answer(world: World, tmp_path: Path, command: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, so that nobody else takes it, and nobody listens
        address = f"https://127.0.0.1:{taken.getsockname()[1]}"
        gone = changed(world, tmp_path, lambda c: c["clusters"][0]["cluster"].update(server=address))
        line = gone.refused(command)
    assert f"API server {address} of context " in line
    assert "expected an API server that answers, found: Connection refused" in line


def test_an_api_server_that_is_not_the_expected_one(world: World, other: Plane, tmp_path: Path) -> None:
    ca = base64.b64encode(other.ca.read_bytes()).decode()
    wrong = changed(world, tmp_path, lambda c: c["clusters"][0]["cluster"].update({"certificate-authority-data": ca}))
    assert "certificate verify failed" in wrong.refused("history")


def test_credentials_that_the_api_server_refuses(world: World, tmp_path: Path) -> None:
    def wrong(config: Any) -> None:
        config["users"][0]["user"] = {"token": "wrong"}

    line = changed(world, tmp_path, wrong).refused("history")
    assert "expected credentials that the API server takes, found ones that it refuses (401)" in line


def test_impersonation_is_passed_on_or_refused_but_never_dropped(world: World, tmp_path: Path) -> None:
    def nobody(config: Any) -> None:
        config["users"][0]["user"]["as"] = "nobody-at-all"

    def crowd(config: Any) -> None:
        config["users"][0]["user"].update({"as": "someone", "as-groups": ["a", "system:masters"]})

    def more(config: Any) -> None:
        config["users"][0]["user"].update({"as": "someone", "as-user-extra": {"reason": ["test"]}})

    assert 'User "nobody-at-all" cannot list resource' in changed(world, tmp_path, nobody).refused("history")
    assert changed(world, tmp_path, crowd).run("history").code == 0  # every group counts
    asked = changed(world, tmp_path, crowd).refused("history", "--as", "else")
    assert 'User "else" cannot list resource' in asked  # and is none of who is named instead
    assert "more of it than this plugin can pass on" in changed(world, tmp_path, more).refused("history")


@pytest.mark.parametrize(
    "arguments",
    [
        ("history",),
        ("devices",),
        ("nodes",),
        ("watch", "x"),
        ("explain", "x"),
        ("migrate", "x", *NODES),
        ("plan", *NODES),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_cluster_without_our_kinds(bare: Plugin, arguments: tuple[str, ...]) -> None:
    line = bare.refused(*arguments)
    assert "found one that does not know this kind; install the chart (its CRDs)" in line


def test_the_doctor_of_a_cluster_without_anything_of_ours(bare: Plugin) -> None:
    ran = bare.run("doctor")
    assert ran.code == 1
    assert " ✗ CRD vfiomigrations.vfiomigration.io: is not there; next: install the chart" in ran.out
    assert " ✗ Deployment vfio-migration/vfio-operator: is not there" in ran.out
    assert "none: the chart's CRDs are not installed" in bare.good("version")


@pytest.mark.parametrize("command", ["watch", "timeline", "explain", "cancel"])
def test_a_name_that_nobody_has(plugin: Plugin, command: str) -> None:
    line = plugin.refused(command, "nobody", "-n", "default")
    assert "VFIOMigration default/nobody: expected an object of that name, found none" in line


def test_a_node_that_is_none(plugin: Plugin) -> None:
    assert "Node nowhere: expected a node of that name, found none" in plugin.refused("devices", "nowhere")
    assert plugin.good("devices", "node-c") == "Node node-c has no device\n"


def test_values_that_the_api_server_refuses_come_with_its_words(plugin: Plugin) -> None:
    line = plugin.refused("migrate", "m", *NODES, "--downtime-limit", "0")
    assert "spec.strategy.downtimeLimitMilliseconds: Invalid value: 0: must be a whole number of milliseconds" in line
    assert "Ki to Ei" in plugin.refused("migrate", "m", *NODES, "--bandwidth-limit", "5 GB")
    assert "expected what the API server accepts" in plugin.refused("migrate", "Not_A_Name", *NODES)


def test_a_namespace_that_is_not_there(plugin: Plugin) -> None:
    for command in (("migrate", "m"), ("migrate",), ("plan",)):
        line = plugin.refused(*command, *NODES, "-n", "nowhere")
        assert (
            line
            == "error: Namespace nowhere: expected a namespace of that name, found none; look at -n: kubectl get ns"
        )


def test_an_error_has_the_name_that_the_api_server_made_up(plugin: Plugin) -> None:
    line = plugin.refused("migrate", *NODES, "--bandwidth-limit", "5 GB")
    assert re.match(r"error: VFIOMigration default/migrate-[a-z0-9]{5}: ", line)


def test_a_name_that_is_taken(world: World, plugin: Plugin) -> None:
    world.apply(migration("cli-taken", pairs(["sim0"]), mode="Plan"))
    assert "default/cli-taken: expected a free name, found an object that has it" in plugin.refused(
        "migrate", "cli-taken", *NODES
    )


def test_files_that_are_none_or_hold_something_else(plugin: Plugin, tmp_path: Path) -> None:
    file = tmp_path / "m.yaml"
    assert f"file {file}: expected readable YAML, found: No such file or directory" in plugin.refused(
        "migrate", "-f", str(file)
    )
    wrong = {
        "a: [1": "expected readable YAML, found: ",
        "": "expected one object, found 0",
        "kind: Pod": "expected a VFIOMigration, found Pod",
        "- 1": "expected a VFIOMigration, found list",
        "kind: VFIOMigration": "expected metadata and spec with fields",
        "kind: VFIOMigration\nspec: {}": "expected metadata.name, found none",
        "kind: VFIOMigration\nspec: {}\nmetadata:": "expected metadata.name, found none",
        "kind: VFIOMigration\nspec: {}\nmetadata: []": "expected metadata and spec with fields",
        "kind: VFIOMigration\nspec: {}\nmetadata: {name: 5}": "expected text in metadata.name, found 5",
        "kind: VFIOMigration\nspec: {mode: Plan, mode: Migrate}": "found the key 'mode' twice at line 2, column 20",
        "kind: VFIOMigration\n---\nkind: VFIOMigration": "expected one object, found 2",
    }
    for text, said in wrong.items():
        file.write_text(text)
        assert said in plugin.refused("migrate", "-f", str(file))
    other = json.dumps(migration("m", pairs(), namespace="elsewhere"))
    assert "found elsewhere there" in plugin.refused("migrate", "-f", "-", "-n", "default", code=2, stdin=other)
    assert "expected what the API server accepts" in plugin.refused(
        "migrate", "-f", "-", stdin=json.dumps({**migration("m", pairs()), "colour": "blue"})
    )


def test_one_without_steps_has_no_timeline(world: World, plugin: Plugin) -> None:
    world.run(migration("cli-unplanned", pairs(["sim9"]), mode="Plan"))
    ran = plugin.run("timeline", "cli-unplanned")
    assert ran.code in (0, 1)  # a plan may have timed a step before it was refused
    assert ran.out or "expected steps that were timed, found none" in ran.error


def test_a_picture_without_matplotlib_is_told_how_to_get_it(world: World, plugin: Plugin, tmp_path: Path) -> None:
    with world.workload("node-a", ["sim0"]):
        world.run(migration("cli-undrawn", pairs(["sim0"])))
    without = "import sys; sys.modules['matplotlib'] = None; from vfio_cli.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", without, "timeline", "cli-undrawn", "--png", str(tmp_path / "t.png")],
        env={**plugin.environment, **python_path()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "error: --png: expected matplotlib, which is not installed; pip install 'vfio-migration[png]', or use --html\n"
    )


@pytest.mark.parametrize("arguments", [("devices",), ("devices", "-o", "json"), ("version",)], ids=" ".join)
def test_who_reads_the_output_may_have_enough_of_it(plugin: Plugin, arguments: tuple[str, ...]) -> None:
    with plugin.start(*arguments) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        error = process.stderr.read()
        assert (process.wait(), error) == (1, "")
        process.stdout = None  # nothing is left of it to be read


@pytest.mark.parametrize("arguments", [("devices",), ("devices", "-o", "json"), ("version",)], ids=" ".join)
def test_a_file_that_is_full(plugin: Plugin, arguments: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            plugin.command(*arguments),
            env=plugin.environment,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (
        1,
        "error: standard output: expected one that takes what is written, found: No space left on device; see df\n",
    )


class Nonsense(BaseHTTPRequestHandler):
    """Answers whatever it is asked with a list of what no API server has."""

    def do_GET(self) -> None:
        text = b'{"items": [{"spec": null}]}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Not into the output of the tests."""


def test_what_nobody_has_thought_of_is_one_line_and_a_traceback_only_if_asked_for(world: World, tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Nonsense) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        plugin = changed(world, tmp_path, lambda c: c["clusters"][0].update(cluster={"server": address}))
        line = plugin.refused("devices")
        told = subprocess.run(
            plugin.command("devices"),
            env={**plugin.environment, "VFIO_DEBUG": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        server.shutdown()
    assert line.startswith("error: internal error (TypeError: ")
    assert "set VFIO_DEBUG=1 for the traceback" in line
    assert told.returncode == 1
    assert told.stderr.startswith("Traceback ")


def test_without_an_operator_nobody_waits_for_ever(bare_kinds: Plane) -> None:
    plugin = Plugin(bare_kinds.kubeconfig)
    plugin.good("migrate", "orphan", *NODES)

    def told() -> str:
        return plugin.good("explain", "orphan")

    wait_until(lambda: "it seems that none leads" in told(), "it is old enough")
    assert "VFIONoLeader" in told()
    line = plugin.run("cancel", "orphan", "--yes", "--wait", "--timeout", "1s").error
    assert (
        "expected it to finish within 1 s, found it in Pending; no operator has taken it up: kubectl vfio doctor"
        in line
    )


def test_an_api_server_that_goes_away_is_waited_for() -> None:
    with Plane() as plane:
        plane.kubectl("apply", "-f", str(ROOT / "crds"))
        plane.kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", str(ROOT / "crds"))
        plane.kubectl("apply", "-f", "-", input=json.dumps(migration("orphan", pairs(["sim0"]))))
        with Plugin(plane.kubeconfig).start("watch", "orphan") as watching:
            first_line(watching)
            plane.kill()
            assert watching.stderr is not None
            assert "expected an API server that answers, found: " in watching.stderr.readline()
            assert watching.stderr.readline() == "waiting for it\n"
            # what was seen last is not said again as if it were new
            assert re.match(
                r" *[0-9.]+ s  the API server does not answer for \d+ s; last seen: Pending, 0%", first_line(watching)
            )
            plane.restart()
            stamp = {
                "lastTransitionTime": "2026-11-26T01:00:00Z",
                "message": "",
                "reason": "Succeeded",
                "status": "True",
            }
            done = {"phase": "Succeeded", "conditions": [{"type": kind, **stamp} for kind in ("Finished", "Succeeded")]}
            change = json.dumps({"status": done})
            plane.kubectl("patch", "vfm", "orphan", "--subresource=status", "--type=merge", "-p", change)
            ran = ended(watching)
        assert ran.code == 0, ran
        assert " ✓ Succeeded: " in ran.out
