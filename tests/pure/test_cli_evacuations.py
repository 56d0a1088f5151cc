"""What the plugin makes and says of evacuations: pure."""

from typing import Any

import pytest

from pure.cli_tales import CREATED, condition
from vfio_api.models_evacuation import VFIOEvacuation
from vfio_cli.evacuations import build, changes, item_text, next_step, outcome, under_way

Json = dict[str, Any]


def item(key: str, phase: str, **more: Any) -> Json:
    return {"key": key, "name": f"pod lab/{key}", "phase": phase, "devices": 2, "attempts": 1, **more}


def evacuation(phase: str, *items: Json, node: str = "node-a", name: str = "e", created: str = CREATED) -> Json:
    ended = "True" if phase in ("Succeeded", "Failed", "Cancelled") else "False"
    return {
        "metadata": {"name": name, "creationTimestamp": created},
        "spec": {"nodeName": node},
        "status": {
            "phase": phase,
            "items": list(items),
            "message": "so it is",
            "conditions": [condition("Finished", ended, phase)],
        },
    }


MOVING = item("c", "Moving", targetNode="node-b", migration="e-c-1", namespace="lab")


def test_what_is_built_is_an_evacuation_with_only_what_was_said():
    bare = build("node-a.example.com", [], {"downtimeLimitMilliseconds": None}, None, None)
    assert bare["spec"] == {"nodeName": "node-a.example.com"}
    assert bare["metadata"] == {"generateName": "node-a.example.com-"}
    made = build("node-a", ["node-b"], {"downtimeLimitMilliseconds": 50}, 7, 60)
    spec = VFIOEvacuation.model_validate(made | {"metadata": {"name": "e"}}).spec
    assert (spec.target_nodes, spec.priority, spec.ttl_seconds_after_finished) == (("node-b",), 7, 60)
    assert spec.strategy is not None
    assert spec.strategy.downtime_limit_milliseconds == 50


def test_the_oldest_one_under_way_is_meant():
    late = evacuation("Running", name="late", created="2026-11-26T01:00:09Z")
    found = [
        late,
        evacuation("Failed", name="over"),
        evacuation("Running", name="first"),
        evacuation("Running", node="b"),
    ]
    meant = under_way(found, "node-a")
    assert meant is not None
    assert meant["metadata"]["name"] == "first"
    assert under_way(found, "node-c") is None
    fresh = {"metadata": {"name": "new", "creationTimestamp": CREATED}, "spec": {"nodeName": "node-c"}}
    assert under_way([fresh], "node-c") is fresh  # nobody has written a status yet


def test_each_item_is_told_once_for_each_place_that_it_comes_to():
    before = {"items": [item("c", "Waiting"), item("d", "Waiting")]}
    after = {"items": [MOVING, item("d", "Waiting")]}
    assert list(changes({}, before)) == ["pod lab/c: Waiting, 2 devices", "pod lab/d: Waiting, 2 devices"]
    assert list(changes(before, after)) == ["pod lab/c: Moving, 2 devices → node-b (vfm e-c-1 -n lab)"]
    assert list(changes(after, after)) == []
    stuck = {"items": [MOVING, item("d", "Waiting", message="no node has 2 x vfio-sim sim-vf free")]}
    assert list(changes(after, stuck)) == ["pod lab/d: Waiting, 2 devices: no node has 2 x vfio-sim sim-vf free"]
    again = {"items": [MOVING | {"migration": "e-c-2"}, item("d", "Waiting")]}
    assert list(changes(after, again)) == ["pod lab/c: Moving, 2 devices → node-b (vfm e-c-2 -n lab)"]


def test_one_device_is_no_devices():
    assert item_text({"phase": "Waiting", "devices": 1}) == "Waiting, 1 device"


@pytest.mark.parametrize(
    ("phase", "last", "good", "step"),
    [
        ("Succeeded", MOVING | {"phase": "Moved"}, True, "kubectl drain node-a --ignore-daemonsets"),
        ("Failed", MOVING | {"phase": "Failed", "message": "ArcFailed"}, False, "kubectl vfio explain e-c-1 -n lab"),
        ("Failed", item("c", "Failed", message="no node"), False, "kubectl vfio devices node-a shows what is left"),
        ("Cancelled", item("c", "Cancelled"), None, "kubectl vfio devices node-a"),
    ],
)
def test_the_end_says_what_became_of_each_and_what_to_do(phase, last, good, step):
    body = evacuation(phase, item("b", "Moved", targetNode="node-b"), last)
    lines = list(outcome(body))
    assert [line.label for line in lines] == ["pod lab/b", "pod lab/c", phase]
    assert [line.good for line in lines] == [True, good, good]
    assert lines[-1].text == "so it is"
    assert next_step(body).startswith(step)
