"""What a plan is made of: the actions, a plan, and a step of a ladder. Frozen data, no decisions."""

from collections.abc import Callable
from dataclasses import dataclass

from vfio_api.models_status import Phase
from vfio_api.types import Failure, Goal, Outcome, Role
from vfio_operator.observed import Observed, Pair


@dataclass(frozen=True, slots=True)
class AddFinalizer:
    """Put our finalizer on the migration."""


@dataclass(frozen=True, slots=True)
class Authorize:
    """Ask whether the requester may use every device of these pairs."""

    pairs: tuple[Pair, ...]


@dataclass(frozen=True, slots=True)
class AskTurn:
    """Ask whether there is room for this migration to run."""

    pairs: tuple[Pair, ...]


@dataclass(frozen=True, slots=True)
class Look:
    """Have the agents of these nodes look at their devices anew."""

    nodes: frozenset[str]


@dataclass(frozen=True, slots=True)
class FindPod:
    """Ask for the pod that is to be moved, and for what it mounts."""


@dataclass(frozen=True, slots=True)
class StartTargetPod:
    """Mark the source pod, and create its counterpart."""


@dataclass(frozen=True, slots=True)
class KeepPod:
    """The workload runs in the counterpart now: it does not end with the migration's object any more."""


@dataclass(frozen=True, slots=True)
class SwitchPods:
    """Make the counterpart what the source pod was, and delete that."""


@dataclass(frozen=True, slots=True)
class ReleasePods:
    """Delete the counterpart, and take the marks from the source pod."""


@dataclass(frozen=True, slots=True)
class PersistPairs:
    """Write the resolved pairs into the migration's status: replay needs them."""

    pairs: tuple[Pair, ...]


@dataclass(frozen=True, slots=True)
class PersistRehearsal:
    """Write into the status that the rehearsal has come to its turning point."""


@dataclass(frozen=True, slots=True)
class PersistFailure:
    """Write into the status what the migration failed of: the next leader does not try it again."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class Claim:
    """Reserve these devices (node, address) by compare-and-set."""

    devices: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Send:
    """Tell a participant to be in `goal`. attempt and again: as in `vfio_api.types.Command`."""

    node: str
    role: Role
    goal: Goal
    decision: Outcome | None = None
    attempt: int = 0
    again: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CreateSwitchover:
    """Create the VFIOSwitchover: the durable intent to switch over."""


@dataclass(frozen=True, slots=True)
class Decide:
    """Write the decision; what is then read back rules."""

    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Unclaim:
    """Give the reserved devices free."""


@dataclass(frozen=True, slots=True)
class Finish:
    """Write the terminal status, then drop the finalizer."""

    phase: Phase
    failure: Failure | None = None


PodAction = FindPod | StartTargetPod | KeepPod | SwitchPods | ReleasePods
Action = (
    Authorize
    | AddFinalizer
    | AskTurn
    | Look
    | FindPod
    | StartTargetPod
    | KeepPod
    | SwitchPods
    | ReleasePods
    | PersistPairs
    | PersistRehearsal
    | PersistFailure
    | Claim
    | Send
    | CreateSwitchover
    | Decide
    | Unclaim
    | Finish
)

AS_SEEN = (AddFinalizer, AskTurn, Authorize, Look)
"""Actions that change nothing, or fail if the object is not any more as it was seen."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The step we are at, what to do now, and how long the step may take (seconds; 0: as long as it takes).

    pairs and findings: what was resolved and what speaks against it, for as long as no pairs are persisted.
    """

    step: str
    phase: Phase
    actions: tuple[Action, ...]
    sentence: str
    timeout_seconds: float = 0.0
    pairs: tuple[Pair, ...] = ()
    findings: tuple[Failure, ...] = ()

    @property
    def holds_as_seen(self) -> bool:
        """Whether it may be acted on although a watch, that can be behind, is all that is known of the object."""
        return bool(self.actions) and all(isinstance(action, AS_SEEN) for action in self.actions)


@dataclass(frozen=True, slots=True)
class Step:
    """One rung of a ladder."""

    name: str
    phase: Phase
    done: Callable[[Observed], bool]
    actions: Callable[[Observed], tuple[Action, ...]]
    sentence: str
    timeout: Callable[[Observed], float] = lambda _o: 0.0
