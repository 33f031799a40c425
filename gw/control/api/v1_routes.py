"""Subnets and exit nodes, one entry for each router of each prefix: ours, beside Headscale's REST v1."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Final

import msgspec

from gw.control.api.calls import Answer, Call, Listing, Operation, reading
from gw.control.records import NodeRecord
from gw.model.addresses import EXIT_ROUTES


class RouteShape(msgspec.Struct, rename="camel"):
    """One prefix at one node. primary: traffic goes by this node now; healthy: it answers, as far as it can."""

    prefix: str
    node_id: str
    node: str
    advertised: bool
    approved: bool
    primary: bool
    online: bool
    healthy: bool
    exit: bool


async def list_routes(call: Call) -> Answer:
    tailnet = call.tailnet
    wanted = tailnet.roster.find(call.query["node"]) if call.query.get("node") else None
    nodes = [wanted] if wanted is not None else list(tailnet.nodes.values())
    found = [
        RouteShape(
            prefix=prefix,
            node_id=str(node.id),
            node=node.doc.given_name,
            advertised=prefix in node.advertised_routes,
            approved=prefix in node.doc.approved_routes,
            primary=_leads(call, node, prefix),
            online=node.online,
            healthy=node.online and not node.is_unwell,
            exit=prefix in EXIT_ROUTES,
        )
        for node in nodes
        for prefix in {*node.advertised_routes, *node.doc.approved_routes}
    ]
    found.sort(key=lambda route: (ip_network(route.prefix).version, ip_network(route.prefix), int(route.node_id)))
    return Listing("routes", found, lambda route: route)


def _leads(call: Call, node: NodeRecord, prefix: str) -> bool:
    if prefix in EXIT_ROUTES:
        return prefix in node.served_routes
    return call.tailnet.routes.primary(prefix) == node.id


OPERATIONS: Final = [
    Operation(
        method="GET", path="/api/v1/routes", handler=list_routes, scope=reading("devices:routes"),
        summary="List subnets and exit nodes, who serves them and who is well", answer=RouteShape, listing="routes",
        query={"node": "Only of this node: id, name or address."},
    ),
]  # fmt: skip
