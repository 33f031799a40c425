"""Reaching a relay: TCP, TLS with a name or a pinned certificate, and the upgrade to DERP; where it speaks QUIC.

Ref: spec relay-and-path §1.4; tailscale derp/derphttp
"""

from __future__ import annotations

import _ssl
import asyncio
import hashlib
import re
import socket
import ssl
import time
from typing import Any, Final

from gw.errors import GwError, TimedOut
from gw.model.derpmap import DERPNode
from gw.net.tcp import Streams, connect

PIN_PREFIX: Final = "sha256-raw:"
UPGRADE_S: Final = 10.0
RESOLVE_S: Final = 5.0
MAX_HEAD_BYTES: Final = 16 << 10
_META_NAME: Final = re.compile(rb"derpkey([0-9a-f]{64})")


async def open_derp(node: DERPNode, ideal: DERPNode) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
    """A connection just after its upgrade: DERP frames follow. Raises GwError.

    ideal: the first node of the region. Last of the result: the relay's key where its certificates told it. Then the
    relay was asked not to answer the upgrade, and frames may be sent a round trip earlier.
    """
    reader, writer = await _connect(node)
    try:
        extra = f"Ideal-Node: {ideal.name}\r\n" if node.name != ideal.name else ""
        key = _key_of(writer.get_extra_info("ssl_object"))
        if key:
            extra += "Derp-Fast-Start: 1\r\n"
        writer.write(
            f"GET /derp HTTP/1.1\r\nHost: {node.host_name}\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n"
            f"User-Agent: ghostwire\r\n{extra}\r\n".encode()
        )
        head = b"HTTP/1.1 101" if key else await _head(reader, node)
        if head.split(b" ", 2)[1:2] != [b"101"]:
            line = head.split(b"\r\n", 1)[0].decode(errors="replace")
            raise GwError(f"relay `{node.host_name}` does not upgrade: {line[:100]}")
    except BaseException:
        writer.close()
        raise
    return reader, writer, key


def _key_of(tls: ssl.SSLObject | None) -> bytes:
    """The relay's key from the extra certificate of its chain (TLS 1.3 alone), empty where there is none.

    It carries no trust: the handshake proves the key.
    """
    if tls is None or tls.version() != "TLSv1.3":
        return b""
    inner: Any = getattr(tls, "_sslobj", None)  # Python 3.13 has it in public
    try:
        chain = [_der(each) for each in inner.get_unverified_chain() or ()]
    except AttributeError:
        return b""
    for certificate in chain[1:]:
        found = _META_NAME.search(certificate)
        if found is not None:
            return bytes.fromhex(found[1].decode())
    return b""


def _der(certificate: Any) -> bytes:
    return bytes(certificate) if isinstance(certificate, bytes) else bytes(certificate.public_bytes(_ssl.ENCODING_DER))


async def probe_latency(node: DERPNode) -> float:
    """Seconds of one request and answer on an open connection, for hosts whose UDP is blocked. Raises GwError."""
    reader, writer = await _connect(node)
    try:
        began = time.monotonic()
        writer.write(f"GET /derp/latency-check HTTP/1.1\r\nHost: {node.host_name}\r\n\r\n".encode())
        head = await _head(reader, node)
        if not (head.startswith(b"HTTP/1.") and head[8:10] == b" 2"):
            raise GwError(f"relay `{node.host_name}` refuses the latency check")
        return time.monotonic() - began
    finally:
        writer.close()


async def _connect(node: DERPNode) -> Streams:
    texts = ((socket.AF_INET, node.ipv4), (socket.AF_INET6, node.ipv6))
    addresses = [text for family, text in texts if is_literal(family, text)]
    families = [family for family, text in texts if not text or is_literal(family, text)]  # others are ruled out
    if not addresses and not families:
        raise GwError(f"the relay map rules out both families of `{node.host_name}`")
    if node.insecure_for_tests and not node.cert_name and node.derpport == 80:
        return await connect(node.host_name, node.derpport, addresses=addresses, families=families)
    pin = node.cert_name.removeprefix(PIN_PREFIX) if node.cert_name.startswith(PIN_PREFIX) else ""
    tls = ssl.create_default_context()
    if pin or node.insecure_for_tests:
        tls.check_hostname = False
        tls.verify_mode = ssl.CERT_NONE  # the pin is compared below; or a test asked for it
    reader, writer = await connect(
        node.host_name,
        node.derpport or 443,
        tls=tls,
        server_name=node.cert_name if node.cert_name and not pin else node.host_name,
        addresses=addresses,
        families=families,
    )
    if pin:
        session: ssl.SSLObject = writer.get_extra_info("ssl_object")
        shown = session.getpeercert(binary_form=True) or b""
        if hashlib.sha256(shown).hexdigest() != pin.lower():
            writer.close()
            raise GwError(f"relay `{node.host_name}` shows another certificate than the relay map pins")
    return reader, writer


async def udp_address(node: DERPNode) -> tuple[socket.AddressFamily, Any]:
    """Where a relay speaks QUIC: the family, and the address as sockets of it have it. Raises GwError."""
    for family, text in ((socket.AF_INET, node.ipv4), (socket.AF_INET6, node.ipv6)):
        if is_literal(family, text):
            return family, (text, node.quic_port)
    families = [family for family, text in ((socket.AF_INET, node.ipv4), (socket.AF_INET6, node.ipv6)) if not text]
    try:
        async with asyncio.timeout(RESOLVE_S):
            found = await asyncio.get_running_loop().getaddrinfo(node.host_name, node.quic_port, type=socket.SOCK_DGRAM)
    except (OSError, TimeoutError, ValueError) as error:
        raise GwError(f"cannot look up relay `{node.host_name}`: {error}") from error
    for family, _, _, _, address in found:
        if family in families:
            return socket.AddressFamily(family), address
    raise GwError(f"the relay map rules out all addresses of `{node.host_name}`")


def is_literal(family: socket.AddressFamily, text: str) -> bool:
    """Whether the text is an address of that family."""
    try:
        socket.inet_pton(family, text)
    except (OSError, ValueError):
        return False
    return True


async def _head(reader: asyncio.StreamReader, node: DERPNode) -> bytes:
    try:
        async with asyncio.timeout(UPGRADE_S):
            return await reader.readuntil(b"\r\n\r\n")
    except TimeoutError:
        raise TimedOut(f"no answer from relay `{node.host_name}`") from None
    except (OSError, EOFError, asyncio.LimitOverrunError) as error:
        raise GwError(f"relay `{node.host_name}` broke off: {error}") from error
