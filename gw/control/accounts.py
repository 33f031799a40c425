"""Users and pre-auth keys: making, renaming, removing, revoking. Every change is durable when the call returns."""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from typing import Any, Final, TypeVar

from gw.control import authkeys
from gw.control.spelling import check_tag, number_of
from gw.control.tailnet import Tailnet
from gw.errors import Conflict, GwError, NotFound, UsageError
from gw.state.changes import Delete, Put
from gw.state.documents import PreauthKeyDoc, UserDoc

MAX_USER_CHARS: Final = 63
MAX_DESCRIPTION_CHARS: Final = 200
MAX_TEXT_CHARS: Final = 500
T = TypeVar("T")
_EMAIL: Final = re.compile(r"[^@\s]+@[^@\s]+")
_USER_NAME: Final = re.compile(r"[a-zA-Z][a-zA-Z0-9._@-]+", re.ASCII)


def check_user_name(name: str) -> str:
    """Headscale's rule: a letter, then letters, digits, `.`, `_`, `-` and at most one `@`. Raises UsageError."""
    if not _USER_NAME.fullmatch(name) or name.count("@") > 1 or len(name) > MAX_USER_CHARS:
        raise UsageError(
            f"not a user name: `{name}`",
            hint="2 to 63 characters: a letter, then letters, digits, `.`, `_`, `-` and at most one `@`",
        )
    return name


def find_user(tailnet: Tailnet, text: str) -> UserDoc:
    """A user by name or id. Raises NotFound."""
    number = number_of(text)
    if text not in tailnet.users and number:
        for user in tailnet.users.values():
            if user.id == number:
                return user
    return tailnet.people.of_name(text)


async def create_user(
    tailnet: Tailnet, name: str, *, display_name: str = "", email: str = "", picture: str = ""
) -> UserDoc:
    """A new user. picture: URL. Raises Conflict if the name is in use (letter case does not tell two users apart)."""
    for text in (display_name, email, picture):
        if len(text) > MAX_TEXT_CHARS or not text.isprintable():
            raise UsageError(
                f"not a text for people: `{text[:40]!a}`", hint=f"up to {MAX_TEXT_CHARS} printable characters"
            )
    if email and not _EMAIL.fullmatch(email):
        raise UsageError(f"not an e-mail address: `{email[:80]}`", hint="ann@example.org")
    return await tailnet.durably(_create_user(tailnet, check_user_name(name), display_name, email, picture))


async def _create_user(tailnet: Tailnet, name: str, display_name: str, email: str, picture: str) -> UserDoc:
    if tailnet.has_user_like(name):
        raise Conflict(f"user exists: `{name}`", hint="see `gwctl users list`")
    doc = UserDoc(
        id=tailnet.numbers.new_user(),
        name=name,
        display_name=display_name,
        email=email,
        picture=picture,
        created=tailnet.clock(),
    )
    with tailnet.holds.reserved_user(name):
        await tailnet.commit([Put(doc)])
        tailnet.put_user(doc)
    tailnet.record("user-created", f"user:{name}", None, doc)
    return doc


async def destroy_user(tailnet: Tailnet, user: UserDoc) -> None:
    """Remove a user and the user's keys. Raises Conflict while the user has nodes."""
    await tailnet.durably(_alone(tailnet, _destroy_user(tailnet, user)))


async def _alone(tailnet: Tailnet, work: Coroutine[Any, Any, T]) -> T:
    """Users come and go one at a time where an identity provider's login looks for one."""
    async with tailnet.holds.locked("users"):
        return await work


