"""A network that delivers the first command to a target once more, when its session has ended under a later leader."""

from vfio_agent.agent import Agent
from vfio_agent.session import Session
from vfio_api.types import Command, Goal, Role

_take, _end = Agent.take, Agent._end
_first: dict[str, Command] = {}


def _keep(self: Agent, command: Command) -> None:
    if (command.role, command.goal) == (Role.TARGET, Goal.PREPARED):
        _first.setdefault(command.migration.uid, command)
    _take(self, command)


def _end_and_deliver(self: Agent, identity: tuple[str, Role], session: Session) -> None:
    _end(self, identity, session)
    late = _first.get(identity[0])
    if identity[1] is Role.TARGET and late is not None and late.epoch < self.highest_epoch:
        self.take(late)


def deliver_late() -> None:
    """From now on, in this process."""
    Agent.take, Agent._end = _keep, _end_and_deliver
