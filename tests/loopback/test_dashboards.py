"""The dashboards' JSON is what Grafana's own schema says, and leads to pages that are there."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from devtools.dashboards.boards import DASHBOARDS
from devtools.dashboards.declared import Dashboard
from devtools.grafana_schema import complaints

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "charts/vfio-migration/dashboards"


def text_of(board: Dashboard) -> str:
    return (FOLDER / f"{board.uid}.json").read_text()


def test_grafanas_schema_takes_them(tmp_path: Path) -> None:
    assert complaints({board.uid: text_of(board) for board in DASHBOARDS}, tmp_path) == ""


def _changed(change: Any) -> str:
    board = json.loads(text_of(DASHBOARDS[0]))
    panels = {panel["type"]: panel for panel in board["panels"]}
    change(board, panels)
    return json.dumps(board)


WRONG: dict[str, Any] = {
    "a field of the dashboard": lambda board, _: board.update(refreshes="30s"),
    "a variable's kind": lambda board, _: board["templating"]["list"][0].update(type="data"),
    "a field of a panel": lambda _, panels: panels["stat"].update(descriptions="?"),
    "a panel's kind": lambda _, panels: panels["stat"].update(type="graph"),
    "an option of a panel": lambda _, panels: panels["timeseries"]["options"].update(legends={}),
    "an option's value": lambda _, panels: panels["timeseries"]["options"]["legend"].update(displayMode="tables"),
    "a field's style": lambda _, panels: panels["timeseries"]["fieldConfig"]["defaults"]["custom"].update(fill=1),
    "where it is": lambda _, panels: panels["heatmap"].update(gridPos={"h": "8"}),
}


def test_mutants_what_grafana_does_not_know_is_seen(tmp_path: Path) -> None:
    said = complaints({f"wrong{number}": _changed(change) for number, change in enumerate(WRONG.values())}, tmp_path)
    seen = set(re.findall(r"^wrong(\d+)\.ts\(", said, re.MULTILINE))
    assert [name for number, name in enumerate(WRONG) if str(number) not in seen] == []


@pytest.mark.parametrize("board", DASHBOARDS, ids=lambda board: board.uid)
def test_a_dashboard_can_be_read_by_who_did_not_write_it(board: Dashboard) -> None:
    made = json.loads(text_of(board))
    assert {variable["name"] for variable in made["templating"]["list"]} == {
        "datasource",
        "namespace",
        "node",
        "window",
    }
    ids = [panel["id"] for panel in made["panels"]]
    assert len(set(ids)) == len(ids)
    places = [tuple(panel["gridPos"][side] for side in "xywh") for panel in made["panels"]]
    for number, (x, y, w, h) in enumerate(places):
        assert x + w <= 24
        for a, b, c, d in places[number + 1 :]:
            assert x + w <= a or a + c <= x or y + h <= b or b + d <= y, "panels lie on each other"
    for panel in made["panels"]:
        if panel["type"] == "row":
            continue
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "${datasource}"
        for link in panel.get("links", ()):
            assert (ROOT / link["url"]).is_file()
        for target in panel["targets"]:
            assert "$namespace" in target["expr"]
            assert "vector(" not in target["expr"]
