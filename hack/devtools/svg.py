"""Drawings as SVG, without a library: boxes, arrows and words on a grid of pixels."""

from collections.abc import Iterable, Sequence
from xml.sax.saxutils import escape

INK, FAINT, PAPER = "#263238", "#90a4ae", "#ffffff"
SOURCE, TARGET, PLAIN = "#e3f2fd", "#e8f5e9", "#eceff1"
_SIZE = 13


class Drawing:
    """Collects shapes; `text` gives the document. Colours are those of the paper, so that it can lie on any page."""

    def __init__(self, width: int, height: int, title: str):
        self.width, self.height, self.title = width, height, title
        self._parts: list[str] = []

    def box(self, x: float, y: float, width: float, height: float, lines: Sequence[str], fill: str = PLAIN) -> None:
        """A box with lines of words in its middle."""
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6" fill="{fill}" stroke="{INK}"/>'
        )
        top = y + height / 2 - (len(lines) - 1) * 8 + 4.5
        for number, line in enumerate(lines):
            self.words(x + width / 2, top + 16 * number, line)

    def words(self, x: float, y: float, text: str, *, anchor: str = "middle", size: int = _SIZE) -> None:
        """One line of words."""
        self._parts.append(
            f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="{size}" fill="{INK}">{escape(text)}</text>'
        )

    def line(
        self,
        points: Iterable[tuple[float, float]],
        *,
        ink: str = INK,
        width: float = 1.3,
        dash: str = "",
        head: bool = True,
    ) -> None:
        """A line through points, with an arrow's head at its end."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        extra = f' stroke-dasharray="{dash}"' if dash else ""
        extra += ' marker-end="url(#head)"' if head else ""
        self._parts.append(f'<polyline points="{path}" fill="none" stroke="{ink}" stroke-width="{width:g}"{extra}/>')

    def text(self) -> str:
        """The SVG document."""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
            'style="max-width:100%;height:auto" font-family="sans-serif" role="img">'
            f"<title>{escape(self.title)}</title>"
            '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
            f'orient="auto"><path d="M0,0 L10,5 L0,10 z" fill="{INK}"/></marker></defs>'
            f'<rect width="100%" height="100%" fill="{PAPER}"/>'
        )
        return "\n".join([head, *self._parts, "</svg>"]) + "\n"
