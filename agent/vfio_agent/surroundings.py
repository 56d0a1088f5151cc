"""What the sessions of one agent share."""

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vfio_agent.holdings import Holdings
from vfio_agent.journal import Journal
from vfio_agent.metrics import AgentMetrics
from vfio_agent.pods import Pods
from vfio_agent.receiver import DataServer
from vfio_api.spans import Sink

if TYPE_CHECKING:
    from vfio_agent.session import Session


@dataclass(frozen=True, slots=True)
class Surroundings:
    """`arcs` runs blocking device calls; `notify` is called on the event loop.

    traces: None if tracing is off. epoch: of the newest leader that this node has seen.
    """

    holdings: Holdings
    journal: Journal
    server: DataServer
    arcs: Executor
    metrics: AgentMetrics
    notify: Callable[["Session"], None]
    pods: Pods = field(default_factory=Pods)
    traces: Sink | None = None
    epoch: Callable[[], int] = lambda: 0
