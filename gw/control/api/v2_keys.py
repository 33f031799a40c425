"""Tailscale's API v2: keys of every kind, and tokens by OAuth client credentials.

An auth key made here is a pre-auth key; `keyType` `client` makes an OAuth client. The id of a key is its prefix.
Beside Tailscale's fields, `user` may name the owner of an untagged auth key.

Ref: control protocol §7.5; RFC 6749 §2.3.1, §4.4, §5
"""

from __future__ import annotations

import base64
import binascii
from datetime import timedelta
from typing import Final, Literal
from urllib.parse import parse_qsl, unquote_plus

import msgspec

from gw.control import accounts, apikeys
from gw.control.api.calls import ANY_KEY, Answer, Call, Listing, Operation, Reply, reading
from gw.control.api.v1_keys import check_tags
from gw.control.api.v2_devices import check_tailnet
from gw.control.scopes import has_scope, require_scope
from gw.control.shapes import Nothing, time_shape
from gw.errors import AuthRequired, NotFound, UsageError
from gw.state.documents import ApiKeyDoc, PreauthKeyDoc, UserDoc

AUTH: Final = "auth_keys"
OAUTH: Final = "oauth_keys"
LONGEST_S: Final = 90 * 86400  # what Tailscale allows, and its default
_UNSET = msgspec.UNSET


class Create(msgspec.Struct, omit_defaults=False):
    reusable: bool = False
    ephemeral: bool = False
    preauthorized: bool = False
    tags: list[str] = []


class Devices(msgspec.Struct):
    create: Create = msgspec.field(default_factory=Create)


class Capabilities(msgspec.Struct):
    devices: Devices = msgspec.field(default_factory=Devices)


class NewKeyV2(msgspec.Struct, rename="camel"):
    """expirySeconds: of an auth key, 90 days unless given."""

    key_type: Literal["", "auth", "client"] = ""
    description: str = ""
    capabilities: Capabilities = msgspec.field(default_factory=Capabilities)
    expiry_seconds: int = 0
    scopes: list[str] = []
    tags: list[str] = []
    user: str = ""


class KeyV2(msgspec.Struct, rename="camel"):
    """A key. key: the whole one, once, in the answer that made it."""

    id: str
    key_type: str
    key: str | msgspec.UnsetType
    description: str
    created: str | None
    expires: str | msgspec.UnsetType
    revoked: str | msgspec.UnsetType
    invalid: bool
    expiry_seconds: int | msgspec.UnsetType = _UNSET
    user_id: str | msgspec.UnsetType = _UNSET
    capabilities: Capabilities | msgspec.UnsetType = _UNSET
    scopes: list[str] | msgspec.UnsetType = _UNSET
    tags: list[str] | msgspec.UnsetType = _UNSET


class Token(msgspec.Struct):
    access_token: str
    token_type: str
    expires_in: int
    scope: str


class TokenRequest(msgspec.Struct):
    """Sent as a form, or with id and secret by Basic."""

    grant_type: str
    client_id: str = ""
    client_secret: str = ""
    scope: str = ""


def _auth_shape(call: Call, key: PreauthKeyDoc, text: str | None = None) -> KeyV2:
    owner = call.tailnet.users.get(key.user)
    is_over = key.expiration is not None and key.expiration <= call.tailnet.clock()
    return KeyV2(
        id=key.prefix,
        key_type="auth",
        key=text or _UNSET,
        description=key.description,
        created=time_shape(key.created),
        expires=time_shape(key.expiration) or _UNSET,
        revoked=(time_shape(key.expiration) or _UNSET) if key.revoked else _UNSET,
        invalid=is_over or key.revoked or (key.used and not key.reusable),
        expiry_seconds=_lifetime_s(key),
        user_id=str(owner.id) if owner else _UNSET,
        capabilities=Capabilities(Devices(Create(key.reusable, key.ephemeral, key.preapproved, key.tags))),
    )


def _api_shape(call: Call, key: ApiKeyDoc, text: str | None = None) -> KeyV2:
    is_over = key.expiration is not None and key.expiration <= call.tailnet.clock()
    return KeyV2(
        id=key.prefix,
        key_type="client" if key.role == "client" else "api",
        key=text or _UNSET,
        description=key.description,
        created=time_shape(key.created),
        expires=time_shape(key.expiration) or _UNSET,
        revoked=_UNSET,
        invalid=is_over,
        expiry_seconds=_lifetime_s(key),
        scopes=key.scopes,
        tags=key.tags,
    )


def _lifetime_s(key: PreauthKeyDoc | ApiKeyDoc) -> int | msgspec.UnsetType:
    """From its making to its end; nothing for a key that does not end."""
    return _UNSET if key.expiration is None else max(0, round((key.expiration - key.created).total_seconds()))


async def list_keys(call: Call) -> Answer:
    """Auth keys; with `?all=true` whatever else the caller may see."""
    check_tailnet(call)
    held, tailnet = call.caller.scopes, call.tailnet
    found: list[PreauthKeyDoc | ApiKeyDoc] = []
    if has_scope(held, reading(AUTH)):
        found += sorted(tailnet.preauth_keys.values(), key=lambda key: key.id)
    if call.query.get("all") == "true" and has_scope(held, reading(OAUTH)):
        found += sorted(tailnet.api_keys.values(), key=lambda key: key.id)
    if not found:
        require_scope(held, reading(AUTH))

    def shape(key: PreauthKeyDoc | ApiKeyDoc) -> KeyV2:
        return _auth_shape(call, key) if isinstance(key, PreauthKeyDoc) else _api_shape(call, key)

    return Listing("keys", found, shape)


