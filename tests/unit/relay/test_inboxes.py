"""Whose turn it is at the UDP port, and what a turn is."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gw.relay.inboxes import MAX_COST, MAX_QUANTUM, MIN_QUANTUM, Inboxes, joined

HERE, THERE = ("192.0.2.1", 1), ("192.0.2.2", 2)


def _drain(inboxes: Inboxes) -> list[tuple[object, list[tuple[bytes, int, Any]]]]:
    found = []
    while (taken := inboxes.take())[0] is not None:
        found.append(taken)
    return found


def test_who_sends_much_waits_for_itself() -> None:
    inboxes = Inboxes()
    hog, guest = object(), object()
    for _ in range(10):
        inboxes.put(hog, bytes(48 * 1300), 1300, HERE)
    inboxes.put(guest, b"short", 5, THERE)
    order = _drain(inboxes)
    assert [client for client, _ in order[:3]] == [hog, guest, hog]
    assert sum(len(train) for client, arrivals in order if client is hog for train, _, _ in arrivals) == 10 * 48 * 1300
    assert inboxes.cost == 0
    assert inboxes.take() == (None, [])


def test_a_turn_is_as_long_for_many_short_trains_as_for_a_long_one() -> None:
    inboxes = Inboxes()
    one, other = object(), object()
    for _ in range(200):
        inboxes.put(one, bytes(1300), 1300, HERE)
    for _ in range(5):
        inboxes.put(other, bytes(50 * 1300), 1300, THERE)
    turns = _drain(inboxes)[:4]
    sizes = [sum(len(train) for train, _, _ in arrivals) for _, arrivals in turns]
    assert [client for client, _ in turns] == [one, other, one, other]
    assert all(48 * 1300 < size <= MAX_QUANTUM for size in sizes)
    assert [len(arrivals) for _, arrivals in turns] == [1, 1, 1, 1]  # joined


def test_small_datagrams_count_for_what_they_cost() -> None:
    inboxes = Inboxes()
    for _ in range(5000):
        inboxes.put(1, bytes(30), 30, HERE)
    _, arrivals = inboxes.take()
    assert sum(len(train) // 30 for train, _, _ in arrivals) < 200


def test_a_link_has_longer_turns() -> None:
    inboxes = Inboxes()
    for _ in range(400):
        inboxes.put(1, bytes(1300), 1300, HERE)
        inboxes.put(2, bytes(1300), 1300, HERE, 4)
    (_, ones), (_, others) = inboxes.take(), inboxes.take()
    assert len(others[0][0]) > 3.9 * len(ones[0][0])


def test_turns_are_shorter_where_many_wait() -> None:
    inboxes = Inboxes()
    clients = [object() for _ in range(100)]
    for client in clients:
        for _ in range(50):
            inboxes.put(client, bytes(1300), 1300, HERE)
    client, arrivals = inboxes.take()
    assert client is clients[0]
    assert 10 * 1300 <= sum(len(train) for train, _, _ in arrivals) < MIN_QUANTUM


def test_whose_box_is_full_gets_no_more_and_the_others_do() -> None:
    inboxes = Inboxes()
    hog, guest = object(), object()
    count = 0
    while not inboxes.dropped:
        inboxes.put(hog, bytes(65000), 1300, HERE)
        count += 1
    assert MAX_COST <= inboxes.cost < MAX_COST + 100_000
    assert inboxes.dropped == 50
    for _ in range(10):
        inboxes.put(guest, b"word", 4, THERE)
    assert inboxes.dropped == 50
    order = _drain(inboxes)
    assert order[1][0] is guest
    assert (
        sum(len(train) for client, arrivals in order if client is hog for train, _, _ in arrivals)
        == (count - 1) * 65000
    )
    assert inboxes.cost == 0


def test_who_is_gone_has_no_turn() -> None:
    inboxes = Inboxes()
    gone, guest = object(), object()
    inboxes.put(gone, b"a", 1, HERE)
    inboxes.put(guest, b"b", 1, THERE)
    inboxes.forget(gone)
    inboxes.forget(object())
    assert len(inboxes._turns) == 1
    assert _drain(inboxes) == [(guest, [(b"b", 1, THERE)])]


def _datagrams(arrivals: list[tuple[bytes, int, Any]]) -> list[tuple[bytes, Any]]:
    return [(train[at : at + each], source) for train, each, source in arrivals for at in range(0, len(train), each)]


@given(
    st.lists(
        st.tuples(st.integers(1, 9), st.integers(1, 4), st.sampled_from((HERE, THERE))).flatmap(
            lambda shape: st.tuples(
                st.binary(min_size=shape[0], max_size=shape[0] * shape[1]), st.just(shape[0]), st.just(shape[2])
            )
        ),
        max_size=12,
    )
)
def test_joined_trains_have_the_same_datagrams(arrivals: list[tuple[bytes, int, Any]]) -> None:
    made = joined(arrivals)
    assert _datagrams(made) == _datagrams(arrivals)
    assert len(made) <= len(arrivals)


def test_equal_trains_become_one() -> None:
    trains = [(bytes(2600), 1300, HERE), (bytes(1300), 1300, HERE), (bytes(40), 40, HERE), (bytes(40), 40, HERE)]
    assert joined(trains) == [(bytes(3940), 1300, HERE), (bytes(40), 40, HERE)]


def test_long_headers_are_not_among_short_ones() -> None:
    trains = [(b"\xc0" + bytes(1299), 1300, HERE), (b"\x40" + bytes(1299), 1300, HERE), (b"\x40" + bytes(9), 10, HERE)]
    assert [len(train) for train, _, _ in joined(trains)] == [1300, 1310]
