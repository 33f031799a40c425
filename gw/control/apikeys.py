"""Keys for the HTTP API, and clients that get such keys for an hour by OAuth: making, checking, ending.

    hskey-api-<12 hex>-<64 hex>       a key                       hskey-client-<12 hex>-<64 hex>   a client's secret
    hskey-oauthtok-<12 hex>-<base64>  a token of that client: when it ends, its scopes, and a seal over both

As with pre-auth keys the prefix finds the document and the secret of 256 random bits proves it: one fast hash guards
it as well as a slow one. Tokens are sealed with a key derived from the server's own, so they outlive a restart, end
with their client, and are kept nowhere.

Ref: control protocol §7.4, §7.5
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal

from gw.control import authkeys
from gw.control.accounts import MAX_DESCRIPTION_CHARS
from gw.control.authkeys import PREFIX_BYTES, SECRET_BYTES, hash_secret
from gw.control.scopes import ALL, SCOPES, check_scopes
from gw.control.spelling import check_tag
from gw.control.tailnet import Tailnet
from gw.errors import AuthRequired, GwError, NotFound, UsageError
from gw.state.changes import Delete, Put
from gw.state.documents import ApiKeyDoc

Role = Literal["key", "client"]
FORMS: Final[dict[Role, str]] = {"key": "hskey-api-", "client": "hskey-client-"}
TOKEN_PREFIX: Final = "hskey-oauthtok-"  # noqa: S105  not a secret
TOKEN_LIFETIME_S: Final = 3600
USE_NOTED_EVERY: Final = timedelta(hours=1)
MAX_KEY_CHARS: Final = 512
_FORM: Final = re.compile(r"hskey-(api|client)-([A-Za-z0-9_-]{12})-([A-Za-z0-9_-]{64})", re.ASCII)
_TOKEN: Final = re.compile(r"hskey-oauthtok-([0-9a-f]{12})-([A-Za-z0-9_-]{64})", re.ASCII)
_SEAL_BYTES: Final = 32
_NO_HASH: Final = "0" * 64


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and what they may. tags: the only ones that pre-auth keys of this caller may have; None = any."""

    name: str
    scopes: tuple[str, ...] = (ALL,)
    tags: tuple[str, ...] | None = None


LOCAL: Final = Caller("local")


async def create_api_key(
    tailnet: Tailnet,
    *,
    role: Role = "key",
    scopes: Iterable[str] = (),
    tags: Iterable[str] = (),
    expiration: datetime | None = None,
    description: str = "",
    caller: Caller = LOCAL,
) -> tuple[ApiKeyDoc, str]:
    """A new key and its whole text, which is not stored and cannot be shown again.

    scopes: none for a key = all. Raises UsageError, also where the caller would give more than it has itself.
    """
    wanted = check_scopes(scopes, held=caller.scopes) or ([ALL] if role == "key" else [])
    check_scopes(wanted, held=caller.scopes)
    owned = sorted({check_tag(tag) for tag in tags})
    if role == "client" and not wanted:
        raise UsageError("a client needs scopes", hint=f"some of {', '.join(SCOPES)}")
    if caller.tags is not None and not set(owned) <= set(caller.tags):
        raise UsageError("tags that the caller does not have itself")
    if expiration is not None and expiration <= tailnet.clock():
        raise UsageError("the key would be expired at once", hint="choose a later expiration")
    if len(description) > MAX_DESCRIPTION_CHARS or not description.isprintable():
        raise UsageError("not a description", hint=f"up to {MAX_DESCRIPTION_CHARS} printable characters")
    prefix, secret = secrets.token_hex(PREFIX_BYTES), secrets.token_hex(SECRET_BYTES)
    doc = ApiKeyDoc(
        id=tailnet.numbers.new_api_key(),
        prefix=prefix,
        hash=hash_secret(secret),
        role=role,
        scopes=wanted,
        tags=owned,
        description=description,
        created=tailnet.clock(),
        expiration=expiration,
    )
    await tailnet.durably(_put(tailnet, doc, "apikey-created", None))
    return doc, f"{FORMS[role]}{prefix}-{secret}"


