"""Whose turn it is at the UDP port, and what a turn is."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gw.relay.inboxes import MAX_BYTES, MAX_QUANTUM_BYTES, MIN_QUANTUM_BYTES, Inboxes, joined

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
    assert inboxes.size == 0
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
    assert all(MAX_QUANTUM_BYTES - 1300 < size <= MAX_QUANTUM_BYTES for size in sizes)
    assert [len(arrivals) for _, arrivals in turns] == [1, 1, 1, 1]  # joined


def test_turns_are_shorter_where_many_wait() -> None:
    inboxes = Inboxes()
    clients = [object() for _ in range(100)]
    for client in clients:
        for _ in range(50):
            inboxes.put(client, bytes(1300), 1300, HERE)
    client, arrivals = inboxes.take()
    assert client is clients[0]
    assert [len(train) for train, _, _ in arrivals] == [MIN_QUANTUM_BYTES // 1300 * 1300]


def test_where_much_waits_everybody_may_still_have_something() -> None:
    inboxes = Inboxes()
    hog, guest = object(), object()
    count = 0
    while inboxes.size <= MAX_BYTES:
        inboxes.put(hog, bytes(65000), 1300, HERE)
        count += 1
    inboxes.put(hog, bytes(65000), 1300, HERE)
    inboxes.put(guest, b"word", 4, THERE)
    assert inboxes.dropped == 50
    assert sum(client is hog for client, _ in _drain(inboxes)) == count
    assert inboxes.size == 0


def test_who_is_gone_has_no_turn() -> None:
    inboxes = Inboxes()
    gone, guest = object(), object()
    inboxes.put(gone, b"a", 1, HERE)
    inboxes.put(guest, b"b", 1, THERE)
    inboxes.forget(gone)
    inboxes.forget(object())
    assert inboxes.size == 1
    assert _drain(inboxes) == [(guest, [(b"b", 1, THERE)])]


def _datagrams(arrivals: list[tuple[bytes, int, Any]]) -> list[tuple[bytes, Any]]:
    return [
        (train[at : at + segment], source) for train, segment, source in arrivals for at in range(0, len(train), segment)
    ]


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
