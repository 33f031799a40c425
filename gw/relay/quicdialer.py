"""Links to other relays over QUIC, begun from the UDP port that clients come to.

Ref: spec quic §12
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any, Final, final

from gw.model.addresses import AddrPort
from gw.quic.configuration import client_settings
from gw.quic.connection import Connection
from gw.quic.gate import CONTROL_WINDOW_BYTES
from gw.relay.quiclink import QuicLink
from gw.relay.quicport import QuicClient, QuicPort
from gw.relay.session import Reception
from gw.wire.quic import frames


@final
class QuicDialer:
    """Implements `Dialer` of `gw.relay.quiclinks`."""

    def __init__(self, port: QuicPort) -> None:
        self.reception: Final[Reception] = port.reception
        self._port = port

    def dial(self, host: str, port: int, relay: bytes, ended: Callable[[bool], None]) -> Callable[[], None] | None:
        """Begin a link to another relay; returns what closes it.

        host: a numeric address. relay: the key that it has to prove. ended: called once, with whether it was up.
        """
        own = self._port
        target = udp_address(host, port, is_ipv6=own.is_ipv6)
        if target is None:
            return None
        now = own.loop.now
        settings = client_settings(frames.RELAY_ALPN, "relay", verify=False)  # its key is what is believed
        connection = Connection(
            configuration=settings, new_cid=own.gate.new_cid, streams=(0, 0), window=CONTROL_WINDOW_BYTES
        )
        address = AddrPort.of(host.partition("%")[0], port)
        client = QuicClient(
            own, address, set(connection.cids),
            lambda owner: QuicLink(
                own.reception, own.secret, connection, owner, address, relay, now, own.unix_ms, ended, fast=own.fast
            ),
        )  # fmt: skip
        own.welcome(client)
        client.session.link.connect(target, now)
        own.rouse(client)
        return client.close


def udp_address(host: str, port: int, *, is_ipv6: bool) -> Any:
    """A numeric address as a socket of this family names it; None where it cannot reach it."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if not is_ipv6:
        mapped = address.ipv4_mapped if address.version == 6 else address
        return None if mapped is None else (str(mapped), port)
    if address.version == 4:
        return f"::ffff:{address}", port, 0, 0
    return str(address), port, 0, 0
