"""What the tasks of one leader share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from vfio_api.spans import Sink
from vfio_operator.channel import Agents
from vfio_operator.history import History
from vfio_operator.kept import Kept
from vfio_operator.kube import OperatorApi
from vfio_operator.leader import Leadership
from vfio_operator.metrics import OperatorMetrics
from vfio_operator.observed import DeviceRecord, Limits
from vfio_operator.policies import Policy
from vfio_operator.turns import Turnstile


@dataclass(frozen=True, slots=True)
class Context:
    """What the tasks of one leader share. settled_at: loop time from when agents have had the time to dial.
    successor_seconds: for how long an agent that has left may be without a successor.

    reserved: migration UID -> the devices (node, address) that it has chosen, until its task ends.
    """

    api: OperatorApi
    agents: Agents
    leadership: Leadership
    metrics: OperatorMetrics
    inventory: Mapping[tuple[str, str], DeviceRecord]
    history: History
    settled_at: float
    limits: Limits
    turnstile: Turnstile
    policies: Mapping[str, Policy]
    emptied: Callable[[], frozenset[str]]
    kept: Kept
    successor_seconds: float = 0.0
    traces: Sink | None = None
    reserved: dict[str, frozenset[tuple[str, str]]] = field(default_factory=dict)
