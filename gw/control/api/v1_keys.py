"""Headscale's REST v1: pre-auth keys and API keys. Prefixes and whole keys are taken for ids."""

from __future__ import annotations

from datetime import datetime
from typing import Final, Literal

import msgspec

from gw.control import accounts, apikeys
from gw.control.api.calls import Answer, Call, Listing, Operation, reading
from gw.control.scopes import ALL
from gw.control.shapes import (
    ApiKeyShape,
    Nothing,
    PreAuthKeyAnswer,
    PreAuthKeyShape,
    api_key_shape,
    preauth_key_shape,
)
from gw.errors import PermissionNeeded, UsageError

SCOPE: Final = "auth_keys"


class NewKey(msgspec.Struct, rename="camel"):
    """A pre-auth key. user: id or name; without one it needs tags. ipAddresses: of its node; one-shot keys only."""

    user: str = ""
    reusable: bool = False
    ephemeral: bool = False
    expiration: datetime | None = None
    acl_tags: list[str] = []
    ip_addresses: list[str] = []
    pre_approved: bool = False
    description: str = ""


class KeyId(msgspec.Struct):
    """id: number, prefix or the whole key; `key` is its older name."""

    id: str = ""
    key: str = ""


class NewApiKey(msgspec.Struct, rename="camel"):
    """scopes: none = all. role `client`: an OAuth client, whose tokens may make pre-auth keys with these tags alone."""

    expiration: datetime | None = None
    scopes: list[str] = []
    description: str = ""
    role: Literal["key", "client"] = "key"
    tags: list[str] = []


class ApiKeyId(msgspec.Struct):
    prefix: str = ""
    id: str = ""


class NewApiKeyAnswer(msgspec.Struct, rename="camel"):
    """apiKey: the whole key, once."""

    api_key: str


async def list_keys(call: Call) -> Answer:
    tailnet, query = call.tailnet, call.query
    owner = accounts.find_user(tailnet, query["user"]).name if query.get("user") else None
    keys = [key for key in tailnet.preauth_keys.values() if owner in (None, key.user)]
    return Listing("preAuthKeys", call.page(keys, lambda key: key.id), lambda key: preauth_key_shape(tailnet, key))


async def create_key(call: Call) -> Answer:
    new = call.read(NewKey)
    check_tags(call, new.acl_tags)
    key, text = await accounts.create_preauth_key(
        call.tailnet,
        user=accounts.find_user(call.tailnet, new.user) if new.user not in ("", "0") else None,
        reusable=new.reusable,
        ephemeral=new.ephemeral,
        tags=new.acl_tags,
        expiration=zoned(new.expiration),
        addresses=new.ip_addresses,
        preapproved=new.pre_approved,
        description=new.description,
    )
    return PreAuthKeyAnswer(preauth_key_shape(call.tailnet, key, text))


def check_tags(call: Call, tags: list[str]) -> None:
    """An OAuth client makes keys for its own tags alone. Raises PermissionNeeded."""
    own = call.caller.tags
    if own is not None and (not tags or not set(tags) <= set(own)):
        raise PermissionNeeded(f"this client may make keys for {', '.join(own) or 'no tag'} alone")


def zoned(when: datetime | None) -> datetime | None:
    """A time of a request; an older Headscale's zero time is none. Raises UsageError for one without a zone."""
    if when is None or when.year <= 1:
        return None
    if when.tzinfo is None:
        raise UsageError(f"time without a zone: `{when.isoformat()}`", hint="write 2031-05-01T00:00:00Z")
    return when


async def expire_key(call: Call) -> Answer:
    wanted = call.read(KeyId)
    await accounts.expire_preauth_key(call.tailnet, accounts.find_preauth_key(call.tailnet, wanted.id or wanted.key))
    return Nothing()


async def delete_key(call: Call) -> Answer:
    await accounts.delete_preauth_key(call.tailnet, accounts.find_preauth_key(call.tailnet, call.query.get("id", "")))
    return Nothing()


async def list_api_keys(call: Call) -> Answer:
    return Listing("apiKeys", call.page(call.tailnet.api_keys.values(), lambda key: key.id), api_key_shape)


async def create_api_key(call: Call) -> Answer:
    new = call.read(NewApiKey)
    _, text = await apikeys.create_api_key(
        call.tailnet,
        role=new.role,
        scopes=new.scopes,
        tags=new.tags,
        expiration=zoned(new.expiration),
        description=new.description,
        caller=call.caller,
    )
    return NewApiKeyAnswer(text)


async def expire_api_key(call: Call) -> Answer:
    wanted = call.read(ApiKeyId)
    await apikeys.expire_api_key(call.tailnet, apikeys.find_api_key(call.tailnet, wanted.prefix or wanted.id))
    return Nothing()


async def delete_api_key(call: Call) -> Answer:
    await apikeys.delete_api_key(call.tailnet, apikeys.find_api_key(call.tailnet, call.path[0]))
    return Nothing()


OPERATIONS: Final = [
    Operation(
        method="GET", path="/api/v1/preauthkey", handler=list_keys, scope=reading(SCOPE), summary="List pre-auth keys",
        answer=PreAuthKeyShape, listing="preAuthKeys", query={"user": "Only the keys of this user: id or name."},
    ),
    Operation(
        method="POST", path="/api/v1/preauthkey", handler=create_key, scope=SCOPE, summary="Make a pre-auth key",
        body=NewKey, answer=PreAuthKeyAnswer,
    ),
    Operation(
        method="POST", path="/api/v1/preauthkey/expire", handler=expire_key, scope=SCOPE,
        summary="Let a pre-auth key admit nobody any more", body=KeyId, answer=Nothing,
    ),
    Operation(
        method="DELETE", path="/api/v1/preauthkey", handler=delete_key, scope=SCOPE, summary="Forget a pre-auth key",
        answer=Nothing, query={"id": "Id, prefix or the whole key."},
    ),
    Operation(
        method="GET", path="/api/v1/apikey", handler=list_api_keys, scope=reading(ALL),
        summary="List API keys and OAuth clients", answer=ApiKeyShape, listing="apiKeys",
    ),
    Operation(
        method="POST", path="/api/v1/apikey", handler=create_api_key, scope=ALL,
        summary="Make an API key or an OAuth client", body=NewApiKey, answer=NewApiKeyAnswer,
    ),
    Operation(
        method="POST", path="/api/v1/apikey/expire", handler=expire_api_key, scope=ALL,
        summary="Let an API key open nothing any more", body=ApiKeyId, answer=Nothing,
    ),
    Operation(
        method="DELETE", path="/api/v1/apikey/{prefix}", handler=delete_api_key, scope=ALL, summary="Forget an API key",
        answer=Nothing,
    ),
]  # fmt: skip
