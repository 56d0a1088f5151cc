"""Everything the plan looks at, as one frozen picture: the resource, the inventory, and what the agents report."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from vfio_api.device import NO_FLAGS, MigrationFlags
from vfio_api.types import Failure, Goal, MigrationKey, Outcome, Role, SessionReport


@dataclass(frozen=True, slots=True)
class DeviceRecord:
    """A VFIODevice as the API server has it. claim_uid and claim_name are the migration's that reserved it."""

    object_name: str
    node: str
    address: str
    driver: str = ""
    model: str = ""
    flags: MigrationFlags = NO_FLAGS
    migratable: bool = False
    holder: str = ""
    claim_uid: str = ""
    claim_name: str = ""
    resource_version: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Pair:
    """A source device and its target device."""

    name: str
    source_node: str
    source_device: str
    target_node: str
    target_device: str


@dataclass(frozen=True, slots=True)
class Strategy:
    """spec.strategy; limits in the units of their names."""

    downtime_limit_milliseconds: int = 300
    pre_copy: str = "Auto"
    convergence_timeout_seconds: int = 300
    switch_over_on_timeout: bool = False
    switchover_ack: bool = True
    switchover_timeout_seconds: int = 30
    bandwidth_limit_bytes_per_second: int = 0


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user asked for. unsupported names a part of the spec that this version cannot do ("" if none)."""

    pairs: tuple[Pair, ...]
    strategy: Strategy = Strategy()
    cancel: bool = False
    deleted: bool = False
    unsupported: str = ""


@dataclass(frozen=True, slots=True)
class Participant:
    """One agent's part. commanded: a command may have reached it, so it may hold something."""

    node: str
    role: Role
    connected: bool = False
    commanded: bool = False
    data_address: str = ""
    report: SessionReport | None = None

    @property
    def touched(self) -> bool:
        """Whether it may hold anything of this migration."""
        return self.commanded or self.report is not None


@dataclass(frozen=True, slots=True)
class Switchover:
    """The VFIOSwitchover: whether it was created (the durable intent), and its decision as read back."""

    exists: bool = False
    decision: Outcome | None = None


@dataclass(frozen=True, slots=True)
class Observed:
    """One migration and all that matters to it, at one moment.

    pairs are the persisted ones (empty before). claims: object names of the VFIODevices reserved by this migration.
    failure is the first thing that went wrong. converge_expired: pre-copy has lasted its limit. exhausted: a step
    after the decision failed so often that it is given up. settled: agents have had the time to dial this leader.
    inventory_settled: they have had the time to publish what an earlier migration changed.
    generation: metadata.generation of the object that wish was read from.
    inherited: an earlier leader may have commanded what this one knows nothing of.
    """

    key: MigrationKey
    wish: Wish
    nodes: frozenset[str] = frozenset()
    connected: frozenset[str] = frozenset()
    inventory: Mapping[tuple[str, str], DeviceRecord] = field(default_factory=lambda: MappingProxyType({}))
    has_finalizer: bool = False
    pairs: tuple[Pair, ...] = ()
    claims: frozenset[str] = frozenset()
    participants: tuple[Participant, ...] = ()
    switchover: Switchover = Switchover()
    failure: Failure | None = None
    converge_expired: bool = False
    exhausted: bool = False
    settled: bool = True
    generation: int = 1
    inherited: bool = True
    inventory_settled: bool = True

    def side(self, role: Role) -> tuple[Participant, ...]:
        """The participants of one side, by node name."""
        return tuple(p for p in self.participants if p.role is role)


_ORDER: dict[Goal, int] = {
    goal: number
    for number, goal in enumerate(
        (
            Goal.PREPARED,
            Goal.PRE_COPY,
            Goal.QUIESCED,
            Goal.STOP_COPY,
            Goal.LOADED,
            Goal.RUNNING_P2P,
            Goal.RUNNING,
            Goal.RELEASED,
        )
    )
}


def has_reached(participant: Participant, goal: Goal) -> bool:
    """Whether every device of the participant is in `goal` or further, in the direction that `goal` belongs to."""
    report = participant.report
    if report is None or report.reached is None:
        return False
    if goal is Goal.RELEASED:
        return report.reached is Goal.RELEASED
    if report.reached is Goal.RELEASED:
        return False  # it is nowhere any more
    back = participant.role is Role.SOURCE and goal in (Goal.RUNNING_P2P, Goal.RUNNING)
    if participant.role is Role.SOURCE and back != (report.reached in (Goal.RUNNING_P2P, Goal.RUNNING)):
        return False
    return _ORDER[report.reached] >= _ORDER[goal]
