"""Who waits for admission."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gw.relay.waiting import WaitingRoom

CLIENTS = st.integers(0, 9)


@given(st.lists(st.tuples(st.booleans(), CLIENTS), max_size=60), st.integers(1, 6))
def test_an_answer_is_about_those_of_its_key(moves: list[tuple[bool, int]], limit: int) -> None:
    room: WaitingRoom[int] = WaitingRoom(limit)
    model: set[int] = set()
    for comes, client in moves:
        if comes:
            assert room.enter(client, b"%d" % (client % 3)) == (client in model or len(model) < limit)
            if client in model or len(model) < limit:
                model.add(client)
        else:
            room.leave(client)
            model.discard(client)
        assert len(room) == len(model) <= limit
        assert set(room.called(b"")) == model
        for node in range(3):
            assert set(room.called(b"%d" % node)) == {each for each in model if each % 3 == node}
    for client in model:
        room.leave(client)
    assert not room._clients and not room._nodes
