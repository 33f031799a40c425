"""The network map: what control streams, put together. Each message costs what it changes, never the whole map.

Ref: control protocol §6
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, final

import msgspec

from gw.model.derpmap import DERPMap
from gw.model.dnsconfig import DNSConfig
from gw.model.filterrule import FilterRule
from gw.model.gojson import ZERO_TIME
from gw.model.mapping import MapResponse
from gw.model.node import Node, PeerChange, UserProfile

BASE_FILTER: Final = "base"


@dataclass(frozen=True, slots=True)
class NetmapChange:
    """What one message changed. upserted: ids of peers new or different; removed: peers as they last were."""

    self_changed: bool = False
    upserted: tuple[int, ...] = ()
    removed: tuple[Node, ...] = ()
    filter_changed: bool = False
    dns_changed: bool = False
    derp_changed: bool = False

    def __bool__(self) -> bool:
        return bool(
            self.self_changed
            or self.upserted
            or self.removed
            or self.filter_changed
            or self.dns_changed
            or self.derp_changed
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
        self._filters: dict[str, list[FilterRule]] = {}

    @property
    def packet_filter(self) -> list[FilterRule]:
        """All named filters, joined in the order of their names. No filter means nothing may come in."""
        return [rule for name in sorted(self._filters) for rule in self._filters[name]]

    def apply(self, message: MapResponse) -> NetmapChange:
        """Take one message of the stream."""
        upserted: dict[int, None] = {}
        removed: list[Node] = []
        self_changed = self._apply_self(message)
        if message.peers is not None:
            kept = {node.id for node in message.peers}
            removed += [self.peers.pop(id_) for id_ in list(self.peers) if id_ not in kept]
            for node in message.peers:
                self._put(node, upserted)
        for node in message.peers_changed or ():
            self._put(node, upserted)
        for id_ in message.peers_removed or ():
            gone = self.peers.pop(id_, None)
            if gone is not None:
                removed.append(gone)
                upserted.pop(id_, None)
        for patch in message.peers_changed_patch or ():
            self._patch(patch, upserted)
        for id_, is_seen in (message.peer_seen_change or {}).items():
            self._edit(id_, upserted, last_seen=datetime.now(UTC) if is_seen else None)
        for id_, is_online in (message.online_change or {}).items():
            self._edit(id_, upserted, online=is_online)
        for profile in message.user_profiles or ():
            self.user_profiles[profile.id] = profile
        if message.health is not None:
            self.health = message.health
        if message.domain:
            self.domain = message.domain
        return NetmapChange(
            self_changed,
            tuple(upserted),
            tuple(removed),
            self._apply_filters(message),
            self._apply_dns(message),
            self._apply_derp(message),
        )

    def _apply_self(self, message: MapResponse) -> bool:
        if message.node is None or message.node == self.self_node:
            return False
        self.self_node = message.node
        return True

    def _apply_filters(self, message: MapResponse) -> bool:
        if message.packet_filter is None and message.packet_filters is None:
            return False
        before = self.packet_filter
        if message.packet_filter is not None:
            self._filters = {BASE_FILTER: message.packet_filter}
        for name, rules in (message.packet_filters or {}).items():
            if name == "*" and rules is None:
                self._filters = {}
            elif rules is None:
                self._filters.pop(name, None)
            else:
                self._filters[name] = rules
        return self.packet_filter != before or not before

    def _apply_dns(self, message: MapResponse) -> bool:
        if message.dns_config is None or message.dns_config == self.dns_config:
            return False
        self.dns_config = message.dns_config
        return True

    def _apply_derp(self, message: MapResponse) -> bool:
        if message.derp_map is None:
            return False
        new = message.derp_map
        if new.regions is None:  # absent regions keep those we have
            new = msgspec.structs.replace(new, regions=self.derp_map.regions)
        changed = new != self.derp_map
        self.derp_map = new
        return changed

    def _put(self, node: Node, upserted: dict[int, None]) -> None:
        if self.peers.get(node.id) != node:
            self.peers[node.id] = node
            upserted[node.id] = None

    def _patch(self, patch: PeerChange, upserted: dict[int, None]) -> None:
        changes: dict[str, object] = {}
        if patch.derp_region:
            changes["home_derp"] = patch.derp_region
            changes["derp"] = f"127.3.3.40:{patch.derp_region}"
        for name in ("endpoints", "key", "key_signature", "disco_key", "online", "last_seen", "cap_map"):
            value = getattr(patch, name)
            if value is not None:
                changes[name] = value
        if patch.cap:
            changes["cap"] = patch.cap
        if patch.key_expiry is not None:
            changes["key_expiry"] = None if patch.key_expiry == ZERO_TIME else patch.key_expiry
        self._edit(patch.node_id, upserted, **changes)

    def _edit(self, id_: int, upserted: dict[int, None], **changes: object) -> None:
        """A patch for a peer we do not have is ignored, as the stock client does."""
        node = self.peers.get(id_)
        if node is not None and changes:
            self._put(msgspec.structs.replace(node, **changes), upserted)
