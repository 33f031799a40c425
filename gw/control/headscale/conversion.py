"""Headscale's rows as our documents: ids, keys, addresses and names stay, so that clients notice nothing.

What cannot be taken over as it is gets a line in the report; nothing is left out in silence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network
from typing import Final, Literal

from gw.control import authkeys
from gw.control.accounts import check_user_name
from gw.control.headscale.database import Database, Row, list_of, table_of, text_of, time_of
from gw.control.names import Names, check_label
from gw.control.spelling import check_node_key, check_tag
from gw.errors import Conflict, UsageError, WireError
from gw.model.addresses import EXIT_ROUTES
from gw.model.keys import MachineKey
from gw.state.documents import PLACES, AnyDocument, ApiKeyDoc, NodeDoc, PreauthKeyDoc, ServerDoc, UserDoc

PREFIX_CHARS: Final = 2 * authkeys.PREFIX_BYTES
BCRYPT: Final = ("$2a$", "$2b$", "$2y$")
_METHODS: Final[dict[str, Literal["authkey", "cli", "oidc"]]] = {"authkey": "authkey", "cli": "cli", "oidc": "oidc"}
_LONG_AGO: Final = datetime(2020, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Note:
    """One thing a person should know. level: `changed` = imported differently, `left` = not imported."""

    level: Literal["changed", "left"]
    subject: str
    text: str


@dataclass(slots=True)
class Converted:
    """What an import would write."""

    users: list[UserDoc] = field(default_factory=list)
    nodes: list[NodeDoc] = field(default_factory=list)
    preauth_keys: list[PreauthKeyDoc] = field(default_factory=list)
    api_keys: list[ApiKeyDoc] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)

    def documents(self) -> Iterator[AnyDocument]:
        """Everything, the counters included, in an order that refers to nothing that is to come."""
        yield from self.users
        yield from self.preauth_keys
        yield from self.api_keys
        yield from self.nodes
        yield ServerDoc(
            next_user_id=_after(self.users),
            next_node_id=_after(self.nodes),
            next_preauthkey_id=_after(self.preauth_keys),
            next_apikey_id=_after(self.api_keys),
        )


def _after(documents: list[UserDoc] | list[NodeDoc] | list[PreauthKeyDoc] | list[ApiKeyDoc]) -> int:
    return max((doc.id for doc in documents), default=0) + 1


def convert(database: Database, now: datetime) -> Converted:
    """Documents for all rows. now: for times that a row lacks."""
    found = Converted()
    users = _users(database.users, found)
    keys = _preauth_keys(database.preauth_keys, users, found)
    _api_keys(database.api_keys, found)
    _oauth_clients(database.oauth_clients, found)
    _nodes(database.nodes, users, keys, {row["id"]: row for row in database.preauth_keys}, found, now)
    return found


def _users(rows: list[Row], found: Converted) -> dict[int, UserDoc]:
    users: dict[int, UserDoc] = {}
    taken: set[str] = set()
    for row in rows:
        identity = text_of(row.get("provider_identifier"))
        wanted = text_of(row["name"]) or text_of(row.get("email")) or f"user-{row['id']}"
        name = _user_name(wanted, taken)
        if name != wanted:
            found.notes.append(Note("changed", f"user {wanted}", f"is called `{name}` here: see your policy"))
        taken.add(name.lower())
        doc = UserDoc(
            id=row["id"],
            name=name,
            display_name=text_of(row.get("display_name")),
            email=text_of(row.get("email")),
            provider="oidc" if identity else "",
            provider_id=identity,
            picture=text_of(row.get("profile_pic_url")),
            created=time_of(row.get("created_at")) or _LONG_AGO,
        )
        users[doc.id] = doc
        found.users.append(doc)
    return users


def _user_name(wanted: str, taken: set[str]) -> str:
    """The name where it can stand, else the nearest one."""
    base = "".join(char if char.isascii() and (char.isalnum() or char in "._@-") else "-" for char in wanted)[:50]
    if base.count("@") > 1:
        head, _, tail = base.partition("@")
        base = f"{head}@{tail.replace('@', '-')}"
    if not base[:1].isalpha():
        base = f"u{base}"
    base = base if len(base) > 1 else f"{base}-1"
    try:
        base = check_user_name(wanted)
    except UsageError:
        pass
    name, number = base, 2
    while name.lower() in taken:
        name, number = f"{base}-{number}", number + 1
    return check_user_name(name)


def _preauth_keys(rows: list[Row], users: dict[int, UserDoc], found: Converted) -> dict[int, PreauthKeyDoc]:
    keys: dict[int, PreauthKeyDoc] = {}
    for row in rows:
        plain, prefix, hashed = text_of(row.get("key")), text_of(row.get("prefix")), text_of(row.get("hash"))
        if prefix and hashed.startswith(BCRYPT):
            stored = hashed
        elif plain and authkeys.legacy_prefix(plain):
            prefix, stored = authkeys.legacy_prefix(plain), authkeys.hash_secret(plain)
        else:
            found.notes.append(Note("left", f"pre-auth key {row['id']}", "neither a hash nor a key that can be read"))
            continue
        tags, refused = _tags(list_of(row.get("tags")))
        user = users.get(row.get("user_id") or 0)
        label = f"pre-auth key {row['id']} ({prefix})"
        if refused:
            found.notes.append(Note("changed", label, f"tags that are none: {', '.join(refused)[:200]}"))
        if user is None and not tags:
            found.notes.append(Note("left", label, "it has neither a user nor tags"))
            continue
        doc = PreauthKeyDoc(
            id=row["id"],
            prefix=prefix,
            hash=stored,
            user=user.name if user is not None else "",
            reusable=bool(row.get("reusable")),
            ephemeral=bool(row.get("ephemeral")),
            tags=tags,
            used=bool(row.get("used")),
            created=time_of(row.get("created_at")) or _LONG_AGO,
            expiration=time_of(row.get("expiration")),
            revoked=time_of(row.get("revoked")) is not None,
            description=text_of(row.get("description")),
        )
        keys[doc.id] = doc
        found.preauth_keys.append(doc)
    return keys


def _api_keys(rows: list[Row], found: Converted) -> None:
    for row in rows:
        prefix, hashed = text_of(row.get("prefix")), text_of(row.get("hash"))
        if not prefix or not hashed.startswith(BCRYPT):
            found.notes.append(Note("left", f"API key {row['id']}", "no prefix or no hash"))
            continue
        if len(prefix) != PREFIX_CHARS:
            text = "of Headscale's older form: it is listed and cannot be used; gwctl apikeys create"
            found.notes.append(Note("changed", f"API key {row['id']} ({prefix})", text))
        found.api_keys.append(
            ApiKeyDoc(
                id=row["id"],
                prefix=prefix,
                hash=hashed,
                scopes=["all"],
                description="imported from Headscale",
                created=time_of(row.get("created_at")) or _LONG_AGO,
                expiration=time_of(row.get("expiration")),
                last_used=time_of(row.get("last_seen")),
            )
        )


def _oauth_clients(rows: list[Row], found: Converted) -> None:
    for row in rows:
        if time_of(row.get("revoked")) is not None:
            continue
        options = [f"-s {scope}" for scope in list_of(row.get("scopes"))]
        options += [f"-t {tag}" for tag in list_of(row.get("tags"))]
        text = f"its secret is hashed in another way; make a new one: gwctl oauth-clients create {' '.join(options)}"
        found.notes.append(Note("left", f"OAuth client {text_of(row.get('client_id'))}", text[:400]))


def _tags(wanted: list[str]) -> tuple[list[str], list[str]]:
    """Tags that are some, sorted, and what is none."""
    good, refused = set(), []
    for tag in wanted:
        try:
            good.add(check_tag(tag))
        except UsageError:
            refused.append(tag)
    return sorted(good), refused


def _nodes(
    rows: list[Row],
    users: dict[int, UserDoc],
    keys: dict[int, PreauthKeyDoc],
    key_rows: dict[int, Row],
    found: Converted,
    now: datetime,
) -> None:
    names, node_keys, addresses = Names(), set(), set()
    for row in rows:
        label = f"node {row['id']} ({text_of(row.get('given_name')) or text_of(row.get('hostname'))})"
        key = keys.get(row.get("auth_key_id") or 0)
        tags, refused = _tags([*list_of(row.get("tags")), *_older_tags(row, key_rows)])
        user = users.get(row.get("user_id") or 0)
        fault = ""
        if refused:
            found.notes.append(Note("changed", label, f"tags that are none: {', '.join(refused)[:200]}"))
        try:
            node_key, machine_key = (
                check_node_key(text_of(row["node_key"])),
                str(MachineKey.parse(text_of(row["machine_key"]))),
            )
        except (UsageError, WireError):
            found.notes.append(Note("left", label, "its node key or machine key cannot be read"))
            continue
        own = _addresses(row)
        if node_key in node_keys:
            fault = "another node has the same node key"
        elif user is None and not tags:
            fault = "it has neither a user nor tags"
        elif taken := [each for each in own if each in addresses]:
            fault = f"another node has its address {taken[0]}"
        elif not own:
            fault = "it has no address"
        if fault:
            found.notes.append(Note("left", label, fault))
            continue
        node_keys.add(node_key)
        addresses.update(own)
        expiry = time_of(row.get("expiry"))
        found.nodes.append(
            NodeDoc(
                id=row["id"],
                machine_key=machine_key,
                node_key=node_key,
                user="" if tags or user is None else user.name,
                given_name=_given_name(row, names, label, found),
                addresses=own,
                hostname=text_of(row.get("hostname"))[:256].replace("\0", ""),
                created=time_of(row.get("created_at")) or now,
                expiry=None if tags else expiry,
                tags=tags,
                register_method=_METHODS.get(text_of(row.get("register_method")), "cli"),
                preauth_key=key.prefix if key is not None else "",
                ephemeral=bool(key is not None and key.ephemeral),
                approved_routes=_routes(row, label, found),
                last_seen=time_of(row.get("last_seen")),
            )
        )
        if tags and expiry is not None:
            found.notes.append(Note("changed", label, "it is tagged: its key does not expire any more"))


def _older_tags(row: Row, key_rows: dict[int, Row]) -> list[str]:
    """Until 0.27 a node's tags were those given by force and those of the key it came with."""
    if "forced_tags" not in row:
        return []
    key = key_rows.get(row.get("auth_key_id") or 0)
    return [*list_of(row["forced_tags"]), *(list_of(key.get("tags")) if key is not None else [])]


