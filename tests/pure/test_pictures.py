"""Drawings for the documents: well-formed, and never of something else than what the text says."""

from xml.etree import ElementTree

import pytest

from devtools.pictures import PICTURES
from devtools.sequence_picture import draw

DIAGRAM = """sequenceDiagram
    participant API as API server
    participant node-a
    node-a->>API: decision Abort (if unset) & more [1 ms]
    API-->>node-a: Abort [2 ms]
    Note right of node-a: sim0 reset [3 ms]
"""


def words(svg: str) -> list[str]:
    return [found.text or "" for found in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_well_formed_and_stays_on_its_paper(name: str) -> None:
    drawing = PICTURES[name]()
    for shape in ElementTree.fromstring(drawing.text()).iter():
        if "x" in shape.attrib:
            assert 0 <= float(shape.attrib["x"]) + float(shape.get("width", "0")) <= drawing.width
            assert 0 <= float(shape.attrib["y"]) <= drawing.height


def test_every_line_of_a_sequence_is_drawn() -> None:
    assert words(draw(DIAGRAM).text()) == [
        "API server",
        "node-a",
        "decision Abort (if unset) & more [1 ms]",
        "Abort [2 ms]",
        "sim0 reset [3 ms]",
    ]


@pytest.mark.parametrize("line", ["loop forever", "Note left of node-a: x", "node-a-)API: x"])
def test_a_line_that_cannot_be_drawn_is_not_left_out(line: str) -> None:
    with pytest.raises(ValueError, match="no line of a sequence"):
        draw(DIAGRAM + line)
