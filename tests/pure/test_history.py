"""What a leader has measured lately: medians, of what ended well, and not for ever."""

from dataclasses import replace

from pure.test_forecast import observed
from vfio_api.types import Role, Timing
from vfio_operator.forecast import SMALL_BYTES
from vfio_operator.history import KEPT, LATELY_SECONDS, History
from vfio_operator.observed import Observed, Shape


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def with_timings(found: Observed, **sides: tuple[tuple[str, int], ...]) -> Observed:
    """The same with what the agents of each side timed, in microseconds."""
    timings = {role: tuple(Timing(*each) for each in sides[role.value.lower()]) for role in Role}
    return replace(
        found,
        participants=tuple(
            replace(p, report=replace(p.report, timings=timings[p.role])) for p in found.participants if p.report
        ),
    )


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


def test_what_a_downtime_had_beside_its_parts_is_kept_for_migrations_of_the_same_shape() -> None:
    clock = Clock()
    history = History(clock)
    ended = with_timings(
        observed(),
        source=(("barrier_a", 1_000), ("barrier_b", 2_000), ("transfer", 30_000)),
        target=(("load/x", 5_000), ("load/y", 6_000), ("barrier_c", 300), ("barrier_d", 700)),
    )
    history.succeeded(ended, 60_000, decided_in=4_000)
    assert history.known.between == {}  # once may be chance
    history.succeeded(ended, 64_000, decided_in=4_000)
    shape = Shape(sources=2, targets=2, pairs=2, pods=False)
    assert history.known.between == {shape: 60_000 - 3_000 - 30_000 - 6_000 - 1_000 - 4_000}
    for _ in range(KEPT):
        history.succeeded(ended, 10_000)  # the parts overlapped, or clocks jumped: it is never less than nothing
        history.succeeded(ended)
    assert history.known.between == {shape: 0}
    clock.now += LATELY_SECONDS + 1
    assert history.known.between == {}


def test_how_long_a_transfer_took_is_kept_of_small_ones_only() -> None:
    """A large one says nothing of the next small one: half a second would be forecast for a few bytes."""
    history = History(Clock())
    ended = with_timings(observed(), source=(("transfer", 500_000),), target=())
    for left in (None, SMALL_BYTES, SMALL_BYTES):
        history.succeeded(ended, 600_000, left)
    assert ("a", "m", "transfer") not in history.known.steps
    small = with_timings(observed(), source=(("transfer", 1_500),), target=())
    for _ in range(2):
        history.succeeded(small, 20_000, SMALL_BYTES - 1)
    assert history.known.steps["a", "m", "transfer"] == 1_500
