"""Newcomers at the relay's UDP port: what becomes a connection, and for how long without a proof.

    first packet ──▶ what the address, its network and all may begin ──▶ connection ──10 s──▶ node key, or the end
                 ──▶ Retry, while many have proven nothing: the address has to be true first
                 ──▶ nothing

Who proves a node key gives back what its network had to spend: the budgets are for strangers.

Ref: RFC 9000 §8.1; spec quic §11
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Protocol, final

from gw.quic.gate import Gate, Newcomer
from gw.wire.derp.buckets import Bucket, PrefixBuckets

MAX_UNPROVEN: Final = 1000  # connections whose node key is not proven
BUSY_UNPROVEN: Final = 100  # from so many on an address has to be proven first
HANDSHAKES_A_S: Final = 200.0
HANDSHAKE_BURST: Final = 400.0
HANDSHAKES_A_S_A_PREFIX: Final = 10.0
HANDSHAKE_BURST_A_PREFIX: Final = 100.0
RETRIES_A_S: Final = 1000.0  # and tokens that come back
HANDSHAKE_S: Final = 10.0


class Doorway(Protocol):
    """What newcomers need of the forwarding plane."""

    now: float

    def arm_call(self, when: float, order: Callable[[], None]) -> None: ...
    def admit_address(self, host: str) -> bool: ...


class Unproven(Protocol):
    """A connection that has not proven a node key."""

    @property
    def host(self) -> str: ...
    def give_up(self) -> None:
        """Its time is over."""


@final
class Newcomers:
    """Those of one port."""

    def __init__(self, loop: Doorway, gate: Gate) -> None:
        self.gate: Final = gate
        self.unproven: Final[set[Unproven]] = set()
        self.rejected = 0
        self._loop = loop
        self._handshakes = Bucket(HANDSHAKES_A_S, HANDSHAKE_BURST)
        self._prefixes = PrefixBuckets(HANDSHAKES_A_S_A_PREFIX, HANDSHAKE_BURST_A_PREFIX)
        self._retries = Bucket(RETRIES_A_S, RETRIES_A_S)

    def meet(self, datagram: bytes, source: Any, host: str) -> Newcomer | bytes:
        """What a packet of no known connection becomes: a connection, or an answer to send (empty: none)."""
        now = self._loop.now
        is_busy = len(self.unproven) >= BUSY_UNPROVEN
        if is_busy and not self._retries.take(1, now):
            self.rejected += 1
            return b""
        return self.gate.meet(datagram, source, now, is_busy=is_busy, has_room=lambda: self._has_room(host))

    def await_proof(self, client: Unproven) -> None:
        """It has `HANDSHAKE_S` from now."""
        self.unproven.add(client)
        self._loop.arm_call(self._loop.now + HANDSHAKE_S, partial(self._give_up, weakref.ref(client)))

    def proved(self, client: Unproven) -> None:
        self.unproven.discard(client)
        self._prefixes.of(client.host).spend(-1, self._loop.now)

    def _has_room(self, host: str) -> bool:
        """For one more whose node key is not proven."""
        now = self._loop.now
        if (
            len(self.unproven) < MAX_UNPROVEN
            and self._loop.admit_address(host)
            and self._prefixes.of(host).take(1, now)
            and self._handshakes.take(1, now)
        ):
            return True
        self.rejected += 1
        return False

    def _give_up(self, newcomer: weakref.ref[Unproven]) -> None:
        client = newcomer()
        if client is not None and client in self.unproven:
            client.give_up()