def find_api_key(tailnet: Tailnet, text: str) -> ApiKeyDoc:
    """A key by id, prefix or whole text. Raises NotFound."""
    match = _FORM.fullmatch(text.strip())
    found = tailnet.api_keys.get(match[2] if match else text.strip().removesuffix("-***").rpartition("-")[2])
    if found is None and text.isascii() and text.isdigit():
        found = next((key for key in tailnet.api_keys.values() if str(key.id) == text.lstrip("0")), None)
    if found is None:
        raise NotFound(f"no such API key: `{text[:24]}`", hint="see `gwctl apikeys list`")
    return found


async def expire_api_key(tailnet: Tailnet, key: ApiKeyDoc) -> None:
    """Let a key open nothing from now on; it stays listed."""
    await tailnet.durably(_expire(tailnet, key))


async def _expire(tailnet: Tailnet, key: ApiKeyDoc) -> None:
    async with tailnet.holds.locked(f"apikey {key.prefix}"):
        current, now = tailnet.api_keys.get(key.prefix), tailnet.clock()
        if current is None:
            raise NotFound(f"no such API key: `{key.prefix}`")
        if current.expiration is None or current.expiration > now:
            await _put(tailnet, current.edited(expiration=now), "apikey-expired", current)


async def delete_api_key(tailnet: Tailnet, key: ApiKeyDoc) -> None:
    """Forget a key, and with a client all of its tokens."""
    await tailnet.durably(_delete(tailnet, key))


async def _delete(tailnet: Tailnet, key: ApiKeyDoc) -> None:
    async with tailnet.holds.locked(f"apikey {key.prefix}"):
        if key.prefix in tailnet.api_keys:
            await tailnet.commit([Delete("apikey", key.prefix), tailnet.numbers.put()])
            tailnet.api_keys.pop(key.prefix, None)
            tailnet.record("apikey-deleted", f"apikey:{key.prefix}", key, None)


async def _put(tailnet: Tailnet, doc: ApiKeyDoc, event: str, before: ApiKeyDoc | None) -> None:
    await tailnet.commit([Put(doc)])
    tailnet.api_keys[doc.prefix] = doc
    if event:
        tailnet.record(event, f"apikey:{doc.prefix}", before, doc)


# Who is it?


async def identify(tailnet: Tailnet, text: str, seal: bytes) -> Caller:
    """The caller behind a key or token. seal: the server's key for tokens. Raises AuthRequired, never saying why."""
    if len(text) > MAX_KEY_CHARS:
        raise AuthRequired("invalid API key")
    token = _TOKEN.fullmatch(text)
    if token is not None:
        return _of_token(tailnet, token[1], token[2], seal)
    await _prove_imported(tailnet, text)
    doc = _proven(tailnet, text, "key")
    await _note_use(tailnet, doc)
    return Caller(f"API key {doc.prefix}", tuple(doc.scopes))


async def _prove_imported(tailnet: Tailnet, text: str) -> None:
    """A key of Headscale's that fits its bcrypt hash has a fast one from then on. One at a time: it is expensive."""
    match = _FORM.fullmatch(text)
    known = tailnet.api_keys.get(match[2]) if match else None
    if match is None or known is None or not authkeys.is_slow(known) or _is_over(tailnet, known):
        return
    async with tailnet.holds.locked("slow hash"), tailnet.holds.locked(f"apikey {match[2]}"):
        doc = tailnet.api_keys.get(match[2])
        if doc is None or not authkeys.is_slow(doc):
            return
        if await asyncio.to_thread(authkeys.matches_slowly, doc, match[3]):
            await tailnet.durably(_put(tailnet, doc.edited(hash=hash_secret(match[3])), "", doc))


