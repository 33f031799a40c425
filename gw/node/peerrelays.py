"""Peers that may relay UDP between others and us: Tailscale's peer relays (`tailscale set --relay-server-port`).

Control says who by capability grants of the packet filter: `relay-target` from the relay to us. The other half, `relay`
from us to the relay, is in the relay's own filter.

Ref: spec relay-and-path §6.2; tailscale wgengine/magicsock/magicsock.go candidatePeerRelays
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, final

from gw.engine.filterrules import Address, Range, ranges
from gw.model.filterrule import FilterRule
from gw.model.keys import NodeKey
from gw.model.node import Node
from gw.node.translate import addresses

RELAY_TARGET: Final = "tailscale.com/cap/relay-target"
MIN_CAP: Final = 121  # capability version that understands requests for an endpoint


@final
class PeerRelays:
    """Which peers may relay for this node. Tell it of every peer and filter; without a grant it costs nothing."""

    def __init__(self) -> None:
        self.keys: frozenset[NodeKey] = frozenset()
        self._sources: list[Range] = []

    def set_filter(
        self, rules: Iterable[FilterRule], own: Iterable[Address], peers: Iterable[tuple[NodeKey, Node]]
    ) -> bool:
        """The filter is another, or our addresses. rules: with `cap:` sources resolved. Whether `keys` changed."""
        ours = list(own)
        self._sources = [span for rule in rules for span in _granted(rule, ours)]
        keys = frozenset(key for key, node in peers if self._may_relay(node)) if self._sources else frozenset()
        changed, self.keys = keys != self.keys, keys
        return changed

    def set_peer(self, key: NodeKey, node: Node) -> bool:
        """A peer is new or different. Whether `keys` changed."""
        if self._may_relay(node) == (key in self.keys):
            return False
        self.keys ^= {key}
        return True

    def remove_peer(self, key: NodeKey) -> bool:
        """Whether `keys` changed."""
        if key not in self.keys:
            return False
        self.keys -= {key}
        return True

    def _may_relay(self, node: Node) -> bool:
        if not self._sources or node.cap < MIN_CAP or node.unsigned_peerapi_only:
            return False
        return any(
            v6 == (address.version == 6) and first <= address.packed <= last
            for address in addresses(node)
            for v6, first, last in self._sources
        )


def _granted(rule: FilterRule, own: list[Address]) -> list[Range]:
    """Sources that the rule makes relays for one of our addresses, of its family only."""
    families: set[bool] = set()
    for grant in rule.cap_grant or ():
        if RELAY_TARGET in (grant.caps or ()) or RELAY_TARGET in (grant.cap_map or {}):
            for v6, first, last in (span for text in grant.dsts or () for span in _spans(text)):
                families |= {v6 for ours in own if v6 == (ours.version == 6) and first <= ours.packed <= last}
    return [span for text in rule.src_ips or () for span in _spans(text) if span[0] in families] if families else []


def _spans(text: str) -> list[Range]:
    """Nothing where it cannot be read."""
    try:
        return ranges(text)
    except ValueError:
        return []
