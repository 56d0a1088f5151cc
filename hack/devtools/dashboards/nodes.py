"""The dashboard for nodes and their agents."""

from devtools.dashboards.declared import (
    Dashboard,
    Kind,
    Panel,
    Query,
    Row,
    of_agents,
    of_operator,
    of_operator_and_node,
    per_second,
    quantile,
    total,
)

CONNECTION = Row(
    "Connection",
    (
        Panel(
            "Connected to the operator, as the agent says",
            "1 while the control channel to the leader stands.",
            Kind.LINES,
            "short",
            (Query(f"min by (node) ({of_agents('vfio_agent_operator_connected')})", "{{node}}"),),
            runbook="VFIOAgentGone",
        ),
        Panel(
            "Connected, as the leader says",
            "A node with devices and without an agent is here, too, at 0.",
            Kind.LINES,
            "short",
            (Query(f"max by (node) ({of_operator_and_node('vfio_operator_agent_connected')})", "{{node}}"),),
            runbook="VFIOAgentGone",
        ),
        Panel(
            "Dials",
            "Attempts to reach the operator, by result.",
            Kind.LINES,
            "short",
            (
                Query(
                    total(of_agents("vfio_agent_operator_dials_total"), "node", "result"),
                    "{{node}} {{result}}",
                ),
            ),
        ),
    ),
)

SESSIONS = Row(
    "Sessions",
    (
        Panel(
            "Sessions",
            "A node's parts in migrations under way.",
            Kind.STACK,
            "short",
            (Query(f"sum by (node, role) ({of_agents('vfio_agent_sessions')})", "{{node}} {{role}}"),),
            6,
        ),
        Panel(
            "Held sessions",
            "In a switchover, and cannot learn the decision: the workload is down and waits for the API server.",
            Kind.LINES,
            "short",
            (Query(f"sum by (node, role) ({of_agents('vfio_agent_sessions_held')})", "{{node}} {{role}}"),),
            6,
            "VFIOSourceHeld",
        ),
        Panel(
            "Failures by reason",
            "Sessions that failed in the window.",
            Kind.STACK,
            "short",
            (
                Query(
                    f"{total(of_agents('vfio_agent_session_failures_total'), 'node', 'reason')} > 0",
                    "{{node}} {{reason}}",
                ),
            ),
            6,
            "VFIORollbacksRising",
        ),
        Panel(
            "State sent and loaded",
            "Through each node's agent.",
            Kind.LINES,
            "Bps",
            (
                Query(
                    per_second(of_agents("vfio_agent_state_bytes_total"), "node", "direction"),
                    "{{node}} {{direction}}",
                ),
            ),
            6,
        ),
    ),
)

SAFETY = Row(
    "What must outlive the agent",
    (
        Panel(
            "Keeper",
            "1 while it answers and holds every open device. At 0 an agent that ends loses its devices.",
            Kind.LINES,
            "short",
            (Query(f"min by (node) ({of_agents('vfio_agent_keeper_up')})", "{{node}}"),),
            6,
            "VFIOKeeperGone",
        ),
        Panel(
            "Unreadable records",
            "Of the journal: nothing is done with their sessions' devices until somebody looks.",
            Kind.LINES,
            "short",
            (Query(f"sum by (node) ({of_agents('vfio_agent_unreadable_records')})", "{{node}}"),),
            6,
            "VFIOUnreadableRecords",
        ),
        Panel(
            "Recoveries from the journal",
            "Sessions that a new agent process took up.",
            Kind.LINES,
            "short",
            (
                Query(
                    total(of_agents("vfio_agent_journal_recoveries_total"), "node", "outcome"),
                    "{{node}} {{outcome}}",
                ),
            ),
            6,
        ),
        Panel(
            "Epoch seen",
            "The highest leader's that a node has seen; all must be those of the newest leader.",
            Kind.LINES,
            "short",
            (Query(f"max by (node) ({of_agents('vfio_agent_epoch')})", "{{node}}"),),
            6,
        ),
    ),
)

DEVICES = Row(
    "Devices",
    (
        Panel(
            "Devices by driver",
            "That can migrate, and that cannot.",
            Kind.BARS,
            "short",
            (
                Query(
                    f"sum by (node, driver, migratable) ({of_agents('vfio_agent_devices')})",
                    "{{node}} {{driver}} migratable={{migratable}}",
                ),
            ),
            6,
        ),
        Panel(
            "Arcs by driver, p99",
            "How long devices of a driver take to change their migration state.",
            Kind.LINES,
            "s",
            (
                Query(
                    quantile(0.99, of_agents("vfio_agent_arc_duration_seconds_bucket"), "driver", "to_state"),
                    "{{driver}} -> {{to_state}}",
                ),
            ),
            6,
        ),
        Panel(
            "Arcs by result",
            "Changes of a migration state in the window; an error rolls the migration back.",
            Kind.STACK,
            "short",
            (
                Query(
                    total(of_agents("vfio_agent_arc_duration_seconds_count"), "node", "driver", "result"),
                    "{{node}} {{driver}} {{result}}",
                ),
            ),
            6,
        ),
        Panel(
            "Versions",
            "Of the agents; several are normal during a roll-out only.",
            Kind.BARS,
            "short",
            (
                Query(f"count by (version) ({of_agents('vfio_agent_build_info')})", "agent {{version}}"),
                Query(f"count by (version) ({of_operator('vfio_operator_build_info')})", "operator {{version}}"),
            ),
            6,
        ),
    ),
)

NODES = Dashboard(
    "vfio-nodes",
    "VFIO migration / Nodes",
    "Agents, their connection, sessions, keeper, journal and devices.",
    (CONNECTION, SESSIONS, SAFETY, DEVICES),
)
