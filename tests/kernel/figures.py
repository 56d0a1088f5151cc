"""What the kernel tests found by each way of opening devices, side by side."""

from collections import Counter
from collections.abc import Iterator, Sequence


class Figures:
    """One row for each name, one column for each way; and notes that belong to no way."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, str]] = {}
        self._notes: list[str] = []
        self._cases: dict[str, dict[str, dict[str, str]]] = {}
        self._tried: Counter[tuple[str, str]] = Counter()
        self._done: Counter[tuple[str, str]] = Counter()

    def note(self, text: str) -> None:
        """Say something of the whole session."""
        self._notes.append(text)

    def measured(self, path: str, name: str, figure: str) -> None:
        """A figure that may differ."""
        self._rows.setdefault(name, {})[path] = figure

    def same(self, path: str, name: str, figure: str) -> None:
        """A result that must not depend on the way: AssertionError if another way gave another."""
        self.measured(path, name, figure)
        assert set(self._rows[name].values()) == {figure}, f"{name} differs by the way: {self._rows[name]}"

    def case(self, path: str, name: str, case: str, outcome: str, *, same: bool = True) -> None:
        """One of many results that make up a row. AssertionError if it must be the `same` by any way, and is not."""
        ways = self._cases.setdefault(name, {})
        ways.setdefault(path, {})[case] = outcome
        found = {way[case] for way in ways.values() if case in way}
        assert not same or found == {outcome}, f"{name}, {case}: {ways}"
        counts = Counter(ways[path].values())
        outcomes = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
        self.measured(path, name, f"{counts.total()}: {outcomes}")

    def tried(self, path: str, name: str) -> None:
        """One more of those that `done` counts the successes of."""
        self._tried[path, name] += 1
        self.measured(path, name, f"{self._done[path, name]} of {self._tried[path, name]}")

    def done(self, path: str, name: str) -> None:
        """One of them succeeded."""
        self._done[path, name] += 1
        self.measured(path, name, f"{self._done[path, name]} of {self._tried[path, name]}")

    def table(self, paths: Sequence[str]) -> Iterator[str]:
        """The notes, then the table, as lines."""
        yield from self._notes
        if not self._rows:
            return
        cells = [["", *paths], *([name, *(row.get(path, "-") for path in paths)] for name, row in self._rows.items())]
        widths = [max(len(line[column]) for line in cells) for column in range(len(paths) + 1)]
        for line in cells:
            yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
