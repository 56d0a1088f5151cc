"""What a downtime is made of: the one table of its steps, in the order in which they follow each other."""

from vfio_api.reasons import Word


class DowntimeStep(Word):
    """A part of the downtime. The parts of one migration add up to its downtime, on the operator's clock."""

    PAUSE = ("Pause", "The workload is being paused.", "Look at how the workload is paused.")
    BARRIER_A = (
        "BarrierA",
        "All sources enter a P2P state.",
        "Look at the arcs of the slowest source's devices.",
    )
    BARRIER_B = (
        "BarrierB",
        "All sources enter STOP_COPY.",
        "Look at the arcs of the slowest source's devices.",
    )
    TRANSFER = (
        "Transfer",
        "What is left of the state is sent, and after Commit sent once more if a target lost it.",
        "Look at the rate of the stop-copy stage, and at how much state is left when pre-copy ends.",
    )
    LOAD = (
        "Load",
        "The slowest target device checks what it has loaded (RESUMING to STOP), after the last source was done.",
        "Look at the arc RESUMING to STOP of that driver.",
    )
    VOTE = (
        "Vote",
        "The votes of the targets are on their way.",
        "Look at the load of the operator and of the targets' nodes.",
    )
    DECISION = ("Decision", "The decision is written and read back.", "Look at the API server and at etcd's disk.")
    BARRIER_C = (
        "BarrierC",
        "All targets enter RUNNING_P2P.",
        "Look at the arcs of the slowest target's devices.",
    )
    BARRIER_D = (
        "BarrierD",
        "All targets enter RUNNING.",
        "Look at the arcs of the slowest target's devices.",
    )
    FAILOVER = (
        "Failover",
        "Another operator led, or none.",
        "Look at why the leader changed: operator pods, their nodes, the Lease.",
    )
    RESUME = ("Resume", "The workload is being resumed.", "Look at how the workload is resumed.")
