"""The safety protocol explored: every reachable state within small bounds, walks beyond them, and mutants caught.

`make model` does the same within larger bounds, and prints them.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pure.model.explore import explore
from pure.model.faults import NO_FAULTS
from pure.model.mutants import MUTANTS, Mutant
from pure.model.runs import SHORT, Run
from pure.model.state import SHAPES
from pure.model.system import System
from pure.model.walks import WORST, driven_walk, random_walks


@pytest.mark.parametrize("run", SHORT, ids=lambda run: f"{run.shape}, {run.budget.total} faults")
def test_in_every_reachable_state_the_promises_hold_and_from_it_all_ends_well(run: Run) -> None:
    found = explore(System(SHAPES[run.shape], run.budget, run.rules), lively=run.lively, stop=False, most=run.most)
    assert found.ways == {}
    assert found.both_gone == 0 or run.budget.total > 1, "one fault has taken both copies of a state"
    assert found.states > 1000


@pytest.mark.parametrize("shape", ["1-1", "2-1", "1-2", "2-2"])
def test_without_a_fault_every_order_of_messages_and_arcs_succeeds(shape: str) -> None:
    found = explore(System(SHAPES[shape], NO_FAULTS))
    assert found.ways == {}
    assert found.complete


@pytest.mark.parametrize("worst", WORST)
@pytest.mark.parametrize("shape", ["1-1", "2-2", "3 pairs 2-2"])
def test_walks_with_many_faults_break_nothing(shape: str, worst: str) -> None:
    found = random_walks(shape, 5, range(15), worst=worst)
    assert (found.broken, found.labels if found.broken else []) == ("", [])
    assert found.faults > 30


@settings(max_examples=25, deadline=None)
@given(shape=st.sampled_from(["2-1", "1-2", "2-2"]), worst=st.sampled_from(WORST), numbers=st.binary(max_size=500))
def test_no_list_of_choices_breaks_anything(shape: str, worst: str, numbers: bytes) -> None:
    found = driven_walk(shape, 4, worst, numbers)
    assert (found.broken, found.labels if found.broken else []) == ("", [])


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_what_is_broken_on_purpose_is_caught(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.put_in(monkeypatch.setattr)
    found = mutant.hunt()
    assert found.broken.startswith(mutant.caught)
