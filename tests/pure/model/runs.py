"""What is explored, within which bounds: a short list for the tests, a long one for `make model`."""

from dataclasses import dataclass

from pure.model.faults import KINDS, Budget, budget
from pure.model.rules import DEFAULT, Rules


@dataclass(frozen=True)
class Run:
    """One exploration. lively: every state is followed to its end. most: states, for want of room."""

    shape: str
    budget: Budget
    rules: Rules = DEFAULT
    lively: bool = True
    most: int = 1_000_000


def any_of(total: int, *kinds: str, each: int | None = None) -> Budget:
    return budget(total, **dict.fromkeys(kinds, each or total))


EVERY = tuple(KINDS)
# faults of which one makes few states, and that meet often
COMMON = ("cut", "late", "dup", "drop", "stays", "error", "cancel", "expire", "deadline", "doubt")
CRASHES = ("restart", "both", "reboot", "elect")

SHORT = (
    Run("1-1", any_of(1, *(kind for kind in EVERY if kind != "silence"))),
    Run("1-1", any_of(2, "cancel", "silence", each=1), most=40_000),
    Run("1-1", any_of(2, "error", "expire", "stays", each=1)),
    Run("2-1", any_of(1, *COMMON, "disk")),
    Run("1-2", any_of(1, *COMMON, "disk")),
)

# two faults, as many states of each as there is time for: they are many
PART = 250_000
LONG = (
    Run("1-1", any_of(1, *EVERY)),
    Run("2-1", any_of(1, *EVERY)),
    Run("1-2", any_of(1, *EVERY)),
    Run("1-1", any_of(2, *COMMON), most=PART),
    Run("1-1", any_of(2, "both", "elect", each=1), most=PART),
    Run("1-1", any_of(2, "reboot", "elect", each=1), most=PART),
    Run("1-1", any_of(2, "error", "elect", each=1), most=PART),
    Run("1-1", any_of(2, "restart", "elect", "cut", each=1), most=PART),
    Run("1-1", any_of(2, "silence", "elect", each=1), most=PART),
    Run("1-1", any_of(2, "elect", "late", "dup"), Rules(guarded=False), lively=False, most=PART),
    Run("1-1", any_of(1, "elect", "cancel", "expire"), Rules(in_flight=2), most=PART),
)

# shape, faults in a walk, walks, the worst of them
WALKS = tuple(
    (shape, 6, 150, worst)
    for shape in ("1-1", "2-1", "1-2", "2-2", "3 pairs 2-2")
    for worst in ("error", "both", "reboot", "disk")
)
