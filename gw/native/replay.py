"""The window that lets each counter pass once, though packets overtake one another.

Ref: RFC 6479; whitepaper §5.4.6
"""

from __future__ import annotations

from typing import Final, final

from librt.vecs import vec
from mypy_extensions import i64, mypyc_attr

BLOCK_LOG: Final = 5  # 32 bits a block: clear of the i64 sign bit, same result interpreted
BLOCKS: Final = 256  # power of two
WINDOW: Final = (BLOCKS - 1) << BLOCK_LOG  # 8160; one block is spare


@final
@mypyc_attr(native_class=True)
class ReplayWindow:
    """Which counters of one keypair were seen."""

    def __init__(self) -> None:
        self.newest: i64 = -1
        self.ring: vec[i64] = vec[i64]([0] * BLOCKS)

    def accept(self, counter: i64) -> bool:
        """Mark `counter` as seen; False if it was seen, is older than the window, or is negative."""
        if counter < 0:
            return False
        block: i64 = counter >> BLOCK_LOG
        if counter > self.newest:
            newest_block: i64 = self.newest >> BLOCK_LOG
            stale: i64 = block - newest_block
            if stale > BLOCKS:
                stale = BLOCKS
            step: i64 = 1
            while step <= stale:
                self.ring[(newest_block + step) & (BLOCKS - 1)] = 0
                step += 1
            self.newest = counter
        elif self.newest - counter > WINDOW:
            return False
        bit: i64 = 1 << (counter & 31)
        slot: i64 = block & (BLOCKS - 1)
        seen: i64 = self.ring[slot]
        if seen & bit != 0:
            return False
        self.ring[slot] = seen | bit
        return True
