"""The objects of Headscale's REST v1: camel case, ids as strings, RFC 3339 times, null for a time that is not set.

Ref: control protocol §7.4
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from gw.control.authkeys import KEY_PREFIX
from gw.control.pending import PendingLogin
from gw.control.records import NodeRecord
from gw.control.tailnet import Tailnet
from gw.model.addresses import EXIT_ROUTES
from gw.model.keys import DiscoKey
from gw.state.documents import PreauthKeyDoc, UserDoc

TAGGED_DEVICES_ID: Final = 2147455555  # the user that Headscale shows for tagged nodes
TAGGED_DEVICES: Final = "tagged-devices"
_METHODS: Final = {"authkey": "REGISTER_METHOD_AUTH_KEY", "cli": "REGISTER_METHOD_CLI", "oidc": "REGISTER_METHOD_OIDC"}
_NO_DISCO_KEY: Final = str(DiscoKey.zero())

Shape = dict[str, Any]


def time_shape(when: datetime | None) -> str | None:
    return None if when is None else when.astimezone(UTC).isoformat().replace("+00:00", "Z")


def user_shape(user: UserDoc) -> Shape:
    return {
        "id": str(user.id),
        "name": user.name,
        "createdAt": time_shape(user.created),
        "displayName": user.display_name,
        "email": user.email,
        "providerId": user.provider_id,
        "provider": user.provider,
        "profilePicUrl": user.picture,
    }


def tagged_devices_shape() -> Shape:
    return {
        "id": str(TAGGED_DEVICES_ID),
        "name": TAGGED_DEVICES,
        "createdAt": None,
        "displayName": "Tagged Devices",
        "email": "",
        "providerId": "",
        "provider": "",
        "profilePicUrl": "",
    }


def node_shape(tailnet: Tailnet, node: NodeRecord) -> Shape:
    doc = node.doc
    key = tailnet.preauth_keys.get(doc.preauth_key)
    user = tailnet.users.get(doc.user)
    exits = [route for route in node.served_routes if route in EXIT_ROUTES]
    return {
        "id": str(doc.id),
        "machineKey": doc.machine_key,
        "nodeKey": doc.node_key,
        "discoKey": node.disco_key or _NO_DISCO_KEY,
        "ipAddresses": doc.addresses,
        "name": doc.hostname,
        "user": user_shape(user) if user is not None else tagged_devices_shape(),
        "lastSeen": time_shape(node.last_seen),
        "expiry": time_shape(doc.expiry),
        "preAuthKey": preauth_key_shape(tailnet, key) if key is not None else None,
        "createdAt": time_shape(doc.created),
        "registerMethod": _METHODS[doc.register_method],
        "givenName": doc.given_name,
        "online": node.online,
        "approvedRoutes": doc.approved_routes,
        "availableRoutes": node.advertised_routes,
        "subnetRoutes": tailnet.routes.primaries_of(node) + exits,
        "tags": doc.tags,
    }


def preauth_key_shape(tailnet: Tailnet, key: PreauthKeyDoc, text: str | None = None) -> Shape:
    """text: the whole key, once, when it was just made; else only its prefix is shown."""
    user = tailnet.users.get(key.user)
    return {
        "user": user_shape(user) if user is not None else None,
        "id": str(key.id),
        "key": text or f"{KEY_PREFIX}{key.prefix}-***",
        "reusable": key.reusable,
        "ephemeral": key.ephemeral,
        "used": key.used,
        "expiration": time_shape(key.expiration),
        "createdAt": time_shape(key.created),
        "aclTags": key.tags,
    }


def login_shape(login: PendingLogin) -> Shape:
    hostinfo = login.request.hostinfo
    return {
        "authId": login.auth_id,
        "hostname": hostinfo.hostname if hostinfo is not None else "",
        "os": hostinfo.os if hostinfo is not None else "",
        "machineKey": login.machine_key,
        "nodeKey": login.request.node_key,
        "expiresAt": time_shape(datetime.fromtimestamp(login.deadline, UTC)),
    }
