"""Nodes log in: by pre-auth key at once, or interactively once a person approved.

    same machine, same owner     the node it already is: key and expiry renewed, id, addresses and name kept
    same machine, another user   a second node (a machine may be two people's)
    tagged key                   the machine's node becomes the tags'; a user's key takes a tagged node back
    node key of another machine  refused

Ref: control protocol §4.3, §4.4
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal, final

from gw.control import authkeys
from gw.control.events import acting_as
from gw.control.records import NodeRecord
from gw.control.spelling import check_node_key
from gw.control.tailnet import Tailnet
from gw.errors import AuthRequired, Conflict, UsageError
from gw.model.hostinfo import Hostinfo
from gw.model.registration import RegisterRequest
from gw.state.changes import Change as Write
from gw.state.changes import Put
from gw.state.documents import NodeDoc, PreauthKeyDoc, UserDoc

logger = logging.getLogger(__name__)

MAX_HOSTNAME_CHARS = 256


class NewKeyNeeded(AuthRequired):
    """The node key belongs to another owner's node on this machine: answer `NodeKeyExpired`; the client makes one."""


@final
@dataclass(frozen=True, slots=True)
class Lifetime:
    """How long a login lasts. until: None = for ever; not asked where `by_settings`: `node.key_expiry` counts then."""

    by_settings: bool = True
    until: datetime | None = None


@final
@dataclass(frozen=True, slots=True)
class _Grant:
    """Why a machine may come in, and as whose."""

    user: str
    tags: Sequence[str]
    ephemeral: bool
    method: Literal["authkey", "cli", "oidc"]
    preauth_key: PreauthKeyDoc | None = None
    lifetime: Lifetime = Lifetime()
    approved: bool = True  # the device too; else a person has yet to say so


async def register_preauth(tailnet: Tailnet, machine_key: str, request: RegisterRequest) -> NodeRecord:
    """Log a machine in by the key in `request.auth`. Durable when this returns.

    Raises AuthRequired, whose text is for `RegisterResponse.Error`, or NewKeyNeeded.
    """
    with acting_as(f"machine {machine_key[:13]}…"):
        return await tailnet.durably(_register_preauth(tailnet, machine_key, request))


async def _register_preauth(tailnet: Tailnet, machine_key: str, request: RegisterRequest) -> NodeRecord:
    prefix, secret = authkeys.split((request.auth.auth_key if request.auth else "") or "")
    node_key = _node_key(request)
    async with tailnet.holds.locked(f"machine {machine_key}"):
        known = tailnet.by_node_key.get(node_key)
        if known is not None and known.doc.machine_key != machine_key:
            raise AuthRequired("node key is in use by another machine")
        settled = known is not None and not tailnet.is_expired(known)
        key = tailnet.preauth_keys.get(prefix)
        if key is None:
            if known is not None and settled and known.doc.preauth_key == prefix:
                return known  # its key was deleted since: the node stays what it is
            raise AuthRequired("invalid pre auth key")
        if authkeys.is_slow(key):
            key = await _proven_slowly(tailnet, prefix, secret)
        elif not authkeys.matches(key, secret):
            raise AuthRequired("handling register with auth key: wrong secret")
        if known is not None and settled and _owns(key, known, request):
            return known  # a used or expired key survives restarts of the node it admitted
        if key.reusable:
            return await _register_by_key(tailnet, machine_key, node_key, request, key)
        async with tailnet.holds.locked(f"preauthkey {prefix}"):  # one at a time: the second finds it used
            key = tailnet.preauth_keys.get(prefix)
            if key is None:
                raise AuthRequired("invalid pre auth key")
            return await _register_by_key(tailnet, machine_key, node_key, request, key)


async def _proven_slowly(tailnet: Tailnet, prefix: str, secret: str) -> PreauthKeyDoc:
    """An imported key that fits its bcrypt hash; from now on it has a fast one. One costly check at a time."""
    async with tailnet.holds.locked("slow hash"), tailnet.holds.locked(f"preauthkey {prefix}"):
        key = tailnet.preauth_keys.get(prefix)
        if key is None:
            raise AuthRequired("invalid pre auth key")
        if not authkeys.is_slow(key):  # another machine was first
            fits = authkeys.matches(key, secret)
        else:
            fits = await asyncio.to_thread(authkeys.matches_slowly, key, secret)
        if not fits:
            raise AuthRequired("handling register with auth key: wrong secret")
        if authkeys.is_slow(key):
            key = key.edited(hash=authkeys.hash_secret(secret))
            await tailnet.commit([Put(key)])
            tailnet.preauth_keys[prefix] = key
        return key


async def _register_by_key(
    tailnet: Tailnet, machine_key: str, node_key: str, request: RegisterRequest, key: PreauthKeyDoc
) -> NodeRecord:
    authkeys.check_usable(key, tailnet.clock())
    user = "" if key.tags else key.user
    ephemeral = key.ephemeral or request.ephemeral
    approved = key.preapproved or not tailnet.config.node.require_approval
    grant = _with_asked_tags(tailnet, _Grant(user, key.tags, ephemeral, "authkey", key, approved=approved), request)
    return await _admit(tailnet, machine_key, node_key, request, grant)


