"""The host's network interfaces, and word of their changes. Plain rtnetlink: three dumps, about 0.3 ms.

Ref: rtnetlink(7); Linux include/uapi/linux/{if_link,if_addr,rtnetlink}.h
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Final

from gw.errors import GwError

RTM_NEWLINK: Final = 16
RTM_DELLINK: Final = 17
RTM_GETLINK: Final = 18
RTM_NEWADDR: Final = 20
RTM_GETADDR: Final = 22
RTM_NEWROUTE: Final = 24
RTM_GETROUTE: Final = 26
RTM_DELRULE: Final = 33
NLM_F_REQUEST: Final = 1
NLM_F_DUMP_INTR: Final = 0x10
NLM_F_DUMP: Final = 0x300
NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3
NETLINK_GET_STRICT_CHK: Final = 12
SOL_NETLINK: Final = 270
IFLA_IFNAME: Final = 3
IFLA_MTU: Final = 4
IFA_ADDRESS: Final = 1
IFA_LOCAL: Final = 2
IFF_UP: Final = 0x1
IFF_LOOPBACK: Final = 0x8
IFF_POINTOPOINT: Final = 0x10
IFA_F_TENTATIVE_OR_GONE: Final = 0x40 | 0x08 | 0x20  # tentative, DAD failed, deprecated
RTA_OIF: Final = 4
RTA_GATEWAY: Final = 5
MAIN_TABLE: Final = 254
GROUPS: Final = 0x1 | 0x10 | 0x100 | 0x40 | 0x400 | 0x80 | 0x40000  # links, addresses, routes, rules of IPv4 and IPv6
SETTLE_S: Final = 0.25
DUMP_ATTEMPTS: Final = 5
_HEADER: Final = struct.Struct("=IHHII")
_LINK: Final = struct.Struct("=BxHiII")
_ADDRESS: Final = struct.Struct("=BBBBI")
_ROUTE: Final = struct.Struct("=BBBBBBBBI")
_ATTRIBUTE: Final = struct.Struct("=HH")

InterfaceAddress = ipaddress.IPv4Interface | ipaddress.IPv6Interface


@dataclass(frozen=True, slots=True)
class Interface:
    """default_routes: gateways of the main table's default routes through it, "" for one without gateway."""

    name: str
    index: int
    up: bool
    loopback: bool
    point_to_point: bool
    mtu: int
    addresses: tuple[InterfaceAddress, ...]
    default_routes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """One burst of news. links: indices of the interfaces that came, went, or changed themselves. rules_deleted: some
    routing rule is gone."""

    links: frozenset[int] = frozenset()
    rules_deleted: bool = False


def interfaces() -> list[Interface]:
    """All interfaces of this network namespace. Raises GwError where the kernel refuses."""
    addresses: dict[int, list[InterfaceAddress]] = {}
    for body in _dump(RTM_GETADDR, RTM_NEWADDR, _ADDRESS.pack(0, 0, 0, 0, 0)):
        family, length, flags, _scope, index = _ADDRESS.unpack_from(body)
        if flags & IFA_F_TENTATIVE_OR_GONE or family not in (socket.AF_INET, socket.AF_INET6):
            continue
        attributes = dict(_attributes(body[_ADDRESS.size :]))
        raw = attributes.get(IFA_LOCAL, attributes.get(IFA_ADDRESS))
        if raw is not None:
            addresses.setdefault(index, []).append(ipaddress.ip_interface((raw, length)))
    gateways = _default_routes()
    found: list[Interface] = []
    for body in _dump(RTM_GETLINK, RTM_NEWLINK, _LINK.pack(0, 0, 0, 0, 0)):
        _family, _kind, index, flags, _change = _LINK.unpack_from(body)
        attributes = dict(_attributes(body[_LINK.size :]))
        found.append(
            Interface(
                attributes.get(IFLA_IFNAME, b"").rstrip(b"\0").decode(),
                index,
                bool(flags & IFF_UP),
                bool(flags & IFF_LOOPBACK),
                bool(flags & IFF_POINTOPOINT),
                int.from_bytes(attributes.get(IFLA_MTU, b"")[:4], "little"),
                tuple(addresses.get(index, ())),
                tuple(sorted(gateways.get(index, ()))),
            )
        )
    return found


