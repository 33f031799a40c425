"""The UDP relay between two nodes: which pairs it serves, their handshakes, and the way of their datagrams. No I/O.

    node ──by DERP: allocate(A, B)──▶ a VNI for the pair           nodes that are admitted, as many as their share
    A, B ──bind──▶ ◀──challenge── ──answer──▶ bound: the address that answered is where this client is
    A ──Geneve(VNI) anything──▶ as it is ──▶ B                     both bound, from exactly the bound address

Nothing of a stranger is kept, and nobody is sent more bytes than came from there: a challenge is as long as its bind
and can be checked without having been stored; until it came back nothing else goes to an address. A handshake that was
seen before moves nobody: generations only grow. What is forwarded is sealed between the nodes; there is no key here.

Ref: spec relay-and-path §6; tailscale net/udprelay/server.go
"""

from __future__ import annotations

import hashlib
import hmac
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, final

from gw.errors import WireError
from gw.model.addresses import AddrPort
from gw.model.keys import DiscoKey, DiscoSecret
from gw.native.relaying import same_head
from gw.wire import geneve
from gw.wire.derp.buckets import MIN_BURST_BYTES, Bucket
from gw.wire.disco import envelope
from gw.wire.disco.envelope import NONCE_BYTES, Envelopes
from gw.wire.disco.messages import decode, encode
from gw.wire.disco.udprelay import ANSWER, BIND, CHALLENGE, AllocateRequest, AllocateResponse, Bind, RelayEndpoint
from gw.wire.geneve import HEADER_BYTES, MAX_VNI, Header

BIND_S: Final = 30.0
STEADY_S: Final = 300.0
SECRET_S: Final = 120.0
SWEEP_S: Final = 1.0
SWEEP_SHARE: Final = 30  # every allocation is looked at in so many sweeps
MAX_PAIRS: Final = 1 << 16
MAX_PAIRS_A_NODE: Final = 512
REQUESTS_A_S: Final = 20.0
REQUEST_BURST: Final = 200.0
CONTROLS_A_S: Final = 5000.0  # that are opened, whoever may have sent them
CONTROLS_A_S_A_PAIR: Final = 20.0  # the same of one pair, so that it takes nothing from others
CONTROL_BURST_A_PAIR: Final = 60.0
MAX_KEYS_A_NODE: Final = 8  # disco keys that a node has asked with, the latest: it makes a new one at every start
MAX_ASKING: Final = 4096  # nodes whose rate is remembered
MAX_DISCO_BYTES: Final = 1024
MIN_BYTES: Final = HEADER_BYTES + 32  # a keepalive of WireGuard

Train = tuple[bytes, int, Any]  # datagrams of one size (the last may be shorter), that size, where to


@dataclass(slots=True)
class Leg:
    """One client of a pair. address: that of the socket, None until it is bound. node: whose key this is; while no
    node has asked with it, the one that asked for the pair: its budget is used."""

    key: DiscoKey
    node: _Node
    address: Any = None
    asked: int = 0  # generation of the handshake under way, 0 for none
    bound: int = 0  # and of the last that succeeded
    seen_at: float = 0.0


@dataclass(slots=True, eq=False)
class Pair:
    """An allocation."""

    vni: int
    lamport: int
    legs: tuple[Leg, Leg]
    made_at: float
    controls: Bucket = field(default_factory=lambda: Bucket(CONTROLS_A_S_A_PAIR, CONTROL_BURST_A_PAIR))

    def is_over(self, now: float) -> bool:
        if any(leg.address is None for leg in self.legs):
            return now - self.made_at > BIND_S
        return any(now - leg.seen_at > STEADY_S for leg in self.legs)


@dataclass(slots=True)
class Counts:
    """Since the relay began. dropped: of no pair, not from a bound address, or not understood."""

    allocated: int = 0
    refused: int = 0
    bound: int = 0
    packets: int = 0
    size: int = 0
    dropped: int = 0
    limited: int = 0


