"""From flags and files to objects, from answers of the API server to one line: pure."""

import json

import pytest
import typer
import yaml
from hypothesis import given
from hypothesis import strategies as st

from vfio_api.models_migration import Mode, VFIOMigration
from vfio_api.types import PauseMethod
from vfio_cli.durations import seconds, spans, whole
from vfio_cli.fields import age_text, columns, size_text, word_of
from vfio_cli.manifest import build, documents, from_document, migrate_command, pair_up, pausing, selection
from vfio_cli.naming import Named, check_namespace, existing
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
        (["a/x"], ["b/x"], None, None, None, "q"),
        ([], [], None, "p", "b", "q"),
        ([], [], "a", None, None, "q"),
    ):
        with pytest.raises(UserError, match="expected"):
            selection(*wrong)


def test_a_pod_moves_onto_a_node_or_onto_a_pod():
    made = selection([], [], None, "p", None, "q")
    assert made == {"source": {"podName": "p"}, "target": {"podName": "q"}}
    assert migrate_command(made, []) == "kubectl vfio migrate --from-pod p --to-pod q"


FREEZE, HOOK, NONE = PauseMethod.FREEZE, PauseMethod.HOOK, PauseMethod.NONE


@pytest.mark.parametrize(
    ("method", "hook", "seconds", "pause"),
    [
        (NONE, None, None, {"method": "None"}),
        (FREEZE, None, None, {"method": "Freeze"}),
        (FREEZE, None, 9, {"method": "Freeze", "timeoutSeconds": 9}),
        (None, None, 9, {"method": "Freeze", "timeoutSeconds": 9}),
        (HOOK, "8080", None, {"method": "Hook", "hook": {"port": 8080}}),
        (HOOK, "8080/vfio/v1", 3, {"method": "Hook", "timeoutSeconds": 3, "hook": {"port": 8080, "path": "/vfio/v1"}}),
    ],
)
def test_how_a_pod_is_paused_is_as_the_model_has_it(method, hook, seconds, pause):
    made = pausing(method, hook, seconds, moves_pod=True)
    assert made == {"workload": {"pause": pause}}
    VFIOMigration.model_validate(build(Mode.MIGRATE, "m", selection([], [], None, "p", "b") | made, {}, None))


def test_without_a_flag_nothing_is_said_of_pausing():
    assert pausing(None, None, None, moves_pod=True) == {}
    assert pausing(FREEZE, None, None, moves_pod=False) == {"workload": {"pause": {"method": "Freeze"}}}


@pytest.mark.parametrize(
    ("method", "hook", "seconds", "moves_pod", "said"),
    [
        (HOOK, None, None, True, "found --pause hook without --hook"),
        (FREEZE, "8080", None, True, "found --hook without --pause hook"),
        (None, "8080", None, True, "found --hook without --pause hook"),
        (HOOK, "8080", None, False, "--pause hook: expected --from-pod beside it, found none; use --pause freeze"),
        (HOOK, "/vfio", None, True, "--hook /vfio: expected PORT or PORT/PATH"),
        (HOOK, "http://h:80/vfio", None, True, "expected PORT or PORT/PATH"),
        (NONE, None, 5, True, "--pause-timeout: expected --pause freeze or --pause hook beside it"),
        (None, None, 5, False, "--pause-timeout: expected --pause freeze"),
    ],
)
def test_flags_about_pausing_that_do_not_fit_are_named(method, hook, seconds, moves_pod, said):
    with pytest.raises(UserError) as raised:
        pausing(method, hook, seconds, moves_pod=moves_pod)
    assert said in str(raised.value)
    assert raised.value.code == USAGE


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


def test_a_namespace_that_is_not_there_is_named():
    body = answer(404, "NotFound", 'namespaces "lba" not found', name="lba", kind="namespaces")
    assert str(refused(404, "", body, "VFIOMigration lba/m")) == (
        "Namespace lba: expected a namespace of that name, found none; look at -n: kubectl get ns"
    )


def test_an_error_has_the_name_that_was_made_up():
    body = answer(422, "Invalid", "spec is wrong", name="migrate-x7k2p")
    assert str(refused(422, "", body, "VFIOMigration lab/migrate-")).startswith("VFIOMigration lab/migrate-x7k2p: ")
    assert str(refused(500, "", "", "VFIOMigration lab/migrate-")).startswith("VFIOMigration lab/migrate-...: ")


@pytest.mark.parametrize(
    ("text", "flag", "name", "namespace"),
    [
        ("m", None, "m", ""),
        ("m", "lab", "m", "lab"),
        ("vfm/m", None, "m", ""),
        ("VFM/m", "lab", "m", "lab"),
        ("vfm/status", None, "status", ""),
        ("vfiomigration/m", None, "m", ""),
        ("vfiomigrations.vfiomigration.io/m", None, "m", ""),
        ("vfiomigration.vfiomigration.io/m", None, "m", ""),
        ("vfiomigrations.v1alpha1.vfiomigration.io/m", None, "m", ""),
        ("lab/m", None, "m", "lab"),
        ("lab/m", "lab", "m", "lab"),
    ],
)
def test_what_a_migration_may_be_called(text, flag, name, namespace):
    assert existing(text, flag) == Named(name, namespace)


