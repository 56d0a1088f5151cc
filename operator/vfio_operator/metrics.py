"""The operator's metrics. Base units, `_total` on counters; a migration's UID goes into exemplars, never a label."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

DOWNTIME_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0)
PHASE_BUCKETS = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)


class OperatorMetrics:
    """Every series the operator exports, in a registry of its own."""

    def __init__(self, version: str):
        registry = self.registry = CollectorRegistry()
        self.outcomes = Counter("vfio_migrations_total", "Ended migrations.", ["result", "reason"], registry=registry)
        self.in_progress = Gauge(
            "vfio_migrations_in_progress", "Migrations under way, by phase.", ["phase"], registry=registry
        )
        self.phases = Histogram(
            "vfio_migration_phase_duration_seconds",
            "Time spent in one phase.",
            ["phase"],
            buckets=PHASE_BUCKETS,
            registry=registry,
        )
        self.steps = Histogram(
            "vfio_migration_step_duration_seconds",
            "Time spent in one step of the plan, as the operator's clock saw it.",
            ["step"],
            buckets=DOWNTIME_BUCKETS,
            registry=registry,
        )
        self.downtime = Histogram(
            "vfio_migration_downtime_seconds",
            "From the command to leave RUNNING until the last target device runs, on the operator's clock.",
            buckets=DOWNTIME_BUCKETS,
            registry=registry,
        )
        self.barrier_wait = Histogram(
            "vfio_migration_barrier_wait_seconds",
            "Time from a barrier's first command until its slowest participant passed.",
            ["barrier"],
            buckets=DOWNTIME_BUCKETS,
            registry=registry,
        )
        self.bytes = Counter(
            "vfio_migration_state_bytes_total", "Device state moved by ended migrations.", registry=registry
        )
        self.agents = Gauge("vfio_operator_agents_connected", "Agents with a live stream.", registry=registry)
        self.refused_agents = Counter(
            "vfio_operator_agents_refused_total", "Agent streams refused.", ["reason"], registry=registry
        )
        self.leader = Gauge("vfio_operator_leader", "1 on the replica that leads.", registry=registry)
        self.epoch = Gauge("vfio_operator_epoch", "The leader's fencing epoch.", registry=registry)
        self.decisions = Counter(
            "vfio_switchover_decisions_total",
            "Decisions read back, by outcome.",
            ["outcome"],
            registry=registry,
        )
        self.races_lost = Counter(
            "vfio_switchover_races_lost_total",
            "Decisions that someone else had written otherwise.",
            registry=registry,
        )
        self.api_writes = Counter(
            "vfio_operator_api_writes_total", "Writes to the API server.", ["kind"], registry=registry
        )
        Info("vfio_operator_build", "Version of this operator.", registry=registry).info({"version": version})

    def ended(self, result: str, reason: str, uid: str) -> None:
        """One migration ended."""
        self.outcomes.labels(result, reason).inc(exemplar={"migration_uid": uid})

    def measured_downtime(self, seconds: float, uid: str) -> None:
        """One committed switchover."""
        self.downtime.observe(seconds, exemplar={"migration_uid": uid})
