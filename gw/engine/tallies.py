"""The counters of all packet workers, read: traffic and drops of a peer, drops of the node.

What workers write is in `gw.native.counters`; nothing here asks one.
"""

from __future__ import annotations

import struct
from mmap import mmap
from typing import Final, NamedTuple, final

from gw.native.counters import (
    DIRECT_AT,
    INBOUND,
    MAX_SEALERS,
    OUTBOUND,
    PEER_DROPS_AT,
    REASON_NAMES,
    REASONS,
    SHARED_BYTES,
    block_at,
    clear_block,
    region_at,
)

_ONE: Final = struct.Struct("<q")
_FOUR: Final = struct.Struct("<4q")
_DROPS: Final = struct.Struct(f"<{REASONS}q")


class Traffic(NamedTuple):
    """One direction of one peer. Bytes of inner packets; times CLOCK_MONOTONIC nanoseconds, 0 for never."""

    packets: int
    size: int
    data_ns: int
    any_ns: int


@final
class Tallies:
    """Sums over the workers of a plane."""

    def __init__(self, descriptor: int, lanes: int) -> None:
        """descriptor: of the memory file that workers map too; lanes: of each plane. A lane has up to two sealers."""
        self._shared = mmap(descriptor, SHARED_BYTES)
        self._outbound = [region_at(OUTBOUND, sealer) for sealer in range(min(2 * lanes, MAX_SEALERS))]
        self._inbound = [region_at(INBOUND, lane) for lane in range(lanes)]

    def close(self) -> None:
        self._shared.close()

    def sent(self, slot: int) -> Traffic:
        return self._traffic(self._outbound, slot)

    def received(self, slot: int) -> Traffic:
        return self._traffic(self._inbound, slot)

    def received_direct(self, slot: int) -> int:
        """Data packets of the peer that came without a relay, copies counted as well."""
        return sum(_ONE.unpack_from(self._shared, block_at(region, slot) + DIRECT_AT)[0] for region in self._inbound)

    def drops(self) -> dict[str, int]:
        """Of the whole node, by reason."""
        return self._named(self._outbound + self._inbound)

    def dropped_sending(self) -> dict[str, int]:
        """Of the whole node, on the way out, by reason."""
        return self._named(self._outbound)

    def dropped_receiving(self) -> dict[str, int]:
        """Of the whole node, on the way in, by reason."""
        return self._named(self._inbound)

    def peer_drops(self, slot: int) -> dict[str, int]:
        """Those that can be laid to a peer, by reason."""
        regions = self._outbound + self._inbound
        return self._named([block_at(region, slot) + PEER_DROPS_AT for region in regions])

    def clear(self, slot: int) -> None:
        """The slot will be another peer's."""
        for region in self._outbound + self._inbound:
            clear_block(self._shared, block_at(region, slot))

    def _traffic(self, regions: list[int], slot: int) -> Traffic:
        if len(regions) == 1:
            return Traffic(*_FOUR.unpack_from(self._shared, block_at(regions[0], slot)))
        found = [_FOUR.unpack_from(self._shared, block_at(region, slot)) for region in regions]
        packets, size, data, any_ = zip(*found, strict=True)
        return Traffic(sum(packets), sum(size), max(data), max(any_))

    def _named(self, places: list[int]) -> dict[str, int]:
        found: dict[str, int] = {}
        for place in places:
            for name, count in zip(REASON_NAMES, _DROPS.unpack_from(self._shared, place), strict=True):
                if count:
                    found[name] = found.get(name, 0) + count
        return found
