"""Regions of the relay map as an administrator changes them: documents of `relays/`, checked, durable, then visible.

A `gwrelay` beside the control server writes its own entry into the same files (`gw.relay.relaymap`); these functions
are for relays elsewhere. What is entered goes to every node at once, so nothing gets in that a client could not read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from string import ascii_lowercase
from typing import Any, Final

from gw.control.spelling import number_of
from gw.control.tailnet import Tailnet
from gw.errors import Conflict, NotFound, PermissionNeeded, UsageError
from gw.state.changes import Change, Delete, Put
from gw.state.documents import PLACES, RelayNode, RelayRegionDoc

MAX_REGION: Final = (1 << 31) - 1
MAX_NAME_CHARS: Final = 100
NO_FAMILY: Final = "none"
PIN: Final = "sha256-raw:"
_LABEL: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?", re.ASCII)
_CODE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,62}", re.ASCII)
_NODE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", re.ASCII)
_HEX_32: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


def find_region(tailnet: Tailnet, text: str) -> RelayRegionDoc:
    """A region of `relays/` by number or code. Raises NotFound."""
    regions = tailnet.commons.relays
    found = regions.get(number_of(text)) or next((doc for doc in regions.values() if doc.code == text), None)
    if found is None:
        raise NotFound(f"no such region: `{text[:80]}`", hint=_where(tailnet, text))
    return found


def _where(tailnet: Tailnet, text: str) -> str:
    """Where to look for a region that has no document."""
    for region in (tailnet.commons.derp_map().regions or {}).values():
        if text in (str(region.region_id), region.region_code):
            return "it comes from [derp] of config.toml or from the policy: change it there"
    return "see `gwctl relays list`"


async def add_relay(
    tailnet: Tailnet, region_id: int, name: str, fields: dict[str, Any], *, code: str = "", region_name: str = ""
) -> RelayRegionDoc:
    """Enter a relay, and its region where there is none; the region. name: "" = the first free of `900a`, `900b`, …

    fields: of `RelayNode`. Raises Conflict for a name, or a code, that is taken, UsageError for what is no relay.
    """
    if not 0 < region_id <= MAX_REGION:
        raise UsageError(f"not a region: `{region_id}`", hint="regions of one's own are 900 to 999")
    return await tailnet.durably(_add(tailnet, region_id, name, fields, code, region_name))


async def _add(
    tailnet: Tailnet, region_id: int, name: str, fields: dict[str, Any], code: str, region_name: str
) -> RelayRegionDoc:
    async with tailnet.holds.locked("relays"):
        before = tailnet.commons.relays.get(region_id)
        taken = {node.name for doc in tailnet.commons.relays.values() for node in doc.nodes}
        if name in taken:
            raise Conflict(f"relay exists: `{name}`", hint=f"gwctl relays set {name}, or another --name")
        own = tailnet.config.relay  # of a gwrelay beside this server: it enters itself by this name and region
        reserved = {*taken, own.node_name or f"{own.region_id}a"}
        node = checked_relay(RelayNode(name=name or _free_name(region_id, reserved), region_id=region_id, **fields))
        if before is None:
            if region_id == own.region_id:
                code, region_name = code or own.region_code, region_name or own.region_name
            code = check_code(tailnet, region_id, code or f"r{region_id}")
            after = RelayRegionDoc(
                region_id=region_id, code=code, name=check_region_name(region_name or code), nodes=[node]
            )
        else:
            _same_or_unsaid("code", code, before)
            _same_or_unsaid("name", region_name, before)
            after = before.edited(nodes=_sorted([*before.nodes, node]))
        return await _put(tailnet, after)


def _same_or_unsaid(field: str, wanted: str, region: RelayRegionDoc) -> None:
    if wanted and wanted != getattr(region, field):
        raise Conflict(
            f"region {region.region_id} has the {field} `{getattr(region, field)}`",
            hint=f"gwctl relays set {region.region_id} changes it",
        )


async def change_region(tailnet: Tailnet, region_id: int, *, code: str = "", name: str = "") -> RelayRegionDoc:
    """Give a region another code or name; "" = as it is."""
    return await tailnet.durably(_change_region(tailnet, region_id, code, name))


async def _change_region(tailnet: Tailnet, region_id: int, code: str, name: str) -> RelayRegionDoc:
    async with tailnet.holds.locked("relays"):
        before = find_region(tailnet, str(region_id))
        wanted = {
            "code": check_code(tailnet, region_id, code) if code else before.code,
            "name": check_region_name(name) if name else before.name,
        }
        return await _put(tailnet, before.edited(**wanted), before)


async def change_relay(tailnet: Tailnet, region_id: int, name: str, fields: dict[str, Any]) -> RelayRegionDoc:
    """Change fields of one relay; the others stay."""
    return await tailnet.durably(_change_relay(tailnet, region_id, name, fields))


async def _change_relay(tailnet: Tailnet, region_id: int, name: str, fields: dict[str, Any]) -> RelayRegionDoc:
    from msgspec.structs import replace

    async with tailnet.holds.locked("relays"):
        before = find_region(tailnet, str(region_id))
        old = find_relay(before, name)
        node = checked_relay(replace(old, **fields))
        nodes = [node if each is old else each for each in before.nodes]
        return await _put(tailnet, before.edited(nodes=nodes), before)


async def remove_relay(tailnet: Tailnet, region_id: int, name: str) -> None:
    """Take one relay out; its region goes with the last one."""
    await tailnet.durably(_remove_relay(tailnet, region_id, name))


async def _remove_relay(tailnet: Tailnet, region_id: int, name: str) -> None:
    async with tailnet.holds.locked("relays"):
        before = find_region(tailnet, str(region_id))
        gone = find_relay(before, name)
        rest = [each for each in before.nodes if each is not gone]
        if rest:
            await _put(tailnet, before.edited(nodes=rest))
        else:
            await put_region(tailnet, region_id, None)


async def remove_region(tailnet: Tailnet, region_id: int) -> None:
    """Take a region out, with all its relays."""
    await tailnet.durably(_remove_region(tailnet, region_id))


async def _remove_region(tailnet: Tailnet, region_id: int) -> None:
    async with tailnet.holds.locked("relays"):
        await put_region(tailnet, find_region(tailnet, str(region_id)).region_id, None)


def find_relay(region: RelayRegionDoc, name: str) -> RelayNode:
    """Raises NotFound."""
    for node in region.nodes:
        if node.name == name:
            return node
    raise NotFound(f"no such relay in region {region.region_id}: `{name[:80]}`", hint="see `gwctl relays list`")


async def _put(tailnet: Tailnet, after: RelayRegionDoc, before: RelayRegionDoc | None = None) -> RelayRegionDoc:
    if before is not None and before.edited() == after:
        return before
    await put_region(tailnet, after.region_id, after)
    return after


async def put_region(tailnet: Tailnet, region_id: int, after: RelayRegionDoc | None) -> None:
    """Make a region's document durable, or its removal, then show it. Raises PermissionNeeded."""
    _check_writable(tailnet)
    change: Change = Delete("relay", region_id) if after is None else Put(after)
    await tailnet.commit([change])
    tailnet.commons.set_relay(region_id, after)


