"""The node's counters in Prometheus' text format: Tailscale's client metrics under their own names, and ours.

    tailscaled_…     what dashboards and alerts for Tailscale ask for, label for label
    ghostwire_…      what Tailscale does not tell; series of single peers only where they are asked for

Pure: numbers in, text out. Taking them costs what the peers with traffic cost, or all peers where `peers` is given.

Ref: prometheus.io/docs/instrumenting/exposition_formats; tailscale util/usermetric/metrics.go, health/usermetrics.go
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, final

from gw.engine.tunnel import NodeStats
from gw.localapi.status import PeerStatus

OFFLOADS: Final = ("tcp_offload", "udp_offload", "udp_gso", "udp_gro")

# Tailscale's words for why a packet was dropped, and which of ours each of them covers.
_ERROR: Final = "error"
_WORDS: Final = ("acl", "multicast", "link_local_unicast", "too_short", "fragment", "unknown_protocol", _ERROR)
_WORD_OF: Final = {
    "acl": "acl",
    "not-local": "acl",  # Tailscale's filter refuses a destination that is not the node's
    "multicast": "multicast",
    "link-local-unicast": "link_local_unicast",
    "malformed": "too_short",
    "fragment": "fragment",
    "unknown-protocol": "unknown_protocol",
}
# No peer has a part in these: garbage from strangers, and packets of the host to an address that nobody has.
_NO_PEER: Final = ("unknown-session", "no-route")

Labels = Mapping[str, str]
Sample = tuple[Labels, float]


@dataclass(frozen=True, slots=True)
class NodeNumbers:
    """What the daemon knows, taken at one moment. home: relay region, 0 for none; routes: subnets, exits not counted;
    offloads: by the names in OFFLOADS; active: peers with traffic now, by `direct`, `quic`, `peer_relay` or `relay`;
    defects: of ours that were met."""

    version: str
    compiled: bool
    is_running: bool
    stats: NodeStats
    warnings: int
    home: int
    routes_advertised: int
    routes_approved: int
    peers: int
    active: Mapping[str, int]
    lanes: int
    offloads: Mapping[str, bool]
    defects: int


def text(node: NodeNumbers, peers: Iterable[PeerStatus] | None = None) -> str:
    """All series. peers: those to be shown one by one; None for none."""
    page = _Page()
    _tailscale(page, node)
    _ours(page, node)
    if peers is not None:
        _each_peer(page, list(peers))
    return page.text()


def _tailscale(page: _Page, node: NodeNumbers) -> None:
    for direction, totals, dropped in (
        ("inbound", node.stats.received, node.stats.dropped_receiving),
        ("outbound", node.stats.sent, node.stats.dropped_sending),
    ):
        verb = "received from" if direction == "inbound" else "sent to"
        name = f"tailscaled_{direction}"
        sizes = [({"path": path}, total.size) for path, total in totals.items()]
        packets = [({"path": path}, total.packets) for path, total in totals.items()]
        page.counter(f"{name}_bytes_total", f"Bytes {verb} peers, as they are inside the tunnel, by path.", sizes)
        page.counter(f"{name}_packets_total", f"Packets {verb} peers, by path.", packets)
        page.counter(
            f"{name}_dropped_packets_total",
            f"Packets {verb} peers that were dropped, by reason.",
            [({"reason": word}, count) for word, count in _worded(dropped).items()],
        )
    page.gauge("tailscaled_advertised_routes", "Subnets that this node offers.", [({}, node.routes_advertised)])
    page.gauge("tailscaled_approved_routes", "Subnets that it may serve.", [({}, node.routes_approved)])
    page.gauge("tailscaled_health_messages", "What is wrong now.", [({"type": "warning"}, node.warnings)])
    page.gauge("tailscaled_home_derp_region_id", "Relay region where it is reached, 0 for none.", [({}, node.home)])


def _worded(dropped: Mapping[str, int]) -> dict[str, int]:
    """Our reasons in Tailscale's words; every word is there, so that a rate can be taken from the first drop on."""
    found = dict.fromkeys(_WORDS, 0)
    for reason, count in dropped.items():
        if reason not in _NO_PEER:
            found[_WORD_OF.get(reason, _ERROR)] += count
    return found


