"""The words of conditions and Events, each with what it means and what to do next: the one place for both.

Reasons of failures are in `errors`, of the same form. docs/reference.md is drawn from here.
"""

from enum import StrEnum


class Word(StrEnum):
    """A word for programs that people can look up. It is its value; `meaning` and `next_step` are one sentence each."""

    meaning: str
    next_step: str

    def __new__(cls, value: str, meaning: str = "", next_step: str = "") -> "Word":
        """Make the member that is equal to `value`."""
        word = str.__new__(cls, value)
        word._value_ = value
        word.meaning, word.next_step = meaning, next_step
        return word


class ConditionReason(Word):
    """Why a condition of a VFIOMigration has the status it has, unless a failure is why: then it is that `Reason`."""

    # Validated
    VALIDATED = (
        "Validated",
        "Every pair exists, is free and fits, and the requester may use its devices.",
        "Nothing; the devices are reserved next.",
    )
    CHECKING = (
        "Checking",
        "The pairs have not been checked to the end: agents or the inventory are waited for.",
        "If it lasts, look at the message: it names what is waited for.",
    )
    # Prepared, Converged, Quiesced, Committed
    DEVICES_PREPARED = (
        "DevicesPrepared",
        "The agents hold every source device, and every target device is in RESUMING and listens.",
        "Nothing; the state is copied next.",
    )
    WITHIN_LIMIT = (
        "WithinLimit",
        "The targets have loaded the initial bytes and the forecast of the downtime is within the limit.",
        "Nothing; the switchover begins, or in a rehearsal the sources run on.",
    )
    FORECAST = (
        "Forecast",
        "The forecast of the downtime is not yet within downtimeLimitMilliseconds.",
        "If it does not fall, raise the downtime or bandwidth limit in a new migration, or calm the workload.",
    )
    NOT_ACKNOWLEDGED = (
        "NotAcknowledged",
        "A target has not yet said that it loaded the initial bytes of its device.",
        "If it lasts, look at status.progress and at the log of the target's agent.",
    )
    BARRIER_PASSED = (
        "BarrierPassed",
        "Every source device was P2P quiescent before any was stopped.",
        "Nothing; the rest of the state is sent.",
    )
    COMMIT = (
        "Commit",
        "Every target had loaded and validated its state, and the decision is Commit.",
        "Nothing; the targets start and the sources never run again.",
    )
    NOT_REACHED = (
        "NotReached",
        "The migration has not come to this point, or ended before it.",
        "Look at the condition Succeeded if the migration is finished, else wait.",
    )
    # Succeeded
    IN_PROGRESS = (
        "InProgress",
        "The migration is not finished.",
        "Wait: kubectl wait --for=condition=Finished.",
    )
    PLANNED = (
        "Planned",
        "mode: Plan: the migration could be done; nothing was touched.",
        "Create it again under another name with mode: Rehearse or Migrate.",
    )
    REHEARSED = (
        "Rehearsed",
        "mode: Rehearse: everything up to convergence was done, then the sources ran on.",
        "Look at status.predictedDowntimeMicroseconds, then create it under another name with mode: Migrate.",
    )
    # Finished has the phase for its reason
    PENDING = (
        "Pending",
        "It is accepted or being checked; nothing is touched yet.",
        "Wait; the message says for what.",
    )
    PREPARING = (
        "Preparing",
        "Devices are being reserved, opened and connected.",
        "Wait; it ends by itself after a minute.",
    )
    PRE_COPY = (
        "PreCopy",
        "State is being copied while the sources run.",
        "Wait; status.progress tells how far it is.",
    )
    SWITCHOVER = (
        "Switchover",
        "The sources are being stopped and the rest of their state is sent; this is downtime.",
        "Wait; it ends by itself after switchoverTimeoutSeconds.",
    )
    STARTING = (
        "Starting",
        "The decision is Commit and the targets are being started.",
        "Wait; it cannot be cancelled any more.",
    )
    ROLLING_BACK = (
        "RollingBack",
        "Something failed or was cancelled: the sources go back to RUNNING and the targets are reset.",
        "Wait; the message says what failed.",
    )
    SUCCEEDED = (
        "Succeeded",
        "Every device runs at its target; in a plan or a rehearsal: what was asked for was done.",
        "Have the workload open the target devices if it has not.",
    )
    FAILED = (
        "Failed",
        "It ended without success; the condition Succeeded has the reason.",
        "Do what its message says, then create a new VFIOMigration.",
    )
    CANCELLED = (
        "Cancelled",
        "It was cancelled or deleted before the decision; every source runs on.",
        "Nothing; create a new VFIOMigration to try again.",
    )


class EventReason(Word):
    """What the operator announces by an Event on the VFIOMigration.

    One that fails or is cancelled ends with an Event whose reason is the `Reason`.
    """

    PREPARING = ("Preparing", "The devices are reserved and being prepared.", "Nothing.")
    PRE_COPY_STARTED = (
        "PreCopyStarted",
        "The state of the devices is being copied while they run.",
        "Watch status.progress.",
    )
    CONVERGED = (
        "Converged",
        "The targets have loaded the initial bytes and the forecast is within the downtime limit.",
        "Nothing.",
    )
    SWITCHOVER_STARTED = (
        "SwitchoverStarted",
        "The source devices are being stopped: the downtime begins.",
        "Nothing; if it fails before the decision, the sources run on.",
    )
    COMMITTED = (
        "Committed",
        "Every target has loaded its state and the decision is Commit.",
        "Nothing; from here it cannot be cancelled.",
    )
    SWITCHED = ("Switched", "Every device runs at its target: the downtime is over.", "Nothing.")
    ROLLING_BACK = (
        "RollingBack",
        "Something failed or was cancelled: the sources go back to RUNNING.",
        "Read the Event's message; the next Event says how it ended.",
    )
    SUCCEEDED = (
        "Succeeded",
        "The migration is finished and every device runs at its target.",
        "Have the workload open the target devices if it has not.",
    )
    PLANNED = (
        "Planned",
        "mode: Plan is finished: the migration could be done; nothing was touched.",
        "Read the forecast in the message, then create it under another name with mode: Rehearse or Migrate.",
    )
    REHEARSED = (
        "Rehearsed",
        "mode: Rehearse is finished: it converged with the real targets and the sources run on.",
        "Read the forecast in the message, then create it under another name with mode: Migrate.",
    )
    EXPIRED = (
        "Expired",
        "The finished migration is deleted: ttlSecondsAfterFinished is over.",
        "Nothing; leave ttlSecondsAfterFinished out to keep migrations.",
    )
