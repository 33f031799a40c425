"""STUN, answered in the forwarding plane's loop, and what is relayed between two nodes: the UDP port of a relay without
QUIC.

Ref: RFC 8489; tailscale net/stunserver/stunserver.go
"""

from __future__ import annotations

import logging
import socket
import time
from typing import Final, final

from gw.errors import WireError
from gw.model.addresses import AddrPort
from gw.net.answering import Source, answering, hear_destinations
from gw.relay.peerrelay import PeerRelay
from gw.wire import stun
from gw.wire.derp.buckets import Bucket
from gw.wire.quic.demux import Kind, kind_of

logger: Final = logging.getLogger(__name__)

DATAGRAMS_A_TURN: Final = 64
MAX_REQUEST_BYTES: Final = 9216
CONTROL_BYTES: Final = 128
COMPLAINTS_A_S: Final = 0.1  # log lines about defects that strangers may find
COMPLAINT_BURST: Final = 5


@final
class StunSocket:
    """One UDP socket; give `ready` to `Plane.attach`."""

    def __init__(self, channel: socket.socket) -> None:
        channel.setblocking(False)
        hear_destinations(channel)
        self._channel = channel
        self.peers: PeerRelay | None = None
        self.requests = 0
        self.ignored = 0
        self.broken = 0  # datagrams that met a defect of ours
        self._complaints = Bucket(COMPLAINTS_A_S, COMPLAINT_BURST)

    def fileno(self) -> int:
        return self._channel.fileno()

    def ready(self) -> None:
        """Answer what is there; garbage gets no answer."""
        for _ in range(DATAGRAMS_A_TURN):
            try:
                datagram, ancillary, _, sender = self._channel.recvmsg(MAX_REQUEST_BYTES, CONTROL_BYTES)
                source = answering(sender, ancillary)
                if self.peers is not None and kind_of(datagram) is Kind.GENEVE:
                    self._relay_untrusted(self.peers, datagram, source)
                    continue
                tx_id = stun.decode_request(datagram)
                address = AddrPort.of(source[0].partition("%")[0], source[1])
                self._channel.sendmsg([stun.encode_answer(tx_id, address)], source.control, 0, source)
                self.requests += 1
            except BlockingIOError:
                return
            except (WireError, OSError):
                self.ignored += 1

    def _relay_untrusted(self, peers: PeerRelay, datagram: bytes, source: Source) -> None:
        """A defect that one datagram meets costs that datagram, not the forwarding of everybody."""
        now = time.monotonic()
        try:
            for data, _, target in peers.feed(datagram, len(datagram), source, now):
                self._channel.sendmsg([data], target.control, 0, target)
        except OSError:  # that one address cannot be sent to
            self.ignored += 1
        except Exception:
            self.broken += 1
            if self._complaints.take(1, now):
                logger.exception("relayed datagrams from %s are dropped: a defect, please report it", source)
