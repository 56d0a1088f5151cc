"""The pictures of the documents, drawn from the tables that the code runs on."""

import math
from collections.abc import Mapping
from itertools import pairwise

from devtools.svg import FAINT, PLAIN, SOURCE, TARGET, Drawing
from vfio_agent.machine import WAYPOINTS
from vfio_api.device import NEXT_STATE, DeviceState
from vfio_api.models_status import Phase
from vfio_api.types import Goal, Role

S = DeviceState
# where a state is drawn: by quiescence from left to right, saving above, loading below
PLACES: Mapping[DeviceState, tuple[int, int]] = {
    S.RUNNING: (100, 170),
    S.PRE_COPY: (100, 60),
    S.PRE_COPY_P2P: (330, 60),
    S.RUNNING_P2P: (330, 170),
    S.STOP_COPY: (560, 60),
    S.STOP: (560, 170),
    S.RESUMING: (560, 280),
    S.ERROR: (100, 280),
}
# the ways of one migration, as the kernel goes them
SOURCE_WAY = (S.RUNNING, S.PRE_COPY, S.PRE_COPY_P2P, S.STOP_COPY, S.STOP)
TARGET_WAY = (S.RESUMING, S.STOP, S.RUNNING_P2P, S.RUNNING)
BLUE, GREEN = "#1565c0", "#2e7d32"
WIDTH, HEIGHT = 130, 36


def _edge(start: tuple[float, float], end: tuple[float, float]) -> list[tuple[float, float]]:
    """A line between two boxes, from border to border, a little to the right so that two ways do not lie on another."""
    (x, y), (u, v) = start, end
    length = math.hypot(u - x, v - y)
    aside = ((y - v) / length * 7, (u - x) / length * 7)
    share = min((WIDTH / 2 + 3) / max(abs(u - x), 1e-9), (HEIGHT / 2 + 3) / max(abs(v - y), 1e-9))
    return [
        (x + (u - x) * share + aside[0], y + (v - y) * share + aside[1]),
        (u - (u - x) * share + aside[0], v - (v - y) * share + aside[1]),
    ]


def device() -> Drawing:
    """Every single arc of a device, with the ways of a source and of a target."""
    drawing = Drawing(690, 340, "Arcs of a device; blue: a source, green: a target")
    ways = {
        **dict.fromkeys(pairwise(SOURCE_WAY), BLUE),
        **dict.fromkeys(pairwise(TARGET_WAY), GREEN),
    }
    steps = [(old, new, step) for old, row in NEXT_STATE.items() for new, step in row.items()]
    arcs = [(old, new) for old, new, step in steps if new is step and new is not old]
    missing = set(ways) - set(arcs)
    if missing:
        raise ValueError(f"no single arcs: {missing}")
    for arc in sorted(arcs, key=lambda arc: arc in ways):
        drawing.line(_edge(PLACES[arc[0]], PLACES[arc[1]]), ink=ways.get(arc, FAINT), width=2.4 if arc in ways else 1.3)
    drawing.line(_edge(PLACES[S.ERROR], PLACES[S.RUNNING]), ink=FAINT, dash="4 3")
    drawing.words(112, 232, "reset only", anchor="start", size=11)
    for state, (x, y) in PLACES.items():
        fill = SOURCE if state in SOURCE_WAY[1:4] else TARGET if state is S.RESUMING else PLAIN
        drawing.box(x - WIDTH / 2, y - HEIGHT / 2, WIDTH, HEIGHT, [state.name], fill)
    drawing.words(345, 325, "blue: the way of a source    green: the way of a target    grey: other arcs", size=12)
    return drawing


