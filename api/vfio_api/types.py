"""What operator and agents tell each other, as frozen data; `wire` turns it into protobuf and back.

Units are in the names: bytes, milliseconds (limits), microseconds (measured).
"""

from dataclasses import dataclass, field
from enum import StrEnum

from vfio_api.device import NO_FLAGS, DeviceState, MigrationFlags
from vfio_api.errors import Reason

BURST_SECONDS = 0.02  # of a bandwidth limit: what may be sent at once after a pause, and at the switchover


class Role(StrEnum):
    """Which side of a migration a session is."""

    SOURCE = "Source"
    TARGET = "Target"


class Outcome(StrEnum):
    """The decision, written once into VFIOSwitchover.status.decision."""

    COMMIT = "Commit"
    ABORT = "Abort"


class Goal(StrEnum):
    """The state a command tells a session to be in."""

    PREPARED = "Prepared"  # source: device held, flags read. target: RESUMING and listening
    PRE_COPY = "PreCopy"  # source: streams connected, devices that can are in PRE_COPY
    QUIESCED = "Quiesced"  # source, barrier A: every device PRE_COPY_P2P or RUNNING_P2P
    STOP_COPY = "StopCopy"  # source, barrier B: every device STOP_COPY and sent to EOF
    LOADED = "Loaded"  # target: every device loaded and validated in STOP; the vote
    RUNNING_P2P = "RunningP2P"  # target, barrier C; source on rollback
    RUNNING = "Running"  # target, barrier D; source on rollback
    RELEASED = "Released"  # this migration holds nothing here any more


@dataclass(frozen=True, slots=True)
class MigrationKey:
    """A VFIOMigration: its UID decides, namespace and name are for people."""

    uid: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class SessionDevice:
    """One device of a session: its name in the migration, its address here, and the node of its counterpart.

    pod_uid: of the pod that has a source device open, "" if the agent holds it or nobody is known to.
    """

    name: str
    address: str
    peer_node: str
    pod_uid: str = ""


FIRST_RETRY_SECONDS = 0.05  # of a hook


class PauseMethod(StrEnum):
    """How a workload is paused."""

    NONE = "None"
    FREEZE = "Freeze"
    HOOK = "Hook"


@dataclass(frozen=True, slots=True)
class Hook:
    """How a pod is asked to pause, save, load and resume by itself: POST to address:port and path, then the step."""

    address: str
    port: int
    path: str = ""
    timeout_milliseconds: int = 5_000
    retries: int = 2

    @property
    def pauses(self) -> tuple[float, ...]:
        """Seconds to wait before each time that a step is asked for again."""
        return tuple(FIRST_RETRY_SECONDS * 2**number for number in range(self.retries))

    @property
    def longest_seconds(self) -> float:
        """What one step may take, asked for again as often as it may be."""
        return (self.retries + 1) * self.timeout_milliseconds / 1000 + sum(self.pauses)


@dataclass(frozen=True, slots=True)
class Workload:
    """A pod on this node that uses devices of a session: at the source it is paused, at the target it takes over.

    timeout_milliseconds: in which it must be paused. moved: after Commit it is to end at the source.
    """

    pod_uid: str
    pod_namespace: str
    pod_name: str
    method: PauseMethod = PauseMethod.NONE
    timeout_milliseconds: int = 5_000
    hook: Hook | None = None
    moved: bool = False


@dataclass(frozen=True, slots=True)
class SessionSpec:
    """Everything a session needs to know of its migration; part of every Prepared command.

    bandwidth_limit_bytes_per_second is 0 for none; the limit is shared by the session's streams. switchover_ack: no
    device that can pre-copy may stop while it has initial bytes that the target has not acknowledged.
    """

    devices: tuple[SessionDevice, ...]
    pre_copy: bool = True
    bandwidth_limit_bytes_per_second: int = 0
    switchover_timeout_milliseconds: int = 30_000
    switchover_ack: bool = True
    workloads: tuple[Workload, ...] = ()


@dataclass(frozen=True, slots=True)
class Peer:
    """The other side of a session's streams: where it listens and its certificate for this migration (DER)."""

    node: str
    data_address: str
    certificate: bytes


@dataclass(frozen=True, slots=True)
class Command:
    """Be in `goal`. Idempotent; (epoch, sequence) orders commands of one migration, older ones are refused.

    deadline_milliseconds is a duration from receipt. `decision` is the one read back from the VFIOSwitchover.
    attempt: above 0 after Commit, when the devices in `again` lost what they had loaded: Prepared makes a target ready
    to load these anew, StopCopy makes a source send them whole once more.
    """

    migration: MigrationKey
    role: Role
    goal: Goal
    epoch: int
    sequence: int
    deadline_milliseconds: int
    decision: Outcome | None = None
    spec: SessionSpec | None = None
    peers: tuple[Peer, ...] = ()
    attempt: int = 0
    again: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """One device as its agent sees it.

    transferred_bytes: sent at a source, loaded at a target. initial_acknowledged: the target has LOADED the initial
    bytes. drained: the pre-copy stream reached its temporary end at least once. size_unknown: the device does not say
    how large its state is; stop_copy_bytes is then a floor (what pre-copy has left), not an estimate.
    """

    name: str
    address: str
    state: DeviceState
    flags: MigrationFlags = NO_FLAGS
    stop_copy_bytes: int = 0
    initial_bytes: int = 0
    dirty_bytes: int = 0
    transferred_bytes: int = 0
    bytes_per_second: int = 0
    initial_acknowledged: bool = False
    drained: bool = False
    size_unknown: bool = False


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong in a session, with the device, the arc ("RUNNING -> STOP") and the kernel's errno if any."""

    reason: Reason
    message: str
    device: str = ""
    arc: str = ""
    errno: int = 0


@dataclass(frozen=True, slots=True)
class Timing:
    """How long one step took, on the reporting node's clock."""

    step: str
    microseconds: int


@dataclass(frozen=True, slots=True)
class SessionReport:
    """A session as its agent sees it; sent after every change and on every new connection.

    reached: the last goal that every device of the session is in. backward: it has begun to roll back and will
    never go forward again. link_bytes_per_second: what all streams of a source session carried together lately
    while any had something to send (0: not measured). lost: devices of a target that had loaded their state and lost it
    after Commit without having left STOP, so that the source can send it again. attempt: the last one of a command.
    turned_microseconds: in a Hello only, for a leader that was not there: how long ago the devices of a source began to
    stop, or all of a target's ran again (0: not yet, or not by this process).
    """

    migration_uid: str
    role: Role
    epoch: int
    sequence: int
    reached: Goal | None = None
    backward: bool = False
    certificate: bytes = b""
    devices: tuple[DeviceReport, ...] = ()
    failure: Failure | None = None
    timings: tuple[Timing, ...] = ()
    link_bytes_per_second: int = 0
    lost: tuple[str, ...] = ()
    attempt: int = 0
    turned_microseconds: int = 0


@dataclass(frozen=True, slots=True)
class AgentHello:
    """The first message of an agent on a new connection.

    The node's name is not in it: the operator takes that from the token. incarnation: node boot ID.
    """

    protocol: int
    version: str
    incarnation: str
    instance: str
    data_address: str
    highest_epoch: int
    sessions: tuple[SessionReport, ...] = field(default=())
