"""Headscale's REST v1: nodes. Beside their numbers, names and addresses are taken for ids.

Ours beyond Headscale's: `approve`, `set_ip`, `user` (Headscale had it until 0.27), `?pending=true`, `?after=&limit=`.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

import msgspec

from gw.control import accounts, nodes
from gw.control.api.calls import Answer, Call, Listing, Operation, reading
from gw.control.api.v1_logins import approve_login
from gw.control.records import NodeRecord
from gw.control.shapes import NodeAnswer, NodeShape, Nothing, node_shape, node_shaper
from gw.errors import UsageError

SCOPE: Final = "devices:core"
ROUTES: Final = "devices:routes"


class Expire(msgspec.Struct, rename="camel"):
    """expiry: when; left out = now. A later time extends, also a login that is over already."""

    expiry: datetime | None = None
    disable_expiry: bool = False


class Tags(msgspec.Struct):
    tags: list[str] = []


class Routes(msgspec.Struct):
    routes: list[str] = []


class Addresses(msgspec.Struct, rename="camel"):
    """One of a family at most; the other family's stays."""

    ip_addresses: list[str] = []


class NewOwner(msgspec.Struct):
    user: str = ""


class Approval(msgspec.Struct):
    approved: bool = True


class Changes(msgspec.Struct):
    """What was changed, a line each."""

    changes: list[str]


def _node(call: Call) -> NodeRecord:
    return call.tailnet.roster.find(call.path[0])


def _shown(call: Call, node: NodeRecord) -> NodeAnswer:
    return NodeAnswer(node_shape(call.tailnet, node))


async def list_nodes(call: Call) -> Answer:
    tailnet, owner = call.tailnet, call.query.get("user")
    if call.query.get("pending") == "true":
        found = nodes.waiting(tailnet)
    else:
        found = (
            tailnet.roster.of_user(accounts.find_user(tailnet, owner).name) if owner else list(tailnet.nodes.values())
        )
    return Listing("nodes", call.page(found, lambda node: node.id), node_shaper(tailnet))


async def get_node(call: Call) -> Answer:
    return _shown(call, _node(call))


async def delete_node(call: Call) -> Answer:
    await call.tailnet.delete(_node(call))
    return Nothing()


async def expire_node(call: Call) -> Answer:
    node = _node(call)
    wanted = call.read(Expire)
    if not call.body and call.query:
        try:
            wanted = msgspec.convert(call.query, Expire, strict=False)
        except msgspec.ValidationError as error:
            raise UsageError(f"query: {error}") from None
    when = wanted.expiry or call.tailnet.clock()
    if when.tzinfo is None:
        raise UsageError(f"time without a zone: `{when.isoformat()}`", hint="write 2031-05-01T00:00:00Z")
    await call.tailnet.expire(node, None if wanted.disable_expiry else when)
    return _shown(call, node)


async def rename_node(call: Call) -> Answer:
    node = _node(call)
    await call.tailnet.rename(node, call.path[1])
    return _shown(call, node)


async def tag_node(call: Call) -> Answer:
    node = _node(call)
    await call.tailnet.set_tags(node, call.read(Tags).tags)
    return _shown(call, node)


async def approve_routes(call: Call) -> Answer:
    node = _node(call)
    await call.tailnet.approve_routes(node, call.read(Routes).routes)
    return _shown(call, node)


async def approve_node(call: Call) -> Answer:
    node = _node(call)
    await nodes.approve(call.tailnet, node, call.read(Approval).approved)
    return _shown(call, node)


async def set_addresses(call: Call) -> Answer:
    node = _node(call)
    await nodes.set_addresses(call.tailnet, node, call.read(Addresses).ip_addresses)
    return _shown(call, node)


async def move_node(call: Call) -> Answer:
    node = _node(call)
    await nodes.move(call.tailnet, node, accounts.find_user(call.tailnet, call.read(NewOwner).user))
    return _shown(call, node)


async def fill_addresses(call: Call) -> Answer:
    if call.query.get("confirmed") != "true":
        raise UsageError("not confirmed", hint="add ?confirmed=true")
    changed = await nodes.fill_addresses(call.tailnet)
    return Changes([f"node {each.id} ({each.doc.given_name}) has {', '.join(each.addresses)}" for each in changed])


async def register_node(call: Call) -> Answer:
    return await approve_login(call.tailnet, call.query.get("key", ""), call.query.get("user", ""))


OPERATIONS: Final = [
    Operation(
        method="GET", path="/api/v1/node", handler=list_nodes, scope=reading(SCOPE), summary="List nodes",
        answer=NodeShape, listing="nodes",
        query={
            "user": "Only the nodes of this user: id or name.",
            "pending": "`true`: only devices that wait for approval.",
            "after": "Only ids above this one.", "limit": "At most so many.",
        },
    ),
    Operation(
        method="POST", path="/api/v1/node/register", handler=register_node, scope=SCOPE,
        summary="Let a waiting login in as a user", answer=NodeAnswer,
        query={"user": "Id or name of the user.", "key": "Id of the login."},
    ),
    Operation(
        method="POST", path="/api/v1/node/backfillips", handler=fill_addresses, scope=SCOPE,
        summary="Give every node an address of each family that it lacks", answer=Changes,
        query={"confirmed": "Must be `true`."},
    ),
    Operation(
        method="GET", path="/api/v1/node/{nodeId}", handler=get_node, scope=reading(SCOPE), summary="Show a node",
        answer=NodeAnswer,
    ),
    Operation(
        method="DELETE", path="/api/v1/node/{nodeId}", handler=delete_node, scope=SCOPE, summary="Remove a node",
        answer=Nothing,
    ),
    Operation(
        method="POST", path="/api/v1/node/{nodeId}/expire", handler=expire_node, scope=SCOPE,
        summary="End or extend a node's login", body=Expire, answer=NodeAnswer,
        query={"expiry": "As in the body.", "disableExpiry": "As in the body."},
    ),
    Operation(
        method="POST", path="/api/v1/node/{nodeId}/rename/{newName}", handler=rename_node, scope=SCOPE,
        summary="Name a node for good", answer=NodeAnswer,
    ),
    Operation(
        method="POST", path="/api/v1/node/{nodeId}/tags", handler=tag_node, scope=SCOPE,
        summary="Replace a node's tags", body=Tags, answer=NodeAnswer,
    ),
    Operation(
        method="POST", path="/api/v1/node/{nodeId}/approve_routes", handler=approve_routes, scope=ROUTES,
        summary="Replace the routes a node may serve", body=Routes, answer=NodeAnswer,
    ),
    Operation(
        method="POST", path="/api/v1/node/{nodeId}/approve", handler=approve_node, scope=SCOPE,
        summary="Approve a device, or withdraw that", body=Approval, answer=NodeAnswer,
    ),
    Operation(
        method="POST", path="/api/v1/node/{nodeId}/set_ip", handler=set_addresses, scope=SCOPE,
        summary="Choose a node's addresses", body=Addresses, answer=NodeAnswer,
    ),
    Operation(
        method="POST", path="/api/v1/node/{nodeId}/user", handler=move_node, scope=SCOPE,
        summary="Give a node to another user", body=NewOwner, answer=NodeAnswer,
    ),
]  # fmt: skip
