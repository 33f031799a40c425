"""Who is told what of a change: one session a map stream, changes gathered for some milliseconds, bytes made once.

    change ─▶ dirty nodes ─▶ flush: audiences ─▶ for each stream three bit sets: whole nodes, patches, removals
                                    streams with equal sets ─▶ one message ─▶ each edge once, with whom it is for

A patch for a node that a client does not have destroys its data, so every stream keeps the set of peers it was sent: a
patch becomes a whole node where it is not known yet, nothing follows a removal, and nobody is patched to itself. The
sets are bits of integers: a node has a slot, a small number that is used again after it is gone.

A flush waits as long as the last one took (at least GATHER_S), so that a storm of changes costs half the time at most
and a single change travels at once. Whole maps are queued and made in slices, in order of arrival.

Ref: control protocol §8; Tailscale's client at incremental maps; docs/internals/fanout.md
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Final, final

from gw.control.edge import Edge
from gw.control.mapper import Mapper
from gw.control.records import Change, ChangeKind, NodeRecord
from gw.control.tailnet import Tailnet
from gw.model.gojson import encode
from gw.model.mapping import MapResponse, PingRequest
from gw.model.node import PeerChange
from gw.policy.bits import ones
from gw.wire.ts2021.mapframes import frame

logger = logging.getLogger(__name__)

GATHER_S: Final = 0.010
MAX_GATHER_S: Final = 0.5
SLICE_S: Final = 0.010  # of whole maps at a time, then others have a turn
MAX_AUDIENCES: Final = 64
OFFLINE_GRACE_S: Final = 10.0  # a stream that comes back within it was never away
GOODBYE_S: Final = 0.5


@final
@dataclass(eq=False, slots=True)
class Session:
    """One map stream of one node. known, profiles: peers and owners it was told of, as bits."""

    number: int
    node: NodeRecord
    edge: Edge
    connection: int
    stream: int
    compress: bool
    omit_peers: bool = False
    known: int = 0
    profiles: int = 0
    is_open: bool = False  # it was answered
    is_due: bool = False  # a whole map is queued for it
    is_behind: bool = False  # deltas were dropped: a whole map is due when the client reads again
    owed: list[int] = field(default_factory=list)  # removals it was not told of meanwhile


@dataclass(slots=True)
class _Own:
    """What a session is to be told of itself."""

    node: bool = False
    filters: bool = False
    anew: bool = False  # peers look different to it: it gets everything


@final
class Fanout:
    """All sessions of a tailnet. Subscribe it with `tailnet.subscribe(fanout.take)`."""

    def __init__(self, tailnet: Tailnet, mapper: Mapper) -> None:
        self._tailnet = tailnet
        self._mapper = mapper
        self._next = 1
        self._sessions: dict[int, Session] = {}  # by node id
        self._numbers: dict[int, Session] = {}
        self._slots: dict[int, int] = {}  # node id -> slot
        self._at: list[int] = []  # slot -> node id
        self._free: list[int] = []
        self._dirty: dict[int, bool] = {}  # node id -> whether as a whole
        self._patches: dict[int, PeerChange] = {}
        self._lost: dict[int, int] = {}  # node id -> slots it does not see any more
        self._gone: dict[int, int] = {}  # slot -> id of a removed node, until the flush
        self._own: dict[int, _Own] = {}
        self._due: deque[Session] = deque()
        self._slicing: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._last_flush_s = self._flushed_at = 0.0
        self._audiences: dict[Hashable, _Audience] = {}  # until a node comes, goes or stands otherwise

    def __len__(self) -> int:
        return len(self._sessions)

    # Sessions

    def open(self, node: NodeRecord, edge: Edge, connection: int, stream: int, request: Compressing) -> Session:
        """Begin a stream: it replaces the node's older one and starts with everything."""
        compress, omit_peers = request
        session = Session(self._next, node, edge, connection, stream, compress, omit_peers)
        self._next += 1
        old = self._sessions.get(node.id)
        if old is not None:
            self._end(old)
        self._sessions[node.id] = session
        self._numbers[session.number] = session
        self._tailnet.reports.set_online(node, True)
        self._queue(session)
        return session

    def ping(self, node: NodeRecord, url: str) -> int:
        """Ask a node over its stream to call this URL inside Noise; the stream's number, 0 where it has none."""
        session = self._sessions.get(node.id)
        if session is None or session.is_behind:
            return 0
        asked = MapResponse(keep_alive=True, ping_request=PingRequest(url=url, url_is_noise=True))
        session.edge.deliver(encode(asked), [session.number], is_whole=False)
        return session.number

    def close(self, session: Session) -> None:
        """The stream is over. The node is offline if no other stream opens soon."""
        self._numbers.pop(session.number, None)
        if self._sessions.get(session.node.id) is session:
            del self._sessions[session.node.id]
            asyncio.get_running_loop().call_later(OFFLINE_GRACE_S, self._offline, session.node)

    def behind(self, number: int) -> None:
        """The edge dropped a message."""
        session = self._numbers.get(number)
        if session is not None:
            session.is_behind = True

    def drained(self, number: int) -> None:
        """A slow reader took all that waited: bring it up to date."""
        session = self._numbers.get(number)
        if session is not None and session.is_behind:
            session.is_behind = False
            self._queue(session)

    def close_all(self) -> None:
        """End every stream: the server stops."""
        for waiting in (self._timer, self._slicing):
            if waiting is not None:
                waiting.cancel()
        for session in list(self._sessions.values()):
            self._end(session)
        self._sessions.clear()

    def _end(self, session: Session) -> None:
        self._numbers.pop(session.number, None)
        if session.is_open:
            session.edge.end(session.number)

    def _offline(self, node: NodeRecord) -> None:
        if node.id not in self._sessions:
            self._tailnet.reports.set_online(node, False)

    # Changes

    def take(self, change: Change) -> None:
        """Note a change; it is told within milliseconds."""
        node = change.node
        if node is not None:
            self._mapper.forget(node.id)
        if change.kind is not ChangeKind.PATCHED:
            self._audiences.clear()
        if change.kind is ChangeKind.POLICY:
            self._mapper.forget_all()
            for session in self._sessions.values():
                self._queue(session)
        elif change.kind is ChangeKind.DNS and self._tailnet.publisher is not None:
            for session in self._sessions.values():  # each node's own name is in its settings
                self._queue(session)
        elif change.kind is ChangeKind.DNS:
            self._tell_all(b'{"DNSConfig":' + encode(self._tailnet.commons.dns_config()) + b"}")
        elif change.kind is ChangeKind.RELAYS:
            self._tell_all(b'{"DERPMap":' + encode(self._tailnet.commons.derp_map()) + b"}")
        elif change.kind is ChangeKind.REMOVED and node is not None:
            self._note_removal(change, node)
        elif node is not None:
            self._note(change, node)
        for other in change.filters:
            if other.id in self._sessions:
                self._own.setdefault(other.id, _Own()).filters = True
        if self._timer is None and (self._dirty or self._own or self._lost):
            pause = self._flushed_at + self._last_flush_s - time.perf_counter()
            wait = min(MAX_GATHER_S, max(GATHER_S, pause))
            self._timer = asyncio.get_running_loop().call_later(wait, self._flush)

    def _note(self, change: Change, node: NodeRecord) -> None:
        sessions = self._sessions
        for other in change.lost:
            if other.id in sessions:
                self._lost[other.id] = self._lost.get(other.id, 0) | 1 << self._slot(node.id)
            if node.id in sessions:
                self._lost[node.id] = self._lost.get(node.id, 0) | 1 << self._slot(other.id)
        if change.kind is ChangeKind.PATCHED and change.patch is not None:
            self._merge(change.patch)
            self._dirty.setdefault(node.id, False)
            return
        self._dirty[node.id] = True
        if node.id in sessions:
            own = self._own.setdefault(node.id, _Own())
            own.node = True
            own.anew |= change.anew

    def _note_removal(self, change: Change, node: NodeRecord) -> None:
        self._dirty.pop(node.id, None)
        self._patches.pop(node.id, None)
        self._lost.pop(node.id, None)
        self._own.pop(node.id, None)
        slot = self._slots.pop(node.id, None)
        if slot is not None:
            self._gone[slot] = node.id
            for other in change.lost:
                if other.id in self._sessions:
                    self._lost[other.id] = self._lost.get(other.id, 0) | 1 << slot
        self._say_goodbye(node)

    def _merge(self, patch: PeerChange) -> None:
        kept = self._patches.setdefault(patch.node_id, PeerChange(node_id=patch.node_id))
        for name in PeerChange.__struct_fields__[1:]:
            value = getattr(patch, name)
            if (value is not None and value != 0) or (name == "online" and value is not None):
                setattr(kept, name, value)

    def _slot(self, node_id: int) -> int:
        slot = self._slots.get(node_id)
        if slot is None:
            if self._free:
                slot = self._free.pop()
                self._at[slot] = node_id
            else:
                slot = len(self._at)
                self._at.append(node_id)
            self._slots[node_id] = slot
        return slot

    # Flush

    def _flush(self) -> None:
        begun = time.perf_counter()
        self._timer = None
        batch = _Batch(self._dirty, self._patches, self._lost, self._own)
        self._dirty, self._patches, self._lost, self._own = {}, {}, {}, {}
        try:
            told = self._who_is_told(batch)
            groups = self._patched_alike(told, batch)
            for node_id in told.keys() | batch.lost.keys() | batch.own.keys():
                session = self._sessions.get(node_id)
                if session is not None:
                    self._assign(session, batch, told.get(node_id, 0), groups)
            for key, sessions in groups.items():
                self._deliver(self._message(key, batch), sessions)
        finally:
            for slot in self._gone:
                self._at[slot] = 0
                self._free.append(slot)
            self._gone.clear()
            self._flushed_at = time.perf_counter()
            self._last_flush_s = self._flushed_at - begun

    def _audience(self, node: NodeRecord) -> _Audience:
        """Who sees nodes like this one, and is seen by them."""
        key = self._tailnet.policy.audience_of(node)
        found = self._audiences.get(key)
        if found is None:
            members = self._tailnet.policy.peers_of(node)
            if self._tailnet.policy.sees_its_like(node):
                members.append(node)
            members.sort(key=_by_id)
            profiles = 0
            for each in members:
                profiles |= 1 << self._mapper.profile_serial(each)
            if len(self._audiences) >= MAX_AUDIENCES:
                self._audiences.clear()
            found = self._audiences[key] = _Audience(members, self._bits(members), profiles)
        return found

    def _who_is_told(self, batch: _Batch) -> dict[int, int]:
        """Node id of a session -> slots of dirty nodes it sees. Nodes that stand alike have one audience."""
        nodes, policy, sessions = self._tailnet.nodes, self._tailnet.policy, self._sessions
        alike: dict[object, list[NodeRecord]] = {}
        for node_id, is_whole in batch.dirty.items():
            node = nodes.get(node_id)
            if node is None:
                continue
            alike.setdefault(policy.audience_of(node), []).append(node)
            if is_whole:
                batch.whole |= 1 << self._slot(node_id)
        told: dict[int, int] = {}
        for members in alike.values():
            bits = 0
            for member in members:
                bits |= 1 << self._slot(member.id)
            audience = self._audience(members[0])
            for viewer in audience.members:
                if viewer.id in sessions:
                    more = told.get(viewer.id)
                    told[viewer.id] = bits if more is None else more | bits
            for each in members:  # what a node that became visible sees itself
                if batch.dirty[each.id] and each.id in sessions:
                    batch.sees[each.id] = audience.bits & ~(1 << self._slot(each.id))
        return told

    def _patched_alike(self, told: dict[int, int], batch: _Batch) -> dict[tuple[object, ...], list[Session]]:
        """Take those out of `told` who get nothing but patches of nodes that they know: nearly all, nearly always."""
        groups: dict[tuple[object, ...], list[Session]] = {}
        if batch.whole or batch.lost or batch.own or batch.sees:
            return groups
        last, members = 0, []
        for node_id, bits in list(told.items()):
            session = self._sessions[node_id]
            if (
                node_id in batch.dirty
                or session.is_behind
                or session.is_due
                or session.omit_peers
                or bits & ~session.known
            ):
                continue
            if bits is not last:
                last, members = bits, groups.setdefault((0, bits, 0, 0, None, b"", b"", b""), [])
            members.append(session)
            del told[node_id]
        return groups

    def _assign(
        self, session: Session, batch: _Batch, told: int, groups: dict[tuple[object, ...], list[Session]]
    ) -> None:
        """Put the session with those that are told the same."""
        viewer = session.node
        sees = batch.sees.get(viewer.id, 0)
        told = (told | sees & ~session.known) & ~(1 << self._slot(viewer.id))
        removed = batch.lost.get(viewer.id, 0) & session.known & ~told & ~sees
        session.known &= ~removed
        if session.is_behind or session.is_due:
            session.owed += [self._named(slot) for slot in ones(removed)]
            return
        own = batch.own.get(viewer.id)
        if own is not None and own.anew:
            session.owed += [self._named(slot) for slot in ones(removed)]
            self._queue(session)
            return
        if session.omit_peers:
            told = removed = 0
        fresh = told & (batch.whole | ~session.known)
        patched = told & ~fresh
        session.known |= fresh
        profiles = batch.profiles_of(fresh, self._profiles) & ~session.profiles if fresh else 0
        session.profiles |= profiles
        variant: NodeRecord | None = None
        mine = filters = ssh = b""
        if fresh and not self._is_plain(fresh, viewer, batch):
            variant = viewer
        if own is not None:
            mine = self._mapper.own(viewer) if own.node else b""
            if own.filters:
                filters = self._mapper.filters(viewer)
                ssh = self._mapper.ssh(viewer) if self._tailnet.policy.ssh else b""
        if fresh or patched or removed or mine or filters:
            key = (fresh, patched, removed, profiles, variant, mine, filters, ssh)
            groups.setdefault(key, []).append(session)

    def _message(self, key: tuple[object, ...], batch: _Batch) -> bytes:
        fresh, patched, removed, profiles, variant, mine, filters, ssh = key
        assert isinstance(fresh, int) and isinstance(patched, int) and isinstance(removed, int)
        assert isinstance(profiles, int) and isinstance(mine, bytes) and isinstance(filters, bytes)
        assert isinstance(ssh, bytes) and (variant is None or isinstance(variant, NodeRecord))
        nodes, mapper = self._tailnet.nodes, self._mapper
        parts = []
        if mine:
            parts.append(b'"Node":' + mine)
        if filters:
            parts.append(b'"PacketFilters":' + filters)
        if ssh:
            parts.append(b'"SSHPolicy":' + ssh)
        if profiles:
            parts.append(b'"UserProfiles":[' + mapper.told_profiles(profiles) + b"]")
        if fresh:
            shown = [nodes[each] for each in sorted(self._at[slot] for slot in ones(fresh))]
            bodies = [mapper.peer(each, variant) if variant else mapper.plain(each) for each in shown]
            parts.append(b'"PeersChanged":[' + b",".join(bodies) + b"]")
        if removed:
            parts.append(b'"PeersRemoved":' + encode(sorted(map(self._named, ones(removed)))))
        if patched:
            texts = [batch.patch(each) for each in sorted(self._at[slot] for slot in ones(patched))]
            parts.append(b'"PeersChangedPatch":[' + b",".join(texts) + b"]")
        return b"{" + b",".join(parts) + b"}"

    def _named(self, slot: int) -> int:
        return self._gone.get(slot) or self._at[slot]

    def _profiles(self, slots: int) -> int:
        nodes, profile = self._tailnet.nodes, self._mapper.profile_serial
        found = 0
        for slot in ones(slots):
            found |= 1 << profile(nodes[self._at[slot]])
        return found

    def _is_plain(self, fresh: int, viewer: NodeRecord, batch: _Batch) -> bool:
        """Whether everybody gets the same bytes of these nodes."""
        is_plain = batch.plain.get(fresh)
        if is_plain is None:
            nodes = self._tailnet.nodes
            is_plain = all(self._mapper.plain(nodes[self._at[slot]]) for slot in ones(fresh))
            batch.plain[fresh] = is_plain
        return is_plain and self._tailnet.policy.has_ipv4(viewer)

    def _deliver(self, message: bytes, sessions: list[Session]) -> None:
        """Give the message to each edge once."""
        if len(sessions) == 1:
            sessions[0].edge.deliver(message, (sessions[0].number,), is_whole=False)
            return
        by_edge: dict[int, tuple[Edge, list[int]]] = {}
        for session in sessions:
            by_edge.setdefault(id(session.edge), (session.edge, []))[1].append(session.number)
        for edge, numbers in by_edge.values():
            edge.deliver(message, numbers, is_whole=False)

    def _bits(self, nodes: Iterable[NodeRecord]) -> int:
        """The slots of these nodes as a bit set."""
        slots = [self._slot(node.id) for node in nodes]
        if not slots:
            return 0
        raw = bytearray((max(slots) >> 3) + 1)
        for slot in slots:
            raw[slot >> 3] |= 1 << (slot & 7)
        return int.from_bytes(raw, "little")

    # Whole maps

    def _queue(self, session: Session) -> None:
        if session.is_due:
            return
        session.is_due = True
        self._due.append(session)
        if self._slicing is None:
            self._slicing = asyncio.get_running_loop().call_soon(self._send_some)

    def _send_some(self) -> None:
        """Whole maps for a few milliseconds; then requests and deltas have a turn."""
        until = time.perf_counter() + SLICE_S
        self._slicing = None
        held: list[Session] = []
        while self._due and time.perf_counter() < until:
            session = self._due.popleft()
            if self._numbers.get(session.number) is not session:
                continue
            if session.edge.is_full():
                held.append(session)
                continue
            session.is_due = False
            self._send_whole(session)
        loop = asyncio.get_running_loop()
        if self._due:
            self._slicing = loop.call_soon(self._send_some)
        elif held:
            self._slicing = loop.call_later(SLICE_S / 2, self._send_some)
        self._due.extendleft(reversed(held))

    def _send_whole(self, session: Session) -> None:
        node, mapper = session.node, self._mapper
        peers, seen, profiles = self._seen_by(node, omit_peers=session.omit_peers)
        before, session.known, session.profiles = session.known, seen, profiles
        gone = sorted({*session.owed, *(self._named(slot) for slot in ones(before & ~session.known))})
        session.owed.clear()
        message = mapper.whole(node, peers, mapper.told_profiles(session.profiles))
        if gone:
            there = {peer.id for peer in peers}
            message = message[:-1] + b',"PeersRemoved":' + encode([each for each in gone if each not in there]) + b"}"
        if not session.is_open:
            session.is_open = True
            session.edge.open(session.connection, session.stream, session.number, session.compress)
        session.edge.deliver(message, (session.number,), is_whole=True)

    def snapshot(self, node: NodeRecord, *, compress: bool) -> bytes:
        """One whole map outside any stream."""
        peers, _, profiles = self._seen_by(node)
        return frame(self._mapper.whole(node, peers, self._mapper.told_profiles(profiles)), compress=compress)

    def _seen_by(self, node: NodeRecord, *, omit_peers: bool = False) -> tuple[list[NodeRecord], int, int]:
        """Its peers by id, the same as bits, and the profiles of all their owners and its own."""
        own = 1 << self._mapper.profile_serial(node)
        if omit_peers:
            return [], 0, own
        audience = self._audience(node)
        peers = [each for each in audience.members if each is not node]
        return peers, audience.bits & ~(1 << self._slot(node.id)), audience.profiles | own

    def _tell_all(self, message: bytes) -> None:
        self._deliver(message, [each for each in self._sessions.values() if each.is_open and not each.is_behind])

    def _say_goodbye(self, node: NodeRecord) -> None:
        """A deleted node is told that its key is over before its stream ends: else it goes on showing a tailnet."""
        session = self._sessions.pop(node.id, None)
        if session is None:
            return
        if not session.is_open:
            session.is_open = True
            session.edge.open(session.connection, session.stream, session.number, session.compress)
        own = b'{"Node":' + self._mapper.own(node, deleted=True) + b"}"
        session.edge.deliver(own, (session.number,), is_whole=True)
        asyncio.get_running_loop().call_later(GOODBYE_S, self._end, session)


