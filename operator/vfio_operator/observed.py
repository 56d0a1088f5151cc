"""Everything the plan looks at, as one frozen picture: the resource, the inventory, and what the agents report."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from vfio_api.device import NO_FLAGS, MigrationFlags
from vfio_api.models_migration import Mode
from vfio_api.types import Failure, Goal, Hook, MigrationKey, Outcome, PauseMethod, Role, SessionReport
from vfio_operator.turns import MAY_RUN, Turn


@dataclass(frozen=True, slots=True)
class DeviceRecord:
    """A VFIODevice as the API server has it. claim_uid and claim_name are the migration's that reserved it.

    stop_copy_bytes: VFIO_DEVICE_FEATURE_MIG_DATA_SIZE as its agent last published it (0: unknown). state: as the uAPI
    names it ("": unknown). pod_uid, pod: of the pod that has live state in it, and namespace/name ("" if none has).
    """

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
    stop_copy_bytes: int = 0
    state: str = ""
    pod_uid: str = ""
    pod: str = ""


@dataclass(frozen=True, slots=True)
class PodRecord:
    """A Pod as the API server has it.

    running: every container runs. ready: and says that it is ready. trouble: why not, if the kubelet says so;
    unscheduled: the scheduler's words. owner: its controller, "" if it has none. migration: UID of the
    migration that it is part of. grace_seconds: what it may take to end.
    """

    namespace: str
    name: str
    uid: str
    node: str = ""
    address: str = ""
    phase: str = "Pending"
    deleted: bool = False
    running: bool = False
    ready: bool = False
    trouble: str = ""
    unscheduled: str = ""
    owner: str = ""
    migration: str = ""
    grace_seconds: int = 30

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Pair:
    """A source device and its target device."""

    name: str
    source_node: str
    source_device: str
    target_node: str
    target_device: str

    @property
    def ends(self) -> tuple[tuple[Role, str, str], tuple[Role, str, str]]:
        """(role, node, address) of its source and of its target."""
        return (
            (Role.SOURCE, self.source_node, self.source_device),
            (Role.TARGET, self.target_node, self.target_device),
        )


def ends_of(pairs: Iterable[Pair]) -> frozenset[tuple[str, str]]:
    """(node, address) of every device of these pairs."""
    return frozenset((node, address) for pair in pairs for _, node, address in pair.ends)


@dataclass(frozen=True, slots=True)
class Strategy:
    """spec.strategy; limits in the units of their names."""

    downtime_limit_milliseconds: int = 300
    pre_copy: str = "Auto"
    convergence_timeout_seconds: int = 300
    switch_over_on_timeout: bool = False
    switchover_ack: bool = True
    switchover_timeout_seconds: int = 30
    bandwidth_limit_bytes_per_second: int = 0  # none


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a step may take, in seconds, where the spec does not say it.

    prepare: also for barriers outside of the downtime and on the way back. release: what is over when it is over.
    api: the API server may be away for a while, and nothing is down for it. target_pod: for a counterpart to run.
    """

    prepare_seconds: float = 60.0
    release_seconds: float = 30.0
    api_seconds: float = 600.0
    target_pod_seconds: float = 120.0


@dataclass(frozen=True, slots=True)
class Shorthand:
    """All migratable devices in use on one node, or by one pod, onto free compatible devices of a node.

    pod: its name in the migration's namespace, "" for the node's; source_node is then where that runs ("" before it is
    known). target_pod: a pod there that takes them over, "" if the operator is to make it; target_node is then where
    that runs.
    """

    source_node: str
    target_node: str
    pod: str = ""
    target_pod: str = ""


@dataclass(frozen=True, slots=True)
class Pausing:
    """spec.workload.pause; limits in the units of their names."""

    method: PauseMethod = PauseMethod.NONE
    timeout_milliseconds: int = 5_000
    port: int = 0
    path: str = ""
    hook_timeout_milliseconds: int = 5_000
    retries: int = 2

    def hook(self, address: str) -> Hook | None:
        """How the pod at this address is asked; None if none is."""
        if self.method is not PauseMethod.HOOK:
            return None
        return Hook(address, self.port, self.path, self.hook_timeout_milliseconds, self.retries)


