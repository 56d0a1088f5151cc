"""A mermaid sequence diagram as SVG: the few kinds of lines that docs/sequences.md has, and no others."""

import re

from devtools.svg import FAINT, PLAIN, SOURCE, Drawing

PARTICIPANT = re.compile(r"participant (\S+)(?: as (.+))?")
NOTE = re.compile(r"Note (?:over|right of) (\S+): (.+)")
MESSAGE = re.compile(r"(\S+?)(-?->>)(\S+): (.+)")
COLUMN, ROW, TOP = 236, 21, 60


def draw(diagram: str) -> Drawing:
    """The drawing of a `sequenceDiagram`. Raises ValueError with the first line that is of another kind."""
    lines = [line.strip() for line in diagram.strip().splitlines()]
    if lines[0] != "sequenceDiagram":
        raise ValueError(f"not a sequence diagram: {lines[0]}")
    names = [found for line in lines if (found := PARTICIPANT.fullmatch(line))]
    places = {found[1]: 128 + number * COLUMN for number, found in enumerate(names)}
    said = [line for line in lines[1:] if not PARTICIPANT.fullmatch(line)]
    drawing = Drawing(20 + COLUMN * len(places), TOP + ROW * len(said) + 20, "What was said and done, in order")
    for found in names:
        x = places[found[1]]
        drawing.line([(x, 40), (x, drawing.height - 8)], ink=FAINT, head=False)
        drawing.box(x - 80, 8, 160, 32, [found[2] or found[1]], SOURCE)
    for row, line in enumerate(said):
        y = TOP + ROW * row
        if note := NOTE.fullmatch(line):
            drawing.box(places[note[1]] - 112, y, 224, 18, [], PLAIN)
            drawing.words(places[note[1]], y + 13, note[2], size=10)
        elif message := MESSAGE.fullmatch(line):
            start, end = places[message[1]], places[message[3]]
            drawing.line([(start, y + 15), (end, y + 15)], dash="5 3" if message[2] == "-->>" else "")
            drawing.words((start + end) / 2, y + 11, message[4], size=10)
        else:
            raise ValueError(f"no line of a sequence that can be drawn: {line}")
    return drawing
