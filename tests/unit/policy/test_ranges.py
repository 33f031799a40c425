"""Sets of addresses as ranges, against Python's own sets."""

from __future__ import annotations

from ipaddress import IPv4Address

from hypothesis import given
from hypothesis import strategies as st

from gw.policy.ranges import AddressRanges, pool_sources

BASE = int(IPv4Address("100.64.0.0"))


def expand(texts: list[str]) -> set[int]:
    found: set[int] = set()
    for text in texts:
        if "/" in text:
            address, _, length = text.partition("/")
            first, last = int(IPv4Address(address)), int(IPv4Address(address)) + 2 ** (32 - int(length)) - 1
        else:
            low, _, high = text.partition("-")
            first, last = int(IPv4Address(low)), int(IPv4Address(high or low))
        found |= set(range(first, last + 1))
    return found


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 24))))
def test_equals_a_set_after_any_additions_and_removals(steps: list[tuple[bool, int]]) -> None:
    ranges, model = AddressRanges(), set[int]()
    for adds, offset in steps:
        text = str(IPv4Address(BASE + offset))
        if adds:
            ranges.add(text)
            model.add(BASE + offset)
        else:
            ranges.remove(text)
            model.discard(BASE + offset)
        assert (text in ranges) is adds
    texts = ranges.text()
    assert expand(texts) == model
    gaps = sum(1 for value in model if value - 1 not in model)
    assert len(texts) == gaps  # every range is maximal


def test_a_range_that_is_one_prefix_is_written_as_one() -> None:
    ranges = AddressRanges(f"100.64.0.{last}" for last in (4, 5, 6, 7, 9))
    ranges.add("fd7a::1")
    assert ranges.text() == ["100.64.0.4/30", "100.64.0.9", "fd7a::1"]


def test_pools_leave_out_the_range_of_chromeos() -> None:
    """Spec policy §6, captured from the public service."""
    assert pool_sources(["100.64.0.0/10", "fd7a:115c:a1e0::/48"]) == [
        "100.64.0.0-100.115.91.255",
        "100.115.94.0-100.127.255.255",
        "fd7a:115c:a1e0::/48",
    ]
    assert pool_sources(["100.80.0.0/16"]) == ["100.80.0.0/16"]
    assert pool_sources(["100.115.92.0/24"]) == []