def _addresses(row: Row) -> list[str]:
    found = []
    for name, version in (("ipv4", 4), ("ipv6", 6)):
        try:
            address = ip_address(text_of(row.get(name)))
        except ValueError:
            continue
        if address.version == version:
            found.append(str(address))
    return found


def _given_name(row: Row, names: Names, label: str, found: Converted) -> str:
    given = text_of(row.get("given_name"))
    try:
        name = check_label(given)
        names.claim(name)
    except (UsageError, Conflict):
        name = names.take(given or text_of(row.get("hostname")))
    if name != given:
        found.notes.append(Note("changed", label, f"is called `{name}` here: its name was no DNS label, or not unique"))
    return name


def _routes(row: Row, label: str, found: Converted) -> list[str]:
    approved: set[str] = set()
    for text in list_of(row.get("approved_routes")):
        try:
            approved.add(str(ip_network(text, strict=False)))
        except ValueError:
            found.notes.append(Note("changed", label, f"approved route that is none: {text[:60]}"))
    if approved & set(EXIT_ROUTES):
        approved |= set(EXIT_ROUTES)
    return sorted(approved, key=lambda text: (ip_network(text).version, ip_network(text)))


def advertised(row: Row) -> list[str]:
    """What a node advertised when Headscale last heard of it."""
    routes = table_of(row.get("host_info")).get("RoutableIPs")
    return [str(route) for route in routes] if isinstance(routes, list) else []


assert "apikey" in PLACES
