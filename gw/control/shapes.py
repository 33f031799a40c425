"""The objects of Headscale's REST v1: camel case, ids as strings, RFC 3339 times, null for a time that is not set.

What Headscale does not have is left out where it says nothing: `approved` is there only where a device waits.

Ref: control protocol §7.4
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from msgspec import UNSET, Struct, UnsetType

from gw.control.apikeys import FORMS
from gw.control.authkeys import KEY_PREFIX
from gw.control.pending import PendingLogin
from gw.control.records import NodeRecord
from gw.control.sshchecks import SshCheck
from gw.control.tailnet import Tailnet
from gw.model.addresses import EXIT_ROUTES
from gw.model.keys import DiscoKey
from gw.state.documents import ApiKeyDoc, PreauthKeyDoc, UserDoc

TAGGED_DEVICES_ID: Final = 2147455555  # the user that Headscale shows for tagged nodes
TAGGED_DEVICES: Final = "tagged-devices"
_METHODS: Final = {"authkey": "REGISTER_METHOD_AUTH_KEY", "cli": "REGISTER_METHOD_CLI", "oidc": "REGISTER_METHOD_OIDC"}
_NO_DISCO_KEY: Final = str(DiscoKey.zero())


class UserShape(Struct, rename="camel"):
    """A user."""

    id: str
    name: str
    created_at: str | None
    display_name: str
    email: str
    provider_id: str
    provider: str
    profile_pic_url: str


class PreAuthKeyShape(Struct, rename="camel"):
    """A pre-auth key. key: the whole one, once, in the answer that made it; else its beginning and `***`."""

    user: UserShape | None
    id: str
    key: str
    reusable: bool
    ephemeral: bool
    used: bool
    expiration: str | None
    created_at: str | None
    acl_tags: list[str]
    ip_addresses: list[str] | UnsetType = UNSET
    pre_approved: bool | UnsetType = UNSET
    description: str | UnsetType = UNSET


class NodeShape(Struct, rename="camel"):
    """A node. approved: false while the device waits for approval, else left out."""

    id: str
    machine_key: str
    node_key: str
    disco_key: str
    ip_addresses: list[str]
    name: str
    user: UserShape
    last_seen: str | None
    expiry: str | None
    pre_auth_key: PreAuthKeyShape | None
    created_at: str | None
    register_method: str
    given_name: str
    online: bool
    approved_routes: list[str]
    available_routes: list[str]
    subnet_routes: list[str]
    tags: list[str]
    approved: bool | UnsetType = UNSET


class ApiKeyShape(Struct, rename="camel"):
    """An API key, or an OAuth client. key: the whole one, once, in the answer that made it."""

    id: str
    prefix: str
    expiration: str | None
    created_at: str | None
    last_seen: str | None
    scopes: list[str]
    role: str
    description: str
    tags: list[str]


class LoginShape(Struct, rename="camel"):
    """A login that waits for a person."""

    auth_id: str
    hostname: str
    os: str
    machine_key: str
    node_key: str
    expires_at: str | None


class UserAnswer(Struct, rename="camel"):
    user: UserShape


class NodeAnswer(Struct, rename="camel"):
    node: NodeShape


class PreAuthKeyAnswer(Struct, rename="camel"):
    pre_auth_key: PreAuthKeyShape


class Nothing(Struct):
    """An empty object."""


_TAGGED: Final = UserShape(str(TAGGED_DEVICES_ID), TAGGED_DEVICES, None, "Tagged Devices", "", "", "", "")


def time_shape(when: datetime | None) -> str | None:
    return None if when is None else when.astimezone(UTC).isoformat().replace("+00:00", "Z")


def user_shape(user: UserDoc) -> UserShape:
    return UserShape(
        id=str(user.id),
        name=user.name,
        created_at=time_shape(user.created),
        display_name=user.display_name,
        email=user.email,
        provider_id=user.provider_id,
        provider=user.provider,
        profile_pic_url=user.picture,
    )


def node_shape(tailnet: Tailnet, node: NodeRecord) -> NodeShape:
    return node_shaper(tailnet)(node)


def node_shaper(tailnet: Tailnet) -> Callable[[NodeRecord], NodeShape]:
    """What makes the shapes of many nodes: owners and keys are made once each."""
    users: dict[str, UserShape] = {}
    keys: dict[str, PreAuthKeyShape | None] = {}

    def owner(name: str) -> UserShape:
        found = users.get(name)
        if found is None:
            doc = tailnet.users.get(name)
            found = users[name] = user_shape(doc) if doc is not None else _TAGGED
        return found

    def key(prefix: str) -> PreAuthKeyShape | None:
        if prefix not in keys:
            doc = tailnet.preauth_keys.get(prefix)
            keys[prefix] = preauth_key_shape(tailnet, doc) if doc is not None else None
        return keys[prefix]

    def shape(node: NodeRecord) -> NodeShape:
        doc = node.doc
        served = node.served_routes
        return NodeShape(
            id=str(doc.id),
            machine_key=doc.machine_key,
            node_key=doc.node_key,
            disco_key=node.disco_key or _NO_DISCO_KEY,
            ip_addresses=doc.addresses,
            name=doc.hostname,
            user=owner(doc.user),
            last_seen=time_shape(node.last_seen),
            expiry=time_shape(doc.expiry),
            pre_auth_key=key(doc.preauth_key) if doc.preauth_key else None,
            created_at=time_shape(doc.created),
            register_method=_METHODS[doc.register_method],
            given_name=doc.given_name,
            online=node.online,
            approved_routes=doc.approved_routes,
            available_routes=node.advertised_routes,
            subnet_routes=tailnet.routes.primaries_of(node) + [route for route in served if route in EXIT_ROUTES]
            if served
            else [],
            tags=doc.tags,
            approved=UNSET if doc.approved else False,
        )

    return shape


def preauth_key_shape(tailnet: Tailnet, key: PreauthKeyDoc, text: str | None = None) -> PreAuthKeyShape:
    """text: the whole key, once, when it was just made; else only its prefix is shown."""
    user = tailnet.users.get(key.user)
    return PreAuthKeyShape(
        user=user_shape(user) if user is not None else None,
        id=str(key.id),
        key=text or f"{KEY_PREFIX}{key.prefix}-***",
        reusable=key.reusable,
        ephemeral=key.ephemeral,
        used=key.used,
        expiration=time_shape(key.expiration),
        created_at=time_shape(key.created),
        acl_tags=key.tags,
        ip_addresses=key.addresses or UNSET,
        pre_approved=key.preapproved or UNSET,
        description=key.description or UNSET,
    )


def api_key_shape(key: ApiKeyDoc) -> ApiKeyShape:
    return ApiKeyShape(
        id=str(key.id),
        prefix=f"{FORMS[key.role]}{key.prefix}-***",
        expiration=time_shape(key.expiration),
        created_at=time_shape(key.created),
        last_seen=time_shape(key.last_used),
        scopes=key.scopes,
        role=key.role,
        description=key.description,
        tags=key.tags,
    )


def check_shape(check: SshCheck) -> LoginShape:
    """An SSH connection that waits for a person, among the logins that do."""
    return LoginShape(
        auth_id=check.auth_id,
        hostname=f"{check.source.doc.given_name}: ssh {check.local_user}@{check.destination.doc.given_name}",
        os=check.source.hostinfo.os,
        machine_key=check.source.doc.machine_key,
        node_key=check.source.doc.node_key,
        expires_at=time_shape(datetime.fromtimestamp(check.deadline, UTC)),
    )


def login_shape(login: PendingLogin) -> LoginShape:
    hostinfo = login.request.hostinfo
    return LoginShape(
        auth_id=login.auth_id,
        hostname=hostinfo.hostname if hostinfo is not None else "",
        os=hostinfo.os if hostinfo is not None else "",
        machine_key=login.machine_key,
        node_key=login.request.node_key,
        expires_at=time_shape(datetime.fromtimestamp(login.deadline, UTC)),
    )