def _owns(key: PreauthKeyDoc, node: NodeRecord, request: RegisterRequest) -> bool:
    """Whether the key would leave the node's owner as it is."""
    if key.tags:
        return list(key.tags) == node.tags
    if node.tags:  # it asked for them when it came in by this key
        return node.doc.preauth_key == key.prefix and node.tags == _asked_tags(request)
    return key.user == node.user


def _asked_tags(request: RegisterRequest) -> list[str]:
    return sorted({*((request.hostinfo.request_tags if request.hostinfo else None) or ())})


def _node_key(request: RegisterRequest) -> str:
    try:
        return check_node_key(request.node_key)
    except UsageError as error:
        raise AuthRequired(error.message) from None


# Interactive


def begin_auth(tailnet: Tailnet, machine_key: str, request: RegisterRequest) -> str:
    """Put a login up for approval; returns the id for its AuthURL. Raises AuthRequired for a bad node key."""
    node_key = _node_key(request)
    known = tailnet.by_node_key.get(node_key)
    if known is not None and known.doc.machine_key != machine_key:
        raise AuthRequired("node key is in use by another machine")
    hostname = request.hostinfo.hostname if request.hostinfo else ""
    auth_id = tailnet.logins.begin(machine_key, request, _seconds(tailnet))
    logger.info("login of %s waits for approval: gwctl auth approve %s --user NAME", hostname or "a machine", auth_id)
    return auth_id


async def wait_auth(tailnet: Tailnet, auth_id: str) -> NodeRecord | None:
    """Wait for the verdict. None: the id is unknown, aged out, or its node is gone. Raises AuthRequired if rejected."""
    login = tailnet.logins.get(auth_id, _seconds(tailnet))
    if login is None:
        return None
    await login.settled.wait()
    if login.rejected:
        raise AuthRequired("the login was rejected by an administrator")
    return login.node if login.node is not None and tailnet.roster.has(login.node) else None


async def approve(
    tailnet: Tailnet,
    auth_id: str,
    user: UserDoc,
    *,
    method: Literal["cli", "oidc"] = "cli",
    lifetime: Lifetime = Lifetime(),
) -> NodeRecord:
    """Let a waiting login in as this user. Raises NotFound for an unknown id, AuthRequired if it cannot be admitted."""
    login = tailnet.logins.require(auth_id, _seconds(tailnet))
    login.approving = True
    try:
        node = await tailnet.durably(_approve(tailnet, login.machine_key, login.request, user, method, lifetime))
    finally:
        login.approving = False
    login.settle(node)
    return node


async def _approve(
    tailnet: Tailnet,
    machine_key: str,
    request: RegisterRequest,
    user: UserDoc,
    method: Literal["cli", "oidc"],
    lifetime: Lifetime,
) -> NodeRecord:
    approved = method == "cli" or not tailnet.config.node.require_approval  # a person looked at it, or need not
    grant = _Grant(user.name, (), request.ephemeral, method, lifetime=lifetime, approved=approved)
    grant = _with_asked_tags(tailnet, grant, request)
    async with tailnet.holds.locked(f"machine {machine_key}"):
        return await _admit(tailnet, machine_key, _node_key(request), request, grant)


def reject(tailnet: Tailnet, auth_id: str) -> None:
    """Refuse a waiting login. Raises NotFound."""
    login = tailnet.logins.require(auth_id, _seconds(tailnet))
    login.reject()
    tailnet.record("login-rejected", f"login:{auth_id}")


def _seconds(tailnet: Tailnet) -> float:
    return tailnet.clock().timestamp()


# Both


def _with_asked_tags(tailnet: Tailnet, grant: _Grant, request: RegisterRequest) -> _Grant:
    """A node may ask for tags that its user owns (`tailscale up --advertise-tags`). A tagged key's are not added to."""
    asked = _asked_tags(request)
    if not asked or not grant.user:
        return grant
    refused = [tag for tag in asked if not tailnet.policy.may_tag(grant.user, tag)]
    if refused:
        raise AuthRequired(f"requested tags [{' '.join(refused)[:200]}] are invalid or not permitted")
    return replace(grant, user="", tags=asked)


async def _admit(
    tailnet: Tailnet, machine_key: str, node_key: str, request: RegisterRequest, grant: _Grant
) -> NodeRecord:
    """Renew the machine's node or make one. The caller holds the machine's lock, and the key's if it is one-shot."""
    if grant.user and grant.user not in tailnet.users:
        raise AuthRequired(f"the key's user is gone: {grant.user}")
    with tailnet.holds.enrolling(grant.user):
        holder = tailnet.by_node_key.get(node_key)
        if holder is not None and holder.doc.machine_key != machine_key:
            raise AuthRequired("node key is in use by another machine")
        node = _candidate(tailnet, machine_key, grant)
        if holder is not None and holder is not node:
            raise NewKeyNeeded("node key belongs to another user's node on this machine")
        with tailnet.holds.reserved_key(node_key, machine_key):
            if node is None:
                return await _create(tailnet, machine_key, node_key, request, grant)
            async with node.lock:
                if tailnet.roster.has(node):
                    return await _renew(tailnet, node, node_key, request, grant)
            return await _create(tailnet, machine_key, node_key, request, grant)


