"""What a leader has measured lately: medians, of what ended well, and not for ever."""

from pure.test_forecast import observed
from vfio_operator.history import KEPT, LATELY_SECONDS, History


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_one_slow_write_among_many_does_not_count() -> None:
    history = History(Clock())
    for microseconds in (4000, 90_000, 5000, 4500):
        history.wrote(microseconds)
    assert history.known.decision == 4500


def test_the_oldest_make_room_for_the_newest() -> None:
    history = History(Clock())
    for microseconds in (*[90_000] * KEPT, *[4000] * KEPT):
        history.round_trip("a", microseconds)
    assert history.known.round_trips == {"a": 4000}


def test_a_slow_arc_is_forgotten_after_a_while() -> None:
    """Nothing converges while the forecast is too long, so nothing new would be measured either."""
    clock = Clock()
    history = History(clock)
    history.succeeded(observed())
    assert history.known.steps == {}  # once may be chance
    history.succeeded(observed())
    assert history.known.steps["a", "m", "pre_copy"] == 5000
    assert history.known.rates == {"a": 100_000_000, "b": 100_000_000}
    clock.now += LATELY_SECONDS + 1
    assert history.known.steps == {}
    assert history.known.rates == {}
    assert history.known.decision == 0
