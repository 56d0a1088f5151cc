"""Pods on the wire: whole as they come; refused where what one saves could go astray, or nothing would end."""

import pytest

from vfio_api import wire
from vfio_api.types import (
    Command,
    Goal,
    Hook,
    MigrationKey,
    PauseMethod,
    Role,
    SessionDevice,
    SessionSpec,
    Workload,
)
from vfio_api.v1 import agent_pb2 as pb

UID, OTHER = "a3949ec7-2bdc-4081-b0de-abc3065637b2", "11111111-2bdc-4081-b0de-abc3065637b2"
HOOK = Hook("10.1.2.3", 8080, "/vfio", 2_000, 3)
DEVICES = (SessionDevice("gpu0", "sim0", "b", UID),)


def command(*workloads: Workload) -> pb.Command:
    spec = SessionSpec(DEVICES, workloads=workloads)
    key = MigrationKey("uid-1", "team", "move")
    return wire.command_to_wire(Command(key, Role.SOURCE, Goal.PREPARED, 1, 1, 1000, None, spec))


@pytest.mark.parametrize(
    "workload",
    [
        Workload(UID, "team", "web"),
        Workload(UID, "team", "web", PauseMethod.FREEZE, 7_000, moved=True),
        Workload(UID, "team", "web", PauseMethod.HOOK, 7_000, HOOK, moved=True),
        Workload(UID, "team", "web", PauseMethod.HOOK, 7_000, Hook("fd00::7", 1)),
    ],
)
def test_a_pod_comes_as_it_was_sent(workload: Workload) -> None:
    spec = wire.command_from_wire(command(workload)).spec
    assert spec is not None
    assert (spec.workloads, spec.devices) == ((workload,), DEVICES)


def hook(address: str = "10.1.2.3", port: int = 1, milliseconds: int = 1, retries: int = 0) -> Workload:
    return Workload(UID, "team", "web", PauseMethod.HOOK, 1, Hook(address, port, "", milliseconds, retries))


@pytest.mark.parametrize(
    ("workloads", "why"),
    [
        ((Workload(UID, "team", "web", PauseMethod.HOOK),), "method Hook needs a hook"),
        ((Workload(UID, "team", "web", PauseMethod.FREEZE, 1, HOOK),), "method Freeze has no hook"),
        ((Workload(UID, "team", "web", PauseMethod.NONE, 1, HOOK),), "method None has no hook"),
        ((Workload(UID, "a", "b"), Workload(UID, "a", "c")), "a pod is named twice"),
        ((hook(), Workload(OTHER, "a", "b", PauseMethod.HOOK, 1, HOOK)), "two pods have hooks"),
        ((hook(address=""),), "does not appear to be an IPv4 or IPv6 address"),
        ((hook(address="metadata.internal"),), "does not appear to be an IPv4 or IPv6 address"),
        ((hook(port=65_536),), "hook port is 65536"),
        ((hook(milliseconds=600_001),), "hook timeout is 600001"),
        ((hook(retries=17),), "hook retries is 17"),
        ((Workload(UID, "team", "web", PauseMethod.FREEZE, 600_001),), "pause timeout is 600001"),
        ((Workload("../x", "team", "web"),), "x"),
    ],
)
def test_what_could_go_astray_is_refused(workloads: tuple[Workload, ...], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        wire.command_from_wire(command(*workloads))


def test_a_method_that_is_none_is_refused() -> None:
    said = command(Workload(UID, "team", "web"))
    said.spec.workloads[0].method = "Hibernate"
    with pytest.raises(ValueError, match="'Hibernate' is not a valid PauseMethod"):
        wire.command_from_wire(said)
