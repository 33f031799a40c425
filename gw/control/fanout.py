"""Who is told what of a change: one session a map stream, changes gathered for some milliseconds, bytes made once.

    change → gathered → per session: which peers are new, changed, patched, gone → sessions that need the same get the
    same compressed frame

Per stream the set of peers sent is kept, because a patch for a node that a client does not have destroys its data: a
patch becomes a whole node where it is not known yet, nothing follows a removal, and nobody is patched to itself.

Ref: control protocol §8; Tailscale's client at incremental maps
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Protocol, final

from gw.control.mapper import KEEP_ALIVE, KEEP_ALIVE_PLAIN, Mapper
from gw.control.records import Change, ChangeKind, NodeRecord
from gw.control.tailnet import Tailnet
from gw.model.gojson import encode
from gw.model.node import PeerChange, UserProfile
from gw.wire.ts2021.mapframes import frame

logger = logging.getLogger(__name__)

GATHER_S: Final = 0.010
GATHER_PER_SESSION_S: Final = 0.00005  # with 2,000 sessions a tenth of a second
MAX_GATHER_S: Final = 0.5
KEEP_ALIVE_S: Final = 50.0
KEEP_ALIVE_JITTER_S: Final = 9.0
OFFLINE_GRACE_S: Final = 10.0  # a stream that comes back within it was never away
GOODBYE_S: Final = 0.5


class Pipe(Protocol):
    """The connection under a session."""

    def push(self, stream: int, data: bytes, *, end: bool = False) -> None: ...
    def is_slow(self, stream: int) -> bool:
        """Whether so much waits already that more would only grow memory."""


@final
@dataclass(eq=False)
class Session:
    """One map stream of one node."""

    node: NodeRecord
    pipe: Pipe
    stream: int
    compress: bool
    omit_peers: bool = False
    known: set[int] = field(default_factory=set)  # peers sent
    profiles: dict[int, UserProfile] = field(default_factory=dict)
    is_behind: bool = False  # deltas were dropped: a whole map is due when the client reads again
    keep_alive: asyncio.TimerHandle | None = None


@dataclass
class _Delta:
    """What one session is to be told at the next flush."""

    changed: set[int] = field(default_factory=set)
    removed: set[int] = field(default_factory=set)
    patched: set[int] = field(default_factory=set)
    filters: bool = False
    own: bool = False
    anew: bool = False  # peers look different to it: it gets everything


@final
class Fanout:
    """All sessions of a tailnet. Subscribe it with `tailnet.subscribe(fanout.take)`."""

    def __init__(self, tailnet: Tailnet, mapper: Mapper) -> None:
        self._tailnet = tailnet
        self._mapper = mapper
        self._sessions: dict[int, Session] = {}
        self._deltas: dict[int, _Delta] = {}
        self._patches: dict[int, PeerChange] = {}
        self._whole = False
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._sessions)

    def open(self, session: Session) -> None:
        """Begin a stream: it replaces the node's older one and starts with everything."""
        old = self._sessions.get(session.node.id)
        self._sessions[session.node.id] = session
        if old is not None:
            self._end(old)
        self._deltas.pop(session.node.id, None)
        self._tailnet.set_online(session.node, True)
        self._send_whole(session)
        self._arm_keep_alive(session)

    def close(self, session: Session) -> None:
        """The stream is over. The node is offline if no other stream opens soon."""
        if session.keep_alive is not None:
            session.keep_alive.cancel()
        if self._sessions.get(session.node.id) is session:
            del self._sessions[session.node.id]
            self._deltas.pop(session.node.id, None)
            asyncio.get_running_loop().call_later(OFFLINE_GRACE_S, self._offline, session.node)

    def drained(self, session: Session) -> None:
        """A slow reader took all that waited: bring it up to date at once."""
        if session.is_behind and self._sessions.get(session.node.id) is session:
            session.is_behind = False
            self._send_whole(session)

    def close_all(self) -> None:
        """End every stream: the server stops."""
        if self._timer is not None:
            self._timer.cancel()
        for session in list(self._sessions.values()):
            self._end(session)
        self._sessions.clear()

    def take(self, change: Change) -> None:
        """Note a change; it is told within milliseconds."""
        node = change.node
        if node is not None:
            self._mapper.forget(node.id)
        if change.kind is ChangeKind.POLICY:
            self._mapper.forget_all()
            self._whole = True
        elif change.kind is ChangeKind.DNS:
            self._tell_all(b'{"DNSConfig":' + encode(self._tailnet.dns_config()) + b"}")
            return
        elif change.kind is ChangeKind.RELAYS:
            self._tell_all(b'{"DERPMap":' + encode(self._tailnet.derp_map()) + b"}")
            return
        elif node is not None:
            self._note(change, node)
        for other in change.filters:
            if other.id in self._sessions:
                self._delta(other.id).filters = True
        if self._timer is None and (self._deltas or self._whole):
            wait = min(MAX_GATHER_S, GATHER_S + GATHER_PER_SESSION_S * len(self._sessions))
            self._timer = asyncio.get_running_loop().call_later(wait, self._flush)

    def _note(self, change: Change, node: NodeRecord) -> None:
        for other in change.lost:
            if other.id in self._sessions:
                delta = self._delta(other.id)
                delta.removed.add(node.id)
                delta.changed.discard(node.id)
                delta.patched.discard(node.id)
            if node.id in self._sessions and change.kind is not ChangeKind.REMOVED:
                self._delta(node.id).removed.add(other.id)
        if change.kind is ChangeKind.REMOVED:
            self._say_goodbye(node)
            return
        if change.kind is ChangeKind.PATCHED and change.patch is not None:
            self._merge(change.patch)
        elif node.id in self._sessions:
            self._delta(node.id).own = True
            self._delta(node.id).anew |= change.anew
        for peer in self._tailnet.policy.peers_of(node):
            session = self._sessions.get(peer.id)
            if session is None:
                continue
            delta = self._delta(peer.id)
            delta.removed.discard(node.id)
            if change.kind is ChangeKind.PATCHED and node.id in session.known:
                delta.patched.add(node.id)
            else:
                delta.changed.add(node.id)
            if change.kind is not ChangeKind.PATCHED and node.id in self._sessions:
                self._see(node, peer)

    def _see(self, node: NodeRecord, peer: NodeRecord) -> None:
        """A node that became visible sees the others too."""
        session = self._sessions[node.id]
        if peer.id not in session.known:
            self._delta(node.id).changed.add(peer.id)

    def _merge(self, patch: PeerChange) -> None:
        kept = self._patches.setdefault(patch.node_id, PeerChange(node_id=patch.node_id))
        for name in PeerChange.__struct_fields__[1:]:
            value = getattr(patch, name)
            if (value is not None and value != 0) or (name == "online" and value is not None):
                setattr(kept, name, value)

    def _delta(self, node_id: int) -> _Delta:
        return self._deltas.setdefault(node_id, _Delta())

    def _flush(self) -> None:
        self._timer = None
        deltas, self._deltas = self._deltas, {}
        patches, self._patches = self._patches, {}
        whole, self._whole = self._whole, False
        if whole:
            for session in list(self._sessions.values()):
                self._send_whole(session)
            return
        encoded = {node_id: encode(patch) for node_id, patch in patches.items()}
        frames: dict[tuple[object, ...], bytes] = {}
        for node_id, delta in deltas.items():
            reader = self._sessions.get(node_id)
            if reader is None:
                continue
            if reader.is_behind or reader.pipe.is_slow(reader.stream):
                reader.is_behind = True
                continue
            if delta.anew:
                self._send_whole(reader)
            else:
                self._send_delta(reader, delta, encoded, frames)

    def _send_delta(
        self, session: Session, delta: _Delta, patches: dict[int, bytes], frames: dict[tuple[object, ...], bytes]
    ) -> None:
        nodes = self._tailnet.nodes
        viewer = session.node
        changed = [] if session.omit_peers else sorted(each for each in delta.changed if each in nodes)
        changed = [each for each in changed if self._tailnet.policy.visible(viewer, nodes[each])]
        removed = sorted((delta.removed - set(changed)) & session.known)
        fresh = set(changed)
        patched = [each for each in sorted(delta.patched & session.known) if each not in fresh and each in patches]
        profiles = self._new_profiles(session, [nodes[each] for each in changed])
        bodies = [self._mapper.peer(nodes[each], viewer) for each in changed]
        own = self._mapper.own(viewer) if delta.own else b""
        filters = self._mapper.filters(viewer) if delta.filters else b""
        ssh = self._mapper.ssh(viewer) if delta.filters and self._tailnet.policy.ssh else b""
        session.known |= fresh
        session.known -= set(removed)
        key = (
            tuple(bodies),
            tuple(removed),
            tuple(patched),
            tuple(p.id for p in profiles),
            own,
            filters,
            ssh,
            session.compress,
        )
        if not any(key[:-1]):
            return
        data = frames.get(key)
        if data is None:
            parts = []
            if own:
                parts.append(b'"Node":' + own)
            if filters:
                parts.append(b'"PacketFilters":' + filters)
            if ssh:
                parts.append(b'"SSHPolicy":' + ssh)
            if profiles:
                parts.append(b'"UserProfiles":' + encode(profiles))
            if bodies:
                parts.append(b'"PeersChanged":[' + b",".join(bodies) + b"]")
            if removed:
                parts.append(b'"PeersRemoved":' + encode(removed))
            if patched:
                parts.append(b'"PeersChangedPatch":[' + b",".join(patches[each] for each in patched) + b"]")
            data = frames[key] = frame(b"{" + b",".join(parts) + b"}", compress=session.compress)
        session.pipe.push(session.stream, data)

    def _new_profiles(self, session: Session, nodes: Iterable[NodeRecord]) -> list[UserProfile]:
        fresh: dict[int, UserProfile] = {}
        for node in nodes:
            profile = self._mapper.profile(node)
            if session.profiles.get(profile.id) != profile:
                session.profiles[profile.id] = fresh[profile.id] = profile
        return list(fresh.values())

    def _send_whole(self, session: Session) -> None:
        if session.pipe.is_slow(session.stream):
            session.is_behind = True
            return
        node = session.node
        peers = [] if session.omit_peers else self._tailnet.policy.peers_of(node)
        gone = sorted(session.known - {peer.id for peer in peers})
        session.known = {peer.id for peer in peers}
        session.profiles.clear()
        profiles = self._new_profiles(session, [node, *peers])
        message = self._mapper.whole(node, peers, profiles)
        if gone:
            message = message[:-1] + b',"PeersRemoved":' + encode(gone) + b"}"
        session.pipe.push(session.stream, frame(message, compress=session.compress))

    def snapshot(self, node: NodeRecord, *, compress: bool) -> bytes:
        """One whole map outside any stream."""
        peers = self._tailnet.policy.peers_of(node)
        profiles = {profile.id: profile for profile in map(self._mapper.profile, [node, *peers])}
        return frame(self._mapper.whole(node, peers, list(profiles.values())), compress=compress)

    def _tell_all(self, message: bytes) -> None:
        for compress in (True, False):
            data = frame(message, compress=compress)
            for session in self._sessions.values():
                if session.compress is compress and not session.is_behind:
                    session.pipe.push(session.stream, data)

    def _say_goodbye(self, node: NodeRecord) -> None:
        """A deleted node is told that its key is over before its stream ends: else it goes on showing a tailnet."""
        session = self._sessions.pop(node.id, None)
        self._deltas.pop(node.id, None)
        self._patches.pop(node.id, None)
        if session is None:
            return
        own = b'{"Node":' + self._mapper.own(node, deleted=True) + b"}"
        session.pipe.push(session.stream, frame(own, compress=session.compress))
        asyncio.get_running_loop().call_later(GOODBYE_S, self._end, session)

    def _end(self, session: Session) -> None:
        if session.keep_alive is not None:
            session.keep_alive.cancel()
        session.pipe.push(session.stream, b"", end=True)

    def _offline(self, node: NodeRecord) -> None:
        if node.id not in self._sessions:
            self._tailnet.set_online(node, False)

    def _arm_keep_alive(self, session: Session) -> None:
        wait = KEEP_ALIVE_S + random.random() * KEEP_ALIVE_JITTER_S
        session.keep_alive = asyncio.get_running_loop().call_later(wait, self._keep_alive, session)

    def _keep_alive(self, session: Session) -> None:
        if self._sessions.get(session.node.id) is not session:
            return
        if not session.pipe.is_slow(session.stream):
            session.pipe.push(session.stream, KEEP_ALIVE if session.compress else KEEP_ALIVE_PLAIN)
        self._arm_keep_alive(session)