def _candidate(tailnet: Tailnet, machine_key: str, grant: _Grant) -> NodeRecord | None:
    """The node of this machine that a login with this grant continues."""
    nodes = tailnet.by_machine_key.get(machine_key, [])
    same = [node for node in nodes if (bool(node.tags) if grant.tags else node.user == grant.user and not node.tags)]
    if same:
        return same[0]
    if grant.tags:
        return nodes[0] if nodes else None
    return next((node for node in nodes if node.tags), None)


async def _create(
    tailnet: Tailnet, machine_key: str, node_key: str, request: RegisterRequest, grant: _Grant
) -> NodeRecord:
    hostname = _hostname(request)
    now = tailnet.clock()
    try:
        addresses = _addresses(tailnet, grant)
    except Conflict as error:
        raise AuthRequired(error.message, hint=error.hint) from None
    given_name = tailnet.names.take(hostname)
    doc = NodeDoc(
        id=tailnet.numbers.new_node(),
        machine_key=machine_key,
        node_key=node_key,
        user=grant.user,
        given_name=given_name,
        addresses=addresses,
        hostname=hostname,
        created=now,
        expiry=_expiry(tailnet, grant, now),
        tags=list(grant.tags),
        register_method=grant.method,
        preauth_key=grant.preauth_key.prefix if grant.preauth_key else "",
        ephemeral=grant.ephemeral,
        approved=grant.approved,
        last_seen=now,
    )
    try:
        await tailnet.commit([Put(doc), *_use(grant)])
    except BaseException:
        tailnet.addresses.release(each for each in addresses if each not in _promised(grant))
        tailnet.names.release(given_name)
        raise
    _mark_used(tailnet, grant, addresses)
    node = tailnet.add_node(doc, request.hostinfo)
    owner = grant.user or ", ".join(grant.tags)
    if doc.approved:
        logger.info("node %s (%s) of %s is in", doc.given_name, addresses[0], owner)
    else:
        logger.info("node %s of %s waits for approval: gwctl nodes approve %d", doc.given_name, owner, doc.id)
    return node


async def _renew(
    tailnet: Tailnet, node: NodeRecord, node_key: str, request: RegisterRequest, grant: _Grant
) -> NodeRecord:
    now = tailnet.clock()
    doc = node.doc.edited(
        node_key=node_key,
        user=grant.user,
        tags=list(grant.tags),
        expiry=_expiry(tailnet, grant, now),
        register_method=grant.method,
        preauth_key=grant.preauth_key.prefix if grant.preauth_key else "",
        ephemeral=grant.ephemeral,
        approved=node.doc.approved or grant.approved,
        last_seen=now,
    )
    await tailnet.commit([Put(doc), *_use(grant)])
    _mark_used(tailnet, grant, ())
    tailnet.replace_doc(node, doc, "node-logged-in")
    if request.hostinfo is not None:
        tailnet.reports.observe(node, hostinfo=request.hostinfo)
    return node


def _promised(grant: _Grant) -> list[str]:
    """The addresses that the key holds for its node."""
    return grant.preauth_key.addresses if grant.preauth_key is not None else []


def _addresses(tailnet: Tailnet, grant: _Grant) -> list[str]:
    """What the key promises, and a fresh address of each other family. Raises Conflict."""
    promised = _promised(grant)
    given = {6 if ":" in address else 4 for address in promised}
    fresh = tailnet.addresses.allocate([family for family in tailnet.addresses.families if family not in given])
    return sorted([*promised, *fresh], key=lambda address: ":" in address)


def _hostname(request: RegisterRequest) -> str:
    hostinfo = request.hostinfo or Hostinfo()
    return hostinfo.hostname[:MAX_HOSTNAME_CHARS].replace("\0", "")


def _expiry(tailnet: Tailnet, grant: _Grant, now: datetime) -> datetime | None:
    if not grant.tags and not grant.lifetime.by_settings:
        return grant.lifetime.until
    lifetime_s = tailnet.config.node.key_expiry_s
    return None if grant.tags or not lifetime_s else now + timedelta(seconds=lifetime_s)


def _use(grant: _Grant) -> list[Write]:
    key = grant.preauth_key
    return [Put(key.edited(used=True))] if key is not None and not key.reusable else []


def _mark_used(tailnet: Tailnet, grant: _Grant, addresses: Sequence[str]) -> None:
    """addresses: of the node that came by it, if it is a new one."""
    key = grant.preauth_key
    if key is not None and not key.reusable:
        tailnet.promised.end(key, addresses)
        tailnet.preauth_keys[key.prefix] = key.edited(used=True)
