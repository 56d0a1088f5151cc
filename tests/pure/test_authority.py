"""Who asked, read from an annotation that any user could have tried to write; and the verdict about its devices."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_api.errors import Reason
from vfio_api.names import REQUESTER_ANNOTATION
from vfio_api.types import Failure, Role
from vfio_operator.requester import (
    STAMP_BYTES,
    Access,
    Permissions,
    Requester,
    Wanted,
    pod_verdict,
    requester_of,
    shown,
    stamp_of,
    to_ask,
    verdict,
)

# what JSON and the escaping have opinions about, and anything else but halves of surrogate pairs
texts = st.text(st.sampled_from('",\\:[]{}\n\t\0é') | st.characters(exclude_categories=["Cs"]), max_size=8)
requesters = st.builds(
    Requester,
    texts.filter(bool),
    texts,
    st.lists(texts, max_size=4).map(tuple),
    st.dictionaries(texts, st.lists(texts, max_size=3).map(tuple), max_size=3).map(lambda d: tuple(sorted(d.items()))),
)
JANE = Requester("jane", "u-1", ("dev", "system:authenticated"), (("scopes", ("a", "b")),))


def body(stamp: Any) -> dict[str, Any]:
    return {"metadata": {"name": "m", "namespace": "team", "annotations": {REQUESTER_ANNOTATION: stamp}}}


@given(requesters)
def test_what_is_stamped_is_read_back(requester: Requester) -> None:
    assert requester_of(body(stamp_of(requester))) == requester


@given(requesters, requesters)
def test_two_requesters_never_have_one_stamp(one: Requester, other: Requester) -> None:
    assert (stamp_of(one) == stamp_of(other)) == (one == other)


@given(requesters)
def test_no_name_reaches_out_of_its_place(requester: Requester) -> None:
    read = json.loads(stamp_of(requester), strict=False)
    assert read == {
        "username": requester.username,
        "uid": requester.uid,
        "groups": list(requester.groups),
        "extra": {key: list(values) for key, values in requester.extra},
    }


def test_the_stamp_is_as_the_policy_writes_it() -> None:
    assert stamp_of(JANE) == (
        '{"username":"jane","uid":"u-1","groups":["dev","system:authenticated"],"extra":{"scopes":["a","b"]}}'
    )


STAMP = stamp_of(JANE)
FORGED: dict[str, str] = {
    "nothing": "",
    "not JSON": "jane",
    "not an object": '["jane"]',
    "cut off": STAMP[:-1],
    "more after it": STAMP + " ",
    "other spacing": json.dumps(json.loads(STAMP)),
    "other order": '{"uid":"u-1","username":"jane","groups":[],"extra":{}}',
    "a key twice": STAMP.replace('"uid"', '"username":"root","uid"'),
    "a key too many": STAMP.replace('"uid"', '"admin":"yes","uid"'),
    "a key missing": '{"username":"jane","uid":"","groups":[]}',
    "an escape that the policy never writes": STAMP.replace("jane", "\\u006aane"),
    "half a surrogate pair": STAMP.replace("jane", "\\ud800"),
    "nobody": stamp_of(replace(JANE, username="")),
    "a number for a name": STAMP.replace('"jane"', "7"),
    "a text for a list": STAMP.replace('["dev","system:authenticated"]', '"dev"'),
    "a number in a list": STAMP.replace('"dev"', "7"),
    "a list for an object": STAMP.replace('{"scopes":["a","b"]}', "[]"),
    "nested without end": "[" * 100_000,
    "too long": stamp_of(replace(JANE, groups=("g" * STAMP_BYTES,))),
}


@pytest.mark.parametrize("stamp", FORGED.values(), ids=FORGED)
def test_what_the_policy_cannot_have_written_is_nobody(stamp: str) -> None:
    assert requester_of(body(stamp)) is None


def test_an_object_without_annotations_is_nobodys() -> None:
    assert requester_of({"metadata": {}}) is None
    assert requester_of({"metadata": {"annotations": None}}) is None


SOURCE = Wanted("gpu0", Role.SOURCE, "node-a", "0000:3b:00.2", "node-a-3b")
TARGET = Wanted("gpu0", Role.TARGET, "node-b", "0000:5e:00.2", "node-b-5e")
YES, NO = Access(True), Access(False)


def decide(*answers: tuple[str, Access], every: bool = False, pod: bool = False) -> Failure | None:
    return verdict(JANE, [SOURCE, TARGET], Permissions(every, pod, answers))


def test_every_device_is_enough() -> None:
    assert decide(every=True) is None


def test_each_device_is_enough() -> None:
    assert decide(("node-a-3b", YES), ("node-b-5e", YES)) is None


def test_the_first_forbidden_device_is_named_with_what_to_do() -> None:
    failure = decide(("node-a-3b", YES), ("node-b-5e", NO))
    assert failure is not None
    assert (failure.reason, failure.device) == (Reason.FORBIDDEN_DEVICE, "gpu0")
    assert failure.message == (
        "pair gpu0: user jane may not use target device 0000:5e:00.2 on node node-b: the verb use on "
        "vfiodevices.vfiomigration.io/node-b-5e is missing; check with `kubectl auth can-i use "
        "vfiodevices.vfiomigration.io/node-b-5e --as=jane`, have a role with that verb bound (ClusterRole "
        "vfio-device-user has it for every device), then delete and create the migration again"
    )


def test_a_device_that_nobody_was_asked_for_is_forbidden() -> None:
    failure = decide(("node-a-3b", YES))
    assert failure is not None
    assert "target device 0000:5e:00.2" in failure.message


def test_who_may_delete_the_pod_may_take_its_devices_but_no_targets() -> None:
    assert to_ask([SOURCE, TARGET], pod=True) == ("node-b-5e",)
    assert decide(("node-b-5e", YES), pod=True) is None
    failure = decide(("node-b-5e", NO), pod=True)
    assert failure is not None
    assert "target device" in failure.message


def test_who_has_a_pod_moved_must_be_allowed_to_delete_it_and_to_create_pods() -> None:
    assert pod_verdict(JANE, "team", "web", YES, YES) is None
    failure = pod_verdict(JANE, "team", "web", NO, NO)
    assert failure is not None
    assert failure.reason is Reason.FORBIDDEN_POD
    assert failure.message == (
        "spec.source: user jane may not delete pod team/web, and a pod that is moved is deleted in the end: the verb "
        "delete on pods/web in namespace team is missing; check with `kubectl auth can-i delete pods/web -n team "
        "--as=jane`, have a role with that verb bound, then delete and create the migration again"
    )
    failure = pod_verdict(JANE, "team", "web", YES, Access(False, "webhook is away"))
    assert failure is not None
    assert failure.message == (
        "spec.source: user jane may not create pods in namespace team, and pod team/web gets a counterpart: the verb "
        "create on pods in namespace team is missing (webhook is away); check with `kubectl auth can-i create pods "
        "-n team --as=jane`, have a role with that verb bound, then delete and create the migration again"
    )


def test_a_device_that_is_a_target_too_is_not_the_pods_alone() -> None:
    both = replace(SOURCE, role=Role.TARGET, pair="gpu1")
    assert to_ask([SOURCE, both], pod=True) == ("node-a-3b",)
    assert to_ask([SOURCE, both], pod=False) == ("node-a-3b",)


def test_what_the_authorizer_could_not_find_out_is_said() -> None:
    failure = decide(("node-a-3b", Access(False, "webhook: connection refused")), ("node-b-5e", YES))
    assert failure is not None
    assert "(webhook: connection refused)" in failure.message


def test_the_message_is_bounded_in_a_large_migration() -> None:
    wanted = [replace(TARGET, pair=f"gpu{i}", address=f"0000:5e:{i:04x}", object_name=f"d{i}") for i in range(256)]
    failure = verdict(replace(JANE, username="j" * 5000), wanted, Permissions())
    assert failure is not None
    assert "0000:5e:0001 on node-b, 0000:5e:0002 on node-b, 0000:5e:0003 on node-b, 252 more" in failure.message
    assert len(failure.message) < 1024  # an Event's note


def test_a_users_name_stays_on_one_line() -> None:
    assert shown("jane\n{}\x1b[31m") == "jane?{}?[31m"
    assert len(shown("j" * 200)) == 128
