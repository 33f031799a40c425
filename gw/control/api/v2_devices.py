"""Tailscale's API v2: devices. Both of Tailscale's ids name a device: `id` (a number) and `nodeId` (the stable id)."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from gw.control import nodes
from gw.control.api.calls import Answer, Call, Listing, Operation, reading
from gw.control.records import NodeRecord
from gw.control.shapes import Nothing, time_shape
from gw.control.tailnet import Tailnet
from gw.errors import NotFound, UsageError

CORE: Final = "devices:core"
ROUTES: Final = "devices:routes"
NEVER: Final = "0001-01-01T00:00:00Z"
TAGGED: Final = "tagged-devices"


class Connectivity(msgspec.Struct, rename="camel"):
    endpoints: list[str]
    derp: str
    mapping_varies_by_dest_ip: bool | None = msgspec.field(name="mappingVariesByDestIP")
    latency: dict[str, Any]
    client_supports: dict[str, Any]


class Device(msgspec.Struct, rename="camel", omit_defaults=True):
    """A device. The last fields only with `?fields=all`."""

    addresses: list[str]
    id: str
    node_id: str
    user: str
    name: str
    hostname: str
    client_version: str
    update_available: bool
    os: str
    created: str | None
    connected_to_control: bool
    last_seen: str | None
    key_expiry_disabled: bool
    expires: str
    authorized: bool
    is_external: bool
    is_ephemeral: bool
    machine_key: str
    node_key: str
    blocks_incoming_connections: bool
    tailnet_lock_key: str
    tailnet_lock_error: str
    tags: list[str] = []
    enabled_routes: list[str] | msgspec.UnsetType = msgspec.UNSET
    advertised_routes: list[str] | msgspec.UnsetType = msgspec.UNSET
    client_connectivity: Connectivity | msgspec.UnsetType = msgspec.UNSET


class DeviceRoutes(msgspec.Struct, rename="camel"):
    advertised_routes: list[str]
    enabled_routes: list[str]


class Authorize(msgspec.Struct):
    authorized: bool


class NewName(msgspec.Struct):
    """A label or a full name of this tailnet; "" follows the host name again."""

    name: str


class NewTags(msgspec.Struct):
    tags: list[str]


class KeyChange(msgspec.Struct, rename="camel"):
    key_expiry_disabled: bool = False


class NewAddress(msgspec.Struct):
    ipv4: str


class NewRoutes(msgspec.Struct):
    routes: list[str]


def device_shape(tailnet: Tailnet, node: NodeRecord, *, whole: bool) -> Device:
    doc, info = node.doc, node.hostinfo
    device = Device(
        addresses=doc.addresses,
        id=str(doc.id),
        node_id=str(doc.id),
        user=doc.user or TAGGED,
        name=node.fqdn,
        hostname=info.hostname or doc.hostname,
        client_version=info.ipn_version,
        update_available=False,
        os=info.os,
        created=time_shape(doc.created),
        connected_to_control=node.online,
        last_seen=time_shape(node.last_seen),
        key_expiry_disabled=doc.expiry is None,
        expires=time_shape(doc.expiry) or NEVER,
        authorized=doc.approved,
        is_external=False,
        is_ephemeral=doc.ephemeral,
        machine_key=doc.machine_key,
        node_key=doc.node_key,
        blocks_incoming_connections=info.shields_up,
        tailnet_lock_key="",
        tailnet_lock_error="",
        tags=doc.tags,
    )
    if whole:
        device.advertised_routes = node.advertised_routes
        device.enabled_routes = doc.approved_routes
        device.client_connectivity = Connectivity(node.endpoints, str(node.home_derp or ""), None, {}, {})
    return device


def _device(call: Call) -> NodeRecord:
    """By number alone: a name in the place of an id would reach another device after a rename."""
    text = call.path[0]
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise NotFound(f"no such device: `{text[:80]}`")
    return call.tailnet.roster.node(int(text))


def _is_whole(call: Call) -> bool:
    return call.query.get("fields", "default") == "all"


async def list_devices(call: Call) -> Answer:
    check_tailnet(call)
    whole, tailnet = _is_whole(call), call.tailnet
    page = call.page(tailnet.nodes.values(), lambda node: node.id)
    return Listing("devices", page, lambda node: device_shape(tailnet, node, whole=whole))


def check_tailnet(call: Call) -> None:
    """There is one tailnet here: `-`, or its domain. Raises NotFound."""
    if call.path[0] not in ("-", call.tailnet.domain):
        raise NotFound(f"no such tailnet: `{call.path[0][:80]}`", hint="write `-`")


async def get_device(call: Call) -> Answer:
    return device_shape(call.tailnet, _device(call), whole=_is_whole(call))


async def delete_device(call: Call) -> Answer:
    await call.tailnet.delete(_device(call))
    return Nothing()


async def authorize(call: Call) -> Answer:
    node = _device(call)
    await nodes.approve(call.tailnet, node, call.read(Authorize).authorized)
    return Nothing()


async def expire(call: Call) -> Answer:
    node = _device(call)
    await call.tailnet.expire(node, call.tailnet.clock())
    return Nothing()


async def rename(call: Call) -> Answer:
    node = _device(call)
    name = call.read(NewName).name.lower().removesuffix(".").removesuffix(f".{call.tailnet.domain}")
    if name:
        await call.tailnet.rename(node, name)
    else:
        await nodes.follow_hostname(call.tailnet, node)
    return Nothing()


async def set_tags(call: Call) -> Answer:
    node = _device(call)
    await call.tailnet.set_tags(node, call.read(NewTags).tags)
    return Nothing()


async def change_key(call: Call) -> Answer:
    node = _device(call)
    await nodes.set_key_expiry(call.tailnet, node, disabled=call.read(KeyChange).key_expiry_disabled)
    return Nothing()


async def set_address(call: Call) -> Answer:
    node = _device(call)
    address = call.read(NewAddress).ipv4
    if ":" in address:
        raise UsageError(f"not an IPv4 address: `{address[:80]}`")
    await nodes.set_addresses(call.tailnet, node, [address])
    return Nothing()


def _routes(node: NodeRecord) -> DeviceRoutes:
    return DeviceRoutes(node.advertised_routes, node.doc.approved_routes)


async def get_routes(call: Call) -> Answer:
    return _routes(_device(call))


async def set_routes(call: Call) -> Answer:
    node = _device(call)
    await call.tailnet.approve_routes(node, call.read(NewRoutes).routes)
    return _routes(node)


def _one(method: str, rest: str, handler: Any, summary: str, *, body: Any = None, answer: Any = Nothing) -> Operation:
    scope = ROUTES if rest == "/routes" else CORE
    return Operation(
        method=method,
        path=f"/api/v2/device/{{deviceId}}{rest}",
        handler=handler,
        scope=reading(scope) if method == "GET" else scope,
        summary=summary,
        body=body,
        answer=answer,
        query={"fields": "`all` for routes and connectivity too."} if (method, rest) == ("GET", "") else {},
    )


OPERATIONS: Final = [
    Operation(
        method="GET", path="/api/v2/tailnet/{tailnet}/devices", handler=list_devices, scope=reading(CORE),
        summary="List devices", answer=Device, listing="devices",
        query={
            "fields": "`all` for routes and connectivity too.", "after": "Only ids above this one.",
            "limit": "At most so many.",
        },
    ),
    _one("GET", "", get_device, "Show a device", answer=Device),
    _one("DELETE", "", delete_device, "Remove a device"),
    _one("POST", "/authorized", authorize, "Approve a device, or withdraw that", body=Authorize),
    _one("POST", "/expire", expire, "End a device's login now"),
    _one("POST", "/name", rename, "Name a device for good, or let it follow its host name", body=NewName),
    _one("POST", "/tags", set_tags, "Replace a device's tags", body=NewTags),
    _one("POST", "/key", change_key, "Let a device's key never expire, or expire again", body=KeyChange),
    _one("POST", "/ip", set_address, "Choose a device's IPv4 address", body=NewAddress),
    _one("GET", "/routes", get_routes, "The routes a device advertises and may serve", answer=DeviceRoutes),
    _one("POST", "/routes", set_routes, "Replace the routes a device may serve", body=NewRoutes, answer=DeviceRoutes),
]  # fmt: skip
