"""Who is the active router of each subnet: one online node a prefix, the same one until it goes away.

Clients must never see one prefix at two peers, so of several nodes that serve it the lowest id is elected, and an
elected node stays until it goes offline or stops serving. Exit routes are not elected: people choose their exit node.

Ref: control protocol §6.2 (AllowedIPs, PrimaryRoutes)
"""

from __future__ import annotations

from typing import final

from gw.control.records import NodeRecord
from gw.model.addresses import EXIT_ROUTES


@final
class Routes:
    """The elections of a tailnet."""

    def __init__(self) -> None:
        self._serving: dict[str, dict[int, NodeRecord]] = {}
        self._primary: dict[str, int] = {}
        self._known: dict[int, frozenset[str]] = {}

    def primary(self, prefix: str) -> int | None:
        """The id of a subnet's active router."""
        return self._primary.get(prefix)

    def primaries_of(self, node: NodeRecord) -> list[str]:
        """Subnets that `node` is the active router of, sorted."""
        served = self._known.get(node.id, frozenset())
        return sorted(prefix for prefix in served if self._primary.get(prefix) == node.id)

    def refresh(self, node: NodeRecord, *, gone: bool = False) -> list[NodeRecord]:
        """Look again at what `node` serves and whether it is online. Returns the nodes that won or lost a subnet."""
        before = self._known.get(node.id, frozenset())
        after = frozenset() if gone else frozenset(r for r in node.served_routes if r not in EXIT_ROUTES)
        if not before and not after:
            return []
        if after:
            self._known[node.id] = after
        else:
            del self._known[node.id]
        changed: dict[int, NodeRecord] = {}
        for prefix in before | after:
            servers = self._serving.setdefault(prefix, {})
            old = self._primary.get(prefix)
            holders = dict(servers)
            if prefix in after:
                servers[node.id] = node
            else:
                servers.pop(node.id, None)
            new = self._elect(prefix, servers)
            if new != old:
                changed |= {each: holders.get(each) or servers[each] for each in (old, new) if each is not None}
            if not servers:
                del self._serving[prefix]
        return [each for each in changed.values() if not (gone and each is node)]

    def _elect(self, prefix: str, servers: dict[int, NodeRecord]) -> int | None:
        current = self._primary.get(prefix)
        online = [each for each, server in servers.items() if server.online]
        if not servers:
            self._primary.pop(prefix, None)
            return None
        if current not in servers or (online and current not in online):
            self._primary[prefix] = min(online or servers)
        return self._primary[prefix]
