"""vfio-agent that leaves a descriptor, a thread and a task behind with every session."""

import asyncio
import os
import threading

from vfio_agent.__main__ import main
from vfio_agent.agent import Agent
from vfio_agent.session import Session
from vfio_api.types import Role

_end = Agent._end
_left: list[object] = []


def _end_and_leave(self: Agent, identity: tuple[str, Role], session: Session) -> None:
    _end(self, identity, session)
    os.open("/dev/null", os.O_RDONLY)
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    _left.append(asyncio.create_task(asyncio.Event().wait()))


if __name__ == "__main__":
    Agent._end = _end_and_leave
    main()
