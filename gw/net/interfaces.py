"""The host's network interfaces, and word of their changes. Plain rtnetlink: two dumps, about 0.2 ms.

Ref: rtnetlink(7); Linux include/uapi/linux/{if_link,if_addr}.h
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Final

from gw.errors import GwError

RTM_NEWLINK: Final = 16
RTM_GETLINK: Final = 18
RTM_NEWADDR: Final = 20
RTM_GETADDR: Final = 22
RTM_NEWROUTE: Final = 24
RTM_DELROUTE: Final = 25
NLM_F_REQUEST: Final = 1
NLM_F_DUMP: Final = 0x300
NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3
IFLA_IFNAME: Final = 3
IFLA_MTU: Final = 4
IFA_ADDRESS: Final = 1
IFA_LOCAL: Final = 2
IFF_UP: Final = 0x1
IFF_LOOPBACK: Final = 0x8
IFF_POINTOPOINT: Final = 0x10
IFA_F_TENTATIVE_OR_GONE: Final = 0x40 | 0x08 | 0x20  # tentative, DAD failed, deprecated
GROUPS: Final = 0x1 | 0x10 | 0x100 | 0x40 | 0x400  # links, IPv4/IPv6 addresses, IPv4/IPv6 routes
SETTLE_S: Final = 0.25
_HEADER: Final = struct.Struct("=IHHII")
_LINK: Final = struct.Struct("=BxHiII")
_ADDRESS: Final = struct.Struct("=BBBBI")
_ATTRIBUTE: Final = struct.Struct("=HH")

InterfaceAddress = ipaddress.IPv4Interface | ipaddress.IPv6Interface


@dataclass(frozen=True, slots=True)
class Interface:
    name: str
    index: int
    up: bool
    loopback: bool
    point_to_point: bool
    mtu: int
    addresses: tuple[InterfaceAddress, ...]


def interfaces() -> list[Interface]:
    """All interfaces of this network namespace. Raises GwError where the kernel refuses."""
    addresses: dict[int, list[InterfaceAddress]] = {}
    for body in _dump(RTM_GETADDR, RTM_NEWADDR):
        family, length, flags, _scope, index = _ADDRESS.unpack_from(body)
        if flags & IFA_F_TENTATIVE_OR_GONE or family not in (socket.AF_INET, socket.AF_INET6):
            continue
        attributes = dict(_attributes(body[_ADDRESS.size :]))
        raw = attributes.get(IFA_LOCAL, attributes.get(IFA_ADDRESS))
        if raw is not None:
            addresses.setdefault(index, []).append(ipaddress.ip_interface((raw, length)))
    found: list[Interface] = []
    for body in _dump(RTM_GETLINK, RTM_NEWLINK):
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
            )
        )
    return found


def fingerprint(found: list[Interface], *, without: str) -> frozenset[tuple[str, bool, tuple[InterfaceAddress, ...]]]:
    """What of the interfaces matters for paths; `without`: the tunnel's own."""
    return frozenset((each.name, each.up, each.addresses) for each in found if each.name != without)


async def changes() -> AsyncIterator[None]:
    """One item after each burst of link, address or route changes of this namespace."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        sock.bind((0, GROUPS))
        sock.setblocking(False)
        while True:
            await _receive(loop, sock)
            try:
                async with asyncio.timeout(SETTLE_S):
                    while True:
                        await _receive(loop, sock)
            except TimeoutError:
                pass
            yield


async def _receive(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
    try:
        await loop.sock_recv(sock, 65536)
    except OSError:
        return  # the kernel had more to say than the socket holds: that is news too


def _dump(request: int, answer: int) -> Iterator[bytes]:
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
            sock.bind((0, 0))
            sock.send(_HEADER.pack(_HEADER.size + 16, request, NLM_F_REQUEST | NLM_F_DUMP, 1, 0) + bytes(16))
            while True:
                data = sock.recv(1 << 18)
                at = 0
                while at + _HEADER.size <= len(data):
                    size, kind, _flags, _serial, _pid = _HEADER.unpack_from(data, at)
                    if kind == NLMSG_DONE:
                        return
                    if kind == NLMSG_ERROR or size < _HEADER.size:
                        raise GwError("the kernel does not list the network interfaces")
                    if kind == answer:
                        yield data[at + _HEADER.size : at + size]
                    at += (size + 3) & ~3
    except OSError as error:
        raise GwError(f"cannot list the network interfaces: {error.strerror}") from error


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        size, kind = _ATTRIBUTE.unpack_from(data, at)
        if size < _ATTRIBUTE.size:
            return
        yield kind, data[at + _ATTRIBUTE.size : at + size]
        at += (size + 3) & ~3
