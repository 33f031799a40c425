"""Transport data one datagram at a time: the plain way, and the reference for the compiled workers.

Ref: whitepaper §5.4.6
"""

from __future__ import annotations

from typing import Final

from gw.errors import WireError
from gw.wire.wg.handshake import Keypair
from gw.wire.wg.messages import TRANSPORT_HEADER_BYTES, parse_transport, transport_header
from gw.wire.wg.primitives import seal, unseal

PADDING: Final = 16
REJECT_AFTER_MESSAGES: Final = 2**64 - 2**13 - 1


def seal_packet(keypair: Keypair, counter: int, packet: bytes) -> bytes:
    """A whole datagram; packet is an IP packet, or empty for a keepalive."""
    padded = packet + bytes(-len(packet) % PADDING)
    return transport_header(keypair.remote_index, counter) + seal(keypair.send_key, counter, padded, b"")


def open_packet(keypair: Keypair, datagram: bytes) -> tuple[int, bytes]:
    """(counter, packet with its padding). The caller keeps the replay window. Raises WireError."""
    header = parse_transport(datagram)
    if header.receiver != keypair.local_index or header.counter >= REJECT_AFTER_MESSAGES:
        raise WireError("not for this keypair")
    return header.counter, unseal(keypair.receive_key, header.counter, datagram[TRANSPORT_HEADER_BYTES:], b"")
