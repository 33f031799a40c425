"""The network map: what control streams, put together. Each message costs what it changes, never the whole map.

A new stream begins from nothing, so its first message says the whole; the map of the stream before is kept until then,
and the change that the first message makes is the difference between the two.

Ref: control protocol §6; tailscale control/controlclient/map.go
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, final

import msgspec

from gw.model.addresses import DERP_MAGIC_V4
from gw.model.derpmap import DERPMap
from gw.model.dnsconfig import DNSConfig
from gw.model.filterrule import FilterRule
from gw.model.gojson import ZERO_TIME
from gw.model.keys import DiscoKey
from gw.model.mapping import MapResponse
from gw.model.node import Node, PeerChange, UserProfile

BASE_FILTER: Final = "base"
ALL_FILTERS: Final = "*"
SKEW: Final = timedelta(minutes=1)  # a clock that is off by more counts by the server's time
_PATCHED: Final = ("endpoints", "key", "key_signature", "disco_key", "online", "last_seen", "cap_map")
_NO_DISCO: Final = ("", str(DiscoKey.zero()))


@dataclass(frozen=True, slots=True)
class NetmapChange:
    """What one message changed. Take `removed` before `upserted`: a node may leave and come back in one message.

    upserted: ids of peers new or different. removed: peers as they last were.
    """

    self_changed: bool = False
    upserted: tuple[int, ...] = ()
    removed: tuple[Node, ...] = ()
    filter_changed: bool = False
    dns_changed: bool = False
    derp_changed: bool = False
    health_changed: bool = False

    def __bool__(self) -> bool:
        return bool(
            self.self_changed
            or self.upserted
            or self.removed
            or self.filter_changed
            or self.dns_changed
            or self.derp_changed
            or self.health_changed
        )


@final
class Netmap:
    """The map so far. `peers` by node id; node objects are replaced, never changed."""

    def __init__(self) -> None:
        self.self_node: Node | None = None
        self.peers: dict[int, Node] = {}
        self.domain = ""
        self.derp_map = DERPMap(regions={})
        self.dns_config = DNSConfig()
        self.user_profiles: dict[int, UserProfile] = {}
        self.health: list[str] = []
        self.clock_offset = timedelta(0)  # the server's clock less ours, where they differ by more than a minute
        self._filters: dict[str, list[FilterRule]] = {}
        self._is_first = True

    @property
    def packet_filter(self) -> list[FilterRule]:
        """All named filters, joined in the order of their names. No filter means nothing may come in."""
        return [rule for name in sorted(self._filters) for rule in self._filters[name]]

    def begin(self) -> None:
        """A new stream has opened: its first message replaces the whole map."""
        self._is_first = True

    def is_expired(self, node: Node, wall: datetime) -> bool:
        """Whether a node's key is over at `wall`, our UTC clock."""
        return node.expired or (node.key_expiry is not None and node.key_expiry <= wall + self.clock_offset)

    def is_usable(self, peer: Node, wall: datetime) -> bool:
        """Whether a tunnel to this peer can be: its key is valid, and there is a way to find it."""
        if self.is_expired(peer, wall) or not peer.key:
            return False
        return peer.is_wire_guard_only or peer.home_derp != 0 or peer.disco_key not in _NO_DISCO

    def apply(self, message: MapResponse, wall: datetime | None = None) -> NetmapChange:
        """Take one message of the stream; keepalives change nothing. wall: our UTC clock, now if not given."""
        if message.keep_alive:
            return NetmapChange()
        wall = wall or datetime.now(UTC)
        is_first, self._is_first = self._is_first, False
        if message.control_time is not None:
            skew = message.control_time - wall
            self.clock_offset = skew if abs(skew) > SKEW else timedelta(0)
        for profile in message.user_profiles or ():
            self.user_profiles[profile.id] = profile
        if message.domain:
            self.domain = message.domain
        self_changed = self._apply_self(message)
        if message.peers or is_first:
            upserted, removed = self._replace_peers(message.peers or [])
        else:
            upserted, removed = self._change_peers(message, wall)
        return NetmapChange(
            self_changed,
            upserted,
            removed,
            self._apply_filters(message, is_first),
            self._apply_dns(message, is_first),
            self._apply_derp(message),
            self._apply_health(message, is_first),
        )

    def _apply_self(self, message: MapResponse) -> bool:
        if message.node is None:
            return False
        node = _normal(message.node)
        changed = node != self.self_node
        self.self_node = node
        return changed

    # Peers

    def _replace_peers(self, peers: list[Node]) -> tuple[tuple[int, ...], tuple[Node, ...]]:
        """The whole list. It precludes the other changes of its message."""
        kept = {node.id for node in peers}
        removed = tuple(node for id_, node in self.peers.items() if id_ not in kept)
        for node in removed:
            del self.peers[node.id]
        before: dict[int, Node | None] = {}
        for node in peers:
            self._put(_normal(node), before)
        return self._differing(before), removed

    def _change_peers(self, message: MapResponse, wall: datetime) -> tuple[tuple[int, ...], tuple[Node, ...]]:
        """In the stock client's order: who goes, who comes, then what changed of those who are there."""
        removed = []
        for id_ in message.peers_removed or ():
            gone = self.peers.pop(id_, None)
            if gone is not None:
                removed.append(gone)
        before: dict[int, Node | None] = {}
        for node in message.peers_changed or ():
            self._put(_normal(node), before)
        for id_, is_seen in (message.peer_seen_change or {}).items():
            self._edit(id_, before, {"last_seen": wall if is_seen else None})
        for id_, is_online in (message.online_change or {}).items():
            self._edit(id_, before, {"online": is_online})
        for patch in message.peers_changed_patch or ():
            self._patch(patch, before)
        return self._differing(before), tuple(removed)

    def _differing(self, before: dict[int, Node | None]) -> tuple[int, ...]:
        """Of the peers touched, those that are not as they were: a message may change one and change it back."""
        return tuple(id_ for id_, old in before.items() if self.peers[id_] != old)

    def _put(self, node: Node, before: dict[int, Node | None]) -> None:
        old = self.peers.get(node.id)
        if old != node:
            before.setdefault(node.id, old)
            self.peers[node.id] = node

    def _patch(self, patch: PeerChange, before: dict[int, Node | None]) -> None:
        node = self.peers.get(patch.node_id)
        if node is None:
            return  # as the stock client: a patch never makes a peer
        changes: dict[str, object] = {name: value for name in _PATCHED if (value := getattr(patch, name)) is not None}
        if "disco_key" in changes and _is_stale(patch, node):
            del changes["disco_key"]
        if patch.derp_region:
            changes["home_derp"] = patch.derp_region
            changes["derp"] = f"{DERP_MAGIC_V4}:{patch.derp_region}"
        if patch.cap:
            changes["cap"] = patch.cap
        if patch.key_expiry is not None:
            changes["key_expiry"] = None if patch.key_expiry == ZERO_TIME else patch.key_expiry
        if changes.get("key", node.key) != node.key or _is_later(changes, node):
            changes["expired"] = False  # a patch cannot say it: a renewed key is valid again
        self._edit(patch.node_id, before, changes)

    def _edit(self, id_: int, before: dict[int, Node | None], changes: dict[str, object]) -> None:
        node = self.peers.get(id_)
        if node is not None and changes:
            self._put(msgspec.structs.replace(node, **changes), before)

    # The rest

    def _apply_filters(self, message: MapResponse, is_first: bool) -> bool:
        if message.packet_filter is None and message.packet_filters is None and not is_first:
            return False
        before = self.packet_filter
        if is_first:
            self._filters = {}
        if message.packet_filter is not None:
            self._filters[BASE_FILTER] = message.packet_filter
        named = message.packet_filters or {}
        if named.get(ALL_FILTERS, ()) is None:
            self._filters = {}
        for name, rules in named.items():
            if name == ALL_FILTERS:
                continue
            if rules is None:
                self._filters.pop(name, None)
            else:
                self._filters[name] = rules
        return self.packet_filter != before

    def _apply_dns(self, message: MapResponse, is_first: bool) -> bool:
        new = message.dns_config or (DNSConfig() if is_first else self.dns_config)
        changed = new != self.dns_config
        self.dns_config = new
        return changed

    def _apply_derp(self, message: MapResponse) -> bool:
        """A map without regions keeps those we have, and so does a stream without a map: relays are the last to go."""
        if message.derp_map is None:
            return False
        new = message.derp_map
        if new.regions is None:
            new = msgspec.structs.replace(new, regions=self.derp_map.regions)
        changed = new != self.derp_map
        self.derp_map = new
        return changed

    def _apply_health(self, message: MapResponse, is_first: bool) -> bool:
        new = message.health if message.health is not None else ([] if is_first else self.health)
        changed = new != self.health
        self.health = new
        return changed


def _normal(node: Node) -> Node:
    """A node as servers of all ages mean it: one spelling of "absent", allowed addresses and relay always told."""
    changes: dict[str, object] = {}
    if node.allowed_ips is None and node.addresses is not None:
        changes["allowed_ips"] = node.addresses
    host, _, region = node.derp.rpartition(":")
    if not node.home_derp and host == DERP_MAGIC_V4 and region.isascii() and region.isdigit() and len(region) < 10:
        changes["home_derp"] = int(region)
    if node.key_expiry == ZERO_TIME:
        changes["key_expiry"] = None
    if node.last_seen == ZERO_TIME:
        changes["last_seen"] = None
    return msgspec.structs.replace(node, **changes) if changes else node


def _is_stale(patch: PeerChange, node: Node) -> bool:
    """A disco key from before the peer was last seen: it belongs to a process that is gone."""
    return (
        patch.online is False
        and patch.last_seen is not None
        and node.last_seen is not None
        and patch.last_seen < node.last_seen
    )


def _is_later(changes: dict[str, object], node: Node) -> bool:
    if "key_expiry" not in changes or node.key_expiry is None:
        return False
    new = changes["key_expiry"]
    return new is None or (isinstance(new, datetime) and new > node.key_expiry)