def fingerprint(found: list[Interface], *, without: str) -> frozenset[tuple[object, ...]]:
    """What of the interfaces matters for paths; `without`: the tunnel's own."""
    return frozenset(
        (each.name, each.up, each.addresses, each.default_routes) for each in found if each.name != without
    )


async def changes() -> AsyncIterator[Change]:
    """One item after each burst of link, address, route or rule changes of this namespace. Raises GwError."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        sock.bind((0, GROUPS))
        sock.setblocking(False)
        while True:
            burst = [await _receive(loop, sock)]
            try:
                async with asyncio.timeout(SETTLE_S):
                    while True:
                        burst.append(await _receive(loop, sock))
            except TimeoutError:
                pass
            yield _change_of(burst)


async def _receive(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> bytes | None:
    """None where the kernel had more to say than the socket holds."""
    try:
        return await loop.sock_recv(sock, 65536)
    except OSError as error:
        if error.errno == errno.ENOBUFS:
            return None
        raise GwError(f"cannot follow the network's changes: {error.strerror}") from error


def _change_of(burst: list[bytes | None]) -> Change:
    links: set[int] = set()
    rules_deleted = False
    for data in burst:
        if data is None:  # anything may have happened
            return Change(frozenset(each.index for each in interfaces()), rules_deleted=True)
        for kind, _flags, body in _messages(data):
            if kind in (RTM_NEWLINK, RTM_DELLINK) and len(body) >= _LINK.size:
                links.add(_LINK.unpack_from(body)[2])
            rules_deleted = rules_deleted or kind == RTM_DELRULE
    return Change(frozenset(links), rules_deleted)


def _default_routes() -> dict[int, list[str]]:
    """Interface index -> gateways. Only the main table is read: the tunnel's own may hold thousands."""
    found: dict[int, list[str]] = {}
    for family in (socket.AF_INET, socket.AF_INET6):
        for body in _dump(RTM_GETROUTE, RTM_NEWROUTE, _ROUTE.pack(family, 0, 0, 0, MAIN_TABLE, 0, 0, 0, 0)):
            _family, length, _source, _tos, table, *_rest = _ROUTE.unpack_from(body)
            if length or table != MAIN_TABLE:
                continue
            attributes = dict(_attributes(body[_ROUTE.size :]))
            if RTA_OIF in attributes:
                gateway = attributes.get(RTA_GATEWAY)
                index = int.from_bytes(attributes[RTA_OIF], "little")
                found.setdefault(index, []).append(str(ipaddress.ip_address(gateway)) if gateway else "")
    return found


def _dump(request: int, answer: int, header: bytes) -> list[bytes]:
    """The bodies of all `answer` messages; asked again where the kernel's tables changed meanwhile."""
    bodies: list[bytes] = []
    try:
        for _ in range(DUMP_ATTEMPTS):
            bodies, whole = _dump_once(request, answer, header)
            if whole:
                break
    except OSError as error:
        raise GwError(f"cannot list the network interfaces: {error.strerror}") from error
    return bodies


def _dump_once(request: int, answer: int, header: bytes) -> tuple[list[bytes], bool]:
    bodies: list[bytes] = []
    whole = True
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        sock.bind((0, 0))
        try:
            sock.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)  # the header's fields select; Linux 4.20
        except OSError:
            pass
        sock.send(_HEADER.pack(_HEADER.size + len(header), request, NLM_F_REQUEST | NLM_F_DUMP, 1, 0) + header)
        while True:
            for kind, flags, body in _messages(sock.recv(1 << 18)):
                whole = whole and not flags & NLM_F_DUMP_INTR
                if kind == NLMSG_DONE:
                    return bodies, whole
                if kind == NLMSG_ERROR:
                    code = -struct.unpack_from("=i", body)[0]
                    if code in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.ENOENT):
                        return bodies, True  # no such family or table here
                    raise GwError(f"the kernel does not list the network interfaces: error {code}")
                if kind == answer:
                    bodies.append(body)


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Kind, flags, body of each netlink message."""
    at = 0
    while at + _HEADER.size <= len(data):
        size, kind, flags, _serial, _pid = _HEADER.unpack_from(data, at)
        if size < _HEADER.size:
            return
        yield kind, flags, data[at + _HEADER.size : at + size]
        at += (size + 3) & ~3


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        size, kind = _ATTRIBUTE.unpack_from(data, at)
        if size < _ATTRIBUTE.size:
            return
        yield kind, data[at + _ATTRIBUTE.size : at + size]
        at += (size + 3) & ~3
