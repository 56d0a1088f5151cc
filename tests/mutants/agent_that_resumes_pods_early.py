"""vfio-agent whose targets resume their pods when they are told to start, before their devices have."""

from vfio_agent.__main__ import main
from vfio_agent.target_side import TargetSide
from vfio_api.types import Command, Goal

_before = TargetSide.before


async def _resume_first(self: TargetSide, command: Command) -> None:
    if command.goal in (Goal.RUNNING_P2P, Goal.RUNNING):
        await self._session.workloads.resume()
    await _before(self, command)


if __name__ == "__main__":
    TargetSide.before = _resume_first
    main()
