"""One hierarchy of errors, each with a machine-readable reason and a message for people.

A message names the object, what was expected, what was found, and the next step.
"""

from vfio_api.reasons import Word


class Reason(Word):
    """Why something failed: the `reason` of conditions, Events and the label of the outcome metric."""

    # refused before anything was touched
    UNKNOWN_NODE = (
        "UnknownNode",
        "A node named in the spec does not exist.",
        "Correct the name: kubectl get nodes.",
    )
    AGENT_NOT_CONNECTED = (
        "AgentNotConnected",
        "A node has no agent that is connected to the operator.",
        "Look at the vfio-agent pod of that node and at its log.",
    )
    UNKNOWN_DEVICE = (
        "UnknownDevice",
        "A device named in the spec is not on that node.",
        "Correct the name: kubectl get vfd.",
    )
    UNKNOWN_POD = (
        "UnknownPod",
        "The pod of the shorthand does not exist in the migration's namespace or runs on no node.",
        "Correct spec.source.podName: kubectl get pods -o wide.",
    )
    NOTHING_TO_MIGRATE = (
        "NothingToMigrate",
        "The node or pod of the shorthand has no migratable device that is in use.",
        "Look at HOLDER in kubectl get vfd, or name the pairs in spec.devices.",
    )
    NO_COMPATIBLE_TARGET = (
        "NoCompatibleTarget",
        "The target node has no free device of the same kind left for a source device.",
        "Free a device there, choose another target node, or name the pairs in spec.devices.",
    )
    DEVICE_NOT_MIGRATABLE = (
        "DeviceNotMigratable",
        "A device or its driver cannot migrate: it does not offer STOP_COPY.",
        "Bind the device to a driver that can migrate, or leave it out.",
    )
    DEVICE_CLAIMED = (
        "DeviceClaimed",
        "Another migration has reserved a device.",
        "Wait until that migration is finished, or cancel it.",
    )
    SOURCE_NOT_HELD = (
        "SourceNotHeld",
        "A source device is not open, so it carries no state.",
        "Have the workload open it through the agent's socket first.",
    )
    TARGET_HAS_HOLDER = (
        "TargetHasHolder",
        "A target device is in use, and loading would overwrite its state.",
        "Choose a free device, or close this one.",
    )
    SOURCE_EQUALS_TARGET = (
        "SourceEqualsTarget",
        "Source and target of a pair are the same device.",
        "Name another device or another node as the target.",
    )
    DUPLICATE_DEVICE = (
        "DuplicateDevice",
        "A device appears more than once in the migration.",
        "Name every device once.",
    )
    INCOMPATIBLE_DEVICES = (
        "IncompatibleDevices",
        "Source and target of a pair differ in driver, model or migration flags.",
        "Choose a target of the same kind; the message names what differs.",
    )
    P2P_UNSUPPORTED = (
        "P2PUnsupported",
        "Several devices migrate together, and one of them does not support P2P.",
        "Migrate that device alone.",
    )
    PRE_COPY_UNSUPPORTED = (
        "PreCopyUnsupported",
        "preCopy is Required, and a device does not support it.",
        "Use preCopy: Auto.",
    )
    POD_NOT_MOVABLE = (
        "PodNotMovable",
        "The pod cannot have a counterpart on another node: its controller, its volumes or its ports forbid it.",
        "Do what the message says; the pod's devices can still be named one by one in spec.devices.",
    )
    POD_DEVICES_SPLIT = (
        "PodDevicesSplit",
        "Some, but not all, of a pod's devices were named, and they may do P2P among themselves.",
        "Name all of the pod's devices that the message lists, or use spec.source.podName.",
    )
    DEVICE_AMBIGUOUS = (
        "DeviceAmbiguous",
        "More than one open file may be the device, so it was not guessed which.",
        "Have the process say it through the agent's socket; the message lists what was found.",
    )
    FORBIDDEN_POD = (
        "ForbiddenPod",
        "Who asked for the migration may not delete its source pod or create pods.",
        "Ask an administrator for these rights in the pod's namespace.",
    )
    NODE_BEING_EMPTIED = (
        "NodeBeingEmptied",
        "The target node is being emptied by a VFIOEvacuation.",
        "Choose another target node, or wait for the end of that: kubectl get vfe.",
    )
    POLICY_CONFLICT = (
        "PolicyConflict",
        "Two VFIOMigrationPolicies select the migration, and neither is more specific.",
        "Add a label to one of their selectors, or delete one: kubectl get vfp.",
    )
    UNSUPPORTED_SPEC = (
        "UnsupportedSpec",
        "The spec asks for what this version of the operator cannot do.",
        "Change what the message names.",
    )
    FORBIDDEN_DEVICE = (
        "ForbiddenDevice",
        "Who asked for the migration may not use one of its devices.",
        "Ask an administrator for the verb use on that vfiodevices object.",
    )
    REQUESTER_UNKNOWN = (
        "RequesterUnknown",
        "The API server did not record who asked for the migration, so no right can be checked.",
        "Ask an administrator whether the chart's admission policies are installed, then create it anew.",
    )
    # failed on the way, rolled back
    POD_GONE = (
        "PodGone",
        "The source pod was deleted or evicted, or has ended, before the decision.",
        "Look at kubectl describe pod and at the Events of its node.",
    )
    TARGET_POD_FAILED = (
        "TargetPodFailed",
        "The counterpart of the source pod could not be created or scheduled, did not start in time, or ended.",
        "Look at the message and at kubectl describe pod of the counterpart, then try again.",
    )
    PAUSE_FAILED = (
        "PauseFailed",
        "The workload could not be paused, or could not save or load its state; it runs on at the source.",
        "Look at what the message says of its processes or of its hook.",
    )
    RESUME_FAILED = (
        "ResumeFailed",
        "The workload could not be resumed.",
        "Resume it by hand, as the message says.",
    )
    ARC_FAILED = (
        "ArcFailed",
        "A device refused a change of its migration state.",
        "Look at the device, arc and errno in the message, and at the kernel log of its node.",
    )
    DEVICE_LOST = (
        "DeviceLost",
        "A device could not be opened, or is no longer held by its agent.",
        "Look at the device's driver and at the keeper on its node.",
    )
    STREAM_BROKEN = (
        "StreamBroken",
        "A data stream between two agents broke or stalled.",
        "Look at the network between the nodes and at both agents' logs, then try again.",
    )
    STATE_REFUSED = (
        "StateRefused",
        "A target device refused the state that it was given.",
        "Compare driver and firmware versions of both devices; choose another target.",
    )
    CONVERGENCE_TIMEOUT = (
        "ConvergenceTimeout",
        "Pre-copy did not bring the forecast within the downtime limit in time.",
        "Raise downtimeLimitMilliseconds or the bandwidth limit, or set onConvergenceTimeout: Switchover.",
    )
    STEP_TIMEOUT = (
        "StepTimeout",
        "A step was not done in its time, although every agent was connected.",
        "Look at the log of the agent that the message names, then try again.",
    )
    AGENT_LOST = (
        "AgentLost",
        "An agent lost its connection to the operator during a step.",
        "Look at the vfio-agent pod and the network of that node, then try again.",
    )
    AGENT_RESTARTED = (
        "AgentRestarted",
        "An agent restarted during the migration; its data streams were gone.",
        "Try again when its pod is stable.",
    )
    OPERATOR_RESTARTED = (
        "OperatorRestarted",
        "An earlier leader of the operator was rolling back when it ended.",
        "Look at the Events and at the earlier leader's log, then try again.",
    )
    JOURNAL_FAILED = (
        "JournalFailed",
        "An agent could not record what it was about to do, so it did not do it.",
        "Look at the free space of the agent's state directories on the node that the message names.",
    )
    SWITCHOVER_TIMEOUT = (
        "SwitchoverTimeout",
        "A source heard nothing of the switchover for switchoverTimeoutSeconds and asked for Abort by itself.",
        "Look at the operator's pods and at the network between them and that node, then try again.",
    )
    STALE_EPOCH = (
        "StaleEpoch",
        "A command came from a leader that had been replaced.",
        "Nothing for one; if it repeats, look for a second operator.",
    )
    COMMAND_REFUSED = (
        "CommandRefused",
        "An agent refused a command that its state does not allow.",
        "Look at the agent's log; report it if it repeats.",
    )
    FRAME_INVALID = (
        "FrameInvalid",
        "A data stream carried what is no legal frame.",
        "Compare the agents' versions; report it if it repeats.",
    )
    PEER_REFUSED = (
        "PeerRefused",
        "A data connection came from somebody other than the expected agent.",
        "Look for a proxy between the nodes, and for two agents on one node.",
    )
    INTERNAL_ERROR = (
        "InternalError",
        "A bug in the agent or the operator.",
        "Report it with the log that the message names.",
    )
    # asked for by the user
    CANCELLED = (
        "Cancelled",
        "spec.cancel was set, or the migration was deleted, before the decision; every source runs on.",
        "Nothing; create a new VFIOMigration to try again.",
    )
    # honest exceptions
    SOURCE_STATE_LOST = (
        "SourceStateLost",
        "A source device fell into ERROR or was closed, and its state is gone.",
        "Restart the workload, which must set the device up anew.",
    )
    TARGET_LOST_AFTER_COMMIT = (
        "TargetLostAfterCommit",
        "A target failed after the decision was Commit.",
        "Look at the target's node; restart the workload there if the device does not come back.",
    )
    ROLLBACK_INCOMPLETE = (
        "RollbackIncomplete",
        "It was rolled back, but not every device could be returned to its state.",
        "Look at status.devices and the agents' logs; restart the workload if a source does not run.",
    )


