"""Addresses: the tailnet's ranges, and `AddrPort`, a UDP endpoint.

Ref: tailscale net/tsaddr/tsaddr.go, disco/disco.go (18-byte form)
"""

from __future__ import annotations

import ipaddress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final, NamedTuple, Self

from gw.errors import WireError

TAILNET_V4: Final = IPv4Network("100.64.0.0/10")
TAILNET_V6: Final = IPv6Network("fd7a:115c:a1e0::/48")

CHROMEOS_VM_V4: Final = IPv4Network("100.115.92.0/23")  # inside TAILNET_V4, never handed out
SERVICE_V4: Final = IPv4Address("100.100.100.100")
SERVICE_V6: Final = IPv6Address("fd7a:115c:a1e0::53")
DERP_MAGIC_V4: Final = "127.3.3.40"  # "address" of a DERP region; the port is the region id
TAILNET_MTU: Final = 1280
EXIT_ROUTES: Final = ("0.0.0.0/0", "::/0")  # as routes are written; a node with both is an exit node

ADDR_PORT_BYTES: Final = 18


class AddrPort(NamedTuple):
    """A UDP endpoint. host: canonical text of an IPv4 or IPv6 address without zone, never IPv4-mapped."""

    host: str
    port: int

    @classmethod
    def of(cls, host: str, port: int) -> Self:
        """Canonical form: IPv4-mapped IPv6 becomes IPv4. Raises WireError if host is no literal address."""
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            raise WireError(f"not an address: {host!r}") from None
        if isinstance(address, IPv6Address):
            if address.scope_id is not None:
                raise WireError("address with a zone")
            if address.ipv4_mapped is not None:
                address = address.ipv4_mapped
        if not 0 <= port <= 0xFFFF:
            raise WireError(f"not a port: {port}")
        return cls(str(address), port)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `1.2.3.4:5` or `[::1]:5`. Raises WireError."""
        host, colon, port = text.rpartition(":")
        if not colon or not port.isascii() or not port.isdigit():
            raise WireError(f"not host:port: {text!r}")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            raise WireError(f"not host:port: {text!r}")
        return cls.of(host, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_v6(self) -> bool:
        return ":" in self.host

    def pack(self) -> bytes:
        """18 bytes: 16 address (IPv4 as ::ffff:a.b.c.d), 2 port, big-endian."""
        address = ipaddress.ip_address(self.host)
        raw = address.packed if isinstance(address, IPv6Address) else b"\0" * 10 + b"\xff\xff" + address.packed
        return raw + self.port.to_bytes(2, "big")

    @classmethod
    def unpack(cls, raw: bytes) -> Self:
        """The inverse of `pack`. Raises WireError if raw is not 18 bytes."""
        if len(raw) != ADDR_PORT_BYTES:
            raise WireError(f"address and port of {len(raw)} bytes")
        return cls.of(str(IPv6Address(raw[:16])), int.from_bytes(raw[16:], "big"))
