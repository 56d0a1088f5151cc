"""Which policy counts, and what a migration is then done with."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_api.errors import Reason
from vfio_api.models_strategy import Strategy as Said
from vfio_operator.observe import wish_of
from vfio_operator.observed import Strategy
from vfio_operator.policies import Policy, choose, policy_of, resolve_strategy

Labels = dict[str, str]


def policy(name: str, namespace: Labels | None = None, migration: Labels | None = None, **spec: Any) -> Policy:
    strategy = spec.pop("strategy", {"downtimeLimitMilliseconds": 50})
    said = {"namespaceSelector": namespace or {}, "migrationSelector": migration or {}, "strategy": strategy, **spec}
    return policy_of({"kind": "VFIOMigrationPolicy", "metadata": {"name": name}, "spec": said})


def test_the_most_specific_counts_and_nothing_of_the_others() -> None:
    everybody = policy("all", strategy={"bandwidthLimitBytesPerSecond": "1Gi"})
    team = policy("team", {"team": "a"})
    urgent = policy("urgent", {"team": "a"}, {"urgent": "yes"}, priority=9, strategy={"preCopy": "Disabled"})
    every = (everybody, team, urgent)
    assert choose(every, {}, {}) == (everybody, None)
    assert choose(every, {"team": "a", "more": "x"}, {}) == (team, None)
    assert choose(every, {"team": "a"}, {"urgent": "yes"}) == (urgent, None)
    assert choose((team, urgent), {"team": "b"}, {"urgent": "yes"}) == (None, None)


def test_two_that_are_as_specific_are_a_conflict_that_names_both() -> None:
    found, failure = choose((policy("b", {"x": "1"}), policy("a", {}, {"y": "1"})), {"x": "1"}, {"y": "1"})
    assert found is None
    assert failure is not None
    assert failure.reason is Reason.POLICY_CONFLICT
    assert failure.message == (
        "VFIOMigrationPolicies a and b select this migration by 1 labels each, and neither is more specific: add a "
        "label to one of them, or delete one (kubectl get vfp)"
    )


labels = st.dictionaries(st.sampled_from(["a", "b", "c"]), st.sampled_from(["1", "2"]), max_size=3)


@given(st.lists(st.tuples(labels, labels), max_size=5), labels, labels)
def test_the_one_that_counts_selects_and_none_that_selects_is_more_specific(
    selectors: list[tuple[dict[str, str], dict[str, str]]], namespace: dict[str, str], migration: dict[str, str]
) -> None:
    policies = [policy(f"p{number}", *each) for number, each in enumerate(selectors)]
    selecting = [p for p in policies if p.selects(namespace, migration)]
    found, failure = choose(policies, namespace, migration)
    if not selecting:
        assert (found, failure) == (None, None)
        return
    most = max(p.specificity for p in selecting)
    best = [p for p in selecting if p.specificity == most]
    assert (found is not None) == (len(best) == 1) != (failure is not None)
    assert found is None or found == best[0]


def test_what_nobody_says_has_the_default() -> None:
    assert resolve_strategy(Said(), None) == Strategy()


def test_what_the_migration_says_counts_more_field_by_field() -> None:
    strategy = {"downtimeLimitMilliseconds": 50, "switchoverAck": False, "onConvergenceTimeout": "Switchover"}
    rules = policy("p", strategy=strategy)
    said = Said.model_validate({"downtimeLimitMilliseconds": 70, "bandwidthLimitBytesPerSecond": "1Ki"})
    found = resolve_strategy(said, rules)
    assert (found.downtime_limit_milliseconds, found.switchover_ack) == (70, False)
    assert (found.switch_over_on_timeout, found.bandwidth_limit_bytes_per_second) == (True, 1024)
    assert found.convergence_timeout_seconds == Strategy().convergence_timeout_seconds


def body(**parts: Any) -> dict[str, Any]:
    ends = {end: {"nodeName": node, "device": "x"} for end, node in (("source", "a"), ("target", "b"))}
    spec = {"devices": [{"name": "d", **ends}], **parts.pop("spec", {})}
    return {"metadata": {"name": "m", "namespace": "n", "uid": "u"}, "spec": spec, **parts}


def test_what_it_began_with_it_goes_on_with() -> None:
    rules = policy("p", priority=3)
    assert wish_of(body(), rules).strategy.downtime_limit_milliseconds == 50
    begun = body(status={"strategy": {"downtimeLimitMilliseconds": 80}})
    assert wish_of(begun, rules).strategy.downtime_limit_milliseconds == 80


@pytest.mark.parametrize(("said", "of_policy", "priority"), [(None, 3, 3), (0, 3, 0), (7, 3, 7), (None, None, 0)])
def test_the_priority_is_its_own_else_the_policys(said: int | None, of_policy: int | None, priority: int) -> None:
    spec = {} if said is None else {"priority": said}
    rules = policy("p") if of_policy is None else policy("p", priority=of_policy)
    assert wish_of(body(spec=spec), rules).priority == priority
    assert wish_of(body()).priority == 0
