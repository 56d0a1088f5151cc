"""One hierarchy of errors, each with a machine-readable reason and a message for people.

A message names the object, what was expected, what was found, and the next step.
"""

from enum import StrEnum


class Reason(StrEnum):
    """Why something failed: the `reason` of conditions, Events and the label of the outcome metric."""

    # refused before anything was touched
    UNKNOWN_NODE = "UnknownNode"
    AGENT_NOT_CONNECTED = "AgentNotConnected"
    UNKNOWN_DEVICE = "UnknownDevice"
    DEVICE_NOT_MIGRATABLE = "DeviceNotMigratable"
    DEVICE_CLAIMED = "DeviceClaimed"
    SOURCE_NOT_HELD = "SourceNotHeld"
    TARGET_HAS_HOLDER = "TargetHasHolder"
    SOURCE_EQUALS_TARGET = "SourceEqualsTarget"
    DUPLICATE_DEVICE = "DuplicateDevice"
    INCOMPATIBLE_DEVICES = "IncompatibleDevices"
    P2P_UNSUPPORTED = "P2PUnsupported"
    PRE_COPY_UNSUPPORTED = "PreCopyUnsupported"
    UNSUPPORTED_SPEC = "UnsupportedSpec"
    # failed on the way, rolled back
    ARC_FAILED = "ArcFailed"
    DEVICE_LOST = "DeviceLost"
    STREAM_BROKEN = "StreamBroken"
    STATE_REFUSED = "StateRefused"
    CONVERGENCE_TIMEOUT = "ConvergenceTimeout"
    STEP_TIMEOUT = "StepTimeout"
    AGENT_LOST = "AgentLost"
    AGENT_RESTARTED = "AgentRestarted"
    OPERATOR_RESTARTED = "OperatorRestarted"
    STALE_EPOCH = "StaleEpoch"
    COMMAND_REFUSED = "CommandRefused"
    FRAME_INVALID = "FrameInvalid"
    PEER_REFUSED = "PeerRefused"
    INTERNAL_ERROR = "InternalError"
    # asked for by the user
    CANCELLED = "Cancelled"
    # honest exceptions
    SOURCE_STATE_LOST = "SourceStateLost"
    TARGET_LOST_AFTER_COMMIT = "TargetLostAfterCommit"
    ROLLBACK_INCOMPLETE = "RollbackIncomplete"


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


class StreamError(VFIOMigrationError):
    """A data stream between two agents broke, stalled or carried what it must not."""

    reason = Reason.STREAM_BROKEN


class FrameError(StreamError):
    """Bytes on a data stream are not a legal frame here: truncated, oversized or out of order."""

    reason = Reason.FRAME_INVALID


class CommandError(VFIOMigrationError):
    """An agent refuses a command: older epoch, unknown session, or a goal that its state does not allow."""

    reason = Reason.COMMAND_REFUSED
