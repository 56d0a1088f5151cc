"""What the two sides say when all is well."""

import random
from functools import cache

from vfio_agent.datatls import new_identity
from vfio_api import PROTOCOL_VERSION, wire
from vfio_api.device import DeviceState, MigrationFlags
from vfio_api.errors import Reason
from vfio_api.types import (
    AgentHello,
    Command,
    DeviceReport,
    Failure,
    Goal,
    Hook,
    MigrationKey,
    Outcome,
    PauseMethod,
    Peer,
    Role,
    SessionDevice,
    SessionReport,
    SessionSpec,
    Timing,
    Workload,
)
from vfio_api.v1 import agent_pb2 as pb

UIDS = ("uid-1", "uid-2", "0b7f3ad8-1f7c-4c9e-9a52-7f5a0c7d0f11")
WORDS = (*(str(each.value) for kind in (Role, Goal, Outcome) for each in kind), *UIDS, "gpu0", "gpu1", "mem0", "mem1")
DEVICES = (SessionDevice("gpu0", "mem0", "other"), SessionDevice("gpu1", "mem1", "other"))
PODS = ("a3949ec7-2bdc-4081-b0de-abc3065637b2", "0d4f1f3c-9a0e-4a53-8c1f-5f6f0e1c2a3b")
FROZEN = Workload("11111111-2bdc-4081-b0de-abc3065637b2", "team", "cache", PauseMethod.FREEZE, 50)  # of no sample
WORKLOADS = (
    Workload(PODS[0], "team", "web", PauseMethod.FREEZE, 50, moved=True),
    Workload(PODS[1], "team", "db", PauseMethod.HOOK, 50, Hook("127.0.0.1", 1, "/vfio", 50, 0)),
    Workload(PODS[1], "team", "db"),
)
FLAGS = MigrationFlags.STOP_COPY | MigrationFlags.P2P | MigrationFlags.PRE_COPY


def key(rng: random.Random) -> MigrationKey:
    """One of a few migrations."""
    return MigrationKey(rng.choice(UIDS), "team", "move")


@cache
def certificate() -> bytes:
    """One that is a certificate."""
    return new_identity("peer").certificate


def command(rng: random.Random) -> pb.Command:
    """A command as an operator sends it."""
    goal = rng.choice(list(Goal))
    return wire.command_to_wire(
        Command(
            key(rng),
            rng.choice(list(Role)),
            goal,
            rng.randrange(1, 5),
            rng.randrange(1, 50),
            rng.choice((0, 50, 1000)),
            rng.choice((None, None, Outcome.COMMIT, Outcome.ABORT)),
            SessionSpec(DEVICES, workloads=workloads(rng)) if goal is Goal.PREPARED else None,
            (Peer("other", "127.0.0.1:1", certificate()),) if rng.random() < 0.8 else (),
        )
    )


def workloads(rng: random.Random) -> tuple[Workload, ...]:
    """Pods of a session: mostly none, at most one by its hook."""
    return rng.choice(((), (), WORKLOADS[:1], WORKLOADS[1:2], WORKLOADS[2:], WORKLOADS[:2]))


def report(rng: random.Random) -> pb.SessionReport:
    """A report as an agent sends it."""
    failure = Failure(Reason.ARC_FAILED, "it failed", "gpu0", "RUNNING -> STOP", 5) if rng.random() < 0.2 else None
    return wire.report_to_wire(
        SessionReport(
            rng.choice(UIDS),
            rng.choice(list(Role)),
            rng.randrange(5),
            rng.randrange(50),
            rng.choice((None, *Goal)),
            rng.random() < 0.2,
            b"certificate",
            tuple(DeviceReport(d.name, d.address, rng.choice(list(DeviceState)), FLAGS) for d in DEVICES),
            failure,
            (Timing("barrier_a", 17), Timing("load/gpu0", 4711)),
        )
    )


def hello(rng: random.Random) -> pb.Hello:
    """What an agent says first."""
    made = wire.hello_to_wire(AgentHello(PROTOCOL_VERSION, "1", "boot", "instance", "127.0.0.1:1", rng.randrange(5)))
    made.sessions.extend(report(rng) for _ in range(rng.randrange(3)))
    return made
