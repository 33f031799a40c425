"""Sets of addresses as spans, against Python's own sets."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from gw.policy.spans import V6, SpanSet, address_at, address_text, networks, number, overlap, span, span_text, without

BASE = number("100.64.0.0")
places = st.integers(0, 24)
spans = st.tuples(places, st.integers(0, 5)).map(lambda pair: (BASE + pair[0], BASE + pair[0] + pair[1]))


def expand(found: list[tuple[int, int]]) -> set[int]:
    return {place for first, last in found for place in range(first, last + 1)}


@given(st.lists(spans), st.lists(st.tuples(st.booleans(), places)))
def test_equals_a_set_after_any_additions_and_removals(
    first: list[tuple[int, int]], steps: list[tuple[bool, int]]
) -> None:
    found, model = SpanSet(first), expand(first)
    for adds, offset in steps:
        (found.add if adds else found.remove)(BASE + offset)
        (model.add if adds else model.discard)(BASE + offset)
        assert (BASE + offset in found) is adds
    assert expand(list(found)) == model
    maximal = list(found)
    assert all(one[1] + 1 < two[0] for one, two in pairwise(maximal))
    assert expand([span_of(text) for text in found.text()]) == model


def span_of(text: str) -> tuple[int, int]:
    low, dash, high = text.partition("-")
    return (number(low), number(high)) if dash else span(text)


@given(st.lists(spans), spans)
def test_questions_about_a_span(parts: list[tuple[int, int]], asked: tuple[int, int]) -> None:
    found, model, wanted = SpanSet(parts), expand(parts), expand([asked])
    assert found.overlaps(asked) == bool(model & wanted)
    assert found.covers(asked) == (wanted <= model)
    assert expand(without(parts, asked)) == model - wanted
    assert overlap(asked, (BASE, BASE)) == (BASE in wanted)


hextets = st.lists(st.sampled_from([0, 0, 0, 1, 0x10, 0xA1E0, 0xFFFF]), min_size=8, max_size=8)


@given(st.one_of(hextets.map(lambda parts: V6 + sum(part << 16 * at for at, part in enumerate(parts))),
                 st.integers(0, V6 - 1).map(lambda value: V6 + value), st.integers(0, (1 << 32) - 1)))  # fmt: skip
def test_an_address_is_written_as_python_writes_it(place: int) -> None:
    assert address_text(place) == str(address_at(place))


@given(st.integers(0, 2 * V6 - 1), st.integers(0, 128), st.integers(0, 70_000))
def test_a_span_is_written_as_its_networks_say(place: int, bits: int, more: int) -> None:
    """RFC 5952 for each end."""
    place = place if place >= V6 else place & 0xFFFFFFFF
    bits = bits if place >= V6 else min(bits, 32)
    first = place >> bits << bits
    last = first + (1 << bits) - 1
    assert span_text((first, last)) == (str(networks((first, last))[0]) if bits else str(address_at(first)))
    end = min(place + more, 2 * V6 - 1) if place >= V6 else min(place + more, 0xFFFFFFFF)
    found = networks((place, end))
    expected = f"{address_at(place)}-{address_at(end)}" if len(found) > 1 else str(found[0])
    assert span_text((place, end)) == (expected if more and end > place else str(address_at(place)))


def test_families_do_not_run_into_each_other() -> None:
    edge = SpanSet([span("255.255.255.255"), span("::")])
    assert edge.text() == ["255.255.255.255", "::"]
    edge.add(number("::1"))
    assert edge.text() == ["255.255.255.255", "::/127"]
    assert V6 in edge


def test_text_is_an_address_a_prefix_or_a_range() -> None:
    assert span_text(span("10.0.0.0/8")) == "10.0.0.0/8"
    assert span_text(span("10.1.2.3/8")) == "10.0.0.0/8"
    assert span_text((number("10.0.0.1"), number("10.0.0.2"))) == "10.0.0.1-10.0.0.2"
    assert span_text(span("fd7a::1")) == "fd7a::1"
