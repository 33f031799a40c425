"""Routes for the allowed IPs of peers: counted, and summed up where there are many."""

from __future__ import annotations

import ipaddress

from hypothesis import given
from hypothesis import strategies as st

from gw.node.routes import CGNAT, MANY, ULA, Network, TunnelRoutes

LAN = ipaddress.IPv4Network("192.168.1.0/24")


def v4(number: int) -> Network:
    return ipaddress.IPv4Network((int(CGNAT.network_address) + number, 32))


def test_a_route_that_two_peers_serve_stays_until_the_last_goes() -> None:
    needed = TunnelRoutes()
    needed.add([v4(1), LAN])
    needed.add([v4(2), LAN])
    assert needed.take() == ({v4(1), v4(2), LAN}, set())
    needed.remove([v4(1), LAN])
    assert needed.take() == (set(), {v4(1)})
    needed.remove([v4(2), LAN])
    assert needed.take() == (set(), {v4(2), LAN})


def test_ipv6_addresses_of_the_mesh_are_one_route() -> None:
    needed = TunnelRoutes()
    needed.add([ipaddress.IPv6Network("fd7a:115c:a1e0::1/128"), ipaddress.IPv6Network("2001:db8::/32")])
    needed.add([ipaddress.IPv6Network("fd7a:115c:a1e0::2/128")])
    assert needed.take() == ({ULA, ipaddress.IPv6Network("2001:db8::/32")}, set())
    needed.remove([ipaddress.IPv6Network("fd7a:115c:a1e0::1/128")])
    assert needed.take() == (set(), set())


def test_what_changes_hands_between_two_takes_is_not_touched() -> None:
    needed = TunnelRoutes()
    needed.add([LAN])
    needed.take()
    needed.remove([LAN])
    needed.add([LAN])
    assert needed.take() == (set(), set())


def test_many_addresses_become_one_route_and_few_become_single_again() -> None:
    needed = TunnelRoutes()
    count = MANY + 1
    needed.add(v4(number) for number in range(count))
    needed.add([LAN])
    assert needed.take() == ({CGNAT, LAN}, set())
    needed.remove([v4(0)])
    assert needed.take() == (set(), set())  # no to and fro at the border
    gone = count - MANY // 2 + 1
    needed.remove(v4(number) for number in range(1, gone))
    add, remove = needed.take()
    assert remove == {CGNAT}
    assert add == {v4(number) for number in range(gone, count)}


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=60), st.sampled_from([1, 2, 4]))
def test_what_was_given_always_covers_what_is_needed(steps: list[tuple[bool, int]], many: int) -> None:
    needed, given_out, held = TunnelRoutes(many), set[Network](), list[int]()
    for is_new, number in steps:
        if is_new:
            needed.add([v4(number)])
            held.append(number)
        elif number in held:
            needed.remove([v4(number)])
            held.remove(number)
        add, remove = needed.take()
        assert not add & given_out
        assert remove <= given_out
        given_out = given_out - remove | add
        singles = {v4(each) for each in held}
        assert given_out in (singles, {CGNAT})
        assert len(singles) <= many or given_out == {CGNAT}