async def _destroy_user(tailnet: Tailnet, user: UserDoc) -> None:
    _check_idle(tailnet, user)
    nodes = tailnet.roster.of_user(user.name)
    if nodes:
        shown = ", ".join(node.doc.given_name for node in nodes[:3]) + (", …" if len(nodes) > 3 else "")
        raise Conflict(f"user has nodes: `{user.name}` ({shown})", hint="delete or move them first")
    keys = [key for key in tailnet.preauth_keys.values() if key.user == user.name]
    del tailnet.users[user.name]  # from here on nobody can register as this user
    try:
        await tailnet.commit(
            [
                Delete("user", user.name),
                *(Delete("preauthkey", key.prefix) for key in keys),
                tailnet.numbers.put(),
            ],
            before=[user],
        )
    except BaseException:
        tailnet.users[user.name] = user
        raise
    tailnet.drop_user(user.name)
    for key in keys:
        tailnet.preauth_keys.pop(key.prefix, None)
        tailnet.promised.end(key)
        tailnet.record("preauthkey-deleted", f"preauthkey:{key.prefix}", key, None)
    tailnet.record("user-deleted", f"user:{user.name}", user, None)


async def rename_user(tailnet: Tailnet, user: UserDoc, name: str) -> UserDoc:
    """Give a user another name; the id, nodes and keys stay. Raises Conflict, UsageError."""
    return await tailnet.durably(_alone(tailnet, _rename_user(tailnet, user, check_user_name(name))))


async def _rename_user(tailnet: Tailnet, user: UserDoc, name: str) -> UserDoc:
    if name == user.name:
        return user
    _check_idle(tailnet, user)
    if name.lower() != user.name.lower() and tailnet.has_user_like(name):
        raise Conflict(f"user exists: `{name}`", hint="see `gwctl users list`")
    del tailnet.users[user.name]  # from here on nobody can register as this user
    try:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(_key_locks(tailnet, user))
            return await _rename_everywhere(tailnet, user, name, stack)
    except BaseException:
        if name not in tailnet.users:
            tailnet.users[user.name] = user
        raise


@asynccontextmanager
async def _key_locks(tailnet: Tailnet, user: UserDoc) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        for prefix in sorted(key.prefix for key in tailnet.preauth_keys.values() if key.user == user.name):
            await stack.enter_async_context(tailnet.holds.locked(f"preauthkey {prefix}"))
        yield


async def _rename_everywhere(tailnet: Tailnet, user: UserDoc, name: str, stack: AsyncExitStack) -> UserDoc:
    nodes = sorted(tailnet.roster.of_user(user.name), key=lambda node: node.id)
    for node in nodes:
        await stack.enter_async_context(node.lock)
    renamed = user.edited(name=name)
    moved = [
        (node, node.doc.edited(user=name)) for node in nodes if node.user == user.name and tailnet.roster.has(node)
    ]
    keys = [key.edited(user=name) for key in tailnet.preauth_keys.values() if key.user == user.name]
    with tailnet.holds.reserved_user(name):
        await tailnet.commit(
            [Delete("user", user.name), Put(renamed), *(Put(doc) for _, doc in moved), *map(Put, keys)], before=[user]
        )
        tailnet.drop_user(user.name)
        tailnet.put_user(renamed)
    tailnet.preauth_keys.update({key.prefix: key for key in keys})
    tailnet.record("user-renamed", f"user:{name}", user, renamed)
    for node, doc in moved:
        tailnet.replace_doc(node, doc, "node-user-renamed")
    return renamed


def _check_idle(tailnet: Tailnet, user: UserDoc) -> None:
    if tailnet.users.get(user.name) is not user:
        raise NotFound(f"no such user: `{user.name}`", hint="see `gwctl users list`")
    if tailnet.holds.is_enrolling(user.name):
        raise Conflict(f"a node of `{user.name}` is just logging in", hint="try again")


