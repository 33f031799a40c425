"""Who is the active router of each subnet: one online node a prefix, the same one until it goes away.

Clients must never see one prefix at two peers, so of several nodes that serve it one is elected, and it stays until it
is no longer among the best: those alive before those online, those before the rest; of the best the lowest id is taken.
A router that is back therefore takes nothing back. Exit routes are not elected: people choose their exit node.

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
        self._shared: dict[str, None] = {}  # subnets with several routers

    def primary(self, prefix: str) -> int | None:
        """The id of a subnet's active router."""
        return self._primary.get(prefix)

    def primaries_of(self, node: NodeRecord) -> list[str]:
        """Subnets that `node` is the active router of, sorted."""
        served = self._known.get(node.id, frozenset())
        return sorted(prefix for prefix in served if self._primary.get(prefix) == node.id)

    def contenders(self) -> list[NodeRecord]:
        """Routers of subnets that have several, each once."""
        found = {node.id: node for prefix in self._shared for node in self._serving[prefix].values()}
        return list(found.values())

    def routers_of(self, prefix: str) -> list[NodeRecord]:
        """Who serves a subnet, lowest id first."""
        return [node for _, node in sorted(self._serving.get(prefix, {}).items())]

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
            if len(servers) > 1:
                self._shared[prefix] = None
            else:
                self._shared.pop(prefix, None)
            new = self._elect(prefix, servers)
            if new != old:
                changed |= {each: holders.get(each) or servers[each] for each in (old, new) if each is not None}
            if not servers:
                del self._serving[prefix]
        return [each for each in changed.values() if not (gone and each is node)]

    def _elect(self, prefix: str, servers: dict[int, NodeRecord]) -> int | None:
        if not servers:
            self._primary.pop(prefix, None)
            return None
        alive = [each for each, server in servers.items() if server.is_alive]
        online = [each for each, server in servers.items() if server.online]
        best = alive or online or list(servers)
        if self._primary.get(prefix) not in best:
            self._primary[prefix] = min(best)
        return self._primary[prefix]
