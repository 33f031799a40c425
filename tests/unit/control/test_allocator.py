"""Addresses against a model that is a plain set."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gw.control.allocator import Allocator
from gw.errors import Conflict


@given(st.lists(st.one_of(st.none(), st.integers(0, 40)), max_size=60))
def test_never_gives_an_address_that_is_in_use(steps: list[int | None]) -> None:
    """None: allocate; a number: free that one of those in use."""
    allocator = Allocator(["100.100.100.96/28"])
    network = ip_network("100.100.100.96/28")
    usable = {str(host) for host in network.hosts()} - {"100.100.100.100"}
    used: list[str] = []
    for step in steps:
        if step is None:
            if len(used) == len(usable):
                with pytest.raises(Conflict):
                    allocator.allocate()
                continue
            (address,) = allocator.allocate()
            assert address in usable
            assert address not in used
            used.append(address)
        elif used:
            allocator.release([used.pop(step % len(used))])


def test_addresses_come_in_sequence_from_both_families() -> None:
    allocator = Allocator(["fd7a:115c:a1e0::/48", "100.64.0.0/10"])
    assert allocator.allocate() == ["100.64.0.1", "fd7a:115c:a1e0::1"]
    assert allocator.allocate() == ["100.64.0.2", "fd7a:115c:a1e0::2"]


def test_a_freed_address_rests_until_the_pool_was_walked() -> None:
    allocator = Allocator(["10.0.0.0/29"])
    first = allocator.allocate()
    allocator.release(first)
    assert [allocator.allocate() for _ in range(6)] == [[f"10.0.0.{n}"] for n in (2, 3, 4, 5, 6, 1)]


@pytest.mark.parametrize(
    ("prefix", "left_out"),
    [
        ("100.100.100.100/31", "100.100.100.100"),
        ("100.115.92.0/22", "100.115.92.0/23"),
        ("fd7a:115c:a1e0::50/124", "fd7a:115c:a1e0::53"),
    ],
)
def test_service_addresses_and_the_range_of_chromeos_are_left_out(prefix: str, left_out: str) -> None:
    allocator = Allocator([prefix])
    given_out = []
    with pytest.raises(Conflict):
        while True:
            given_out += allocator.allocate()
    assert given_out
    assert not any(ip_address(address) in ip_network(left_out) for address in given_out)


def test_an_exhausted_family_takes_nothing_from_the_other() -> None:
    allocator = Allocator(["10.0.0.0/30", "fd00::/64"])
    allocator.allocate(), allocator.allocate()
    for _ in range(3):
        with pytest.raises(Conflict, match=r"no free address left in `10\.0\.0\.0/30`"):
            allocator.allocate()
    allocator.release(["10.0.0.1"])
    assert allocator.allocate() == ["10.0.0.1", "fd00::3"]


def test_claimed_addresses_are_skipped_also_outside_the_pools() -> None:
    allocator = Allocator(["10.0.0.0/29"])
    assert allocator.claim("10.0.0.1")
    assert not allocator.claim("10.0.0.1")
    assert allocator.claim("192.0.2.1")
    assert not allocator.claim("192.0.2.1")
    assert allocator.allocate() == ["10.0.0.2"]


def test_fifty_thousand_addresses_cost_one_step_each() -> None:
    """Counted, not timed: the reserved spans are jumped over and the cursor never goes back."""
    allocator = Allocator(["100.115.80.0/20", "fd00::/64"])
    (pool, _) = allocator._pools
    steps = 0
    original = pool._past_reserved

    def counting(value: int) -> int:
        nonlocal steps
        steps += 1
        return original(value)

    pool._past_reserved = counting  # type: ignore[method-assign]
    count = 2**12 - 2 - 512
    for _ in range(count):
        allocator.allocate()
    assert steps <= count + 1
