"""The agent's metrics. Base units, `_total` on counters, never a migration's name as a label.

The node is no label: whoever scrapes an agent knows where it is (the chart's PodMonitor adds `node`).
"""

from collections import Counter
from collections.abc import Mapping
from enum import StrEnum

from vfio_agent.machine import NEVER_QUIESCED, RESEND, WAYPOINTS
from vfio_api.catalogue import Catalogue, Label
from vfio_api.device import DeviceState
from vfio_api.errors import Reason
from vfio_api.types import Role

ARC_BUCKETS = (1e-5, 5e-5, 1e-4, 5e-4, 1e-3, 5e-3, 1e-2, 5e-2, 0.1, 0.5, 1.0, 5.0)
STEP_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
RATE_BUCKETS = tuple(scale * 10.0**power for power in range(4, 11) for scale in (1, 2, 5))  # 10 kB/s to 50 GB/s
PASS_BUCKETS = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000)
# Of every session: its local barriers, and what a source sends behind the last.
STEPS = (
    *dict.fromkeys((step, role.value) for (role, _), way in WAYPOINTS.items() for step, _ in way),
    *((step, Role.SOURCE.value) for step, _ in NEVER_QUIESCED),
    (RESEND[0][0], Role.SOURCE.value),
    ("transfer", Role.SOURCE.value),
)


class Stage(StrEnum):
    """Which part of a device's state is sent: while it runs, or after it was stopped."""

    PRE_COPY = "PreCopy"
    STOP_COPY = "StopCopy"


class Recovery(StrEnum):
    """What became of a session that an earlier agent process left in the journal."""

    RESUMED = "Resumed"  # its devices are there and it goes on
    FAILED = "Failed"  # its devices or its data streams are gone: it is rolled back
    UNREADABLE = "Unreadable"  # nothing is done with it


class AgentMetrics:
    """Every series the agent exports, in a registry of its own."""

    def __init__(self, version: str):
        made = self.catalogue = Catalogue()
        self.registry = made.registry
        self._drivers: Mapping[str, str] = {}
        self._shown: set[tuple[str, str]] = set()
        self._of_sessions(made)
        self._of_the_state(made)
        self._of_the_node(made)
        made.build("vfio_agent_build", "Version of this agent; always 1.", version)

    def _of_sessions(self, made: Catalogue) -> None:
        role = Label("role", tuple(role.value for role in Role))
        self.sessions = made.gauge("vfio_agent_sessions", "Sessions of migrations under way.", role)
        self.held = made.gauge(
            "vfio_agent_sessions_held",
            "Sessions in a switchover that have heard nothing for too long and cannot learn the decision.",
            role,
        )
        self._failures = made.counter(
            "vfio_agent_session_failures_total",
            "Sessions that failed, by reason.",
            Label("reason", tuple(reason.value for reason in Reason)),
        )
        self._steps = made.histogram(
            "vfio_agent_step_duration_seconds",
            "Duration of one step of a session, such as a local barrier or the transfer behind it.",
            STEP_BUCKETS,
            Label("step", tuple(dict.fromkeys(step for step, _ in STEPS))),
            role,
            only=STEPS,
        )
        self._recoveries = made.counter(
            "vfio_agent_journal_recoveries_total",
            "Sessions that a new agent process found in the journal: Resumed goes on, Failed is rolled back since "
            "devices or streams are gone, Unreadable is left as it is.",
            Label("outcome", tuple(outcome.value for outcome in Recovery)),
        )
        self.unreadable = made.gauge(
            "vfio_agent_unreadable_records",
            "Records in the journal that cannot be read: nothing is done with their sessions' devices.",
        )

    def _of_the_state(self, made: Catalogue) -> None:
        stage = Label("stage", tuple(stage.value for stage in Stage))
        self._bytes = made.counter(
            "vfio_agent_state_bytes_total", "Device state sent or loaded.", Label("direction", ("sent", "loaded"))
        )
        self._sent = made.counter("vfio_agent_sent_state_bytes_total", "Device state sent, by stage.", stage)
        self._rate = made.histogram(
            "vfio_agent_stage_rate_bytes_per_second",
            "What all streams of a source session carried together: PreCopy is the newest measurement of the link when "
            "the switchover began, StopCopy the rest of the state over the time that it took.",
            RATE_BUCKETS,
            stage,
        )
        self._passes = made.histogram(
            "vfio_agent_precopy_passes",
            "How often a device was emptied in pre-copy before it was stopped: the iterations of convergence.",
            PASS_BUCKETS,
        )

    def _of_the_node(self, made: Catalogue) -> None:
        driver = Label("driver", bound="drivers of the node")
        self._arcs = made.histogram(
            "vfio_agent_arc_duration_seconds",
            "Duration of one VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE call.",
            ARC_BUCKETS,
            driver,
            Label("from_state", bound="8 states"),
            Label("to_state", bound="8 states"),
            Label("result", bound="ok, error; 40 arcs in all"),
        )
        self._devices = made.gauge(
            "vfio_agent_devices", "VFIO devices of this node.", driver, Label("migratable", ("true", "false"))
        )
        self.keeper = made.gauge(
            "vfio_agent_keeper_up", "1 while the keeper of this node answers and holds every open device."
        )
        self.connected = made.gauge(
            "vfio_agent_operator_connected", "1 while the control channel to the leader stands."
        )
        self.dials = made.counter(
            "vfio_agent_operator_dials_total", "Attempts to connect to the operator.", Label("result", ("ok", "error"))
        )
        self.epoch = made.gauge("vfio_agent_epoch", "The highest epoch of a leader that this node has seen.")
        self.tasks = made.gauge(
            "vfio_agent_asyncio_tasks", "Tasks of this agent's event loop: with no session it stays the same."
        )

    def inventory(self, found: Mapping[str, tuple[str, bool]]) -> None:
        """The node's devices now: address -> (driver, migratable)."""
        self._drivers = {address: driver for address, (driver, _) in found.items()}
        counts = Counter((driver, str(migratable).lower()) for driver, migratable in found.values())
        for gone in self._shown - counts.keys():
            self._devices.remove(*gone)
        self._shown = set(counts)
        for labels, count in counts.items():
            self._devices.labels(*labels).set(count)

    def arc(self, address: str, old: DeviceState, new: DeviceState, result: str, seconds: float) -> None:
        """One set_state call; any thread."""
        self._arcs.labels(self._drivers.get(address, "unknown"), old.name, new.name, result).observe(seconds)

    def step(self, step: str, role: str, seconds: float) -> None:
        """One step of a session."""
        self._steps.labels(step.partition("/")[0], role).observe(seconds)

    def state_bytes(self, direction: str, count: int) -> None:
        """Bytes sent or loaded since the last call."""
        self._bytes.labels(direction).inc(count)

    def sent(self, stage: Stage, count: int) -> None:
        """Bytes of state that were sent just now; any thread."""
        self._sent.labels(stage.value).inc(count)

    def rate(self, stage: Stage, bytes_per_second: float) -> None:
        """What a session's streams carried together in a stage."""
        self._rate.labels(stage.value).observe(bytes_per_second)

    def passes(self, count: int) -> None:
        """How often one device was emptied in pre-copy."""
        self._passes.observe(count)

    def recovered(self, outcome: Recovery) -> None:
        """A session of an earlier process was found."""
        self._recoveries.labels(outcome.value).inc()

    def failed(self, reason: str) -> None:
        """A session failed."""
        self._failures.labels(reason).inc()
