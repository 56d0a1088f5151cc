"""The agent's metrics. Base units, `_total` on counters, never a migration's name as a label."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

from vfio_api.device import DeviceState

ARC_BUCKETS = (1e-5, 5e-5, 1e-4, 5e-4, 1e-3, 5e-3, 1e-2, 5e-2, 0.1, 0.5, 1.0, 5.0)
STEP_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class AgentMetrics:
    """Every series the agent exports, in a registry of its own."""

    def __init__(self, version: str):
        self.registry = CollectorRegistry()
        self._arcs = Histogram(
            "vfio_agent_arc_duration_seconds",
            "Duration of one VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE call.",
            ["backend", "from_state", "to_state", "result"],
            buckets=ARC_BUCKETS,
            registry=self.registry,
        )
        self._steps = Histogram(
            "vfio_agent_step_duration_seconds",
            "Duration of one step of a session, such as a local barrier or the transfer behind it.",
            ["step", "role"],
            buckets=STEP_BUCKETS,
            registry=self.registry,
        )
        self._bytes = Counter(
            "vfio_agent_state_bytes_total",
            "Device state sent or loaded.",
            ["direction"],
            registry=self.registry,
        )
        self._failures = Counter(
            "vfio_agent_session_failures_total",
            "Sessions that failed, by reason.",
            ["reason"],
            registry=self.registry,
        )
        self.sessions = Gauge(
            "vfio_agent_sessions", "Sessions of migrations under way.", ["role"], registry=self.registry
        )
        self.held = Gauge(
            "vfio_agent_sessions_held",
            "Sessions in a switchover that have heard nothing for too long and cannot learn the decision.",
            ["role"],
            registry=self.registry,
        )
        self.unreadable = Gauge(
            "vfio_agent_unreadable_records",
            "Records in the journal that cannot be read: nothing is done with their sessions' devices.",
            registry=self.registry,
        )
        self.keeper = Gauge(
            "vfio_agent_keeper_up",
            "1 while the keeper of this node answers and holds every open device.",
            registry=self.registry,
        )
        self.connected = Gauge(
            "vfio_agent_operator_connected",
            "1 while the control channel to the leader stands.",
            registry=self.registry,
        )
        self.dials = Counter(
            "vfio_agent_operator_dials_total",
            "Attempts to connect to the operator.",
            ["result"],
            registry=self.registry,
        )
        self.devices = Gauge(
            "vfio_agent_devices",
            "VFIO devices of this node.",
            ["driver", "migratable"],
            registry=self.registry,
        )
        Info("vfio_agent_build", "Version of this agent.", registry=self.registry).info({"version": version})

    def arc(self, backend: str, old: DeviceState, new: DeviceState, result: str, seconds: float) -> None:
        """One set_state call."""
        self._arcs.labels(backend, old.name, new.name, result).observe(seconds)

    def step(self, step: str, role: str, seconds: float) -> None:
        """One step of a session."""
        self._steps.labels(step.partition("/")[0], role).observe(seconds)

    def state_bytes(self, direction: str, count: int) -> None:
        """Bytes sent or loaded since the last call."""
        self._bytes.labels(direction).inc(count)

    def failed(self, reason: str) -> None:
        """A session failed."""
        self._failures.labels(reason).inc()