@dataclass(slots=True)
class _Audience:
    """The nodes that see, and are seen by, nodes that stand alike; those nodes too if they see one another."""

    members: list[NodeRecord]  # by id
    bits: int
    profiles: int


def _by_id(node: NodeRecord) -> int:
    return node.id


Compressing = tuple[bool, bool]  # (zstd, without peers)


@dataclass(slots=True)
class _Batch:
    """What one flush tells, and what it found out once for many sessions."""

    dirty: dict[int, bool]
    patches: dict[int, PeerChange]
    lost: dict[int, int]
    own: dict[int, _Own]
    whole: int = 0  # slots that are told as whole nodes
    sees: dict[int, int] = field(default_factory=dict)  # node id of a changed node -> slots it sees
    plain: dict[int, bool] = field(default_factory=dict)
    profiles: dict[int, int] = field(default_factory=dict)
    texts: dict[int, bytes] = field(default_factory=dict)

    def profiles_of(self, slots: int, find: Callable[[int], int]) -> int:
        found = self.profiles.get(slots)
        if found is None:
            found = self.profiles[slots] = find(slots)
        return found

    def patch(self, node_id: int) -> bytes:
        text = self.texts.get(node_id)
        if text is None:
            text = self.texts[node_id] = encode(self.patches[node_id])
        return text
