"""How much of a stream the system may hold unsent."""

import pytest

from vfio_agent.outlet import MOST_UNSENT_BYTES, UNSENT_BYTES, UNSENT_SECONDS, unsent_bytes


@pytest.mark.parametrize("rate", [0, 1, 125_000_000, 500_000_000])
def test_a_slow_link_keeps_the_least(rate: int) -> None:
    assert unsent_bytes(rate) == UNSENT_BYTES


@pytest.mark.parametrize("rate", [600_000_000, 1_250_000_000, 2_500_000_000, 3_900_000_000])
def test_a_fast_link_gets_one_to_two_milliseconds(rate: int) -> None:
    assert 1 <= unsent_bytes(rate) / (rate * UNSENT_SECONDS) <= 2


def test_it_is_bounded() -> None:
    assert unsent_bytes(10**12) == MOST_UNSENT_BYTES


def test_a_rate_that_varies_a_little_changes_nothing() -> None:
    assert unsent_bytes(1_200_000_000) == unsent_bytes(1_500_000_000) == unsent_bytes(2_000_000_000)
