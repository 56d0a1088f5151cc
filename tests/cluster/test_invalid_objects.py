"""What a user sees who asks for the impossible: one table of objects that the real API server refuses, by kubectl.

Objects that it takes, but the operator ends early, are in test_bad_input. With VFIO_TABLE=path the rows are appended
there as observed: what is wrong, who refused it, and the message.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.objects import (
    FULL_SPEC,
    UID,
    Object,
    changed,
    claim,
    create,
    decision,
    device,
    migration,
    pair,
    patch,
    refusal,
    switchover,
)
from devtools.plane import Plane

ROWS = 45  # at least


@dataclass(frozen=True, slots=True)
class Invalid:
    """One row: what is wrong in words, the manifest, and what must be said.

    With `change`, the manifest is stored and this merge patch to it is what is refused.
    """

    wrong: str
    manifest: Object
    said: tuple[str, ...]
    change: Object | None = None
    subresource: str = ""


@dataclass(frozen=True, slots=True)
class Refused:
    """One row of the report: what was refused, by whom, and what the user saw."""

    wrong: str
    by: str
    message: str


def render(rows: Iterable[Refused]) -> str:
    """The rows as a table in markdown."""
    lines = ["| object | refused by | message |", "|---|---|---|"]
    for row in rows:
        cells = (" ".join(cell.split()).replace("|", "\\|") for cell in (row.wrong, row.by, row.message))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


ONE = migration("refused")
SHORTHAND = migration("refused", source={"nodeName": "node-a"}, target={"nodeName": "node-b"})
BANDWIDTH, DOWNTIME = "strategy.bandwidthLimitBytesPerSecond", "strategy.downtimeLimitMilliseconds"
AGAIN = "cannot be changed after creation: create a new VFIOMigration"
QUANTITY = (
    "spec.strategy.bandwidthLimitBytesPerSecond: Invalid value: ",
    "must be a number of bytes, more than 0 and at most 1Ei, such as 1024, 500M or 1.5Gi; units are k, M, G, T, P, E "
    "or Ki to Ei, without a space, B or bit",
)
PAIR_NAME = "must be a name of lower-case letters, digits and '-', with a letter or digit at both ends, such as gpu0"
OBJECT_NAME = (
    "must be the name of an object as kubectl get shows it: lower-case letters, digits, '-' and '.', with a letter or "
    "digit at both ends"
)
ADDRESS = (
    "must be a device as kubectl get vfd shows it, in lower case and without a path: a PCI address such as "
    "0000:3b:00.2, an mdev UUID or a simple name"
)
EITHER = "spec: Invalid value: "
SOURCE, TARGET = "devices.0.source", "devices.0.target"


def without(path: str, item: Object) -> Object:
    """A copy of the object without the field at `path` below devices.0."""
    copy = deepcopy(item)
    at = copy["spec"]["devices"][0]
    *parents, last = path.split(".")
    for key in parents:
        at = at[key]
    del at[last]
    return copy


def named(name: str) -> Object:
    """A migration with this metadata.name."""
    return migration(name)


def number(field: str, found: str, unit: str, least: int, most: int) -> tuple[str, ...]:
    """What is said of a number out of its bounds."""
    bounds = f"must be a whole number of {unit}, greater than or equal to {least} and at most {most}"
    return (f"spec.{field}: Invalid value: {found}: {bounds}",)


MILLISECONDS = ("milliseconds", 1, 3_600_000)

POST_COPY = (
    Invalid(
        "strategy.postCopy: true",
        changed("strategy.postCopy", True, ONE),
        ("spec.strategy.postCopy: Forbidden: VFIO has no post-copy", "leave postCopy out, and use preCopy"),
    ),
    Invalid(
        "mode: PostCopy",
        changed("mode", "PostCopy", ONE),
        ('spec.mode: Invalid value: "PostCopy": must be Migrate, Plan or Rehearse', "VFIO has no post-copy"),
    ),
    Invalid(
        "strategy.preCopy: PostCopy",
        changed("strategy.preCopy", "PostCopy", ONE),
        (
            'spec.strategy.preCopy: Invalid value: "PostCopy": must be Auto, Required or Disabled;',
            "VFIO has no post-copy",
        ),
    ),
    Invalid("postCopy: true", changed("postCopy", True, ONE), ('unknown field "spec.postCopy"',)),
    Invalid(
        "strategy.postCopy: {timeoutSeconds: 5}",
        changed("strategy.postCopy", {"timeoutSeconds": 5}, ONE),
        ('unknown field "spec.strategy.postCopy.timeoutSeconds"',),
    ),
)

UNITS = (
    *(
        Invalid(f"bandwidthLimitBytesPerSecond: {json.dumps(value)}", changed(BANDWIDTH, value, ONE), QUANTITY)
        for value in (
            "10Gbps",
            "5GB",
            "1g",
            "500 M",
            "500m",
            "1e9",
            "5Gi/s",
            "-5Gi",
            "fast",
            "",
            "0",
            0,
            -1,
            "9999Ei",
            2**60 + 1,
        )
    ),
    Invalid(
        "bandwidthLimitBytesPerSecond: 33 digits",
        changed(BANDWIDTH, "1" * 33, ONE),
        ("spec.strategy.bandwidthLimitBytesPerSecond: Too long: may not be more than 32",),
    ),
    Invalid(
        "bandwidthLimitBytesPerSecond: true",
        changed(BANDWIDTH, True, ONE),
        ("spec.strategy.bandwidthLimitBytesPerSecond: Invalid value", "must be of type integer,string"),
    ),
    Invalid(
        'downtimeLimitMilliseconds: "300ms"',
        changed(DOWNTIME, "300ms", ONE),
        ("spec.strategy.downtimeLimitMilliseconds: Invalid value", "must be of type integer"),
    ),
    *(
        Invalid(
            f"downtimeLimitMilliseconds: {value}",
            changed(DOWNTIME, value, ONE),
            number(DOWNTIME, str(value), *MILLISECONDS),
        )
        for value in (0, -5, 3_600_001, 99_999_999_999)
    ),
    Invalid(
        "downtimeLimitMilliseconds: 0.5",
        changed(DOWNTIME, 0.5, ONE),
        ("spec.strategy.downtimeLimitMilliseconds: Invalid value", "must be of type integer"),
    ),
    Invalid(
        "convergenceTimeoutSeconds: 0",
        changed("strategy.convergenceTimeoutSeconds", 0, ONE),
        number("strategy.convergenceTimeoutSeconds", "0", "seconds", 1, 604_800),
    ),
    Invalid(
        "switchoverTimeoutSeconds: 86400",
        changed("strategy.switchoverTimeoutSeconds", 86_400, ONE),
        number("strategy.switchoverTimeoutSeconds", "86400", "seconds", 1, 3_600),
    ),
    Invalid(
        "ttlSecondsAfterFinished: -1",
        changed("ttlSecondsAfterFinished", -1, ONE),
        number("ttlSecondsAfterFinished", "-1", "seconds", 0, 2**31 - 1),
    ),
    Invalid(
        'ttlSecondsAfterFinished: "1h"',
        changed("ttlSecondsAfterFinished", "1h", ONE),
        ("spec.ttlSecondsAfterFinished: Invalid value", "must be of type integer"),
    ),
)

FIELDS = (
    *(
        Invalid(f"{path}: an unknown field", changed(path, value, ONE), (f'unknown field "spec.{shown or path}"',))
        for path, value, shown in (
            ("strategy.downtimeLimitMs", 300, ""),
            ("strategy.downtimeLimit", "300ms", ""),
            ("strategy.bandwidthLimit", "5Gi", ""),
            ("strategy.allowPostCopy", True, ""),
            ("strategy.precopy", "Auto", ""),
            ("ttlSeconds", 60, ""),
            ("devices.0.sources", {}, "devices[0].sources"),
            ("devices.0.source.pciAddress", "0000:3b:00.2", "devices[0].source.pciAddress"),
            ("workload.pause.timeoutMilliseconds", 5, ""),
            ("workload.pause.hook.url", "http://x", ""),
            ("source.pod", "vm-0", ""),
        )
    ),
    Invalid("metadata.nmae", {**ONE, "metadata": {**ONE["metadata"], "nmae": "x"}}, ('unknown field "metadata.nmae"',)),
    Invalid("mode: migrate", changed("mode", "migrate", ONE), ('"migrate": must be Migrate, Plan or Rehearse',)),
    Invalid(
        "onConvergenceTimeout: Retry",
        changed("strategy.onConvergenceTimeout", "Retry", ONE),
        ('strategy.onConvergenceTimeout: Unsupported value: "Retry": supported values: "Abort", "Switchover"',),
    ),
    Invalid(
        "workload.pause.method: Stop",
        changed("workload.pause.method", "Stop", ONE),
        ('spec.workload.pause.method: Unsupported value: "Stop": supported values: "None", "Freeze", "Hook"',),
    ),
    Invalid("workload: {}", changed("workload", {}, ONE), ("spec.workload.pause: Required value",)),
    Invalid("kind: VFIOMigrations", {**ONE, "kind": "VFIOMigrations"}, ('no matches for kind "VFIOMigrations"',)),
    Invalid(
        "apiVersion: vfiomigration.io/v1",
        {**ONE, "apiVersion": "vfiomigration.io/v1"},
        ('no matches for kind "VFIOMigration" in version "vfiomigration.io/v1"',),
    ),
)

NAMES = (
    *(
        Invalid(f"metadata.name: {wrong}", named(name), said)
        for wrong, name, said in (
            ("My-Move, with capitals", "My-Move", ('metadata.name: Invalid value: "My-Move": a lowercase RFC 1123',)),
            (
                "my_move, with an underscore",
                "my_move",
                ('metadata.name: Invalid value: "my_move": a lowercase RFC 1123',),
            ),
            ("254 letters", "a" * 254, ("metadata.name: Invalid value", "must be no more than 253")),
            ("move/1, with a slash", "move/1", ("invalid resource name \"move/1\": [may not contain '/']",)),
            ("empty", "", ("resource name may not be empty",)),
        )
    ),
    *(
        Invalid(
            f"a pair's name: {wrong}",
            changed("devices.0.name", name, ONE),
            (f"spec.devices[0].name: Invalid value: {json.dumps(name)}: {PAIR_NAME}",),
        )
        for wrong, name in (
            ("GPU0, with capitals", "GPU0"),
            ("gpu_0, with an underscore", "gpu_0"),
            ("-gpu, with a dash first", "-gpu"),
            ("gpu0 and a newline", "gpu0\n"),
            ("empty", ""),
        )
    ),
    Invalid(
        "a pair's name: 64 letters",
        changed("devices.0.name", "a" * 64, ONE),
        ("spec.devices[0].name: Too long: may not be more than 63",),
    ),
    *(
        Invalid(
            f"nodeName: {wrong}",
            changed(f"{SOURCE}.nodeName", name, ONE),
            (f"spec.devices[0].source.nodeName: Invalid value: {json.dumps(name)}: {OBJECT_NAME}",),
        )
        for wrong, name in (("Node A", "Node A"), ("node-a and a newline", "node-a\n"), ("node_a", "node_a"))
    ),
    Invalid(
        "podName: team/vm-0, with a namespace",
        changed("source", {"podName": "team/vm-0"}, SHORTHAND),
        (f'spec.source.podName: Invalid value: "team/vm-0": {OBJECT_NAME}',),
    ),
    Invalid(
        "nodeName: a million letters",
        changed(f"{TARGET}.nodeName", "a" * 1_000_000, ONE),
        ("Too long: may not be more than 262144",),  # the annotation of kubectl apply speaks first
    ),
    *(
        Invalid(
            f"device: {wrong}",
            changed(f"{SOURCE}.device", name, ONE),
            (f"spec.devices[0].source.device: Invalid value: {json.dumps(name)}: {ADDRESS}",),
        )
        for wrong, name in (
            ("0000:3B:00.2, in upper case", "0000:3B:00.2"),
            ("/dev/vfio/42, a path", "/dev/vfio/42"),
            ("../../etc/passwd", "../../etc/passwd"),
            ("0000:3b:00.*, a pattern", "0000:3b:00.*"),
            ("sim0 and a newline", "sim0\n"),
        )
    ),
    Invalid(
        "device: 65 letters",
        changed(f"{SOURCE}.device", "a" * 65, ONE),
        ("spec.devices[0].source.device: Too long: may not be more than 64",),
    ),
)

SHAPES = (
    Invalid(
        "257 pairs",
        changed("devices", [pair(f"d{i}", f"sim{i}", f"sim{i}") for i in range(257)], ONE),
        ("spec.devices: Too many: 257: must have at most 256 items",),
    ),
    Invalid(
        "two pairs of one name",
        changed("devices", [pair(), pair(source="sim1")], ONE),
        ('spec.devices[1]: Duplicate value: {"name":"gpu0"}',),
    ),
    Invalid("no pairs: devices: []", changed("devices", [], ONE), ("spec.devices", "should have at least 1 items")),
    Invalid(
        "source and target are one device",
        changed(TARGET, pair()["source"], ONE),
        ("spec.devices[0].target: Invalid value", "source and target are the same device: name another device or"),
    ),
    Invalid(
        "devices and source",
        changed("source", {"nodeName": "node-a"}, ONE),
        (EITHER, "give either devices, or both source and target; found devices and source"),
    ),
    Invalid(
        "devices and the whole shorthand",
        changed("devices", [pair()], SHORTHAND),
        (EITHER, "give either devices, or both source and target; found all three"),
    ),
    Invalid(
        "neither devices nor the shorthand",
        migration("refused", mode="Plan"),
        (EITHER, "give either devices, or both source and target; found none of them"),
    ),
    Invalid(
        "devices: null",
        changed("devices", None, ONE),
        (EITHER, "give either devices, or both source and target; found none of them"),
    ),
    Invalid(
        "source without target",
        migration("refused", source={"nodeName": "node-a"}),
        (EITHER, "give either devices, or both source and target; found source only"),
    ),
    Invalid(
        "target without source",
        migration("refused", target={"nodeName": "node-a"}),
        (EITHER, "give either devices, or both source and target; found target only"),
    ),
    Invalid(
        "source with nodeName and podName",
        changed("source", {"nodeName": "node-a", "podName": "vm-0"}, SHORTHAND),
        ("spec.source: Invalid value: ", "give either nodeName or podName, not both; found both"),
    ),
    Invalid(
        "source: {}",
        changed("source", {}, SHORTHAND),
        ("spec.source: Invalid value: ", "give either nodeName or podName, not both; found neither"),
    ),
    Invalid(
        "target: {}",
        changed("target", {}, SHORTHAND),
        ("spec.target: Invalid value: ", "give either nodeName or podName, not both; found neither"),
    ),
    Invalid(
        "target with nodeName and podName",
        changed("target", {"nodeName": "node-b", "podName": "vm-1"}, SHORTHAND),
        ("spec.target: Invalid value: ", "give either nodeName or podName, not both; found both"),
    ),
    Invalid(
        "a target pod for a node's devices",
        changed("target", {"podName": "vm-1"}, SHORTHAND),
        (
            "spec.target.podName: Invalid value: ",
            "a target pod takes over what a source pod has: give source.podName",
        ),
    ),
    Invalid(
        "workload.pause.method: Hook without a hook",
        changed("workload.pause", {"method": "Hook"}, ONE),
        ("spec.workload.pause.hook: Invalid value: hook belongs to method Hook: give both or neither",),
    ),
    Invalid(
        "a hook without workload.pause.method: Hook",
        changed("workload.pause", {"method": "Freeze", "hook": {"port": 80}}, ONE),
        ("spec.workload.pause.hook: Invalid value: ", "hook belongs to method Hook: give both or neither"),
    ),
    Invalid(
        "a hook without a port",
        changed("workload.pause", {"method": "Hook", "hook": {}}, ONE),
        ("spec.workload.pause.hook.port: Required value",),
    ),
    Invalid(
        "a hook on port 0",
        changed("workload.pause", {"method": "Hook", "hook": {"port": 0}}, ONE),
        ("spec.workload.pause.hook.port: Invalid value: 0", "greater than or equal to 1"),
    ),
    Invalid(
        "a hook at another host",
        changed("workload.pause", {"method": "Hook", "hook": {"port": 80, "path": "//example.com"}}, ONE),
        ('spec.workload.pause.hook.path: Invalid value: "//example.com"',),
    ),
    Invalid(
        "workload.pause.timeoutSeconds: 0",
        changed("workload.pause", {"method": "Freeze", "timeoutSeconds": 0}, ONE),
        number("workload.pause.timeoutSeconds", "0", "seconds", 1, 60),
    ),
    Invalid(
        "priority: 1001",
        changed("priority", 1001, ONE),
        ("spec.priority: Invalid value: 1001", "less than or equal to 1000"),
    ),
    Invalid("a pair without target", without("target", ONE), ("spec.devices[0].target: Required value",)),
    Invalid("a pair without name", without("name", ONE), ("spec.devices[0].name: Required value",)),
    Invalid(
        "a source without device", without("source.device", ONE), ("spec.devices[0].source.device: Required value",)
    ),
    Invalid(
        "device: null",
        changed(f"{SOURCE}.device", None, ONE),
        ("spec.devices[0].source.device: Required value",),
    ),
    Invalid("spec: null", {**ONE, "spec": None}, ("spec: Required value",)),
    Invalid(
        "devices: a list of addresses",
        changed("devices", ["0000:3b:00.2"], ONE),
        ("spec.devices[0]: Invalid value", "must be of type object"),
    ),
    Invalid("source: node-a", changed("source", "node-a", SHORTHAND), ("spec.source: Invalid value", "of type object")),
    Invalid('cancel: "yes"', changed("cancel", "yes", ONE), ("spec.cancel: Invalid value", "must be of type boolean")),
    Invalid(
        "strategy: fast", changed("strategy", "fast", ONE), ("spec.strategy: Invalid value", "must be of type object")
    ),
    Invalid(
        "a namespace that does not exist",
        {**ONE, "metadata": {"name": "refused", "namespace": "nowhere"}},
        ('namespaces "nowhere" not found',),
    ),
)


def policy(**spec: Any) -> Object:
    """A VFIOMigrationPolicy."""
    return {
        "apiVersion": ONE["apiVersion"],
        "kind": "VFIOMigrationPolicy",
        "metadata": {"name": "refused"},
        "spec": spec,
    }


FULL = migration("full", **FULL_SPEC)
SHORT = migration("short", source={"nodeName": "node-a"}, target={"nodeName": "node-b"})
CANCELLED = changed("cancel", True, migration("cancelled"))

LATER_ON = (
    *(
        Invalid(f"later: {wrong}", stored, (f"spec.{field}: Forbidden: spec.{field} {AGAIN}",), {"spec": change})
        for wrong, stored, field, change in (
            ("another target device", FULL, "devices", {"devices": [pair(target="0000:5e:00.3")]}),
            ("one pair more", FULL, "devices", {"devices": [pair(), pair("gpu1", "sim1", "sim1")]}),
            ("another mode", FULL, "mode", {"mode": "Migrate"}),
            ("another limit", FULL, "strategy", {"strategy": {"downtimeLimitMilliseconds": 5}}),
            ("no strategy", FULL, "strategy", {"strategy": None}),
            ("another workload", FULL, "workload", {"workload": {"pause": {"method": "None"}}}),
            ("a priority", FULL, "priority", {"priority": 5}),
            ("another source node", SHORT, "source", {"source": {"nodeName": "node-c"}}),
            ("another target node", SHORT, "target", {"target": {"nodeName": "node-c"}}),
        )
    ),
    Invalid(
        "later: cancel taken back",
        CANCELLED,
        ("spec.cancel: Forbidden: spec.cancel cannot be taken back: create a new VFIOMigration",),
        {"spec": {"cancel": False}},
    ),
    Invalid("later: no spec", FULL, ("spec: Required value",), {"spec": None}),
)

DECIDED = switchover(UID)
OTHER_UID = "6f2f8a1e-7a3f-4a53-9d7e-0d6d5a1f6c03"
CLAIMED = device("claimed", **claim("first")["spec"])
WRITTEN = "status.decision: Forbidden: status.decision is written once: read it back and obey it; found Commit"

OTHERS = (
    Invalid("VFIOSwitchover: another decision", DECIDED, (WRITTEN,), decision("Abort"), "status"),
    Invalid("VFIOSwitchover: decision removed", DECIDED, (WRITTEN,), {"status": {"decision": None}}, "status"),
    Invalid("VFIOSwitchover: status removed", DECIDED, (WRITTEN,), {"status": None}, "status"),
    Invalid(
        "VFIOSwitchover: decision Maybe",
        DECIDED,
        ('status.decision.outcome: Unsupported value: "Maybe": supported values: "Commit", "Abort"',),
        decision("Maybe"),
        "status",
    ),
    Invalid(
        "VFIOSwitchover: another epoch",
        DECIDED,
        ("spec: Forbidden: spec cannot be changed after creation: every switchover has an object of its own",),
        {"spec": {"epoch": 2}},
    ),
    Invalid(
        "VFIOSwitchover: of another migration than its name says",
        switchover(OTHER_UID, migrationUID="another"),
        ("spec.migrationUID: Invalid value: metadata.name must be the UID of the migration, as in spec.migrationUID",),
    ),
    Invalid(
        "VFIOSwitchover: epoch 0",
        switchover(OTHER_UID, epoch=0),
        ("spec.epoch: Invalid value: 0", "greater than or equal to 1"),
    ),
    Invalid(
        "VFIOSwitchover: no source node",
        switchover(OTHER_UID, sourceNodes=[]),
        ("spec.sourceNodes", "should have at least 1 items"),
    ),
    Invalid(
        "VFIOSwitchover: a source node twice",
        switchover(OTHER_UID, sourceNodes=["node-a", "node-a"]),
        ('spec.sourceNodes[1]: Duplicate value: "node-a"',),
    ),
    Invalid(
        "VFIODevice: claim stolen",
        CLAIMED,
        (
            "spec.claimRef: Forbidden: the device is claimed by another migration; wait for it to finish, or cancel "
            "it; found m-first",
        ),
        claim("second"),
    ),
    *(
        Invalid(
            f"VFIODevice: another {field}",
            CLAIMED,
            (f"spec.{field}: Forbidden: spec.{field} cannot be changed after creation: another device is another",),
            {"spec": {field: value}},
        )
        for field, value in (("nodeName", "node-b"), ("address", "sim1"), ("backend", "Simulated"))
    ),
    Invalid(
        "VFIODevice: half a claim",
        device("sim0", claimRef={"name": "m"}),
        ("spec.claimRef.namespace: Required value", "spec.claimRef.uid: Required value"),
    ),
    Invalid(
        "VFIODevice: backend Magic",
        device("sim0", backend="Magic"),
        ('spec.backend: Unsupported value: "Magic": supported values: "Kernel", "Simulated"',),
    ),
    Invalid(
        "VFIODevice: address in upper case",
        device("0000:3B:00.2"),
        (f'spec.address: Invalid value: "0000:3B:00.2": {ADDRESS}',),
    ),
    Invalid(
        "VFIOMigrationPolicy: it says nothing",
        policy(migrationSelector={"a": "b"}),
        ("spec: Invalid value: ", "give strategy, priority or both: a policy that says neither changes nothing"),
    ),
    Invalid(
        "VFIOMigrationPolicy: an unknown knob",
        policy(strategy={"downtimeLimitMs": 5}),
        ('unknown field "spec.strategy.downtimeLimitMs"',),
    ),
    Invalid(
        "VFIOMigrationPolicy: a limit out of range",
        policy(strategy={"switchoverTimeoutSeconds": 0}),
        number("strategy.switchoverTimeoutSeconds", "0", "seconds", 1, 3600),
    ),
)

TABLE: tuple[Invalid, ...] = (*POST_COPY, *UNITS, *FIELDS, *NAMES, *SHAPES, *LATER_ON, *OTHERS)


def as_seen(row: Invalid, error: str) -> Refused:
    """A row of the report from what kubectl printed; long runs of one letter are cut."""
    message = re.sub(r"(\w)\1{20,}", r"\1\1\1...", error.partition(": exit code 1: ")[2].strip())
    return Refused(row.wrong, "kubectl" if message.startswith("error: ") else "API server", message)


@pytest.fixture(scope="module")
def stored(namespace: Plane) -> Plane:
    """The control plane with what some rows change."""
    for item in (FULL, SHORT, CANCELLED, CLAIMED, DECIDED):
        create(namespace, item)
    patch(namespace, DECIDED, decision("Commit"), "--subresource=status")
    return namespace


def record(rows: Iterable[Refused]) -> None:
    """Append the rows to the table that VFIO_TABLE names, if it does: remove it before a run."""
    if not (path := os.environ.get("VFIO_TABLE")):
        return
    head, rendered = render([]), render(rows)
    with Path(path).open("a", encoding="utf-8") as table:
        table.write(rendered.removeprefix(head) if table.tell() else rendered)


@pytest.fixture(scope="module")
def report() -> Iterator[list[Refused]]:
    """The rows as they are observed, recorded at the end."""
    rows: list[Refused] = []
    yield rows
    record(rows)


def apply(plane: Plane, manifest: Object) -> Object:
    """kubectl apply, as a user does it."""
    plane.kubectl("apply", "--dry-run=server", "-f", "-", input=json.dumps(manifest))
    return manifest


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.wrong)
def test_it_is_refused_in_words_that_help(stored: Plane, report: list[Refused], row: Invalid) -> None:
    if row.change is None:
        told = refusal(apply, stored, row.manifest)
    else:
        flags = [f"--subresource={row.subresource}"] if row.subresource else []
        told = refusal(patch, stored, row.manifest, row.change, "--dry-run=server", *flags)
    report.append(as_seen(row, told))
    for words in row.said:
        assert words in told


def test_the_table_is_as_long_as_was_promised() -> None:
    assert len(TABLE) >= ROWS
    assert len({row.wrong for row in TABLE}) == len(TABLE)


def test_the_report_is_one_line_a_row() -> None:
    rendered = render([Refused("a|b", "kubectl", "two\nlines")])
    assert rendered.splitlines()[2:] == ["| a\\|b | kubectl | two lines |"]