def _ours(page: _Page, node: NodeNumbers) -> None:
    core = "compiled" if node.compiled else "interpreted"
    page.gauge("ghostwire_info", "What runs.", [({"version": node.version, "core": core}, 1)])
    page.gauge("ghostwire_running", "1 while the node is up in its tailnet.", [({}, node.is_running)])
    page.gauge("ghostwire_peers", "Peers of the map.", [({}, node.peers)])
    page.gauge(
        "ghostwire_active_peers", "Peers with traffic now, by path.",
        [({"path": path}, count) for path, count in node.active.items()],
    )  # fmt: skip
    page.counter(
        "ghostwire_dropped_packets_total",
        "Packets dropped, by direction and exact reason.",
        [
            ({"direction": direction, "reason": reason}, count)
            for direction, dropped in (
                ("inbound", node.stats.dropped_receiving),
                ("outbound", node.stats.dropped_sending),
            )
            for reason, count in dropped.items()
        ],
    )
    page.counter(
        "ghostwire_defects_total", "Connections ended by a defect of gwd, which its log tells.", [({}, node.defects)]
    )
    page.gauge("ghostwire_dataplane_lanes", "Packet workers of each direction.", [({}, node.lanes)])
    page.gauge(
        "ghostwire_dataplane_offload", "1 where the kernel's offload is in use.",
        [({"offload": name}, node.offloads.get(name, False)) for name in OFFLOADS],
    )  # fmt: skip


def _each_peer(page: _Page, peers: list[PeerStatus]) -> None:
    named = [({"peer": _name(peer)}, peer) for peer in peers]
    for name, help_, values in (
        ("received_bytes", "Bytes received from the peer.", [(labels, peer.rx_bytes) for labels, peer in named]),
        ("sent_bytes", "Bytes sent to the peer.", [(labels, peer.tx_bytes) for labels, peer in named]),
        ("received_packets", "Packets received from it.", [(labels, peer.rx_packets) for labels, peer in named]),
        ("sent_packets", "Packets sent to it.", [(labels, peer.tx_packets) for labels, peer in named]),
    ):
        page.counter(f"ghostwire_peer_{name}_total", help_, values)
    page.counter(
        "ghostwire_peer_dropped_packets_total",
        "Packets from and to the peer that were dropped, by exact reason.",
        [
            ({**labels, "reason": reason}, count)
            for labels, peer in named
            for reason, count in (peer.drops or {}).items()
        ],
    )
    page.gauge(
        "ghostwire_peer_online", "1 where the control server sees it.",
        [(labels, peer.online) for labels, peer in named],
    )  # fmt: skip
    page.gauge(
        "ghostwire_peer_direct", "1 where it is reached without a relay.",
        [(labels, bool(peer.cur_addr)) for labels, peer in named],
    )  # fmt: skip
    page.gauge(
        "ghostwire_peer_latency_seconds",
        "Round trip of the direct path.",
        [(labels, peer.latency_seconds) for labels, peer in named if peer.latency_seconds],
    )
    page.gauge(
        "ghostwire_peer_last_handshake_timestamp_seconds",
        "Unix time of the last WireGuard handshake.",
        [(labels, moment) for labels, peer in named if (moment := peer.handshake_time()) is not None],
    )


def _name(peer: PeerStatus) -> str:
    """The whole DNS name: the first label alone may be two devices, one of them shared in."""
    return peer.dns_name.rstrip(".") or peer.host_name or peer.public_key


@final
class _Page:
    """Families of samples as they are written. A family without samples is left out."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def counter(self, name: str, help: str, samples: Sequence[Sample]) -> None:
        self._family(name, "counter", help, samples)

    def gauge(self, name: str, help: str, samples: Sequence[Sample]) -> None:
        self._family(name, "gauge", help, samples)

    def _family(self, name: str, kind: str, help: str, samples: Sequence[Sample]) -> None:
        if samples:
            self._lines += [f"# HELP {name} {help}", f"# TYPE {name} {kind}"]
            self._lines += [f"{name}{_labels(labels)} {_number(value)}" for labels, value in samples]

    def text(self) -> str:
        return "".join(f"{line}\n" for line in self._lines)


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))