@dataclass(slots=True, eq=False)
class _Node:
    """Who asks. pairs: those of which it is the node of a leg."""

    budget: Bucket
    keys: list[DiscoKey] = field(default_factory=list)
    requests: Bucket = field(default_factory=lambda: Bucket(REQUESTS_A_S, REQUEST_BURST))
    pairs: set[Pair] = field(default_factory=set)


@final
class PeerRelay:
    """All pairs of one process. Call `request` for what comes by DERP for the relay's own key, `feed` for UDP, `sweep`
    about once a second."""

    def __init__(
        self,
        secret: DiscoSecret,
        random_bytes: Callable[[int], bytes],
        addresses: Callable[[], tuple[AddrPort, ...]],
        *,
        slot: int = 0,
        workers: int = 1,
        max_pairs: int = MAX_PAIRS,
        max_pairs_a_node: int = MAX_PAIRS_A_NODE,
    ) -> None:
        """secret: new in every process, for lamport ids begin anew with it. addresses: where clients may reach us.
        slot, workers: the last byte of a VNI, divided by `workers`, leaves `slot`."""
        self._random = random_bytes
        self._addresses = addresses
        self._slot, self._workers = slot, workers
        self._max_pairs, self._max_pairs_a_node = max_pairs, max_pairs_a_node
        self._envelopes = Envelopes(secret)
        self._uses: dict[DiscoKey, set[Pair]] = {}  # by the keys of their legs, whose boxes are kept
        self._pairs: dict[int, Pair] = {}  # by VNI
        self._by_keys: dict[tuple[DiscoKey, DiscoKey], Pair] = {}
        self._order: deque[Pair] = deque()
        self._nodes: OrderedDict[bytes, _Node] = OrderedDict()
        self._vni = int.from_bytes(random_bytes(3), "big")
        self._lamport = 0
        self._controls = Bucket(CONTROLS_A_S, CONTROLS_A_S)
        self._secrets = [random_bytes(32), random_bytes(32)]
        self._rotate_at: float | None = None
        self._rate = (0, 0)
        self.counts = Counts()

    def __len__(self) -> int:
        return len(self._pairs)

    def totals(self) -> tuple[int, ...]:
        """Pairs now; allocated, refused, bound, packets, bytes, dropped, limited since the relay began."""
        counts = self.counts
        return (
            len(self._pairs), counts.allocated, counts.refused, counts.bound, counts.packets, counts.size,
            counts.dropped, counts.limited,
        )  # fmt: skip

    @property
    def key(self) -> DiscoKey:
        """What clients have to be told."""
        return self._envelopes.key

    def limit(self, bytes_per_second: int, burst_bytes: int) -> None:
        """What a node may have forwarded, over all its pairs; 0 = as much as it likes."""
        self._rate = bytes_per_second, max(burst_bytes, MIN_BURST_BYTES)
        for node in self._nodes.values():
            node.budget = Bucket(*self._rate)

    # By DERP

    def request(self, source: bytes, datagram: bytes, now: float) -> bytes | None:
        """A disco datagram that the admitted node `source` sent to the relay's own key; what is to be sent back."""
        if not envelope.is_disco(datagram) or len(datagram) > MAX_DISCO_BYTES:
            return None
        node = self._node(source)
        if not node.requests.take(1, now):
            self.counts.limited += 1
            return None
        asking = envelope.sender(datagram)
        try:
            message = decode(self._envelopes.open(datagram))
            if not isinstance(message, AllocateRequest) or asking not in message.clients:
                return None
            addresses = self._addresses()
            self._owns(node, asking)
            pair = self._pair(message.clients, node, asking, now) if addresses else None
            if pair is None:
                self.counts.refused += 1
                return None
            endpoint = RelayEndpoint(self.key, message.clients, pair.lamport, pair.vni, BIND_S, STEADY_S, addresses)
            answer = encode(AllocateResponse(message.generation, endpoint))
            return self._envelopes.seal(asking, self._random(NONCE_BYTES), answer)
        except WireError:
            return None
        finally:
            if asking not in self._uses:
                self._envelopes.forget(asking)

    def drop(self, source: bytes) -> None:
        """The node is not admitted any more: nothing that it asked for goes on, nor what others asked for with it."""
        node = self._nodes.pop(source, None)
        if node is None:
            return
        for pair in (*node.pairs, *(pair for key in node.keys for pair in self._uses.get(key, ()))):
            if self._pairs.get(pair.vni) is pair:
                self._end(pair)

    def _owns(self, node: _Node, key: DiscoKey) -> None:
        """The node has proven to have this disco key."""
        if key not in node.keys:
            node.keys.append(key)
            del node.keys[:-MAX_KEYS_A_NODE]

    def _node(self, source: bytes) -> _Node:
        node = self._nodes.get(source)
        if node is None:
            if len(self._nodes) >= MAX_ASKING:
                self._forget_somebody()
            node = self._nodes[source] = _Node(Bucket(*self._rate))
        else:
            self._nodes.move_to_end(source)
        return node

    def _forget_somebody(self) -> None:
        """Who asked longest ago and has no pair: beside them there are at most as many nodes as pairs."""
        for _ in range(SWEEP_SHARE):
            key, node = next(iter(self._nodes.items()))
            if not node.pairs:
                del self._nodes[key]
                return
            self._nodes.move_to_end(key)

    def _pair(self, clients: tuple[DiscoKey, DiscoKey], node: _Node, asking: DiscoKey, now: float) -> Pair | None:
        known = self._by_keys.get(clients)
        if known is not None:
            if not known.is_over(now):
                self._take_leg(known, node, asking)
                return known
            self._end(known)
        if len(self._pairs) >= self._max_pairs or len(node.pairs) >= self._max_pairs_a_node:
            return None
        vni = self._next_vni()
        if vni is None:
            return None
        self._lamport += 1
        pair = Pair(vni, self._lamport, (Leg(clients[0], node), Leg(clients[1], node)), now)
        self._pairs[vni] = self._by_keys[clients] = pair
        self._order.append(pair)
        node.pairs.add(pair)
        for key in clients:
            self._uses.setdefault(key, set()).add(pair)
        self.counts.allocated += 1
        return pair

    def _take_leg(self, pair: Pair, node: _Node, key: DiscoKey) -> None:
        """The node of the other leg asks too: from now on it spends its own budget."""
        leg = pair.legs[0] if pair.legs[0].key == key else pair.legs[1]
        before, leg.node = leg.node, node
        if all(each.node is not before for each in pair.legs):
            before.pairs.discard(pair)
        node.pairs.add(pair)

    def _next_vni(self) -> int | None:
        for _ in range(2 * (len(self._pairs) + 1) * self._workers + 256):
            self._vni = self._vni % MAX_VNI + 1
            if self._vni not in self._pairs and (self._vni & 0xFF) % self._workers == self._slot:
                return self._vni
        return None

    def _end(self, pair: Pair) -> None:
        del self._pairs[pair.vni], self._by_keys[pair.legs[0].key, pair.legs[1].key]
        for leg in pair.legs:
            leg.node.pairs.discard(pair)
            self._uses[leg.key].discard(pair)
            if not self._uses[leg.key]:
                del self._uses[leg.key]
                self._envelopes.forget(leg.key)

    # By UDP

    def feed(self, data: bytes, segment: int, source: Any, now: float) -> list[Train]:
        """Geneve datagrams of `segment` bytes each (the last may be shorter) from one address; what is to be sent."""
        size = len(data)
        if segment < MIN_BYTES <= size:
            self.counts.dropped += -(-size // max(segment, 1))
            return []
        if size >= MIN_BYTES and data[1] == 0 and (segment >= size or same_head(data, segment)):
            return self._forward(data, segment, source, now)
        out: list[Train] = []
        for at in range(0, size, segment):
            datagram = data[at : at + segment]
            if len(datagram) >= MIN_BYTES and datagram[1] == 0:
                out += self._forward(datagram, len(datagram), source, now)
            else:
                answer = self._control_untrusted(datagram, source, now)
                if answer is None:
                    self.counts.dropped += 1
                elif answer:
                    out.append((answer, len(answer), source))
        return out

    def _forward(self, data: bytes, segment: int, source: Any, now: float) -> list[Train]:
        pair = self._pairs.get(int.from_bytes(data[4:7], "big"))
        count = -(-len(data) // segment)
        if pair is None or data[0] or data[7]:
            self.counts.dropped += count
            return []
        leg, other = pair.legs
        if leg.address != source:
            leg, other = other, leg
        target = other.address
        if leg.address != source or target is None:
            self.counts.dropped += count
            return []
        leg.seen_at = now
        if not leg.node.budget.take(len(data), now):
            self.counts.limited += count
            return []
        self.counts.packets += count
        self.counts.size += len(data)
        return [(data, segment, target)]

    def _control_untrusted(self, datagram: bytes, source: Any, now: float) -> bytes | None:
        """Bind and answer. The datagram to answer with, empty for none; None: dropped.

        Who is not of the pair costs two look-ups.
        """
        try:
            header = geneve.decode(datagram)
            inner = datagram[HEADER_BYTES:]
            pair = self._pairs.get(header.vni)
            if pair is None or header.protocol != geneve.DISCO or len(inner) > MAX_DISCO_BYTES:
                return None
            sender = envelope.sender(inner)
            leg = next((each for each in pair.legs if each.key == sender), None)
            if leg is None or not pair.controls.take(1, now) or not self._controls.take(1, now):
                return None
            message = decode(self._envelopes.open(inner))
        except WireError:
            return None
        other = pair.legs[0] if pair.legs[1] is leg else pair.legs[1]
        if (
            not isinstance(message, Bind)
            or message.vni != pair.vni
            or message.remote != other.key
            or (leg.bound and not _is_newer(message.generation, leg.bound))
        ):
            return None
        if message.kind == BIND:
            if leg.asked and _is_newer(leg.asked, message.generation):
                return None
            leg.asked = message.generation
            challenge = self._challenge(0, message, source, now)
            answer = Bind(CHALLENGE, pair.vni, message.generation, message.remote, challenge)
            sealed = self._envelopes.seal(leg.key, self._random(NONCE_BYTES), encode(answer))
            return geneve.encode(Header(geneve.DISCO, pair.vni, control=True)) + sealed
        if message.kind != ANSWER or message.generation != leg.asked:
            return None
        if not any(
            hmac.compare_digest(message.challenge, self._challenge(age, message, source, now)) for age in (0, 1)
        ):
            return None
        leg.address, leg.asked, leg.bound, leg.seen_at = source, 0, message.generation, now
        self.counts.bound += 1
        return b""

    def _challenge(self, age: int, message: Bind, source: Any, now: float) -> bytes:
        """What proves that the client gets what is sent to `source`. age: 0 now's secret, 1 the one before."""
        if self._rotate_at is None:
            self._rotate_at = now + SECRET_S
        while now >= self._rotate_at:
            self._secrets = [self._random(32), self._secrets[0]]
            self._rotate_at = max(self._rotate_at + SECRET_S, now - SECRET_S)
        text = repr((message.vni, message.generation, message.remote.raw, tuple(source)))
        return hashlib.blake2s(text.encode(), key=self._secrets[age]).digest()

    # Time

    def sweep(self, now: float) -> None:
        """End what is over: a share of all pairs a call."""
        for _ in range(-(-len(self._order) // SWEEP_SHARE)):
            pair = self._order.popleft()
            if self._pairs.get(pair.vni) is not pair:
                continue
            if pair.is_over(now):
                self._end(pair)
            else:
                self._order.append(pair)


def _is_newer(generation: int, than: int) -> bool:
    """Whether one generation comes after another; they wrap at 32 bits."""
    return 0 < (generation - than) & 0xFFFFFFFF < 1 << 31