class VFIOMigrationError(Exception):
    """Base of every error this project raises on purpose; never raised itself.

    Attributes: `reason` for programs, `message` for people, and the `device` (its name in the migration) if one
    is concerned.
    """

    reason: Reason

    def __init__(self, message: str, *, reason: Reason | None = None, device: str = ""):
        if type(self) is VFIOMigrationError:
            raise TypeError("VFIOMigrationError is the base of the hierarchy: raise one of its children")
        super().__init__(message)
        self.message = message
        self.device = device
        if reason is not None:
            self.reason = reason


class DeviceError(VFIOMigrationError):
    """A device refused an arc, a read or a write. `errno` is the kernel's; `arc` names the states."""

    reason = Reason.ARC_FAILED

    def __init__(
        self,
        message: str,
        *,
        reason: Reason | None = None,
        device: str = "",
        arc: str = "",
        errno: int = 0,
    ):
        super().__init__(message, reason=reason, device=device)
        self.arc, self.errno = arc, errno


class WorkloadError(VFIOMigrationError):
    """A workload could not be found, paused, saved, loaded or resumed."""

    reason = Reason.PAUSE_FAILED


class StreamError(VFIOMigrationError):
    """A data stream between two agents broke, stalled or carried what it must not."""

    reason = Reason.STREAM_BROKEN


class FrameError(StreamError):
    """Bytes on a data stream are not a legal frame here: truncated, oversized or out of order."""

    reason = Reason.FRAME_INVALID


class JournalError(VFIOMigrationError):
    """An agent could not record what it was about to do: it must not do it then."""

    reason = Reason.JOURNAL_FAILED


class CommandError(VFIOMigrationError):
    """An agent refuses a command: older epoch, unknown session, or a goal that its state does not allow."""

    reason = Reason.COMMAND_REFUSED
