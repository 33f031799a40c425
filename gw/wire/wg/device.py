"""A WireGuard device without sockets: datagrams and time in, datagrams and keypairs out.

    device = Device(secret, os.urandom, time.time_ns)
    device.add_peer(key)
    for output in device.want_session(key, now): ...      # an initiation to send
    for output in device.receive(datagram, source, now): ...

Transport data does not pass here: who seals and opens it uses the keypairs of `Install` until their `Retire`, calls
`confirmed` at the first packet of a keypair, and `observe` with what passed.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, final

from gw.errors import WireError
from gw.wire.wg.cookies import CookieChecker
from gw.wire.wg.handshake import (
    NO_PSK,
    Keypair,
    StaticKey,
    finish,
    identify,
    initiate,
    receive_initiation,
    respond,
)
from gw.wire.wg.messages import COOKIE, INITIATION, RESPONSE, kind_of, parse_cookie, parse_initiation, parse_response
from gw.wire.wg.peer import (
    FLOOD_S,
    MAX_ATTEMPTS,
    NEVER,
    REJECT_AFTER_S,
    REKEY_JITTER_S,
    REKEY_TIMEOUT_S,
    Activity,
    Peer,
)
from gw.wire.wg.primitives import WHITENING, tai64n
from gw.wire.x25519 import exchange

NUDGE_S: Final = 0.25  # a new path may repeat a pending initiation this soon


@dataclass(frozen=True, slots=True)
class Transmit:
    """Send this handshake message to the peer, wherever it is."""

    peer: bytes
    datagram: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    """Send this back to where the datagram came from; peer is None for a stranger (a cookie)."""

    peer: bytes | None
    datagram: bytes


@dataclass(frozen=True, slots=True)
class Install:
    """A keypair to receive with; `send` is False while it waits for its first packet."""

    peer: bytes
    keypair: Keypair
    send: bool


@dataclass(frozen=True, slots=True)
class Retire:
    """Forget this keypair now."""

    peer: bytes
    local_index: int


@dataclass(frozen=True, slots=True)
class Keepalive:
    """Send an empty packet to the peer."""

    peer: bytes


@dataclass(frozen=True, slots=True)
class Unreachable:
    """Handshakes were given up: drop what waits for this peer."""

    peer: bytes


Output = Transmit | Reply | Install | Retire | Keepalive | Unreachable


@final
class Device:
    """All peers of one static key. Times are monotonic seconds."""

    def __init__(self, secret: bytes, random_bytes: Callable[[int], bytes], wall_ns: Callable[[], int]) -> None:
        """secret: our static private key; random_bytes must be fit for keys; wall_ns: nanoseconds since 1970."""
        self._ours = StaticKey.of(secret)
        self._random = random_bytes
        self._wall_ns = wall_ns
        self._checker = CookieChecker(self._ours.public, random_bytes)
        self._peers: dict[bytes, Peer] = {}
        self._by_index: dict[int, Peer] = {}
        self._last_stamp_ns = 0
        self._due: list[tuple[float, bytes]] = []  # heap; entries may be stale

    @property
    def public(self) -> bytes:
        return self._ours.public

    def add_peer(self, key: bytes, psk: bytes = NO_PSK) -> None:
        """Let this key in. A peer that is there already keeps its sessions."""
        if key not in self._peers:
            self._peers[key] = Peer(key, psk)

    def remove_peer(self, key: bytes) -> list[Output]:
        peer = self._peers.pop(key, None)
        return [] if peer is None else self._forget_all(peer)

    def latest_handshake(self, key: bytes) -> float:
        """When the last keypair of this peer came up, NEVER if none did."""
        peer = self._peers.get(key)
        return NEVER if peer is None else peer.latest_handshake

    def has_session(self, key: bytes, now: float) -> bool:
        peer = self._peers.get(key)
        return peer is not None and peer.is_usable(now)

    def is_pending(self, key: bytes) -> bool:
        peer = self._peers.get(key)
        return peer is not None and peer.pending is not None

    def unanswered_s(self, key: bytes, now: float) -> float:
        """For how long initiations have had no answer, in seconds; 0 where none is under way."""
        peer = self._peers.get(key)
        if peer is None or peer.pending is None:
            return 0.0
        return now - peer.initiated_at + peer.attempts * REKEY_TIMEOUT_S

    def reset(self, key: bytes) -> list[Output]:
        """Forget the sessions of a peer, whose other end is known to be gone; the next packet begins anew."""
        peer = self._peers.get(key)
        return [] if peer is None else self._forget_all(peer)

    # Handshakes

    def want_session(self, key: bytes, now: float) -> list[Output]:
        """Data waits for this peer. Begins a handshake unless one is under way."""
        peer = self._peers.get(key)
        if peer is None or peer.pending is not None or now - peer.initiated_at < REKEY_TIMEOUT_S:
            if peer is not None and peer.pending is None and peer.retry_at is None:
                self._schedule(peer, peer.initiated_at + REKEY_TIMEOUT_S)
            return []
        peer.attempts = 0
        return self._initiate(peer, now)

    def nudge(self, key: bytes, now: float) -> list[Output]:
        """A new path to the peer came up: repeat an unanswered initiation at once."""
        peer = self._peers.get(key)
        if peer is None or peer.pending is None or now - peer.initiated_at < NUDGE_S:
            return []
        return self._initiate(peer, now)

    def renew(self, key: bytes, now: float) -> list[Output]:
        """Begin a handshake although a session stands (its keys may no longer be used)."""
        peer = self._peers.get(key)
        if peer is None:
            return []
        peer.attempts = 0
        return self._initiate(peer, now)

    def receive(self, datagram: bytes, source: bytes, now: float) -> list[Output]:
        """A datagram of type 1, 2 or 3. source: address and port in any fixed encoding, the port last in 2 bytes.

        Raises WireError for what is not authentic, not for us, old, or too much.
        """
        kind = kind_of(datagram)
        if kind == COOKIE:
            reply = parse_cookie(datagram)
            peer = self._by_index.get(reply.receiver)
            if peer is None:
                raise WireError("cookie for nobody")
            peer.jar.keep(reply, now)
            return []
        if kind not in (INITIATION, RESPONSE):
            raise WireError("not a handshake message")
        if not self._checker.is_for_us(datagram):
            raise WireError("mac1 is wrong")
        if self._checker.note(now):
            if not self._checker.has_cookie(datagram, source, now):
                sender = (parse_initiation(datagram) if kind == INITIATION else parse_response(datagram)).sender
                return [Reply(None, self._checker.reply(datagram, sender, source, now))]
            if not self._checker.may_pass(source[:-2], now):
                raise WireError("too many handshakes from one address")
        return self._on_initiation(datagram, now) if kind == INITIATION else self._on_response(datagram, now)

    def confirmed(self, local_index: int, now: float) -> list[Output]:
        """The first packet arrived on this keypair: if it was waiting, it is the one to send with from now on."""
        peer = self._by_index.get(local_index)
        if peer is None:
            return []
        current, forget = peer.confirm(local_index)
        if current is None:
            return []
        self._settled(peer)
        return [Install(peer.key, current, send=True), *self._retire(peer, forget)]

    def observe(self, key: bytes, activity: Activity, now: float) -> list[Output]:
        """Tell what traffic passed; call about twice a second for peers that have any."""
        peer = self._peers.get(key)
        if peer is None:
            return []
        begin, keepalive = peer.observe(activity, now)
        outputs: list[Output] = []
        if begin:
            outputs += self.want_session(key, now)
        if keepalive and peer.is_usable(now):
            outputs.append(Keepalive(key))
        return outputs

    # Time

    def deadline(self) -> float | None:
        """When `poll` has something to do, or None."""
        return self._due[0][0] if self._due else None

    def poll(self, now: float) -> list[Output]:
        """Retries and expiries that are due."""
        outputs: list[Output] = []
        while self._due and self._due[0][0] <= now:
            _, key = heapq.heappop(self._due)
            peer = self._peers.get(key)
            if peer is None:
                continue
            outputs += self._retire(peer, peer.expire(now))
            if peer.retry_at is not None and peer.retry_at <= now:
                outputs += self._retry(peer, now)
        return outputs

    # Inside

    def _on_initiation(self, datagram: bytes, now: float) -> list[Output]:
        sender, chain, hashed = identify(self._ours, datagram)
        peer = self._peers.get(sender)
        if peer is None:
            raise WireError("initiation from a stranger")
        received = receive_initiation(datagram, sender, chain, hashed, self._shared(peer))
        if received.timestamp <= peer.last_timestamp:
            raise WireError("initiation repeated")
        if now - peer.last_initiation_at < FLOOD_S:
            raise WireError("initiations too fast")
        peer.last_timestamp, peer.last_initiation_at = received.timestamp, now
        body, keypair = respond(received, index=self._free_index(), ephemeral=self._random(32), now=now, psk=peer.psk)
        self._by_index[keypair.local_index] = peer
        forget = peer.install_responded(keypair)
        self._schedule_expiry(peer, keypair)
        answer = Reply(peer.key, peer.jar.sign(body, now))
        return [*self._retire(peer, forget), Install(peer.key, keypair, send=False), answer]

    def _on_response(self, datagram: bytes, now: float) -> list[Output]:
        message = parse_response(datagram)
        peer = self._by_index.get(message.receiver)
        if peer is None or peer.pending is None or peer.pending.local_index != message.receiver:
            raise WireError("response to nothing")
        keypair = finish(self._ours, peer.pending, datagram, now=now, psk=peer.psk)
        peer.pending = None
        forget = peer.install_initiated(keypair)
        self._settled(peer)
        self._schedule_expiry(peer, keypair)
        return [Install(peer.key, keypair, send=True), *self._retire(peer, forget)]

    def _initiate(self, peer: Peer, now: float) -> list[Output]:
        self._drop_pending(peer)
        try:
            body, peer.pending = initiate(
                self._ours,
                peer.key,
                static_shared=self._shared(peer),
                index=self._free_index(),
                ephemeral=self._random(32),
                timestamp=self._stamp(),
            )
        except WireError:  # its key is of small order: nothing can ever be said to it
            return [Unreachable(peer.key)]
        self._by_index[peer.pending.local_index] = peer
        peer.initiated_at = now
        jitter = int.from_bytes(self._random(2), "little") / 0xFFFF * REKEY_JITTER_S
        self._schedule(peer, now + REKEY_TIMEOUT_S + jitter)
        return [Transmit(peer.key, peer.jar.sign(body, now))]

    def _retry(self, peer: Peer, now: float) -> list[Output]:
        peer.retry_at = None
        if peer.attempts > MAX_ATTEMPTS:
            peer.attempts = 0
            self._drop_pending(peer)
            return [Unreachable(peer.key)]
        peer.attempts += 1
        return self._initiate(peer, now)

    def _settled(self, peer: Peer) -> None:
        self._drop_pending(peer)
        peer.attempts = 0
        peer.retry_at = None

    def _drop_pending(self, peer: Peer) -> None:
        if peer.pending is not None:
            self._by_index.pop(peer.pending.local_index, None)
            peer.pending = None

    def _forget_all(self, peer: Peer) -> list[Output]:
        self._settled(peer)
        peer.initiated_at = NEVER
        keypairs = peer.keypairs()
        peer.previous = peer.current = peer.next = None
        return self._retire(peer, keypairs)

    def _retire(self, peer: Peer, keypairs: list[Keypair]) -> list[Output]:
        for keypair in keypairs:
            self._by_index.pop(keypair.local_index, None)
        return [Retire(peer.key, keypair.local_index) for keypair in keypairs]

    def _shared(self, peer: Peer) -> bytes:
        if not peer.static_shared:
            peer.static_shared = exchange(self._ours.secret, peer.key)
        return peer.static_shared

    def _free_index(self) -> int:
        while True:
            index = int.from_bytes(self._random(4), "little")
            if index not in self._by_index:
                return index

    def _stamp(self) -> bytes:
        """TAI64N that always grows, also over a clock set back."""
        self._last_stamp_ns = max(self._wall_ns(), self._last_stamp_ns + WHITENING + 1)
        return tai64n(self._last_stamp_ns)

    def _schedule(self, peer: Peer, when: float) -> None:
        peer.retry_at = when
        heapq.heappush(self._due, (when, peer.key))

    def _schedule_expiry(self, peer: Peer, keypair: Keypair) -> None:
        heapq.heappush(self._due, (keypair.created + REJECT_AFTER_S, peer.key))
