"""How many QUIC handshakes are begun for packets whose sender nobody has proven yet: so many for each peer, and in all.

A first packet says nothing that its sender could not forge, the address of a peer not excepted. So what comes from the
address of one peer is counted against that peer, and others still get in.

Ref: spec quic §13; RFC 9000 §21.1
"""

from __future__ import annotations

from itertools import islice
from typing import Final, final

from gw.model.keys import NodeKey

PEER_PER_S: Final = 2.0
PEER_BURST: Final = 6.0
ALL_PER_S: Final = 60.0  # what the processor gives to it: a handshake takes milliseconds
ALL_BURST: Final = 120.0


@final
class Handshakes:
    """Holds numbers only of peers whose budget is not full."""

    def __init__(self) -> None:
        self._all = ALL_BURST
        self._filled_at = 0.0
        self._peers: dict[NodeKey, tuple[float, float]] = {}  # what is left, and when that was so

    def afford(self, peer: NodeKey, now: float) -> bool:
        """Take one handshake of the peer's; False where there is none left. peer: one of the map."""
        self._all = min(ALL_BURST, self._all + (now - self._filled_at) * ALL_PER_S)
        self._filled_at = now
        left, at = self._peers.get(peer, (PEER_BURST, now))
        left = min(PEER_BURST, left + (now - at) * PEER_PER_S)
        if left < 1.0 or self._all < 1.0:
            return False
        self._all -= 1.0
        self._peers.pop(peer, None)  # the newest stands last
        self._peers[peer] = left - 1.0, now
        for key in list(islice(self._peers, 2)):  # those that stand first may be full again
            left, at = self._peers[key]
            if left + (now - at) * PEER_PER_S >= PEER_BURST:
                del self._peers[key]
        return True

    def __len__(self) -> int:
        return len(self._peers)