def flow() -> Drawing:
    """From the object to devices and back, and the phases."""
    drawing = Drawing(900, 330, "From a VFIOMigration to devices and back")
    for x, lines in ((20, ["VFIOMigration", "what is wanted"]), (185, ["observe", "objects, reports"])):
        drawing.box(x, 60, 135, 50, lines)
    for x, lines in ((350, ["plan", "a pure function"]), (515, ["persist", "claims, decision"])):
        drawing.box(x, 60, 135, 50, lines)
    for x in (155, 320, 485):
        drawing.line([(x, 85), (x + 30, 85)])
    drawing.words(420, 35, "operator: the replica that leads", size=12)
    drawing.line([(180, 45), (655, 45)], ink=FAINT, head=False)
    drawing.box(700, 20, 180, 50, ["agent: sources", "PRE_COPY … STOP_COPY"], SOURCE)
    drawing.box(700, 110, 180, 50, ["agent: targets", "RESUMING … RUNNING"], TARGET)
    drawing.line([(650, 80), (697, 48)])
    drawing.line([(650, 90), (697, 128)])
    drawing.words(672, 175, "commands, by gRPC", size=11)
    drawing.line([(790, 70), (790, 107)], width=3)
    drawing.words(798, 94, "device state", anchor="start", size=11)
    drawing.line([(790, 160), (790, 215), (252, 215), (252, 113)], dash="5 3")
    drawing.words(560, 208, "reports: states, bytes, votes", size=12)
    drawing.line([(418, 110), (418, 160), (88, 160), (88, 113)], dash="5 3")
    drawing.words(170, 152, "status, Events, metrics", size=12)
    names = [Phase.PENDING, Phase.PREPARING, Phase.PRE_COPY, Phase.SWITCHOVER, Phase.STARTING, Phase.SUCCEEDED]
    for number, phase in enumerate(names):
        x = 20 + number * 148
        down = phase in (Phase.SWITCHOVER, Phase.STARTING)
        drawing.box(x, 245, 120, 30, [phase.value], "#ffe0b2" if down else PLAIN)
        if number:
            drawing.line([(x - 28, 260), (x - 2, 260)])
    drawing.line([(376, 275), (376, 307), (455, 307)], dash="4 3")
    drawing.line([(524, 275), (524, 292)], dash="4 3")
    drawing.box(458, 293, 130, 28, [Phase.ROLLING_BACK.value])
    drawing.line([(588, 307), (640, 307)], dash="4 3")
    ends = f"{Phase.FAILED.value} or {Phase.CANCELLED.value}: the sources run on"
    drawing.words(648, 311, ends, anchor="start", size=12)
    return drawing


def barriers() -> Drawing:
    """The switchover of two source nodes and two target nodes."""
    sources = [step for step, _ in WAYPOINTS[(Role.SOURCE, Goal.STOP_COPY)]]
    targets = [step for step, _ in WAYPOINTS[(Role.TARGET, Goal.RUNNING)]]
    if (sources, targets) != (["barrier_a", "barrier_b"], ["barrier_c", "barrier_d"]):
        raise ValueError("the barriers are not those that are drawn here")
    drawing = Drawing(900, 290, "The barriers of a switchover over four nodes")
    ways = [
        ("node-a, source", SOURCE, [(110, 115, "PRE_COPY_P2P"), (260, 130, "STOP_COPY, send")]),
        ("node-b, source", SOURCE, [(110, 130, "PRE_COPY_P2P"), (260, 120, "STOP_COPY, send")]),
        ("node-c, target", TARGET, [(300, 125, "load, validate"), (575, 105, "RUNNING_P2P"), (715, 75, "RUNNING")]),
        ("node-d, target", TARGET, [(270, 110, "load, validate"), (575, 118, "RUNNING_P2P"), (715, 90, "RUNNING")]),
    ]
    for row, (name, fill, steps) in enumerate(ways):
        y = 55 + row * 50
        drawing.words(8, y + 20, name, anchor="start", size=12)
        drawing.line([(105, y + 34), (880, y + 34)], ink=FAINT, head=False)
        for x, width, text in steps:
            drawing.box(x, y, width, 30, [text], fill)
    marks = [
        (247, 42, 258, "A", "all quiescent"),
        (397, 42, 144, "B", ""),
        (435, 146, 258, "", "B: all sent; vote: all loaded"),
        (702, 42, 258, "C", "all RUNNING_P2P"),
        (815, 42, 258, "D", "all RUNNING"),
    ]
    for x, top, bottom, name, what in marks:
        drawing.line([(x, top), (x, bottom)], width=2, head=False, dash="6 4")
        drawing.words(x, 36, name)
        drawing.words(x, 274, what, size=11)
    drawing.words(435, 140, "vote")
    drawing.box(455, 105, 100, 60, ["Commit,", "written once"], "#ffe0b2")
    drawing.line([(110, 14), (815, 14)], width=2)
    drawing.words(460, 10, "downtime", size=12)
    return drawing


PICTURES = {"flow": flow, "barriers": barriers, "device": device}
