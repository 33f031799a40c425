"""The daemon's status, in the field names of `tailscale status --json`. Ref: ipnstate.Status; control protocol §10

Every field is always there, as Tailscale has it: a script asks for `.Online` and finds `false`, not nothing.
"""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from gw.errors import NotFound
from gw.model.gojson import ZERO_TIME_TEXT, GoStruct
from gw.model.node import UserProfile


class QuicStatus(GoStruct, omit_defaults=False):
    """The QUIC connection with a peer. Counts are WireGuard messages since it began; peer_received is the peer's count,
    some seconds old. packet_bytes: the largest UDP payload that was proven to pass. routes: what the peer says that it
    serves, which routes nothing; unrouted: those of them that the control server's map does not give it."""

    rtt_seconds: float = msgspec.field(default=0.0, name="RTTSeconds")
    jitter_seconds: float = 0.0
    sent: int = 0
    received: int = 0
    dropped: int = 0
    peer_received: int = 0
    packet_bytes: int = 0
    fast_path: bool = False
    resumed: bool = False
    dialer: bool = False
    routes: list[str] | None = None
    unrouted: list[str] | None = None


class PeerStatus(GoStruct, omit_defaults=False):
    """This node or a peer. Ours are latency_seconds (the last path probe's round trip), rx_packets, tx_packets,
    drops: packets by reason, transport (`udp`, `quic`, `peer-relay`, `relay`, empty while idle),
    transport_reason (why it is not udp), and quic. peer_relay: ADDRESS:vni:N. Bytes are those
    of the packets inside the tunnel."""

    id: str = ""
    node_id: int = 0
    public_key: str = ""
    host_name: str = ""
    dns_name: str = ""
    os: str = ""
    user_id: int = 0
    tailscale_ips: list[str] | None = None
    allowed_ips: list[str] | None = None
    tags: list[str] | None = None
    primary_routes: list[str] | None = None
    addrs: list[str] | None = None
    cur_addr: str = ""
    relay: str = ""
    peer_relay: str = ""
    rx_bytes: int = 0
    tx_bytes: int = 0
    created: str = ZERO_TIME_TEXT
    last_write: str = ZERO_TIME_TEXT
    last_seen: str = ZERO_TIME_TEXT
    last_handshake: str = ZERO_TIME_TEXT
    online: bool = False
    exit_node: bool = False
    exit_node_option: bool = False
    active: bool = False
    peer_api_url: list[str] | None = None
    taildrop_target: int = 0
    no_file_sharing_reason: str = ""
    in_network_map: bool = False
    in_magic_sock: bool = False
    in_engine: bool = False
    expired: bool = False
    key_expiry: str | None = None
    latency_seconds: float = 0.0
    rx_packets: int = 0
    tx_packets: int = 0
    drops: dict[str, int] | None = None
    transport: str = ""
    transport_reason: str = ""
    quic: QuicStatus | None = msgspec.field(default=None, name="QUIC")

    def path_text(self) -> str:
        """How the peer is reached: `direct ADDRESS`, `quic ADDRESS`, `peer-relay ADDRESS:vni:N`, `relay CODE`,
        `idle` or `offline`."""
        if not self.online:
            return "offline"
        if self.peer_relay:
            return f"peer-relay {self.peer_relay}"
        if self.cur_addr:
            return f"{'quic' if self.transport == 'quic' else 'direct'} {self.cur_addr}"
        return f"relay {self.relay}" if self.active and self.relay else "idle"

    def handshake_time(self) -> float | None:
        """Of the last handshake, in seconds since the epoch; None where there was none: Go's zero time is year 1."""
        if self.last_handshake.startswith("0001"):
            return None
        return datetime.fromisoformat(self.last_handshake.replace("Z", "+00:00")).astimezone(UTC).timestamp()


class Tailnet(GoStruct, omit_defaults=False):
    name: str = ""
    magic_dns_suffix: str = msgspec.field(default="", name="MagicDNSSuffix")
    magic_dns_enabled: bool = msgspec.field(default=False, name="MagicDNSEnabled")


class Status(GoStruct, omit_defaults=False):
    """The whole. Ours is data_plane: offloads that are in use, packet workers, drops by reason."""

    version: str = ""
    tun: bool = msgspec.field(default=False, name="TUN")
    backend_state: str = ""
    have_node_key: bool = False
    auth_url: str = msgspec.field(default="", name="AuthURL")
    tailscale_ips: list[str] | None = None
    self_: PeerStatus | None = msgspec.field(default=None, name="Self")
    health: list[str] | None = None
    magic_dns_suffix: str = msgspec.field(default="", name="MagicDNSSuffix")
    current_tailnet: Tailnet | None = None
    cert_domains: list[str] | None = None
    peer: dict[str, PeerStatus] | None = None
    user: dict[str, UserProfile] | None = None
    data_plane: dict[str, object] | None = None

    def find(self, text: str) -> PeerStatus:
        """The peer, or this node, with this name or address. Raises NotFound."""
        wanted = text.lower().rstrip(".")
        for each in [self.self_, *(self.peer or {}).values()]:
            if each is None:
                continue
            name = each.dns_name.rstrip(".").lower()
            if wanted in (name, name.split(".")[0], *(each.tailscale_ips or [])):
                return each
        raise NotFound(f"no such peer: `{text}`", hint="gw status lists the peers")
