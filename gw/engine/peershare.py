"""What packet workers are given of a QUIC connection with a peer, so that its bulk need not pass the engine.

    keys, connection ids, address     told again whenever one of them is another
    packet numbers                    as many as the congestion window has room for, a share for each worker that sends

A number is given to one worker, once. Who has not sent for long is given fresh ones, so that the receiver still takes
them; and only a peer that has told that it takes what is far behind its newest gets packets of workers. What a worker
has sent it tells before the packets leave, so the window counts them in time.

Ref: spec quic §6
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

from gw.model.addresses import AddrPort
from gw.model.keys import NodeKey
from gw.quic.link import Link
from gw.quic.protection import Secrets, secrets_of

NOTHING: Final = Secrets(0, b"", b"", b"", 0)
FULL_BYTES: Final = 1452
KIND_BYTES: Final = 1  # before a message
NEEDED_BYTES: Final = 1312 + KIND_BYTES  # of a datagram: the largest message of a tunnel
IDLE_NUMBERS: Final = 4  # for a worker that sends little; the window does not count them before they are used
NEEDED_WINDOW: Final = 4096  # a receiver has to take what is less behind the newest
MAX_NUMBERS: Final = 1024  # given and not used
STALE: Final = 1024  # so far behind the newest, numbers are given anew
BUSY_S: Final = 0.02  # who has not sent for so long has numbers that the window does not count
QUEUE_S: Final = 0.05  # of data at the rate that the path delivers may wait for numbers, within these
MIN_ROOM: Final = 128 << 10
MAX_ROOM: Final = 2 << 20
FINDING_ROOM: Final = 1 << 20  # while nobody knows what the path delivers


@dataclass(frozen=True, slots=True)
class Sealing:
    """For all workers that seal. Without a key in `secrets` they have nothing to do with the connection any more."""

    peer: NodeKey
    line: int
    secrets: Secrets
    cid: bytes
    address: AddrPort
    limit: int


@dataclass(frozen=True, slots=True)
class Numbers:
    """For one worker: first … stop - 1, instead of what it has if they are `fresh`. room: bytes that may wait."""

    peer: NodeKey
    line: int
    sealer: int
    first: int
    stop: int
    fresh: bool
    room: int


@dataclass(frozen=True, slots=True)
class Opening:
    """For the workers that open. Without ids they have nothing to do with the connection any more."""

    peer: NodeKey
    line: int
    secrets: Secrets
    cids: tuple[bytes, ...]
    expected: int


Share = Sealing | Numbers | Opening


@dataclass(slots=True)
class _Sealer:
    left: int = 0  # numbers that it has
    stop: int = 0  # the end of them
    most: int = 0  # that it had when it was last given some
    used_at: float = float("-inf")
    wants: bool = False  # packets wait there, and it has none left


@final
class PeerShare:
    """One connection's."""

    def __init__(self, line: int, peer: NodeKey, link: Link, sealers: int) -> None:
        self.line: Final = line
        self._peer = peer
        self._link = link
        self._sealers = [_Sealer() for _ in range(sealers)]
        self._sealing: tuple[object, ...] = ()
        self._opening: tuple[object, ...] = ()
        self._size = float(FULL_BYTES)  # of a packet, lately

    def forget(self) -> None:
        """Workers were started anew: they know nothing."""
        self._sealing = self._opening = ()

    def end(self) -> list[Share]:
        """The connection is over."""
        told: list[Share] = []
        if self._sealing:
            told.append(Sealing(self._peer, self.line, NOTHING, b"", AddrPort("", 0), 0))
        if self._opening:
            told.append(Opening(self._peer, self.line, NOTHING, (), 0))
        self.forget()
        return told

    def sent(self, sealer: int, first: int, sizes: list[int], sent_at: float) -> bool:
        """A worker is about to send these packets, or has no numbers left; whether it may want more soon."""
        state = self._sealers[sealer]
        state.used_at = sent_at
        if not sizes:
            state.left = 0
            state.wants = True
            return True
        state.left = max(state.left - len(sizes), 0)
        self._size += (sum(sizes) / len(sizes) - self._size) / 4
        self._link.sent(first, sizes, sent_at)
        return 2 * state.left < state.most

    def poll(self, address: AddrPort, now: float) -> list[Share]:
        """What workers are to be told now."""
        fast = self._link.sharable
        if fast is None or self._link.limit < NEEDED_BYTES:
            return self.end()
        told: list[Share] = []
        context, ids = fast.opening
        opening = (context.secret, context.key_phase, *sorted(ids))
        if opening != self._opening:
            self._opening = opening
            told.append(Opening(self._peer, self.line, secrets_of(context), tuple(sorted(ids)), fast.expected))
        context, cid = fast.sealing
        sealing = (context.secret, context.key_phase, cid, address, self._link.limit)
        if sealing != self._sealing:
            self._sealing = sealing
            told.append(
                Sealing(self._peer, self.line, secrets_of(context), cid, address, self._link.limit - KIND_BYTES)
            )
            for state in self._sealers:
                state.left = 0
        self._give(told, now)
        return told

    def _give(self, told: list[Share], now: float) -> None:
        fast = self._link.sharable
        assert fast is not None
        shared = fast.share()
        for state in self._sealers:
            if state.left and shared.newest - state.stop > STALE:
                state.left = 0
        size = max(self._size, 64.0)
        count = int(fast.room() / size)
        if count <= 0:
            return
        busy = [state for state in self._sealers if state.wants or now - state.used_at < BUSY_S]
        given = sum(state.left for state in busy)
        most = max(min(count, MAX_NUMBERS) // max(len(busy), 1), IDLE_NUMBERS)
        for sealer, state in enumerate(self._sealers):
            more = IDLE_NUMBERS - state.left if 2 * state.left <= IDLE_NUMBERS else 0
            if state in busy:
                more = min(most - state.left, count - given) if 2 * state.left < most else 0
                given += max(more, 0)
            if more <= 0:
                continue
            first = shared.take(more)
            fresh = not state.left
            state.left += more
            state.most = state.left
            state.stop = first + more
            state.wants = False
            told.append(Numbers(self._peer, self.line, sealer, first, state.stop, fresh, self._room()))

    def _room(self) -> int:
        if self._link.is_finding:
            return FINDING_ROOM
        return int(min(max(QUEUE_S * self._link.rate, MIN_ROOM), MAX_ROOM))