async def create_key(call: Call) -> Answer:
    check_tailnet(call)
    new = call.read(NewKeyV2)
    if new.key_type == "client":
        require_scope(call.caller.scopes, OAUTH)
        client, secret = await apikeys.create_api_key(
            call.tailnet, role="client", scopes=new.scopes, tags=new.tags, description=new.description,
            caller=call.caller,
        )  # fmt: skip
        return _api_shape(call, client, secret)
    require_scope(call.caller.scopes, AUTH)
    wanted = new.capabilities.devices.create
    check_tags(call, wanted.tags)
    if not 0 <= new.expiry_seconds <= LONGEST_S:
        raise UsageError(f"`expirySeconds` is not between 1 and {LONGEST_S}")
    key, text = await accounts.create_preauth_key(
        call.tailnet,
        user=None if wanted.tags and not new.user else _owner(call, new.user),
        reusable=wanted.reusable,
        ephemeral=wanted.ephemeral,
        tags=wanted.tags,
        preapproved=wanted.preauthorized,
        description=new.description,
        expiration=call.tailnet.clock() + timedelta(seconds=new.expiry_seconds or LONGEST_S),
    )
    return _auth_shape(call, key, text)


def _owner(call: Call, name: str) -> UserDoc:
    users = call.tailnet.users
    if name:
        return accounts.find_user(call.tailnet, name)
    if len(users) == 1:
        return next(iter(users.values()))
    raise UsageError("whose key is it?", hint="give `capabilities.devices.create.tags`, or `user`")


async def get_key(call: Call) -> Answer:
    key = _found(call, "read")
    return _auth_shape(call, key) if isinstance(key, PreauthKeyDoc) else _api_shape(call, key)


async def delete_key(call: Call) -> Answer:
    key = _found(call, "write")
    if isinstance(key, PreauthKeyDoc):
        await accounts.delete_preauth_key(call.tailnet, key)
    else:
        await apikeys.delete_api_key(call.tailnet, key)
    return Nothing()


def _found(call: Call, way: Literal["read", "write"]) -> PreauthKeyDoc | ApiKeyDoc:
    """Raises NotFound, PermissionNeeded."""
    check_tailnet(call)
    prefix = call.path[1]
    found = call.tailnet.preauth_keys.get(prefix) or call.tailnet.api_keys.get(prefix)
    scope = OAUTH if isinstance(found, ApiKeyDoc) else AUTH
    require_scope(call.caller.scopes, reading(scope) if way == "read" else scope)
    if found is None:
        raise NotFound(f"no such key: `{prefix[:40]}`")
    return found


async def issue_token(call: Call) -> Answer:
    """Client credentials in the form, or by Basic. Errors are RFC 6749's."""
    try:
        form = dict(parse_qsl(call.body.decode(), keep_blank_values=True, max_num_fields=20))
    except (UnicodeDecodeError, ValueError):
        return _oauth_error("invalid_request", "the body is not a form")
    client, secret = form.get("client_id", ""), form.get("client_secret", "")
    kind, _, value = call.headers.get("authorization", "").partition(" ")
    if kind.lower() == "basic" and value:
        try:
            pair = base64.b64decode(value.strip(), validate=True).decode()
        except (binascii.Error, ValueError):
            return _oauth_error("invalid_client", "not client credentials", 401)
        client, secret = (unquote_plus(part) for part in (pair.partition(":")[0], pair.partition(":")[2]))
    if form.get("grant_type", "client_credentials") != "client_credentials":
        return _oauth_error("unsupported_grant_type", "only client_credentials")
    try:
        if client and client not in secret:
            raise AuthRequired("another client's secret")
        token, scopes = await apikeys.issue_token(
            call.tailnet, secret, form.get("scope", "").split(), call.tailnet.seal
        )
    except AuthRequired:
        return _oauth_error("invalid_client", "unknown client or wrong secret", 401)
    except UsageError as error:
        return _oauth_error("invalid_scope", error.message)
    body = msgspec.json.encode(Token(token, "Bearer", apikeys.TOKEN_LIFETIME_S, " ".join(scopes)))
    return Reply(body, headers={"Cache-Control": "no-store"})


def _oauth_error(code: str, text: str, status: int = 400) -> Reply:
    headers = {"WWW-Authenticate": 'Basic realm="GhostWire"'} if status == 401 else {}
    body = {"error": code, "error_description": text, "message": text, "status": status}
    return Reply(msgspec.json.encode(body), status, headers=headers)


_KEYS: Final = "/api/v2/tailnet/{tailnet}/keys"

OPERATIONS: Final = [
    Operation(
        method="GET", path=_KEYS, handler=list_keys, scope=ANY_KEY, summary="List keys", answer=KeyV2, listing="keys",
        query={"all": "`true`: API keys and OAuth clients too."},
    ),
    Operation(
        method="POST", path=_KEYS, handler=create_key, scope=ANY_KEY, summary="Make an auth key or an OAuth client",
        body=NewKeyV2, answer=KeyV2,
    ),
    Operation(
        method="GET", path=f"{_KEYS}/{{keyId}}", handler=get_key, scope=ANY_KEY, summary="Show a key", answer=KeyV2,
    ),
    Operation(
        method="DELETE", path=f"{_KEYS}/{{keyId}}", handler=delete_key, scope=ANY_KEY, summary="Forget a key",
        answer=Nothing,
    ),
    Operation(
        method="POST", path="/api/v2/oauth/token", handler=issue_token, scope="",
        summary="A token for an hour, by client credentials", body=TokenRequest, answer=Token,
        body_type="application/x-www-form-urlencoded",
    ),
]  # fmt: skip