async def create_preauth_key(
    tailnet: Tailnet,
    *,
    user: UserDoc | None,
    reusable: bool = False,
    ephemeral: bool = False,
    tags: Iterable[str] = (),
    expiration: datetime | None = None,
    addresses: Iterable[str] = (),
    preapproved: bool = False,
    description: str = "",
) -> tuple[PreauthKeyDoc, str]:
    """A new key and its whole text, which is not stored and cannot be shown again.

    addresses: what its node gets; one-shot keys only. Raises UsageError, and Conflict for an address that is taken.
    """
    wanted = sorted({check_tag(tag) for tag in tags})
    if user is None and not wanted:
        raise UsageError("a key needs a user or tags", hint="gwctl preauthkeys create -u NAME")
    if expiration is not None and expiration <= tailnet.clock():
        raise UsageError("the key would be expired at once", hint="choose a later expiration")
    if len(description) > MAX_DESCRIPTION_CHARS or not description.isprintable():
        raise UsageError("not a description", hint=f"up to {MAX_DESCRIPTION_CHARS} printable characters")
    chosen = list(addresses)
    if chosen and reusable:
        raise UsageError("a reusable key has no address to give", hint="leave out --reusable, or --ip")
    text, prefix, hashed = authkeys.compose(
        secrets.token_bytes(authkeys.PREFIX_BYTES), secrets.token_bytes(authkeys.SECRET_BYTES)
    )
    doc = PreauthKeyDoc(
        id=tailnet.numbers.new_preauth_key(),
        prefix=prefix,
        hash=hashed,
        user=user.name if user is not None else "",
        reusable=reusable,
        ephemeral=ephemeral,
        tags=wanted,
        addresses=tailnet.promised.claim(chosen),
        preapproved=preapproved,
        description=description,
        created=tailnet.clock(),
        expiration=expiration,
    )
    tailnet.promised.promise(doc)
    try:
        await tailnet.durably(_put_key(tailnet, doc, "preauthkey-created", None))
    except GwError:
        tailnet.promised.end(doc)
        raise
    return doc, text


def find_preauth_key(tailnet: Tailnet, text: str) -> PreauthKeyDoc:
    """A key by id, prefix or whole text. Raises NotFound."""
    prefix = text.removeprefix(authkeys.KEY_PREFIX).partition("-")[0]
    found = tailnet.preauth_keys.get(prefix)
    if found is None and number_of(text):
        found = next((key for key in tailnet.preauth_keys.values() if key.id == number_of(text)), None)
    if found is None:
        shown = text if len(text) <= 2 * authkeys.PREFIX_BYTES else f"{text[:24]}…"
        raise NotFound(f"no such pre-auth key: `{shown}`", hint="see `gwctl preauthkeys list`")
    return found


async def expire_preauth_key(tailnet: Tailnet, key: PreauthKeyDoc) -> None:
    """Let a key admit nobody from now on; nodes it admitted stay."""
    await tailnet.durably(_expire_key(tailnet, key))


async def _expire_key(tailnet: Tailnet, key: PreauthKeyDoc) -> None:
    async with tailnet.holds.locked(f"preauthkey {key.prefix}"):
        current = tailnet.preauth_keys.get(key.prefix)
        if current is None:
            raise NotFound(f"no such pre-auth key: `{key.prefix}`")
        now = tailnet.clock()
        if current.expiration is None or current.expiration > now:
            await _put_key(tailnet, current.edited(expiration=now), "preauthkey-expired", current)
            tailnet.promised.end(current)


async def delete_preauth_key(tailnet: Tailnet, key: PreauthKeyDoc) -> None:
    """Forget a key; nodes it admitted stay."""
    await tailnet.durably(_delete_key(tailnet, key))


async def _delete_key(tailnet: Tailnet, key: PreauthKeyDoc) -> None:
    async with tailnet.holds.locked(f"preauthkey {key.prefix}"):
        if key.prefix not in tailnet.preauth_keys:
            return
        await tailnet.commit([Delete("preauthkey", key.prefix), tailnet.numbers.put()])
        tailnet.preauth_keys.pop(key.prefix, None)
        tailnet.promised.end(key)
        tailnet.record("preauthkey-deleted", f"preauthkey:{key.prefix}", key, None)


async def _put_key(tailnet: Tailnet, doc: PreauthKeyDoc, event: str, before: PreauthKeyDoc | None) -> None:
    await tailnet.commit([Put(doc)])
    tailnet.preauth_keys[doc.prefix] = doc
    tailnet.record(event, f"preauthkey:{doc.prefix}", before, doc)