def _check_writable(tailnet: Tailnet) -> None:
    """A change that could never reach its file would hold up all that come after it."""
    if tailnet.folder is None:
        return
    folder = tailnet.folder / PLACES["relay"].folder
    if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        raise PermissionNeeded(
            f"the control server may not write `{folder}`", hint=f"chmod g+w {folder}, as `gw service install` does"
        )


# What a client can read


def check_code(tailnet: Tailnet, region_id: int, code: str) -> str:
    """Raises UsageError for no code, Conflict for another region's."""
    if not _CODE.fullmatch(code):
        raise UsageError(f"not a region's code: `{code[:80]}`", hint="a letter, then letters, digits, `-`, `_`, `.`")
    for doc in tailnet.commons.relays.values():
        if doc.code == code and doc.region_id != region_id:
            raise Conflict(f"region {doc.region_id} has the code `{code}`", hint="choose another --code")
    return code


def check_region_name(name: str) -> str:
    if not 0 < len(name) <= MAX_NAME_CHARS or not name.isprintable():
        raise UsageError(f"not a region's name: `{name[:40]!a}`", hint=f"1 to {MAX_NAME_CHARS} printable characters")
    return name


def checked_relay(node: RelayNode) -> RelayNode:
    """The same relay. Raises UsageError where a client could make nothing of it."""
    if not _NODE_NAME.fullmatch(node.name):
        raise UsageError(f"not a relay's name: `{node.name[:80]}`", hint="letters, digits, `-`, `_`, `.`; as `900b`")
    if not _is_host(node.host_name):
        raise UsageError(f"not a host: `{node.host_name[:80]}`", hint="relay.example.org, or an address")
    _check_address("ipv4", node.ipv4, IPv4Address)
    _check_address("ipv6", node.ipv6, IPv6Address)
    for field, port, lowest in (
        ("port", node.derpport, 0), ("STUN port", node.stunport, -1), ("QUIC port", node.quic_port, 0),
    ):  # fmt: skip
        if not lowest <= port <= 65535:
            raise UsageError(f"not a {field}: `{port}`", hint="1 to 65535")
    pin = node.cert_name.removeprefix(PIN)
    if node.cert_name and not (_HEX_32.fullmatch(pin) if pin != node.cert_name else _is_host(node.cert_name)):
        raise UsageError(
            f"not the name of a certificate: `{node.cert_name[:100]}`", hint=f"a host name, or {PIN} and 64 hex digits"
        )
    if node.relay_key and not _HEX_32.fullmatch(node.relay_key):
        raise UsageError("not the key of a relay", hint="64 hex digits: the relay's log tells them")
    if bool(node.quic_port) != bool(node.relay_key):
        raise UsageError("QUIC needs a port and the relay's key", hint="--quic PORT --relay-key HEX, or --quic off")
    return node


def _check_address(field: str, text: str, kind: type[IPv4Address | IPv6Address]) -> None:
    if text in ("", NO_FAMILY):
        return
    try:
        kind(text)
    except ValueError:
        raise UsageError(f"not an {field} address: `{text[:80]}`", hint=f"an address, or {NO_FAMILY}") from None


def _is_host(text: str) -> bool:
    """Whether it is an address or a DNS name."""
    for kind in (IPv4Address, IPv6Address):
        try:
            kind(text)
        except ValueError:
            continue
        return True
    labels = text.split(".")
    return 0 < len(text) <= 253 and all(map(_LABEL.fullmatch, labels)) and not labels[-1].isdigit()


def _free_name(region_id: int, taken: Iterable[str]) -> str:
    names = {*taken}
    letters = [f"{region_id}{letter}" for letter in ascii_lowercase]
    numbers = (f"{region_id}-{number}" for number in range(1, len(names) + 2))
    return next(name for name in (*letters, *numbers) if name not in names)


def _sorted(nodes: Iterable[RelayNode]) -> list[RelayNode]:
    return sorted(nodes, key=lambda node: node.name)
