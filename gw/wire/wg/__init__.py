"""WireGuard without sockets: the handshake, cookies, timers and the rules of a peer's three keypairs.

`Device` is the whole of it: feed it datagrams and the time, send what it returns, seal and open transport data
with the keypairs it installs. Sealing in bulk is another room's work (`gw.native`); `transport` is the plain way,
one datagram at a time.

    Device ── Peer ── Keypair          who we are; whom we talk to; what we talk with
      │         └──── handshake        Noise_IKpsk2 messages 1 and 2
      └── CookieChecker, CookieJar     proof of address under load

Ref: wireguard.com/papers/wireguard.pdf
"""

from __future__ import annotations

from gw.wire.wg.device import Device, Install, Keepalive, Output, Reply, Retire, Transmit, Unreachable
from gw.wire.wg.handshake import Keypair
from gw.wire.wg.messages import INITIATION, RESPONSE, TRANSPORT, kind_of
from gw.wire.wg.peer import Activity

__all__ = [
    "INITIATION",
    "RESPONSE",
    "TRANSPORT",
    "Activity",
    "Device",
    "Install",
    "Keepalive",
    "Keypair",
    "Output",
    "Reply",
    "Retire",
    "Transmit",
    "Unreachable",
    "kind_of",
]