def _proven(tailnet: Tailnet, text: str, role: Role) -> ApiKeyDoc:
    match = _FORM.fullmatch(text)
    doc = tailnet.api_keys.get(match[2]) if match else None
    is_right = hmac.compare_digest(doc.hash if doc else _NO_HASH, hash_secret(match[3] if match else ""))
    if doc is None or not is_right or doc.role != role or not text.startswith(FORMS[role]) or _is_over(tailnet, doc):
        raise AuthRequired("invalid API key")
    return doc


def _is_over(tailnet: Tailnet, doc: ApiKeyDoc) -> bool:
    return doc.expiration is not None and doc.expiration <= tailnet.clock()


async def _note_use(tailnet: Tailnet, doc: ApiKeyDoc) -> None:
    """When it was last used, to the hour: one write an hour and key."""
    now = tailnet.clock()
    if doc.last_used is not None and now - doc.last_used < USE_NOTED_EVERY:
        return
    try:
        await tailnet.durably(_put_use(tailnet, doc.prefix, now))
    except GwError:
        pass  # a full disk must not keep administrators out


async def _put_use(tailnet: Tailnet, prefix: str, now: datetime) -> None:
    async with tailnet.holds.locked(f"apikey {prefix}"):
        doc = tailnet.api_keys.get(prefix)
        if doc is not None and (doc.last_used is None or now - doc.last_used >= USE_NOTED_EVERY):
            await _put(tailnet, doc.edited(last_used=now), "", None)


# OAuth client credentials


async def issue_token(tailnet: Tailnet, secret: str, scopes: Iterable[str], seal: bytes) -> tuple[str, list[str]]:
    """A token for the client with this secret, and its scopes: those asked for, else all of the client's.

    Raises AuthRequired for a wrong secret, UsageError for scopes that the client does not have.
    """
    client = _proven(tailnet, secret, "client")
    given = check_scopes(scopes, held=client.scopes) or [scope for scope in SCOPES if scope in client.scopes]
    await _note_use(tailnet, client)
    ends = int(tailnet.clock().timestamp()) + TOKEN_LIFETIME_S
    bits = sum(1 << SCOPES.index(scope) for scope in given)
    head = ends.to_bytes(8, "big") + bits.to_bytes(4, "big") + secrets.token_bytes(4)
    sealed = head + _sealed(seal, client, head)
    return f"{TOKEN_PREFIX}{client.prefix}-{base64.urlsafe_b64encode(sealed).decode()}", given


def _of_token(tailnet: Tailnet, prefix: str, text: str, seal: bytes) -> Caller:
    try:
        raw = base64.urlsafe_b64decode(text)
    except (binascii.Error, ValueError):
        raise AuthRequired("invalid API key") from None
    head, mac = raw[:-_SEAL_BYTES], raw[-_SEAL_BYTES:]
    client = tailnet.api_keys.get(prefix)
    is_right = hmac.compare_digest(mac, _sealed(seal, client, head))
    if client is None or not is_right or client.role != "client" or _is_over(tailnet, client):
        raise AuthRequired("invalid API key")
    if int.from_bytes(head[:8], "big") <= tailnet.clock().timestamp():
        raise AuthRequired("invalid API key")
    bits = int.from_bytes(head[8:12], "big")
    given = tuple(scope for index, scope in enumerate(SCOPES) if bits >> index & 1)
    return Caller(f"OAuth client {prefix}", given, tuple(client.tags))


def _sealed(seal: bytes, client: ApiKeyDoc | None, head: bytes) -> bytes:
    """Over the client's hash too: a client of the same prefix made anew does not take over old tokens."""
    return hashlib.blake2b(
        head + (client.prefix + client.hash if client else "").encode(), key=seal, digest_size=_SEAL_BYTES
    ).digest()


def token_seal(control_key: bytes) -> bytes:
    """The key for tokens, of the server's own key."""
    return hashlib.blake2b(control_key, person=b"gw oauth tokens", digest_size=32).digest()
