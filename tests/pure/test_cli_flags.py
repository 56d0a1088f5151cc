"""From flags and files to objects, from answers of the API server to one line: pure."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_api.models_migration import Mode, VFIOMigration
from vfio_cli.fields import age_text, columns, size_text, word_of
from vfio_cli.manifest import build, from_document, pair_up, selection
from vfio_cli.problems import FAILED, USAGE, UserError, refused, unreachable


def end(node: str, device: str) -> dict[str, str]:
    return {"nodeName": node, "device": device}


def test_ends_are_paired_in_their_order_or_by_name():
    assert pair_up(["a/sim0", "a/0000:3b:00.2"], ["b/sim1", "c/x"]) == [
        {"name": "device0", "source": end("a", "sim0"), "target": end("b", "sim1")},
        {"name": "device1", "source": end("a", "0000:3b:00.2"), "target": end("c", "x")},
    ]
    assert pair_up(["g0=a/x", "g1=a/y"], ["g1=b/y", "g0=b/x"]) == [
        {"name": "g0", "source": end("a", "x"), "target": end("b", "x")},
        {"name": "g1", "source": end("a", "y"), "target": end("b", "y")},
    ]


@pytest.mark.parametrize(
    ("sources", "targets", "said"),
    [
        (["a/x"], [], "expected one --to for each --from, found 1 and 0"),
        (["a"], ["b/x"], "--from a: expected NODE/DEVICE or NAME=NODE/DEVICE"),
        (["a/x"], ["/x"], "--to /x: expected NODE/DEVICE"),
        (["g=a/x", "g=a/y"], ["g=b/x", "h=b/y"], "--from g=...: expected each name once, found it twice"),
        (["g=a/x"], ["h=b/x"], "--from g: expected one of the names in --to, found h there"),
        (["a/x"], ["h=b/x"], "--from without a name: expected one of the names in --to"),
    ],
)
def test_ends_that_do_not_fit_are_named(sources, targets, said):
    with pytest.raises(UserError, match=said.replace("(", "\\(")) as raised:
        pair_up(sources, targets)
    assert raised.value.code == USAGE


def test_the_shorthand_names_a_node_or_a_pod_and_a_node():
    assert selection([], [], "a", None, "b") == {"source": {"nodeName": "a"}, "target": {"nodeName": "b"}}
    assert selection([], [], None, "p", "b") == {"source": {"podName": "p"}, "target": {"nodeName": "b"}}
    for wrong in (
        ([], [], None, None, None),
        ([], [], "a", None, None),
        ([], [], "a", "p", "b"),
        (["a/x"], ["b/x"], None, None, "b"),
    ):
        with pytest.raises(UserError, match="expected"):
            selection(*wrong)


def test_what_is_built_is_a_migration_with_only_what_was_said():
    strategy = {"downtimeLimitMilliseconds": 50, "preCopy": None}
    made = build(Mode.REHEARSE, None, {"devices": pair_up(["a/x"], ["b/x"])}, strategy, None)
    assert made["metadata"] == {"generateName": "rehearse-"}
    assert made["spec"]["strategy"] == {"downtimeLimitMilliseconds": 50}
    named = build(Mode.MIGRATE, "m", {"devices": pair_up(["a/x"], ["b/x"])}, {}, 60)
    spec = VFIOMigration.model_validate(named).spec
    assert (spec.mode, spec.ttl_seconds_after_finished) == (Mode.MIGRATE, 60)


def test_a_file_is_taken_as_it_is_or_in_another_mode_under_a_made_up_name():
    given = {"kind": "VFIOMigration", "metadata": {"name": "m", "namespace": "n"}, "spec": {"mode": "Migrate"}}
    assert from_document(given, "file f", None) is given
    planned = from_document(given, "file f", Mode.PLAN)
    assert planned["metadata"] == {"namespace": "n", "generateName": "plan-m-"}
    assert planned["spec"]["mode"] == "Plan"
    for wrong in (None, [], {"kind": "Pod"}, {"kind": "VFIOMigration"}, {"kind": "VFIOMigration", "spec": 3}):
        with pytest.raises(UserError, match="file f: expected"):
            from_document(wrong, "file f", Mode.PLAN)


def answer(code: int, reason: str, message: str, **details: str) -> str:
    return json.dumps({"kind": "Status", "code": code, "reason": reason, "message": message, "details": details})


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (401, answer(401, "Unauthorized", "Unauthorized"), "found ones that it refuses (401); log in again"),
        (
            403,
            answer(403, "Forbidden", 'x is forbidden: User "u" cannot get resource "y"', name="x"),
            'found that x is forbidden: User "u" cannot get resource "y"; ask an administrator',
        ),
        (404, "404 page not found\n", "found one that does not know this kind; install the chart"),
        (404, answer(404, "NotFound", "the server could not find it"), "does not know this kind; install the chart"),
        (404, answer(404, "NotFound", 'vfm "m" not found', name="m"), "expected an object of that name, found none"),
        (409, answer(409, "AlreadyExists", "exists", name="m"), "expected a free name, found an object that has it"),
        (409, answer(409, "Conflict", "changed", name="m"), "found 409 from the API server: changed; try again"),
        (422, answer(422, "Invalid", "spec.mode: must\nbe Migrate"), "found: spec.mode: must be Migrate; correct what"),
        (403, answer(403, "Forbidden", "denied by a policy"), "found: denied by a policy; correct what is named"),
        (500, "<html>", "found 500 from the API server: Oops; try again"),
    ],
)
def test_every_answer_that_is_no_success_is_one_line_with_object_and_next_step(status, body, said):
    made = refused(status, "Oops", body, "VFIOMigration default/m")
    assert str(made).startswith("VFIOMigration default/m: expected ")
    assert said in str(made)
    assert "\n" not in str(made)
    assert (made.status, made.code) == (status, FAILED)
    # what a starting API server says of what it knew before
    assert made.passing == (status == 500 or "ask an administrator" in said or "install the chart" in said)


def test_nobody_at_the_address():
    said = str(unreachable("https://h:1", "Connection refused", "lab"))
    assert said.startswith("API server https://h:1 of context lab: expected an API server that answers, found: Conn")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0s"), (0, "0s"), (59, "59s"), (60, "1m"), (61, "1m1s"), (3599, "59m"), (3661, "1h1m"), (900_000, "10d")],
)
def test_ages_are_as_kubectl_writes_them(seconds, text):
    assert age_text(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1 << 20, "1 MiB"), (3 << 30, "3.00 GiB")])
def test_sizes(count, text):
    assert size_text(count) == text


def test_words_are_found_whatever_they_are_of():
    assert {str(word_of(word)) for word in ("ArcFailed", "Planned", "Switched")} == {"ArcFailed", "Planned", "Switched"}
    assert word_of("Nonsense") is None


@given(st.lists(st.tuples(st.text("abc", max_size=9), st.text("xyz", max_size=9)), max_size=9))
def test_every_cell_of_a_table_begins_below_its_head(rows):
    lines = list(columns(("ONE", "TWO"), rows))
    at = lines[0].index("TWO")
    assert [line[at:].rstrip() for line in lines[1:]] == [second for _, second in rows]
