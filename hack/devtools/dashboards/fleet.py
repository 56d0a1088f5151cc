"""The dashboard for a whole installation: is it well, what does it do, how long are workloads down."""

from devtools.dashboards.declared import Dashboard, Kind, Panel, Query, Row, of_operator, per_second, quantile, total

BUCKETS = of_operator("vfio_migration_downtime_seconds_bucket")
WITHIN = of_operator("vfio_migration_downtime_seconds_bucket", le="0.3")
SWITCHOVERS = of_operator("vfio_migration_downtime_seconds_count")
ENDED = of_operator("vfio_migrations_total")
WELL = of_operator("vfio_migrations_total", result="Succeeded")
PHASES = of_operator("vfio_migration_phase_duration_seconds_bucket")
CONNECTED = of_operator("vfio_operator_agent_connected")


def _share(of: str, whole: str) -> str:
    """Of what happened in the dashboard's time range."""
    return f"sum(increase({of}[$__range])) / sum(increase({whole}[$__range]))"


NOW = Row(
    "Now",
    (
        Panel(
            "Leader",
            "Replicas that lead. It must be 1: without a leader no migration begins, and some that are under way wait.",
            Kind.STAT,
            "short",
            (Query(f"sum({of_operator('vfio_operator_leader')})", "leaders"),),
            3,
            "VFIONoLeader",
        ),
        Panel(
            "Epoch",
            "The fencing number of the newest leader; it rises with every election.",
            Kind.STAT,
            "short",
            (Query(f"max({of_operator('vfio_operator_epoch')})", "epoch"),),
            3,
        ),
        Panel(
            "Agents connected",
            "Nodes with devices whose agent has a stream to the leader.",
            Kind.STAT,
            "short",
            (Query(f"sum({CONNECTED})", "agents"),),
            3,
        ),
        Panel(
            "Agents missing",
            "Nodes with devices whose agent has none: nothing migrates from or to them.",
            Kind.STAT,
            "short",
            (Query(f"sum(1 - {CONNECTED})", "missing"),),
            3,
            "VFIOAgentGone",
        ),
        Panel(
            "In progress",
            "Migrations under way.",
            Kind.STAT,
            "short",
            (Query(f"sum({of_operator('vfio_migrations_in_progress')})", "migrations"),),
            3,
        ),
        Panel(
            "Queued",
            "Migrations that are accepted and hold no device yet.",
            Kind.STAT,
            "short",
            (Query(f"sum({of_operator('vfio_migrations_queued')})", "migrations"),),
            3,
            "VFIOMigrationStuck",
        ),
        Panel(
            "Succeeded",
            "Share of the ended migrations that did what was asked for, over the dashboard's time range.",
            Kind.STAT,
            "percentunit",
            (Query(_share(WELL, ENDED), "succeeded"),),
            3,
            "VFIORollbacksRising",
        ),
        Panel(
            "Within 300 ms",
            "Share of the switchovers whose downtime was at most 300 ms, over the dashboard's time range. The alerts "
            "watch that it is 99 %.",
            Kind.STAT,
            "percentunit",
            (Query(_share(WITHIN, SWITCHOVERS), "within"),),
            3,
            "VFIODowntimeBudgetBurnFast",
        ),
    ),
)

DOWNTIME = Row(
    "Downtime",
    (
        Panel(
            "Downtime percentiles",
            "Of committed switchovers in the window. The dots are exemplars: each names the migration that it was.",
            Kind.LINES,
            "s",
            tuple(Query(quantile(q, BUCKETS), f"p{q * 100:g}", exemplars=True) for q in (0.5, 0.95, 0.99)),
            12,
            "VFIODowntimeBudgetBurnFast",
        ),
        Panel(
            "Downtime heatmap",
            "How many switchovers had which downtime.",
            Kind.HEATMAP,
            "s",
            (Query(f"sum by (le) (increase({BUCKETS}[$__rate_interval]))", "{{le}}"),),
            12,
        ),
    ),
)

OUTCOMES = Row(
    "Migrations",
    (
        Panel(
            "Outcomes by reason",
            "Migrations that ended in the window. The API reference says what a reason means.",
            Kind.STACK,
            "short",
            (Query(f"{total(ENDED, 'result', 'reason')} > 0", "{{result}}: {{reason}}", exemplars=True),),
            12,
            "VFIORollbacksRising",
        ),
        Panel(
            "In progress by phase",
            "Where the migrations under way are.",
            Kind.STACK,
            "short",
            (Query(f"sum by (phase) ({of_operator('vfio_migrations_in_progress')})", "{{phase}}"),),
            12,
        ),
        Panel(
            "Queue by what is waited for",
            "ApiServer: rights, and what is recorded before the first effect. Inventory: agents and devices that are "
            "not there yet. Turn: as many run as may at once. Claims: devices being reserved. Restart: the operator "
            "failed and tries again.",
            Kind.STACK,
            "short",
            (Query(f"sum by (waiting_for) ({of_operator('vfio_migrations_queued')})", "{{waiting_for}}"),),
            8,
            "VFIOQueueStands",
        ),
        Panel(
            "Oldest in its phase",
            "For how long the migration that is longest in a phase has been in it.",
            Kind.LINES,
            "s",
            (Query(f"max by (phase) ({of_operator('vfio_migrations_oldest_phase_age_seconds')})", "{{phase}}"),),
            8,
            "VFIOMigrationStuck",
        ),
        Panel(
            "Phase durations, p95",
            "How long migrations stayed in a phase that they left in the window.",
            Kind.LINES,
            "s",
            (Query(quantile(0.95, PHASES, "phase"), "{{phase}}"),),
            8,
        ),
    ),
)

CONTROL = Row(
    "Operator",
    (
        Panel(
            "Agents",
            "Connected, and missing of the nodes with devices.",
            Kind.LINES,
            "short",
            (Query(f"sum({CONNECTED})", "connected"), Query(f"sum(1 - {CONNECTED})", "missing")),
            6,
            "VFIOAgentGone",
        ),
        Panel(
            "Decisions",
            "Read back by the operator in the window; a race is lost if a source had decided otherwise.",
            Kind.LINES,
            "short",
            (
                Query(total(of_operator("vfio_switchover_decisions_total"), "outcome"), "{{outcome}}"),
                Query(total(of_operator("vfio_switchover_races_lost_total")), "races lost"),
            ),
            6,
        ),
        Panel(
            "Writes to the API server",
            "Claims and releases of devices, status, Events and deletions.",
            Kind.LINES,
            "ops",
            (Query(per_second(of_operator("vfio_operator_api_writes_total"), "kind"), "{{kind}}"),),
            6,
        ),
        Panel(
            "Elections and bugs",
            "Elections won, tasks that ended on a bug, and agents refused, in the window.",
            Kind.LINES,
            "short",
            (
                Query(total(of_operator("vfio_operator_elections_won_total")), "elections"),
                Query(total(of_operator("vfio_operator_task_failures_total")), "task failures"),
                Query(total(of_operator("vfio_operator_agents_refused_total")), "agents refused"),
            ),
            6,
            "VFIOOperatorBug",
        ),
    ),
)

FLEET = Dashboard(
    "vfio-fleet",
    "VFIO migration / Fleet",
    "Is the installation well, what does it do, and how long are workloads down.",
    (NOW, DOWNTIME, OUTCOMES, CONTROL),
)
