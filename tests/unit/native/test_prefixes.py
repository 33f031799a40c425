"""Longest-prefix match against a search over all networks."""

from __future__ import annotations

import random
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from gw.native.prefixes import NOBODY, PrefixMap


def test_the_longest_prefix_wins_and_gives_way_again() -> None:
    table = PrefixMap()
    table.put(bytes(4), 0, 1)
    table.put(bytes([10, 0, 0, 0]), 8, 2)
    table.put(bytes([10, 1, 2, 3]), 32, 3)
    assert table.find4(bytes([10, 1, 2, 3]), 0) == 3
    table.take(bytes([10, 1, 2, 3]), 32, 9)  # not its owner: stays
    assert table.find4(bytes([10, 1, 2, 3]), 0) == 3
    table.take(bytes([10, 1, 2, 3]), 32, 3)
    assert table.find4(bytes([10, 1, 2, 3]), 0) == 2
    assert table.find4(bytes([255, 1, 2, 3]), 0) == 1
    table.take(bytes(4), 0, 1)
    assert table.find4(bytes([255, 1, 2, 3]), 0) == NOBODY


def test_random_tables_agree_with_a_search() -> None:
    rng = random.Random(7)
    networks4 = {
        IPv4Network((rng.getrandbits(32), rng.choice((0, 8, 10, 24, 31, 32))), strict=False) for _ in range(60)
    }
    networks6 = {
        IPv6Network((rng.getrandbits(128), rng.choice((0, 7, 48, 64, 127, 128))), strict=False) for _ in range(60)
    }
    table = PrefixMap()
    slots: dict[object, int] = {}
    for slot, network in enumerate([*networks4, *networks6]):
        slots[network] = slot
        table.put(network.network_address.packed, network.prefixlen, slot)
    for _ in range(500):
        near4 = rng.choice([*networks4])
        address4 = IPv4Address(int(near4.network_address) ^ rng.choice((0, 1, rng.getrandbits(32))))
        best4 = max((n for n in networks4 if address4 in n), key=lambda n: n.prefixlen, default=None)
        assert table.find4(b"xx" + address4.packed, 2) == (NOBODY if best4 is None else slots[best4])
        near6 = rng.choice([*networks6])
        address6 = IPv6Address(int(near6.network_address) ^ rng.choice((0, 1, rng.getrandbits(128))))
        best6 = max((n for n in networks6 if address6 in n), key=lambda n: n.prefixlen, default=None)
        assert table.find6(address6.packed, 0) == (NOBODY if best6 is None else slots[best6])
