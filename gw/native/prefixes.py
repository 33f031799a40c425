"""Longest-prefix match: which peer has an address. One dictionary a prefix length, longest first.

A mesh is mostly /32 and /128, so the first look-up decides nearly always; and packets come in trains of one flow, so
the last answer of each family is kept.
"""

from __future__ import annotations

from typing import Final, final

from librt.strings import read_i32_be
from mypy_extensions import i64, mypyc_attr

NOBODY: Final = -1


@final
@mypyc_attr(native_class=True)
class PrefixMap:
    """IPv4 and IPv6 prefixes -> a small number (a peer's slot)."""

    def __init__(self) -> None:
        self.v4: dict[int, dict[int, int]] = {}  # prefix length -> masked address -> slot
        self.v6: dict[int, dict[bytes, int]] = {}
        self.lengths4: list[int] = []  # longest first
        self.lengths6: list[int] = []
        self.last4: i64 = -1  # the address that was asked for last, and its answer
        self.found4: i64 = NOBODY
        self.last6: bytes = b""
        self.found6: i64 = NOBODY

    def put(self, network: bytes, length: int, slot: int) -> None:
        """network: 4 or 16 bytes with no bits beyond `length`. The last one to claim a prefix has it."""
        self._forget()
        if len(network) == 4:
            if length not in self.v4:
                self.v4[length] = {}
                self.lengths4 = sorted(self.v4, reverse=True)
            self.v4[length][int.from_bytes(network, "big")] = slot
        else:
            if length not in self.v6:
                self.v6[length] = {}
                self.lengths6 = sorted(self.v6, reverse=True)
            self.v6[length][network] = slot

    def take(self, network: bytes, length: int, slot: int) -> None:
        """Remove a prefix if `slot` still has it."""
        self._forget()
        if len(network) == 4:
            table4 = self.v4.get(length)
            key = int.from_bytes(network, "big")
            if table4 is not None and table4.get(key) == slot:
                del table4[key]
                if not table4:
                    del self.v4[length]
                    self.lengths4.remove(length)
            return
        table6 = self.v6.get(length)
        if table6 is not None and table6.get(network) == slot:
            del table6[network]
            if not table6:
                del self.v6[length]
                self.lengths6.remove(length)

    def change(self, slot: int, add: list[tuple[bytes, int]], remove: list[tuple[bytes, int]]) -> None:
        """What a peer no longer has, and what it has from now on, as (network, length)."""
        for network, length in remove:
            self.take(network, length, slot)
        for network, length in add:
            self.put(network, length, slot)

    def find4(self, packet: bytes, at: i64) -> i64:
        """The slot for the IPv4 address at packet[at:at+4], or NOBODY."""
        address: i64 = i64(read_i32_be(packet, at)) & 0xFFFFFFFF
        if address == self.last4:
            return self.found4
        slot: i64 = NOBODY
        for length in self.lengths4:
            bits: i64 = 32 - i64(length)
            found = self.v4[length].get(int((address >> bits) << bits))
            if found is not None:
                slot = i64(found)
                break
        self.last4 = address
        self.found4 = slot
        return slot

    def find6(self, packet: bytes, at: i64) -> i64:
        """The slot for the IPv6 address at packet[at:at+16], or NOBODY."""
        address = packet[at : at + 16]
        if address == self.last6:
            return self.found6
        slot: i64 = NOBODY
        for length in self.lengths6:
            key = address if length == 128 else mask(address, length)
            found = self.v6[length].get(key)
            if found is not None:
                slot = i64(found)
                break
        self.last6 = address
        self.found6 = slot
        return slot

    def _forget(self) -> None:
        self.last4 = -1
        self.last6 = b""


def mask(address: bytes, length: int) -> bytes:
    """The first `length` bits of 16 bytes, the rest zero."""
    bits = 128 - length
    return ((int.from_bytes(address, "big") >> bits) << bits).to_bytes(16, "big")
