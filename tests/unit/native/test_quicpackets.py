"""Acknowledgments and the duplicate window of the QUIC fast path, held against aioquic's own."""

from __future__ import annotations

import pytest
from aioquic._buffer import Buffer
from aioquic.quic.packet import pull_ack_frame, push_ack_frame
from aioquic.quic.rangeset import RangeSet
from hypothesis import given
from hypothesis import strategies as st

from gw.native.quicpackets import MAX_RANGES, WINDOW, Ledger, Window, encode_ack, parse_ack

gaps = st.lists(st.tuples(st.integers(0, 100_000), st.integers(1, 100_000)), min_size=1, max_size=70)


def ranges_of(steps: list[tuple[int, int]]) -> list[int]:
    """[start, stop, …] with at least one missing packet between two."""
    flat: list[int] = []
    at = 0
    for gap, length in steps:
        start = at + gap + (1 if flat else 0)
        at = start + length
        flat += (start, at)
    return flat


@given(gaps, st.integers(0, 1 << 20))
def test_an_acknowledgment_is_what_aioquic_writes_and_reads(steps: list[tuple[int, int]], delay: int) -> None:
    flat = ranges_of(steps)
    wanted = RangeSet([range(flat[at], flat[at + 1]) for at in range(0, len(flat), 2)])
    buffer = Buffer(capacity=4096)
    buffer.push_uint_var(0x02)
    push_ack_frame(buffer, wanted, delay, 4096)
    assert encode_ack(flat, delay) == buffer.data
    found = parse_ack(buffer.data)
    assert found[0] == delay
    newest_first = [(flat[at], flat[at + 1]) for at in range(len(flat) - 2, -1, -2)]
    assert [(found[at], found[at + 1]) for at in range(1, len(found), 2)] == newest_first


@given(st.binary(max_size=60))
def test_noise_is_read_as_aioquic_reads_it_or_not_at_all(noise: bytes) -> None:
    found = parse_ack(b"\x02" + noise)
    if not found:
        return
    buffer = Buffer(data=noise)
    ranges, delay = pull_ack_frame(buffer)
    assert buffer.eof()
    assert delay == found[0]
    mine = RangeSet()
    for at in range(1, len(found), 2):
        mine.add(found[at], found[at + 1])
    assert list(mine) == list(ranges)


@pytest.mark.parametrize("tail", [b"\x00", b"\x01", b"\x30x"])
def test_an_acknowledgment_with_company_is_left_to_the_stock_connection(tail: bytes) -> None:
    assert parse_ack(encode_ack([3, 9], 5) + tail) == []


def test_an_acknowledgment_of_too_many_ranges_is_left_to_the_stock_connection() -> None:
    many = ranges_of([(1, 1)] * (MAX_RANGES + 2))
    assert parse_ack(encode_ack(many, 0)) == []


@given(st.lists(st.integers(0, 3 * WINDOW), max_size=200))
def test_the_window_is_a_set_that_forgets_the_old(numbers: list[int]) -> None:
    window, seen = Window(), set()
    for number in numbers:
        newest = max(seen, default=-1)
        assert (number in window) == (number in seen or number <= newest - WINDOW)
        if number not in window:
            window.add(number)
            seen.add(number)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=20), st.data())
def test_the_ledger_tells_of_each_byte_once(batches: list[int], data: st.DataObject) -> None:
    ledger = Ledger()
    first = 0
    for count in batches:
        ledger.sent(first, [1000] * count, first)
        first += count
    total = 0
    largest = -1
    for _ in range(6):
        start = data.draw(st.integers(0, first - 1))
        stop = data.draw(st.integers(start + 1, first))
        largest = max(largest, stop - 1)
        for _, acked, lost in ledger.settle([start, stop], largest):
            total += acked + lost
    left = sum(size for batch in ledger.batches for size in batch.sizes)
    assert total + left == 1000 * first


def test_a_run_that_is_far_behind_costs_nothing() -> None:
    """Packet numbers are the other end's choice: one far ahead must not make the older ones dear."""
    window = Window()
    window.add(1 << 61)
    kept = window.seen
    window.add_run(5, 20)
    assert window.seen == kept
    window.add_run(0, (1 << 61) - WINDOW + 3)
    assert window.seen.bit_length() <= WINDOW
    assert (1 << 61) - WINDOW + 2 in window
