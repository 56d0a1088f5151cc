"""An agent that is to end finishes what it has, and nothing new begins where it is."""

from dataclasses import replace

import pytest

from pure.test_resolve import good
from vfio_agent.drain import Standing, Verdict, verdict
from vfio_api.errors import Reason
from vfio_api.models_migration import Mode
from vfio_api.models_status import Phase
from vfio_operator.actions import Finish
from vfio_operator.observed import Observed, Shorthand, Wish
from vfio_operator.plan import plan

LIMIT = 60.0
BUSY = Standing(signals=1, waited_seconds=1.0, work_left=1, unsaid=True, connected=True)


@pytest.mark.parametrize(
    ("standing", "found"),
    [
        (BUSY, Verdict.STAY),
        (replace(BUSY, connected=False), Verdict.STAY),
        (replace(BUSY, waited_seconds=LIMIT), Verdict.OVERDUE),
        (replace(BUSY, signals=2), Verdict.URGED),
        (replace(BUSY, work_left=0), Verdict.TELL),
        (replace(BUSY, work_left=0, waited_seconds=LIMIT), Verdict.OVERDUE),
        (replace(BUSY, work_left=0, unsaid=False), Verdict.DONE),
        (replace(BUSY, work_left=0, connected=False), Verdict.DONE),
    ],
)
def test_when_an_agent_may_end(standing: Standing, found: Verdict) -> None:
    assert verdict(standing, LIMIT) is found


def test_without_a_time_for_it_an_agent_ends_at_once() -> None:
    assert verdict(replace(BUSY, waited_seconds=0.0), 0.0) is Verdict.OVERDUE


def authorized(**changes: object) -> Observed:
    observed = good()
    return replace(observed, authorized=observed.wish.pairs, **changes)


BOTH = frozenset({"node-a", "node-b"})
WAITS = "waiting for the next vfio-agent of node-b: the present one is being replaced"


@pytest.mark.parametrize("connected", [BOTH, frozenset({"node-a"})], ids=["is to end", "has ended"])
def test_a_new_migration_waits_for_the_next_agent(connected: frozenset[str]) -> None:
    planned = plan(authorized(connected=connected, leaving=frozenset({"node-b"})))
    assert (planned.step, planned.phase, planned.actions, planned.sentence) == ("AwaitAgents", Phase.PENDING, (), WAITS)


def test_it_begins_when_the_next_agent_is_there() -> None:
    assert plan(authorized()).step == "AddFinalizer"


def test_that_another_node_has_lost_its_agent_is_not_waited_for() -> None:
    for observed in (
        authorized(connected=frozenset({"node-b"}), leaving=frozenset({"node-b"})),
        authorized(connected=frozenset({"node-a"}), leaving=frozenset({"node-z"})),
        authorized(connected=frozenset({"node-a"})),
    ):
        (end,) = plan(observed).actions
        assert isinstance(end, Finish)
        assert end.failure is not None
        assert end.failure.reason is Reason.AGENT_NOT_CONNECTED


def test_one_elsewhere_begins() -> None:
    assert plan(authorized(leaving=frozenset({"node-z"}))).step == "AddFinalizer"


def test_what_is_refused_anyway_does_not_wait() -> None:
    observed = authorized(leaving=frozenset({"node-b"}), inventory={})
    assert plan(observed).step == "Refused"


def test_a_plan_needs_no_agent_that_stays() -> None:
    wish = replace(good().wish, mode=Mode.PLAN)
    assert plan(authorized(wish=wish, leaving=frozenset({"node-b"}))).step == "Planned"


def test_the_shorthand_waits_as_well() -> None:
    wish = Wish((), shorthand=Shorthand("node-a", "node-b"))
    observed = replace(good(), wish=wish, authorized=(), connected=frozenset({"node-a"}), leaving=frozenset({"node-b"}))
    assert plan(observed).sentence == WAITS


def test_who_waits_may_be_cancelled() -> None:
    wish = replace(good().wish, cancel=True)
    (end,) = plan(authorized(wish=wish, leaving=frozenset({"node-b"}))).actions
    assert isinstance(end, Finish)
    assert end.phase is Phase.CANCELLED


def test_what_has_begun_goes_on() -> None:
    observed = authorized(leaving=BOTH, pairs=good().wish.pairs, has_finalizer=True)
    assert plan(observed).step == "Claim"