@pytest.mark.parametrize(
    ("text", "flag", "said"),
    [
        ("", None, "NAME: expected the name of a VFIOMigration, found ''"),
        (" ", None, "found ' '"),
        ("/", None, "found '/'"),
        ("lab/", None, "found 'lab/'"),
        ("/m", None, "found '' before the name"),
        ("vfd/demo", None, "expected a VFIOMigration, found 'vfd' before the name; type NAME, vfm/NAME or NAMESPACE/"),
        ("VFS/demo", None, "found 'VFS' before the name"),
        ("Pod/demo", None, "found 'Pod' before the name"),
        ("nodes/demo", None, "found 'nodes' before the name"),
        ("pods.metrics.k8s.io/demo", None, "found 'pods.metrics.k8s.io' before"),
        ("vfm.other.io/demo", None, "found 'vfm.other.io' before"),
        ("Lab/demo", None, "found 'Lab' before"),
        ("a/b/c", None, "a/b/c: expected one migration, found a path; type NAME"),
        ("vfm/demo/status", None, "expected one migration, found a path"),
        ("demo/status", None, "expected one migration, found a path"),
        (
            "lab/m",
            "other",
            "found lab in the name and other in -n; type m -n lab, or m -n other",
        ),
        ("..", None, "expected a name as objects have it"),
        ("M", None, "expected a name as objects have it"),
        ("a" * 254, None, "expected a name as objects have it"),
    ],
)
def test_what_is_no_name_of_a_migration_is_refused_with_what_to_type(text, flag, said):
    with pytest.raises(UserError) as raised:
        existing(text, flag)
    assert said in str(raised.value)
    assert raised.value.code == USAGE


@pytest.mark.parametrize("flag", ["a/b", "Lab", "-", "x" * 64, "a b", "kube_system"])
def test_a_namespace_that_no_namespace_can_have(flag):
    with pytest.raises(UserError, match="expected the name of one namespace"):
        check_namespace(flag)


@pytest.mark.parametrize(
    ("text", "unit", "count"),
    [
        ("0", "s", 0),
        ("90", "s", 90),
        ("15m", "s", 900),
        ("1h30m", "s", 5400),
        ("1.5s", "ms", 1500),
        ("300ms", "ms", 300),
    ],
)
def test_spans_are_plain_numbers_or_as_kubectl_takes_them(text, unit, count):
    assert spans(text, unit) == count
    assert whole(unit)(text) == count


@pytest.mark.parametrize("text", ["", "soon", "15 m", "m", "-1", "5d", "1m30", "1e3", "nan", "inf"])
def test_what_is_no_span_is_told_with_the_value_and_the_unit(text):
    with pytest.raises(typer.BadParameter) as raised:
        seconds(text)
    assert str(raised.value).endswith(f"(a plain number is seconds), found {text!r}")


def test_parts_of_a_unit_are_refused_where_whole_ones_are_meant():
    with pytest.raises(typer.BadParameter, match=r"expected a whole number of milliseconds, found '1\.5ms'"):
        whole("ms")("1.5ms")


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({}, "expected metadata.name, found none"),
        ({"metadata": None}, "expected metadata.name, found none"),
        ({"metadata": []}, "expected metadata and spec with fields"),
        ({"metadata": "m"}, "expected metadata and spec with fields"),
        ({"metadata": {"name": 5}}, "expected text in metadata.name, found 5"),
        ({"metadata": {"name": None}}, "expected text in metadata.name, found None"),
        ({"metadata": {"name": ""}}, "expected metadata.name, found none"),
        ({"metadata": {"name": "m", "namespace": 7}}, "expected text in metadata.namespace, found 7"),
    ],
)
def test_a_file_without_a_usable_name_is_refused(metadata, said):
    with pytest.raises(UserError) as raised:
        from_document({"kind": "VFIOMigration", "spec": {}} | metadata, "file f", None)
    assert said in str(raised.value)


@pytest.mark.parametrize("text", ["a: 1\na: 2", "a: {b: 1, b: 2}", '{"a": 1, "a": 1}', "- a: 1\n  a: 2"])
def test_a_key_that_is_there_twice_is_a_mistake(text):
    with pytest.raises(yaml.YAMLError, match=r"found the key '[ab]' twice"):
        documents(text)
    assert documents("x: &x {a: 1}\ny: {<<: *x, a: 2}\n---\n") == [{"x": {"a": 1}, "y": {"a": 2}}]


def test_the_command_that_goes_on_is_the_one_that_was_typed():
    pairs = {"devices": pair_up(["a/x", "a/0000:3b:00.2"], ["b/x", "b/y"])}
    strategy = {"downtimeLimitMilliseconds": 50, "preCopy": "Required", "switchoverAck": False}
    planned = build(Mode.PLAN, None, pairs, strategy, None)
    assert migrate_command(planned["spec"], ["-n", "lab"]) == (
        "kubectl vfio migrate --from a/x --to b/x --from a/0000:3b:00.2 --to b/y --downtime-limit 50 "
        "--pre-copy Required --no-switchover-ack -n lab"
    )
    named = {"devices": pair_up(["g=a/x"], ["g=b/x"])}
    assert migrate_command(named, []) == "kubectl vfio migrate --from g=a/x --to g=b/x"
    short = selection([], [], None, "my-pod", "b")
    assert migrate_command(short, []) == "kubectl vfio migrate --from-pod my-pod --to-node b"
    assert migrate_command({}, [], "my file") == "kubectl vfio migrate -f 'my file'"
