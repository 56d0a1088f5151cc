"""The operator's metrics. Base units, `_total` on counters; a migration's UID goes into exemplars, never a label."""

from collections.abc import Callable, Iterable, Mapping

from vfio_api.catalogue import Catalogue, Label
from vfio_api.downtime import DowntimeStep
from vfio_api.errors import Reason
from vfio_api.models_migration import Mode
from vfio_api.models_status import Phase
from vfio_api.spans import exemplar
from vfio_api.types import Outcome
from vfio_operator.status import ENDS
from vfio_operator.steps import FORWARD, LOST, REHEARSAL, REHEARSAL_BACK, ROLLBACK
from vfio_operator.underway import UNDERWAY_PHASES, Underway, Wait

DOWNTIME_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0)
PHASE_BUCKETS = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
RATIO_BUCKETS = (0.1, 0.25, 0.5, 0.67, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0, 10.0)
# Steps of the plan that wait for all of a side.
BARRIERS = ("BarrierA", "BarrierB", "Vote", "BarrierC", "BarrierD", "RestoreP2P")
# Steps of the plan that take time: those of its ladders, and what comes before.
STEPS = (
    *("Authorize", "FindPod", "AwaitInventory", "AwaitAgents", "AwaitTurn"),
    *dict.fromkeys(step.name for way in (FORWARD, ROLLBACK, LOST, REHEARSAL, REHEARSAL_BACK) for step in way),
)
WRITES = ("claim", "release", "status", "event", "delete")
# gRPC status codes with which the control channel refuses an agent.
REFUSALS = ("FAILED_PRECONDITION", "INVALID_ARGUMENT", "ALREADY_EXISTS", "UNAUTHENTICATED", "UNAVAILABLE")
ENDINGS: tuple[tuple[str, str], ...] = (
    *((Phase.SUCCEEDED.value, ENDS[mode].value) for mode in Mode),
    (Phase.CANCELLED.value, Reason.CANCELLED.value),
    *((Phase.FAILED.value, reason.value) for reason in Reason if reason is not Reason.CANCELLED),
)