@dataclass(frozen=True, slots=True)
class Move:
    """A pod and its counterpart, as far as they are known.

    looked: the API server was asked for the source (None then: there is none). counterpart: the name of the pod that
    the operator makes, "" if the user made it. refused: why the source cannot be moved. made: the counterpart is there,
    or was, and both pods are marked. waited: for long enough that it becomes ready. done: the counterpart is the only
    one now, or, on the way back, there is none any more.
    """

    looked: bool = False
    source: PodRecord | None = None
    target: PodRecord | None = None
    counterpart: str = ""
    refused: Failure | None = None
    made: bool = False
    done: bool = False
    waited: bool = False


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user asked for: pairs, or the shorthand for them.

    unsupported names a part of the spec that this version cannot do ("" if none). priority: the higher, the earlier.
    """

    pairs: tuple[Pair, ...]
    strategy: Strategy = Strategy()
    cancel: bool = False
    deleted: bool = False
    unsupported: str = ""
    mode: Mode = Mode.MIGRATE
    shorthand: Shorthand | None = None
    pausing: Pausing = Pausing()
    priority: int = 0

    @property
    def moves_pod(self) -> bool:
        """Whether a pod is moved with its devices."""
        return self.shorthand is not None and bool(self.shorthand.pod)

    @property
    def nodes(self) -> frozenset[str]:
        """Every node that it names."""
        named = {node for pair in self.pairs for _, node, _ in pair.ends}
        short = self.shorthand
        shorthand = {short.source_node, short.target_node} if short is not None else set()
        return frozenset(named | shorthand - {""})


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a migration, as far as it tells how much there is to be said and done between the nodes: how many source and
    target nodes, how many pairs, and whether pods move along.
    """

    sources: int
    targets: int
    pairs: int
    pods: bool


@dataclass(frozen=True, slots=True)
class Known:
    """What this leader has measured lately, for forecasts; durations in microseconds, medians.

    round_trips: of a message to a node's agent and back. decision: one write of a small object, as that is.
    steps: (node, models of the devices, step as the agent names it) -> duration. rates: source node -> bytes per
    second of its streams together. between: what the downtime of migrations of this shape had beside what the agents
    timed and the write of the decision.
    """

    round_trips: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    decision: int = 0
    steps: Mapping[tuple[str, str, str], int] = field(default_factory=lambda: MappingProxyType({}))
    rates: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    between: Mapping[Shape, int] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Participant:
    """One agent's part. commanded: a command may have reached it, so it may hold something.

    turned: time.monotonic at which a source began to stop, or a target ran again, if it had before its stream.
    """

    node: str
    role: Role
    connected: bool = False
    commanded: bool = False
    data_address: str = ""
    report: SessionReport | None = None
    turned: float | None = None

    @property
    def touched(self) -> bool:
        """Whether it may hold anything of this migration."""
        return self.commanded or self.report is not None


@dataclass(frozen=True, slots=True)
class Switchover:
    """The VFIOSwitchover: whether it was created (the durable intent), its decision as read back, and who decided."""

    exists: bool = False
    decision: Outcome | None = None
    by: str = ""


@dataclass(frozen=True, slots=True)
class Observed:
    """One migration and all that matters to it, at one moment.

    pairs are the persisted ones (empty before). claims: object names of the VFIODevices reserved by this migration.
    failure is the first thing that went wrong; recorded: what of it is stored. converge_expired: pre-copy has lasted
    its limit. exhausted: a step after the decision failed so often that it is given up. settled: agents have had the
    time to dial this leader.
    leaving: nodes whose agent is to end, or has just ended, and whose next one is not there yet.
    inventory_settled: they have had the time to publish what an earlier migration changed.
    generation: metadata.generation of the object that wish was read from.
    inherited: an earlier leader may have commanded what this one knows nothing of.
    lingered: the forecast has been within the limit for a while. rehearsed: a rehearsal has come to its turning point,
    durably. shows_all: the requester may use every device, so that a message may name any.
    authorized: the pairs that the requester's rights were reviewed for; forbidden: what right was missing.
    active: UIDs of the migrations that have chosen their devices and have not ended.
    reserved: devices that other migrations of this leader have chosen, also if they are not claimed yet.
    move: the pods, if one is moved with its devices. turn: whether it may run beside others.
    policy: name of the VFIOMigrationPolicy that it follows; policy_conflict: that there are two.
    emptied: nodes that are being evacuated.
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
    recorded: Failure | None = None
    converge_expired: bool = False
    exhausted: bool = False
    settled: bool = True
    leaving: frozenset[str] = frozenset()
    generation: int = 1
    inherited: bool = True
    inventory_settled: bool = True
    lingered: bool = False
    rehearsed: bool = False
    forbidden: Failure | None = None
    authorized: tuple[Pair, ...] | None = None
    shows_all: bool = False
    active: frozenset[str] = frozenset()
    reserved: frozenset[tuple[str, str]] = frozenset()
    move: Move = Move()
    turn: Turn = MAY_RUN
    policy: str = ""
    policy_conflict: Failure | None = None
    emptied: frozenset[str] = frozenset()
    known: Known = Known()
    limits: Limits = Limits()

    @property
    def named_nodes(self) -> frozenset[str]:
        """Every node that it names, and those on which the pods are that it names."""
        pods = (self.move.source, self.move.target)
        return self.wish.nodes | {pod.node for pod in pods if pod is not None and pod.node}

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
