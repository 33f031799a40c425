"""What a relay counts, in memory that its workers share: each writes its own slot, any of them prints the sums.

Ref: Prometheus text format 0.0.4; names as in spec relay-and-path §7.2 where the thing is the same
"""

from __future__ import annotations

import struct
from mmap import mmap
from typing import Final, final

from gw.native import COMPILED
from gw.relay.forwarding import Plane

SLOT_BYTES: Final = 512
STORE_S: Final = 1.0

# name, kind, help: in the order of `_values`
_METRICS: Final = (
    ("connections", "gauge", "Connections, those of relays and workers too."),
    ("clients", "gauge", "Node keys that are connected here."),
    ("clients_remote", "gauge", "Node keys known through links to other workers and relays."),
    ("home_connections", "gauge", "Clients that have their home here."),
    ("watchers", "gauge", "Other relays that watch this one."),
    ("links", "gauge", "Links to other workers and relays that announced keys."),
    ("accepts_total", "counter", "Connections accepted."),
    ("rejected_total", "counter", "Connections closed at once: too many, or too fast."),
    ("refused_total", "counter", "Node keys that were not admitted."),
    ("websocket_accepts_total", "counter", "Connections by WebSocket."),
    ("duplicate_connections_total", "counter", "Connections with a key that another process had."),
    ("packets_received_total", "counter", "Packets from clients."),
    ("packets_sent_total", "counter", "Packets to clients and links."),
    ("bytes_received_total", "counter", "Bytes from clients after TLS."),
    ("bytes_sent_total", "counter", "Bytes to clients before TLS."),
    ("packets_forwarded_in_total", "counter", "Packets from other workers and relays."),
    ("packets_forwarded_out_total", "counter", "Packets to other workers and relays."),
    ('packets_dropped_total{reason="unknown_dest"}', "counter", "Packets dropped."),
    ('packets_dropped_total{reason="unknown_dest_on_fwd"}', "counter", ""),
    ('packets_dropped_total{reason="queue_head"}', "counter", ""),
    ("disco_packets_dropped_total", "counter", "Packets of path discovery among those dropped from queues."),
    ("bytes_dropped_total", "counter", "Bytes of dropped packets."),
    ("pings_total", "counter", "Pings answered."),
    ("home_moves_in_total", "counter", "Clients that made this their home later than at connecting."),
    ("home_moves_out_total", "counter", "Clients that made another relay their home."),
    ("peer_gone_not_here_total", "counter", "Times a client heard that a peer is not here."),
    ("rate_limited_total", "counter", "Times a client had to wait for its token bucket."),
    ("write_timeouts_total", "counter", "Clients closed because they did not read."),
    ("quic_connections", "gauge", "Connections over QUIC, among the connections."),
    ("quic_accepts_total", "counter", "Connections over QUIC that began."),
    ("quic_resumptions_total", "counter", "Connections over QUIC that came back with a ticket."),
    ("quic_moves_total", "counter", "Times a client over QUIC went on from another address."),
    ("quic_rejected_total", "counter", "Handshakes over QUIC that were refused: too many, or too fast."),
    ("quic_packets_limited_total", "counter", "Packets over QUIC dropped by their sender's token bucket."),
    ("quic_faults_total", "counter", "Connections over QUIC that broke the protocol."),
    ("quic_broken_total", "counter", "Connections over QUIC ended by a defect of the relay, which its log tells."),
    ("quic_crowded_total", "counter", "Datagrams over QUIC dropped because the relay was behind."),
    ("quic_links", "gauge", "Links to other relays over QUIC."),
    ("peer_relay_pairs", "gauge", "Pairs of nodes that have a UDP relay endpoint."),
    ("peer_relay_allocations_total", "counter", "UDP relay endpoints allocated."),
    ("peer_relay_refused_total", "counter", "Requests for one that were refused: too many, or no address to tell."),
    ("peer_relay_binds_total", "counter", "Times a node proved its address."),
    ("peer_relay_packets_total", "counter", "Datagrams relayed between nodes by UDP."),
    ("peer_relay_bytes_total", "counter", "Their bytes."),
    ("peer_relay_dropped_total", "counter", "Datagrams of no pair, not from a bound address, or not understood."),
    ("peer_relay_limited_total", "counter", "Datagrams and requests over a node's limit."),
    ("flow_states_total", "counter", "Times a sender was told how its receiver keeps up."),
    ("defects_total", "counter", "Connections by TCP and calls ended by a defect of the relay, which its log tells."),
)
_SLOT: Final = struct.Struct(f"<{len(_METRICS)}q")


@final
class Metrics:
    """The counters of all workers of one relay."""

    def __init__(self, shared: mmap, workers: int, slot: int) -> None:
        """shared: SLOT_BYTES a worker. slot: of this one."""
        self._shared = shared
        self._workers = workers
        self._slot = slot

    def keep(self, plane: Plane) -> None:
        """Store now and from now on, in the plane's thread."""
        plane.arm_call(plane.now + STORE_S, lambda: self.keep(plane))
        _SLOT.pack_into(self._shared, self._slot * SLOT_BYTES, *_values(plane))

    def render(self) -> str:
        """The page."""
        slots = [_SLOT.unpack_from(self._shared, index * SLOT_BYTES) for index in range(self._workers)]
        lines: list[str] = []
        for place, (name, kind, about) in enumerate(_METRICS):
            if about:
                bare = name.partition("{")[0]
                lines += [f"# HELP gwrelay_{bare} {about}", f"# TYPE gwrelay_{bare} {kind}"]
            lines.append(f"gwrelay_{name} {sum(slot[place] for slot in slots)}")
        lines += [
            "# HELP gwrelay_workers Processes that forward.",
            "# TYPE gwrelay_workers gauge",
            f"gwrelay_workers {self._workers}",
            "# HELP gwrelay_compiled Whether the packet core is compiled.",
            "# TYPE gwrelay_compiled gauge",
            f"gwrelay_compiled {int(COMPILED)}",
        ]
        return "\n".join(lines) + "\n"


def _values(plane: Plane) -> tuple[int, ...]:
    reception = plane.reception
    presence, switch = reception.presence, reception.switch
    return (
        len(plane), len(presence.holders), presence.remote_keys, reception.homes, len(presence.mesh_watchers),
        len(list(presence.links())), plane.accepted, plane.rejected, reception.refused, reception.websockets,
        presence.duplicates, switch.packets_received, switch.packets_sent, switch.bytes_received, switch.bytes_sent,
        switch.forwarded_in, switch.forwarded_out, switch.dropped_unknown, switch.dropped_unknown_forwarded,
        switch.dropped_queue, switch.dropped_disco, switch.dropped_bytes, reception.pings, reception.home_moves_in,
        reception.home_moves_out, reception.gone_not_here, plane.limited, plane.stuck, *plane.quic_counts(),
        sum(reception.quic_links.values()), *(reception.peers.totals() if reception.peers is not None else (0,) * 8),
        plane.flow_states.told, plane.defects.met,
    )  # fmt: skip
