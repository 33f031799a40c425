"""Packets for peers that do not keep up at a relay, sent as fast as the relay says that they take them.

    FlowState congested ──▶ the peer's packets wait here, the oldest give way ──▶ at its rate
    ok, or a second without a word ──▶ the rate grows by a quarter every 100 ms ──▶ 2 s later the peer is free

Otherwise they would take the room of packets for others on the way to the relay, only to be dropped there. No I/O.

Ref: spec quic §11
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Final, final

from gw.model.keys import NodeKey
from gw.wire.quic.client import FlowState
from gw.wire.quic.frames import FLOW_CONGESTED, FLOW_GONE

MIN_RATE: Final = 8_000.0  # bytes a second, whatever a relay says
HOLD_S: Final = 1.0  # for which a word holds
GROWTH: Final = 1.25
GROWTH_S: Final = 0.1
FREE_S: Final = 2.0  # after which growth has no end
WAIT_S: Final = 0.1  # packets wait no longer than this, a few apart
MIN_QUEUE_BYTES: Final = 12_000
MAX_QUEUE_BYTES: Final = 400_000
BURST_S: Final = 0.005
MIN_BURST_BYTES: Final = 3_000.0
MAX_SLOW: Final = 256  # peers; who was spoken of longest ago is free
NEVER: Final = float("inf")


@final
class _Slow:
    def __init__(self, rate: float, now: float) -> None:
        self.queue: deque[bytes] = deque()
        self.waiting = 0  # bytes
        self.credit = MIN_BURST_BYTES
        self.at = now
        self.rate_said = rate
        self.hold_until = now + HOLD_S

    def rate(self, now: float) -> float:
        grown = max(0.0, now - self.hold_until) / GROWTH_S
        return float(self.rate_said * GROWTH ** min(grown, FREE_S / GROWTH_S))

    def refill(self, now: float) -> float:
        rate = self.rate(now)
        self.credit = min(max(MIN_BURST_BYTES, rate * BURST_S), self.credit + (now - self.at) * rate)
        self.at = now
        return rate


@final
class Throttle:
    """`put` takes packets of peers that are in it (`peer in throttle`); `take` gives what may go from `deadline` on."""

    def __init__(self) -> None:
        self._slow: OrderedDict[NodeKey, _Slow] = OrderedDict()
        self.dropped = 0

    def __contains__(self, peer: NodeKey) -> bool:
        return peer in self._slow

    def __len__(self) -> int:
        return len(self._slow)

    def hear(self, word: FlowState, now: float) -> None:
        """What a relay says of a peer."""
        slow = self._slow.get(word.peer)
        if word.state == FLOW_CONGESTED:
            rate = max(MIN_RATE, float(word.bytes_per_second))
            if slow is None:
                slow = self._slow[word.peer] = _Slow(rate, now)
                if len(self._slow) > MAX_SLOW:
                    _, oldest = self._slow.popitem(last=False)
                    self.dropped += len(oldest.queue)
            slow.refill(now)
            slow.rate_said, slow.hold_until = rate, now + HOLD_S
            self._slow.move_to_end(word.peer)
        elif slow is not None and word.state == FLOW_GONE:
            self.dropped += len(slow.queue)
            del self._slow[word.peer]
        elif slow is not None:
            slow.hold_until = min(slow.hold_until, now)

    def put(self, peer: NodeKey, packet: bytes, now: float) -> None:
        """One more packet for a peer that is in here."""
        slow = self._slow[peer]
        slow.queue.append(packet)
        slow.waiting += len(packet)
        limit = min(MAX_QUEUE_BYTES, max(MIN_QUEUE_BYTES, slow.rate(now) * WAIT_S))
        while slow.waiting > limit and len(slow.queue) > 1:
            slow.waiting -= len(slow.queue.popleft())
            self.dropped += 1

    def take(self, now: float) -> list[tuple[NodeKey, bytes]]:
        """What may go now."""
        out: list[tuple[NodeKey, bytes]] = []
        free: list[NodeKey] = []
        for peer, slow in self._slow.items():
            is_free = now - slow.hold_until >= FREE_S
            if is_free:
                free.append(peer)
            slow.refill(now)
            queue = slow.queue
            while queue and (is_free or slow.credit >= min(len(queue[0]), MIN_BURST_BYTES)):
                packet = queue.popleft()
                slow.credit -= len(packet)
                slow.waiting -= len(packet)
                out.append((peer, packet))
        for peer in free:
            del self._slow[peer]
        return out

    def deadline(self) -> float:
        """When `take` has something."""
        due = NEVER
        for slow in self._slow.values():
            if slow.queue:
                missing = min(len(slow.queue[0]), MIN_BURST_BYTES) - slow.credit
                due = min(due, slow.at + max(0.0, missing) / slow.rate(slow.at))
        return due
