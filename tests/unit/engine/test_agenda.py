"""What is due when."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gw.engine.agenda import NEVER, SPARE, Agenda

STEPS = st.lists(st.tuples(st.sampled_from(["put", "drop", "take"]), st.integers(0, 5), st.integers(0, 20)))


@given(STEPS)
def test_it_is_like_a_table_that_is_searched(steps: list[tuple[str, int, int]]) -> None:
    agenda: Agenda[int] = Agenda()
    table: dict[int, float] = {}
    for what, item, due in steps:
        if what == "put":
            agenda.put(item, float(due) or NEVER)
            table[item] = float(due) or NEVER
        elif what == "drop":
            agenda.discard(item)
            table.pop(item, None)
        else:
            found = agenda.take(due)
            assert sorted(found) == sorted(each for each, at in table.items() if at <= due)
            for each in found:
                del table[each]
        assert agenda.next() == min(table.values(), default=NEVER)


def test_times_that_hold_no_longer_fill_no_memory() -> None:
    agenda: Agenda[int] = Agenda()
    for number in range(10000):
        agenda.put(number % 3, 1000.0 + number)
    assert len(agenda._heap) <= 2 * 3 + SPARE + 1
