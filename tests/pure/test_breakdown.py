"""What a downtime was made of adds up to it, whatever agents say."""

from hypothesis import given
from hypothesis import strategies as st

from vfio_api.downtime import DowntimeStep as D
from vfio_operator.breakdown import _OWN, breakdown
from vfio_operator.clockwork import DOWN, PASSING, STARTING
from vfio_operator.metrics import BARRIERS
from vfio_operator.steps import FORWARD

names = [step.name for step in FORWARD]
DURING = names[names.index(DOWN[0]) : names.index(STARTING[-1]) + 1]
durations = st.integers(0, 10**7)


def test_one_node_on_each_side_passes_its_barriers_within_a_step() -> None:
    steps = {"BarrierB": 100, "Vote": 30, "Decide": 20, "BarrierD": 50}
    agents = {"BarrierA": 5, "BarrierB": 10, "Transfer": 70, "Load": 12, "BarrierC": 20, "BarrierD": 15}
    assert breakdown(steps, agents, 220 - 20) == {
        D.BARRIER_A: 5,
        D.BARRIER_B: 25,  # with the messages there and back
        D.TRANSFER: 70,
        D.LOAD: 12,
        D.VOTE: 18,
        D.DECISION: 20,
        D.BARRIER_C: 20,
        D.BARRIER_D: 30,
    }


def test_a_barrier_over_several_nodes_is_a_step_of_its_own() -> None:
    steps = {"BarrierA": 40, "BarrierB": 100, "BarrierC": 7, "BarrierD": 50}
    found = breakdown(steps, {"BarrierA": 5, "Transfer": 70, "BarrierC": 20}, 197)
    assert (found[D.BARRIER_A], found[D.BARRIER_B], found[D.BARRIER_C], found[D.BARRIER_D]) == (40, 30, 7, 50)


def test_every_step_of_the_downtime_belongs_to_a_part() -> None:
    assert set(DURING) <= set(_OWN), "a new step of the plan takes time that no part of the downtime has"
    assert set(BARRIERS) == set(PASSING)


@given(
    st.dictionaries(st.sampled_from(DURING), durations),
    st.dictionaries(st.sampled_from([part.value for part in D if part is not D.FAILOVER]), durations),
)
def test_the_parts_add_up_to_the_downtime(steps: dict[str, int], agents: dict[str, int]) -> None:
    found = breakdown(steps, agents, sum(steps.values()))
    assert sum(found.values()) == sum(steps.values())
    assert all(microseconds > 0 for microseconds in found.values())


def test_what_passed_without_this_leader_is_the_failovers() -> None:
    assert breakdown({"Decide": 20, "BarrierD": 50}, {}, 2_000_070) == {
        D.DECISION: 20,
        D.BARRIER_D: 50,
        D.FAILOVER: 2_000_000,
    }
