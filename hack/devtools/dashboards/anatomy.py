"""The dashboard that takes one migration apart: choose its time range, and a window around it."""

from devtools.dashboards.declared import (
    Dashboard,
    Kind,
    Panel,
    Query,
    Row,
    mean,
    of_agents,
    of_operator,
    per_second,
    quantile,
    total,
)
from vfio_api.downtime import DowntimeStep

PREDICTED = of_operator("vfio_migration_predicted_downtime_seconds_bucket")
ACTUAL = of_operator("vfio_migration_downtime_seconds_bucket")
RATIO = of_operator("vfio_migration_downtime_to_prediction_ratio_bucket")
PARTS = of_operator("vfio_migration_downtime_step_seconds_bucket")
STEPS = of_operator("vfio_migration_step_duration_seconds_bucket")
WAITS = of_operator("vfio_migration_barrier_wait_seconds_bucket")
SENT = of_agents("vfio_agent_sent_state_bytes_total")
RATES = of_agents("vfio_agent_stage_rate_bytes_per_second_bucket")
PASSES = of_agents("vfio_agent_precopy_passes_bucket")
ARC_TIMES = of_agents("vfio_agent_arc_duration_seconds_bucket", result="ok")
AGENT_STEPS = of_agents("vfio_agent_step_duration_seconds_bucket")

WATERFALL = Panel(
    "Downtime by step",
    "Mean of each step in its order; together they are the downtime. With one migration in the window it is that "
    "migration's waterfall.",
    Kind.BARS,
    "s",
    tuple(Query(mean("vfio_migration_downtime_step_seconds", step=step.value), step.value) for step in DowntimeStep),
    12,
    "VFIODowntimeBudgetBurnFast",
)

DOWNTIME = Row(
    "Downtime",
    (
        WATERFALL,
        Panel(
            "Steps of the downtime, p95",
            "The dots are exemplars: each names the migration that it was.",
            Kind.LINES,
            "s",
            (Query(quantile(0.95, PARTS, "step"), "{{step}}", exemplars=True),),
            12,
        ),
        Panel(
            "Predicted and actual downtime",
            "Medians of the last forecast before the switchover, and of what was measured.",
            Kind.LINES,
            "s",
            (
                Query(quantile(0.5, PREDICTED), "predicted", exemplars=True),
                Query(quantile(0.5, ACTUAL), "actual", exemplars=True),
            ),
        ),
        Panel(
            "Actual to predicted",
            "Above 1 the forecast promised too much.",
            Kind.LINES,
            "short",
            tuple(Query(quantile(q, RATIO), f"p{q * 100:g}", exemplars=True) for q in (0.5, 0.95)),
        ),
        Panel(
            "Steps of the plan, p95",
            "Every step, also those before and after the downtime.",
            Kind.LINES,
            "s",
            (Query(quantile(0.95, STEPS, "step"), "{{step}}"),),
        ),
    ),
)

BARRIERS = Row(
    "Barriers",
    (
        Panel(
            "Barrier waits, p95",
            "From a barrier's first command until its slowest participant passed. Vote waits for the targets.",
            Kind.LINES,
            "s",
            (Query(quantile(0.95, WAITS, "barrier"), "{{barrier}}"),),
            12,
        ),
        Panel(
            "Who was waited for",
            "The mean of the same time, by the node whose agent passed last.",
            Kind.BARS,
            "s",
            (Query(mean("vfio_migration_barrier_slowest_seconds", "barrier", "node"), "{{barrier}} {{node}}"),),
            12,
        ),
    ),
)

STATE = Row(
    "State",
    (
        Panel(
            "Rate by stage",
            "Device state that sources send, in pre-copy and in stop-copy.",
            Kind.STACK,
            "Bps",
            (Query(per_second(SENT, "stage"), "{{stage}}"),),
            6,
        ),
        Panel(
            "Bytes by stage",
            "Device state that sources sent in the window: what stop-copy sends is downtime.",
            Kind.STACK,
            "bytes",
            (Query(total(SENT, "stage"), "{{stage}}"),),
            6,
        ),
        Panel(
            "What a session's link carried, median",
            "PreCopy is the newest measurement when the devices stopped, StopCopy the rest over the time it took.",
            Kind.LINES,
            "Bps",
            (Query(quantile(0.5, RATES, "stage"), "{{stage}}"),),
            6,
        ),
        Panel(
            "Passes of pre-copy",
            "How often a device was emptied before it was stopped: the iterations of convergence.",
            Kind.LINES,
            "short",
            tuple(Query(quantile(q, PASSES), f"p{q * 100:g}") for q in (0.5, 0.95)),
            6,
        ),
    ),
)

ARCS = Row(
    "Devices",
    (
        Panel(
            "Arcs, p95",
            "How long a device takes from one migration state to another, by driver.",
            Kind.LINES,
            "s",
            (
                Query(
                    quantile(0.95, ARC_TIMES, "driver", "from_state", "to_state"),
                    "{{driver}} {{from_state}} -> {{to_state}}",
                ),
            ),
            12,
        ),
        Panel(
            "Steps of the agents, p95",
            "Local barriers, the transfer and the load, on each agent's own clock.",
            Kind.LINES,
            "s",
            (Query(quantile(0.95, AGENT_STEPS, "role", "step"), "{{role}} {{step}}"),),
            12,
        ),
    ),
)

ANATOMY = Dashboard(
    "vfio-anatomy",
    "VFIO migration / Anatomy",
    "What a migration's downtime was made of. Choose the time range of one migration (its creationTimestamp and "
    "status.timings), or a longer one for many.",
    (DOWNTIME, BARRIERS, STATE, ARCS),
)
