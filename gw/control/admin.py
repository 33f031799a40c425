"""Administration in Headscale's REST v1 terms: one function a verb, on a tailnet in memory.

    answer(tailnet, "POST", "/api/v1/user", b'{"name":"ann"}') → {"user": {...}}

The control server serves this on its unix socket; without a server `gwctl` calls it on the state directory itself.
Beside Headscale's paths: node ids in paths may be names or addresses, users may be ids or names, and
`GET /api/v1/auth` lists the logins that wait.

Ref: control protocol §7.4
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Final, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec

from gw.control import accounts, enrolment
from gw.control.records import NodeRecord
from gw.control.shapes import Shape, login_shape, node_shape, preauth_key_shape, user_shape
from gw.control.tailnet import Tailnet, policy_user, revision_of
from gw.errors import NotFound, UsageError
from gw.policy.checks import FAILED
from gw.policy.faults import PolicyError
from gw.policy.reader import read_policy
from gw.policy.topology import DescribedNode, Topology, TopologyRoutes, TopologyUser
from gw.state.documents import UserDoc

PREFIX: Final = "/api/v1"

Query = dict[str, str]
Handler = Callable[[Tailnet, list[str], Query, bytes], Awaitable[Shape]]
T = TypeVar("T")


class _Body(msgspec.Struct, rename="camel"):
    """A request body; unknown fields are ignored, as Headscale does."""


class _NewUser(_Body):
    name: str = ""
    display_name: str = ""
    email: str = ""


class _NewKey(_Body):
    user: str = ""
    reusable: bool = False
    ephemeral: bool = False
    expiration: datetime | None = None
    acl_tags: list[str] = []


class _KeyId(_Body):
    id: str = ""
    key: str = ""


class _Expire(_Body):
    expiry: datetime | None = None
    disable_expiry: bool = False


class _Tags(_Body):
    tags: list[str] = []


class _Routes(_Body):
    routes: list[str] = []


class _Auth(_Body):
    auth_id: str = ""
    user: str = ""


async def answer(tailnet: Tailnet, method: str, target: str, body: bytes = b"") -> Shape:
    """The response object for one request. target: path and query. Raises GwError."""
    parts = urlsplit(target)
    query = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
    for verb, pattern, handler in _ROUTES:
        match = pattern.fullmatch(parts.path)
        if match is not None and verb == method:
            return await handler(tailnet, [unquote(group) for group in match.groups()], query, body)
    raise NotFound(f"no such call: `{method} {parts.path}`")


def _read(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except msgspec.MsgspecError as error:
        raise UsageError(f"request body: {error}") from None


# Users


async def _list_users(tailnet: Tailnet, _: list[str], query: Query, __: bytes) -> Shape:
    wanted = [
        user
        for user in sorted(tailnet.users.values(), key=lambda user: user.id)
        if query.get("id") in (None, "", "0", str(user.id))
        and query.get("name") in (None, "", user.name)
        and query.get("email") in (None, "", user.email)
    ]
    return {"users": [user_shape(user) for user in wanted]}


async def _create_user(tailnet: Tailnet, _: list[str], __: Query, body: bytes) -> Shape:
    new = _read(body, _NewUser)
    user = await accounts.create_user(tailnet, new.name, display_name=new.display_name, email=new.email)
    return {"user": user_shape(user)}


async def _delete_user(tailnet: Tailnet, path: list[str], _: Query, __: bytes) -> Shape:
    await accounts.destroy_user(tailnet, accounts.find_user(tailnet, path[0]))
    return {}


async def _rename_user(tailnet: Tailnet, path: list[str], _: Query, __: bytes) -> Shape:
    user = await accounts.rename_user(tailnet, accounts.find_user(tailnet, path[0]), path[1])
    return {"user": user_shape(user)}


# Nodes


def _shown(tailnet: Tailnet, node: NodeRecord) -> Shape:
    return {"node": node_shape(tailnet, node)}


async def _list_nodes(tailnet: Tailnet, _: list[str], query: Query, __: bytes) -> Shape:
    owner = query.get("user")
    nodes = tailnet.nodes_of(accounts.find_user(tailnet, owner).name) if owner else list(tailnet.nodes.values())
    return {"nodes": [node_shape(tailnet, node) for node in sorted(nodes, key=lambda node: node.id)]}


async def _get_node(tailnet: Tailnet, path: list[str], _: Query, __: bytes) -> Shape:
    return _shown(tailnet, tailnet.find_node(path[0]))


async def _delete_node(tailnet: Tailnet, path: list[str], _: Query, __: bytes) -> Shape:
    await tailnet.delete(tailnet.find_node(path[0]))
    return {}


async def _expire_node(tailnet: Tailnet, path: list[str], query: Query, body: bytes) -> Shape:
    node = tailnet.find_node(path[0])
    wanted = _read(body, _Expire)
    if not body and query:
        wanted = msgspec.convert(query, _Expire, strict=False)
    when = wanted.expiry or tailnet.clock()
    if when.tzinfo is None:
        raise UsageError(f"time without a zone: `{when.isoformat()}`", hint="write 2031-05-01T00:00:00Z")
    await tailnet.expire(node, None if wanted.disable_expiry else when)
    return _shown(tailnet, node)


async def _rename_node(tailnet: Tailnet, path: list[str], _: Query, __: bytes) -> Shape:
    node = tailnet.find_node(path[0])
    await tailnet.rename(node, path[1])
    return _shown(tailnet, node)


async def _tag_node(tailnet: Tailnet, path: list[str], _: Query, body: bytes) -> Shape:
    node = tailnet.find_node(path[0])
    await tailnet.set_tags(node, _read(body, _Tags).tags)
    return _shown(tailnet, node)


async def _approve_routes(tailnet: Tailnet, path: list[str], _: Query, body: bytes) -> Shape:
    node = tailnet.find_node(path[0])
    await tailnet.approve_routes(node, _read(body, _Routes).routes)
    return _shown(tailnet, node)


async def _register_node(tailnet: Tailnet, _: list[str], query: Query, __: bytes) -> Shape:
    return await _approve(tailnet, query.get("key", ""), query.get("user", ""))


# Pre-auth keys


async def _list_keys(tailnet: Tailnet, _: list[str], query: Query, __: bytes) -> Shape:
    owner = accounts.find_user(tailnet, query["user"]).name if query.get("user") else None
    keys = sorted(tailnet.preauth_keys.values(), key=lambda key: key.id)
    return {"preAuthKeys": [preauth_key_shape(tailnet, key) for key in keys if owner in (None, key.user)]}


async def _create_key(tailnet: Tailnet, _: list[str], __: Query, body: bytes) -> Shape:
    new = _read(body, _NewKey)
    key, text = await accounts.create_preauth_key(
        tailnet,
        user=accounts.find_user(tailnet, new.user) if new.user not in ("", "0") else None,
        reusable=new.reusable,
        ephemeral=new.ephemeral,
        tags=new.acl_tags,
        expiration=new.expiration,
    )
    return {"preAuthKey": preauth_key_shape(tailnet, key, text)}


async def _expire_key(tailnet: Tailnet, _: list[str], __: Query, body: bytes) -> Shape:
    wanted = _read(body, _KeyId)
    await accounts.expire_preauth_key(tailnet, accounts.find_preauth_key(tailnet, wanted.id or wanted.key))
    return {}


async def _delete_key(tailnet: Tailnet, _: list[str], query: Query, __: bytes) -> Shape:
    await accounts.delete_preauth_key(tailnet, accounts.find_preauth_key(tailnet, query.get("id", "")))
    return {}


# Logins that wait for a person


async def _list_logins(tailnet: Tailnet, _: list[str], __: Query, ___: bytes) -> Shape:
    return {"pending": [login_shape(login) for login in tailnet.logins.waiting(tailnet.clock().timestamp())]}


async def _approve_login(tailnet: Tailnet, _: list[str], __: Query, body: bytes) -> Shape:
    wanted = _read(body, _Auth)
    return await _approve(tailnet, wanted.auth_id, wanted.user)


async def _approve(tailnet: Tailnet, auth_id: str, user: str) -> Shape:
    return _shown(tailnet, await enrolment.approve(tailnet, auth_id, _user_for_login(tailnet, user)))


def _user_for_login(tailnet: Tailnet, text: str) -> UserDoc:
    if text:
        return accounts.find_user(tailnet, text)
    if len(tailnet.users) == 1:
        return next(iter(tailnet.users.values()))
    if not tailnet.users:
        raise UsageError("there is no user yet", hint="gwctl users create NAME")
    raise UsageError("whose node is it?", hint=f"add --user {'|'.join(sorted(tailnet.users)[:5])}")


async def _reject_login(tailnet: Tailnet, _: list[str], __: Query, body: bytes) -> Shape:
    enrolment.reject(tailnet, _read(body, _Auth).auth_id)
    return {}


# Policy


class _PolicyText(_Body):
    """announce: the caller is about to write this text as the policy."""

    policy: str = ""
    announce: bool = False


async def _topology(tailnet: Tailnet, _: list[str], __: Query, ___: bytes) -> Shape:
    """Users and nodes as `gwctl policy` takes them."""
    people = [policy_user(user) for user in tailnet.users.values()]
    topology = Topology(
        users=[TopologyUser(each.name, each.id, each.email, each.role, sorted(each.groups)) for each in people],
        nodes=[
            DescribedNode(
                node.doc.given_name,
                node.id,
                node.user or None,
                list(node.tags),
                list(node.addresses),
                TopologyRoutes(list(node.advertised_routes), list(node.doc.approved_routes)),
                dict(node.posture_attributes),
            )
            for node in sorted(tailnet.nodes.values(), key=lambda node: node.id)
        ],
        domains=sorted({user.domain for user in people} - {""}),
    )
    plain: Shape = msgspec.to_builtins(topology)
    return plain


async def _check_policy(tailnet: Tailnet, _: list[str], __: Query, body: bytes) -> Shape:
    """Whether a text may be put in force: it is a policy, and its own tests hold."""
    asked = _read(body, _PolicyText)
    text = asked.policy.encode(errors="surrogateescape")
    try:
        policy = read_policy(text)
        failures = tailnet.policy.failures(policy)
    except PolicyError as error:
        place = f"{error.line}:{error.column}: " if error.line else ""
        raise UsageError(f"the policy is refused: {place}{error.message}", hint="gwctl policy check FILE") from None
    if failures:
        raise UsageError(f"the policy is refused: {FAILED}: {failures[0]}", hint="gwctl policy test FILE")
    if asked.announce:
        tailnet.announce_policy(text)
    return {"rules": len(policy.grants or ()), "revision": revision_of(text)}


async def _health(_: Tailnet, __: list[str], ___: Query, ____: bytes) -> Shape:
    return {"databaseConnectivity": True}


def _route(method: str, path: str, handler: Handler) -> tuple[str, re.Pattern[str], Handler]:
    return method, re.compile(PREFIX + path.replace("{}", "([^/]+)")), handler


_ROUTES: Final[list[tuple[str, re.Pattern[str], Handler]]] = [
    _route("GET", "/user", _list_users),
    _route("POST", "/user", _create_user),
    _route("DELETE", "/user/{}", _delete_user),
    _route("POST", "/user/{}/rename/{}", _rename_user),
    _route("GET", "/node", _list_nodes),
    _route("POST", "/node/register", _register_node),
    _route("GET", "/node/{}", _get_node),
    _route("DELETE", "/node/{}", _delete_node),
    _route("POST", "/node/{}/expire", _expire_node),
    _route("POST", "/node/{}/rename/{}", _rename_node),
    _route("POST", "/node/{}/tags", _tag_node),
    _route("POST", "/node/{}/approve_routes", _approve_routes),
    _route("GET", "/preauthkey", _list_keys),
    _route("POST", "/preauthkey", _create_key),
    _route("POST", "/preauthkey/expire", _expire_key),
    _route("DELETE", "/preauthkey", _delete_key),
    _route("GET", "/auth", _list_logins),
    _route("POST", "/auth/register", _approve_login),
    _route("POST", "/auth/approve", _approve_login),
    _route("POST", "/auth/reject", _reject_login),
    _route("GET", "/policy/topology", _topology),
    _route("POST", "/policy/check", _check_policy),
    _route("GET", "/health", _health),
]


def changes_state(method: str) -> bool:
    """Whether a call of this method may change anything."""
    return method != "GET"
