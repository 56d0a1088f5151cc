"""vfio-agent that takes commands of any epoch, to which commands of an earlier leader come late."""

from dataclasses import replace

from mutants.late_commands import deliver_late
from vfio_agent import machine
from vfio_agent.__main__ import main
from vfio_agent.agent import Agent
from vfio_api.types import Command

_carry_out = Agent._carry_out


async def _obey(self: Agent, command: Command) -> None:
    await _carry_out(self, replace(command, epoch=max(command.epoch, self.highest_epoch)))


if __name__ == "__main__":
    machine._admit_order = lambda _facts, _command: None
    deliver_late()
    Agent._carry_out = _obey
    Agent._has_ended = lambda _self, _identity, _command: False  # it goes by the epoch, too
    main()
