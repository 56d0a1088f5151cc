"""What the doctor finds: one line, how bad it is, and what to do. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from vfio_cli.problems import UserError

# An object, None if there is none, or why it could not be read.
Found = Mapping[str, Any] | UserError | None
FORBIDDEN = 403
UPGRADE = "install the chart anew: helm upgrade"
BY_OTHERS = "have an administrator run kubectl vfio doctor, or helm test --logs"


class Level(StrEnum):
    """How bad it is. Failed: nothing can be migrated, or not safely."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor; next_step is empty if all is well. unseen: it could not be looked at, for its reason."""

    level: Level
    subject: str
    text: str
    next_step: str = ""
    unseen: UserError | None = None


def unseen(subject: str, why: UserError, text: str = "could not be looked at") -> Finding:
    """That it could not be looked at, and why."""
    next_step = BY_OTHERS if why.status == FORBIDDEN else why.next_step
    return Finding(Level.WARNING, subject, f"{text}: {why.found}", next_step, why)