class OperatorMetrics:
    """Every series the operator exports, in a registry of its own."""

    def __init__(self, version: str):
        self.traced: Callable[[str], bool] = lambda _uid: False  # whether a migration has a trace
        made = self.catalogue = Catalogue()
        self.registry = made.registry
        self.underway = Underway()
        self._expected: frozenset[str] = frozenset()
        self._connected: set[str] = set()
        self._shown: set[str] = set()
        self._of_migrations(made)
        self._of_the_downtime(made)
        self._of_this_replica(made)
        made.build("vfio_operator_build", "Version of this operator; always 1.", version)

    def _of_migrations(self, made: Catalogue) -> None:
        self.outcomes = made.counter(
            "vfio_migrations_total",
            "Ended migrations.",
            Label("result", (Phase.SUCCEEDED.value, Phase.FAILED.value, Phase.CANCELLED.value)),
            Label("reason", tuple(dict.fromkeys(reason for _, reason in ENDINGS))),
            only=ENDINGS,
            exemplars=True,
        )
        phase = Label("phase", tuple(phase.value for phase in UNDERWAY_PHASES))
        in_progress = made.gauge("vfio_migrations_in_progress", "Migrations under way on this leader, by phase.", phase)
        oldest = made.gauge(
            "vfio_migrations_oldest_phase_age_seconds",
            "For how long the migration that is longest in this phase has been in it; 0 if none is. One that waits for "
            "its turn is not counted.",
            phase,
        )
        for each in UNDERWAY_PHASES:
            in_progress.labels(each.value).set_function(lambda each=each: self.underway.count(each))  # type: ignore[misc]
            oldest.labels(each.value).set_function(lambda each=each: self.underway.oldest(each))  # type: ignore[misc]
        queued = made.gauge(
            "vfio_migrations_queued",
            "Migrations that are accepted and hold no device yet, by what they wait for: ApiServer (their rights and "
            "what is recorded before the first effect), Inventory (agents and devices, after an election or an earlier "
            "migration), Turn (others to end: there are limits on how many run at once), Claims (their devices being "
            "reserved), Restart (the operator failed at them and tries again).",
            Label("waiting_for", tuple(wait.value for wait in Wait)),
        )
        for wait in Wait:
            queued.labels(wait.value).set_function(lambda wait=wait: self.underway.waiting(wait))  # type: ignore[misc]
        self.phases = made.histogram(
            "vfio_migration_phase_duration_seconds", "Time spent in one phase.", PHASE_BUCKETS, phase
        )
        self.steps = made.histogram(
            "vfio_migration_step_duration_seconds",
            "Time spent in one step of the plan, as the operator's clock saw it.",
            DOWNTIME_BUCKETS,
            Label("step", STEPS),
        )
        self.bytes = made.counter("vfio_migration_state_bytes_total", "Device state loaded by ended migrations.")
        self.decisions = made.counter(
            "vfio_switchover_decisions_total",
            "Decisions read back, by outcome.",
            Label("outcome", tuple(outcome.value for outcome in Outcome)),
        )
        self.races_lost = made.counter(
            "vfio_switchover_races_lost_total", "Decisions that someone else had written otherwise."
        )

    def _of_the_downtime(self, made: Catalogue) -> None:
        self.downtime = made.histogram(
            "vfio_migration_downtime_seconds",
            "From the workload's pause, or the command to leave RUNNING, until the last target device runs and it is "
            "resumed, on the operator's clock.",
            DOWNTIME_BUCKETS,
            exemplars=True,
        )
        self.downtime_steps = made.histogram(
            "vfio_migration_downtime_step_seconds",
            "What the downtime was made of; the parts of one migration add up to its downtime.",
            DOWNTIME_BUCKETS,
            Label("step", tuple(step.value for step in DowntimeStep)),
            exemplars=True,
        )
        self.predicted = made.histogram(
            "vfio_migration_predicted_downtime_seconds",
            "The last forecast before the switchover, of those whose downtime was measured.",
            DOWNTIME_BUCKETS,
            exemplars=True,
        )
        self.prediction = made.histogram(
            "vfio_migration_downtime_to_prediction_ratio",
            "Measured downtime divided by the forecast: above 1 the forecast promised too much.",
            RATIO_BUCKETS,
            exemplars=True,
        )
        barrier = Label("barrier", BARRIERS)
        self.barrier_wait = made.histogram(
            "vfio_migration_barrier_wait_seconds",
            "Time from a barrier's first command until its slowest participant passed.",
            DOWNTIME_BUCKETS,
            barrier,
        )
        self.slowest = made.summary(
            "vfio_migration_barrier_slowest_seconds",
            "The same time, at the node whose agent passed last: for whom the others waited.",
            barrier,
            Label("node", bound="nodes with an agent"),
        )

    def _of_this_replica(self, made: Catalogue) -> None:
        self.agents = made.gauge("vfio_operator_agents_connected", "Agents with a live stream.")
        self.agent_connected = made.gauge(
            "vfio_operator_agent_connected",
            "1 while the agent of a node has a live stream to this leader, 0 while it has not although the node is "
            "known to have devices. A replica that does not lead says nothing of agents.",
            Label("node", bound="nodes with VFIO devices"),
        )
        self.refused_agents = made.counter(
            "vfio_operator_agents_refused_total", "Agent streams refused.", Label("reason", REFUSALS)
        )
        self.leader = made.gauge("vfio_operator_leader", "1 on the replica that leads.")
        self.epoch = made.gauge("vfio_operator_epoch", "The epoch with which this replica leads or last led; 0: never.")
        self.elections = made.counter("vfio_operator_elections_won_total", "How often this replica was elected.")
        self.crashes = made.counter(
            "vfio_operator_task_failures_total", "Tasks of migrations that ended on a bug and are started again."
        )
        self.api_writes = made.counter(
            "vfio_operator_api_writes_total", "Writes to the API server.", Label("kind", WRITES)
        )
        self.tasks = made.gauge(
            "vfio_operator_asyncio_tasks",
            "Tasks of this replica's event loop: with nothing under way it stays the same.",
        )

    def ended(self, result: str, reason: str, uid: str) -> None:
        """One migration ended."""
        self.outcomes.labels(result, reason).inc(exemplar=self._exemplar(uid))

    def measured_downtime(
        self, seconds: float, uid: str, parts: Mapping[DowntimeStep, int], predicted: int | None
    ) -> None:
        """One committed switchover. parts: microseconds of each; predicted: microseconds, None if not forecast."""
        said = self._exemplar(uid)
        self.downtime.observe(seconds, exemplar=said)
        for step, microseconds in parts.items():
            self.downtime_steps.labels(step.value).observe(microseconds / 1e6, exemplar=said)
        if predicted:
            self.predicted.observe(predicted / 1e6, exemplar=said)
            self.prediction.observe(seconds * 1e6 / predicted, exemplar=said)

    def barrier(self, barrier: str, seconds: float, slowest: str) -> None:
        """One barrier has passed. slowest: the node of its last participant, "" if it had none."""
        self.barrier_wait.labels(barrier).observe(seconds)
        if slowest:
            self.slowest.labels(barrier, slowest).observe(seconds)

    def expect_agents(self, nodes: Iterable[str]) -> None:
        """The nodes that must have an agent; none while this replica does not lead."""
        before, self._expected = self._expected, frozenset(nodes)
        for node in before ^ self._expected:
            self._show_agent(node)

    def agent(self, node: str, *, connected: bool) -> None:
        """The agent of a node has come or gone."""
        (self._connected.add if connected else self._connected.discard)(node)
        self.agents.set(len(self._connected))
        self._show_agent(node)

    def _show_agent(self, node: str) -> None:
        if node in self._expected or node in self._connected:
            self.agent_connected.labels(node).set(int(node in self._connected))
            if node not in self._shown:  # from 0 on, so that a rate sees the first time that the others wait for it
                self._shown.add(node)
                for barrier in BARRIERS:
                    self.slowest.labels(barrier, node)
        elif node in self._shown:
            self._shown.discard(node)
            self.agent_connected.remove(node)
            for barrier in BARRIERS:
                self.slowest.remove(barrier, node)

    def _exemplar(self, uid: str) -> dict[str, str]:
        return exemplar(uid, traced=self.traced(uid))
