"""Tells senders that a client of this relay does not keep up, and how much it takes, so that they slow down themselves.

    packets wait for a port ──50 ms──▶ how fast does it drain? ──▶ FLOW_STATE congested to those who lose packets
                                        └─ every 100 ms while packets wait     └─ 200 ms without: FLOW_STATE ok

A sender is a client over QUIC of this process, or one of another worker or relay: then the word goes by the link that
leads there. Who does not understand it loses packets as before. A word is a hint, not a credit: any may be lost.

Ref: spec quic §8.2, §11
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from typing import Final, final

from gw.native.relaying import Port, Switch
from gw.wire.derp.frames import encode
from gw.wire.quic import frames

FIRST_LOOK_S: Final = 0.05  # a rate that is measured for less is a guess, and would slow down who is merely bursty
LOOK_S: Final = 0.1
CALM_S: Final = 0.2
MEASURED_LOOKS: Final = 10
SHARE: Final = 0.9  # of what it takes, so that what waits already goes out
MIN_RATE: Final = 8_000  # bytes a second: nobody is silenced
TOLD_A_LOOK: Final = 64  # of many senders those that lose most
MAX_OUT_BYTES: Final = 64 << 10  # of a sender that does not read itself; it goes without


@final
class _Slow:
    """A port for which packets wait."""

    def __init__(self, drained: int, now: float) -> None:
        self.marks: deque[tuple[float, int]] = deque([(now, drained)], maxlen=MEASURED_LOOKS)
        self.waited_at = now
        self.senders: dict[bytes, float] = {}  # → when one of its packets waited last
        self.told: dict[bytes, int] = {}  # → packets dropped so far

    def rate(self, drained: int, now: float) -> float:
        """Bytes a second, lately."""
        if drained < self.marks[-1][1]:  # another path, another count
            self.marks.clear()
        if not self.marks:
            self.marks.append((now, drained))
            return 0.0
        since, before = self.marks[0]
        self.marks.append((now, drained))
        return (drained - before) / max(now - since, 1e-3)


@final
class FlowStates:
    """Call `look` when `Switch.crowded` has something; what follows is ordered by `arm_call`."""

    def __init__(self, switch: Switch, arm_call: Callable[[float, Callable[[], None]], None]) -> None:
        """arm_call: has something called at a time, of the clock that `look` is given."""
        self._switch = switch
        self._arm_call = arm_call
        self._slow: dict[Port, _Slow] = {}
        self.told = 0  # words to senders

    def look(self, now: float) -> None:
        """Packets have begun to wait somewhere."""
        for port in self._switch.clear_crowded():
            self._slow[port] = _Slow(port.owner.drained, now)
            self._order(port, now + FIRST_LOOK_S)

    def _order(self, port: Port, when: float) -> None:
        self._arm_call(when, lambda: self._again(port, when))

    def _again(self, port: Port, now: float) -> None:
        slow = self._slow[port]
        crowd, port.crowd = port.crowd, {}
        if port.is_closed:
            del self._slow[port]
            here = port.key in self._switch.local or port.key in self._switch.remote
            self._end(port, slow, frames.FLOW_OK_STATE if here else frames.FLOW_GONE)
            return
        rate = slow.rate(port.owner.drained, now)
        if crowd or self._switch.waits(port):
            slow.waited_at = now
        for sender in crowd:
            slow.senders[sender] = now
        slow.senders = {sender: at for sender, at in slow.senders.items() if now - at < LOOK_S * MEASURED_LOOKS}
        losers = [(dropped, sender) for sender, dropped in crowd.items() if dropped]
        if losers:
            hint = max(MIN_RATE, int(SHARE * rate / len(slow.senders)))
            for dropped, sender in heapq.nlargest(TOLD_A_LOOK, losers):
                slow.told[sender] = total = slow.told.get(sender, 0) + dropped
                self._tell(sender, frames.encode_flow_state(port.key, frames.FLOW_CONGESTED, hint, total))
        if now - slow.waited_at >= CALM_S:
            del self._slow[port]
            port.is_crowded = False
            self._end(port, slow, frames.FLOW_OK_STATE)
            return
        self._order(port, now + LOOK_S)

    def _end(self, port: Port, slow: _Slow, state: int) -> None:
        for sender, dropped in slow.told.items():
            self._tell(sender, frames.encode_flow_state(port.key, state, 0, dropped))

    def _tell(self, sender: bytes, body: bytes) -> None:
        self.told += tell(self._switch, sender, body)


def tell(switch: Switch, sender: bytes, body: bytes, *, by: Port | None = None) -> bool:
    """Give a FLOW_STATE to a sender, or to the link that leads to it. by: the link that brought it.

    False where the sender cannot be told.
    """
    if len(body) < frames.FLOW_STATE_BYTES:
        return False
    port = switch.local.get(sender)
    if port is not None:
        frame = encode(frames.FLOW_STATE, body)
        can_hear = port.hears_flow
    else:
        port = switch.remote.get(sender)
        if port is None or (by is not None and (by.is_sibling or not port.is_sibling)):  # no second hop
            return False
        frame = encode(frames.FLOW_STATE, sender + body)
        can_hear = True
    if not can_hear or port.is_blocked or port.out_bytes > MAX_OUT_BYTES:
        return False
    switch.push(port, frame)
    return True
