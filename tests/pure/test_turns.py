"""Whose turn it is: the limits hold whatever is asked for, nobody waits for nothing, and namespaces share."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from vfio_operator.turns import Quota, Ticket, Turn, Turnstile, turns

NODES = ("a", "b", "c")


def ticket(
    uid: str, *, namespace: str = "team", priority: int = 0, since: int = 0, source: str = "a", target: str = "b"
) -> Ticket:
    return Ticket(uid, namespace, priority, (f"{since:06}", uid), frozenset({source}), frozenset({target}))


@st.composite
def tickets(draw: st.DrawFn) -> list[Ticket]:
    count = draw(st.integers(0, 12))
    return [
        ticket(
            f"u{number}",
            namespace=draw(st.sampled_from(["x", "y", "z"])),
            priority=draw(st.integers(-1, 1)),
            since=draw(st.integers(0, 3)),
            source=draw(st.sampled_from(NODES)),
            target=draw(st.sampled_from(NODES)),
        )
        for number in range(count)
    ]


@given(tickets(), st.integers(0, 4), st.integers(0, 3))
def test_the_limits_hold_and_nobody_waits_for_nothing(asked: list[Ticket], cluster: int, per_node: int) -> None:
    quota = Quota(cluster, per_node)
    found = turns((), asked, quota)
    running = [t for t in asked if found[t.uid].position == 0]
    waiting = sorted((t for t in asked if found[t.uid].position), key=lambda t: found[t.uid].position)
    assert not cluster or len(running) <= cluster
    for ends in ("sources", "targets"):
        counts = Counter(node for each in running for node in getattr(each, ends))
        assert not per_node or all(count <= per_node for count in counts.values())
    assert [found[t.uid].position for t in waiting] == list(range(1, len(waiting) + 1))
    assert all(found[t.uid].waiting == len(waiting) for t in waiting)
    for each in waiting:  # with any of them the limits would be broken
        assert turns(running, [each], quota)[each.uid].position == 1
        assert found[each.uid].why


def test_priority_comes_first_then_who_asked_first() -> None:
    asked = [ticket("late", since=2), ticket("early", since=1), ticket("urgent", since=3, priority=7)]
    found = turns((), asked, Quota(1, 0))
    assert {uid: turn.position for uid, turn in found.items()} == {"urgent": 0, "early": 1, "late": 2}


def test_a_namespace_that_asks_for_many_keeps_nobody_waiting_for_all_of_them() -> None:
    many = [ticket(f"m{number}", namespace="many", since=number) for number in range(4)]
    found = turns((), [*many, ticket("one", namespace="other", since=99)], Quota(2, 0))
    assert {uid for uid, turn in found.items() if turn.position == 0} == {"m0", "one"}


def test_a_full_node_lets_others_pass_and_says_so() -> None:
    running = [ticket("r0"), ticket("r1")]
    found = turns(running, [ticket("same"), ticket("other", source="c", target="a")], Quota(5, 2))
    assert found["other"] == Turn()
    assert found["same"] == Turn(1, 1, "2 migrations run out of node a, at most 2 may at once")
    into = turns(running, [ticket("into", source="c")], Quota(5, 2))["into"]
    assert into.why == "2 migrations run into node b, at most 2 may at once"


def test_a_full_cluster_says_so() -> None:
    running = [ticket(f"r{n}", source=f"s{n}", target=f"t{n}") for n in range(5)]
    turn = turns(running, [ticket("next", source="q", target="p")], Quota())["next"]
    assert turn == Turn(1, 1, "5 migrations run, at most 5 may at once")


@given(tickets(), st.integers(1, 3), st.lists(st.tuples(st.booleans(), st.integers(0, 11)), max_size=40))
def test_who_asks_again_and_again_is_told_what_holds_then(
    known: list[Ticket], cluster: int, does: list[tuple[bool, int]]
) -> None:
    quota, left = Quota(cluster, 2), []
    turnstile = Turnstile(quota, lambda: left.append(1))
    running: dict[str, Ticket] = {}
    waiting: dict[str, Ticket] = {}
    for asks, number in does:
        if number >= len(known):
            continue
        each = known[number]
        if not asks:
            before = set(turnstile.next())
            left.clear()
            turnstile.leave(each.uid)
            assert left or set(turnstile.next()) <= before  # who may run now is woken
            waiting.pop(each.uid, None)
            running.pop(each.uid, None)
        elif each.uid not in running:
            waiting[each.uid] = each
            expected = turns(running.values(), waiting.values(), quota)[each.uid]
            assert turnstile.ask(each) == expected
            if not expected.position:
                running[each.uid] = waiting.pop(each.uid)
        else:
            assert turnstile.ask(each) == Turn()
    assert len(running) <= cluster
