"""vfio-agent that records a command when it has been carried out, not before."""

from collections.abc import Callable

from vfio_agent.__main__ import main
from vfio_agent.machine import SessionFacts
from vfio_agent.session import Session
from vfio_api.types import Command

_apply = Session.apply


def _believe(self: Session, facts: SessionFacts) -> None:
    self.facts = facts


async def _apply_then_record(self: Session, command: Command, still: Callable[[], None] = lambda: None) -> None:
    await _apply(self, command, still)
    if not self.ended:
        self.around.journal.write(self.key, self.spec, self.facts, durable=False)


if __name__ == "__main__":
    Session._record = _believe
    Session.apply = _apply_then_record
    main()
