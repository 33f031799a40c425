"""The daemon's state as `gw status` and the dashboard see it: Tailscale's field names.

Ref: control protocol §10; tailscale ipn/ipnstate
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from gw import __version__
from gw.engine import defects
from gw.engine.engine import Engine, PeerView
from gw.engine.peerpath import NEVER
from gw.engine.quicpeers import QuicView
from gw.errors import WireError
from gw.localapi.status import PeerStatus, QuicStatus, Status, Tailnet
from gw.model.derpmap import DERPMap
from gw.model.gojson import ZERO_TIME_TEXT
from gw.model.keys import NodeKey
from gw.model.node import Node
from gw.native import COMPILED
from gw.node.metrics import OFFLOADS, NodeNumbers
from gw.node.netmap import Netmap
from gw.node.translate import addresses, home_region

MOVING: Final = (
    "rx_bytes",
    "tx_bytes",
    "cur_addr",
    "relay",
    "active",
    "last_handshake",
    "last_write",
    "latency_seconds",
    "rx_packets",
    "tx_packets",
    "drops",
    "transport",
)
_WIRE: Final = {field.name: field.encode_name for field in msgspec.structs.fields(PeerStatus)}


def peer_status(node: Node, engine: Engine, derp_map: DERPMap) -> PeerStatus:
    """A peer of the map with what the engine knows of it."""
    status = _common(node, derp_map)
    try:
        view = engine.view(NodeKey.parse(node.key))
    except WireError:
        view = None
    if view is not None:
        _add_view(status, view)
    return status


def self_status(node: Node, engine: Engine, derp_map: DERPMap, endpoints: list[str]) -> PeerStatus:
    status = _common(node, derp_map)
    status.addrs = endpoints
    status.relay = region_code(derp_map, engine.home)
    status.online = True
    status.in_engine = status.in_magic_sock = False
    return status


def whole_status(
    netmap: Netmap,
    engine: Engine,
    *,
    backend_state: str,
    auth_url: str,
    has_key: bool,
    health: list[str],
    own: list[str],
) -> Status:
    """Everything; proportional to the number of peers, so only for who asks."""
    self_node = netmap.self_node
    suffix = netmap.domain.rstrip(".")
    if self_node is not None and "." in self_node.name:
        suffix = self_node.name.rstrip(".").split(".", 1)[1]
    return Status(
        version=__version__,
        tun=True,
        backend_state=backend_state,
        have_node_key=has_key,
        auth_url=auth_url,
        tailscale_ips=[str(address) for address in addresses(self_node)] if self_node is not None else None,
        self_=self_status(self_node, engine, netmap.derp_map, own) if self_node is not None else None,
        health=health,
        magic_dns_suffix=suffix,
        current_tailnet=Tailnet(
            name=netmap.domain, magic_dns_suffix=suffix, magic_dns_enabled=bool(netmap.dns_config.domains)
        ),
        peer={node.key: peer_status(node, engine, netmap.derp_map) for node in netmap.peers.values()},
        user=profiles(netmap),
        data_plane=engine.health(),
    )


def numbers(netmap: Netmap, engine: Engine, *, is_running: bool, warnings: int) -> NodeNumbers:
    """What Prometheus is told of the node; proportional to the peers with traffic."""
    active = {"direct": 0, "quic": 0, "peer_relay": 0, "relay": 0}
    for view in map(engine.view, engine.active_peers()):
        if view is not None and view.is_active:
            if view.direct is not None:
                active["quic" if view.in_quic else "direct"] += 1
            else:
                active["peer_relay" if view.via is not None else "relay"] += 1
    health = engine.health()
    lanes = health.get("lanes")
    node = netmap.self_node
    own = node.addresses if node is not None else None
    offered = node.hostinfo.routable_ips if node is not None and node.hostinfo is not None else None
    routes = [] if node is None else [route for route in node.allowed_ips or () if route not in (own or ())]
    return NodeNumbers(
        version=__version__,
        compiled=COMPILED,
        is_running=is_running,
        stats=engine.totals(),
        warnings=warnings,
        home=engine.home,
        routes_advertised=sum(not route.endswith("/0") for route in offered or ()),
        routes_approved=sum(not route.endswith("/0") for route in routes),
        peers=len(netmap.peers),
        active=active,
        lanes=lanes if isinstance(lanes, int) else 0,
        offloads={name: bool(health.get(name)) for name in OFFLOADS},
        defects=defects.of_node.met,
    )


def profiles(netmap: Netmap) -> dict[str, Any]:
    return {str(id_): profile for id_, profile in netmap.user_profiles.items()}


def changed_fields(before: PeerStatus | None, after: PeerStatus) -> dict[str, object]:
    """What moves while a peer stays the same: counters and path, by wire name."""
    return {
        _WIRE[name]: getattr(after, name)
        for name in MOVING
        if before is None or getattr(before, name) != getattr(after, name)
    }


def region_code(derp_map: DERPMap, region: int) -> str:
    found = (derp_map.regions or {}).get(region)
    return "" if found is None else found.region_code or str(region)


def _common(node: Node, derp_map: DERPMap) -> PeerStatus:
    return PeerStatus(
        id=node.stable_id,
        node_id=node.id,
        public_key=node.key,
        host_name=node.hostinfo.hostname if node.hostinfo is not None else node.computed_name,
        dns_name=node.name,
        os=node.hostinfo.os if node.hostinfo is not None else "",
        user_id=node.user,
        tailscale_ips=[str(address) for address in addresses(node)],
        allowed_ips=node.allowed_ips if node.allowed_ips is not None else node.addresses,
        tags=node.tags,
        primary_routes=node.primary_routes,
        addrs=list(node.endpoints or []),
        relay=region_code(derp_map, home_region(node)),
        created=_time(node.created),
        last_seen=_time(node.last_seen),
        last_write=ZERO_TIME_TEXT,
        last_handshake=ZERO_TIME_TEXT,
        online=bool(node.online),
        in_network_map=True,
        in_magic_sock=True,
        in_engine=True,
        expired=node.expired,
        key_expiry=_time(node.key_expiry) if node.key_expiry is not None else None,
    )


def _add_view(status: PeerStatus, view: PeerView) -> None:
    stats = view.stats
    status.cur_addr = str(view.direct) if view.direct is not None else ""
    status.latency_seconds = round(view.latency_s, 6)
    status.rx_bytes, status.tx_bytes = stats.rx_bytes, stats.tx_bytes
    status.rx_packets, status.tx_packets = stats.rx_packets, stats.tx_packets
    status.drops = stats.drops or None
    status.active = view.is_active
    if view.in_quic:
        status.transport = "quic"
    elif view.direct is not None:
        status.transport = "udp"
    elif view.via is not None:
        status.transport, status.peer_relay = "peer-relay", str(view.via)
    elif view.is_active:
        status.transport = "relay"
    if view.quic is not None:
        status.transport_reason = view.quic.reason
        status.quic = _quic(view.quic, status.allowed_ips or [])
    if stats.last_handshake:
        status.last_handshake = (
            datetime.fromtimestamp(int(stats.last_handshake), UTC).isoformat().replace("+00:00", "Z")
        )
    if stats.last_tx != NEVER:
        sent_at = time.time() - (time.monotonic() - stats.last_tx)
        status.last_write = _time(datetime.fromtimestamp(int(sent_at), UTC))


def _quic(view: QuicView, routed: list[str]) -> QuicStatus | None:
    """routed: what the map gives the peer, the only authority on it."""
    line = view.line
    if line is None:
        return None
    return QuicStatus(
        rtt_seconds=round(line.rtt_s, 6),
        jitter_seconds=round(line.jitter_s, 6),
        sent=line.sent,
        received=line.received,
        dropped=line.dropped,
        peer_received=line.report.received if line.report is not None else 0,
        packet_bytes=line.udp_bytes,
        fast_path=line.is_fast,
        resumed=line.is_resumed,
        dialer=line.is_dialer,
        routes=[str(prefix) for prefix in line.routes] or None,
        unrouted=[text for text in map(str, line.routes) if text not in routed] or None,
    )


def _time(moment: datetime | None) -> str:
    return ZERO_TIME_TEXT if moment is None else moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
