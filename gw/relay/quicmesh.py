"""A link between two relays of a region over QUIC, once both have proven the mesh key: the same at either end. No I/O.

    control stream   WatchConns, then PeerPresent and PeerGone, both ways; FLOW_STATE, ClosePeer
    datagrams        source, destination, packet: for a client here, or for another worker; never for a further relay

Both ends ask for a sign of life after a second of silence, and give the link up after two and a half: what it announced
is reached by the TLS link beside it, or by another relay.

Ref: spec quic §12
"""

from __future__ import annotations

from typing import Final, final

from gw.errors import WireError
from gw.native.relaying import Port
from gw.quic.link import Link
from gw.relay.quicoutflow import Outflow
from gw.relay.session import Attendance, Reception
from gw.wire.derp import frames as derp
from gw.wire.quic import auth, frames
from gw.wire.quic.datagrams import Joiner
from gw.wire.quic.flows import MAX_MESH_FLOWS

ASK_S: Final = 1.0
DEAD_S: Final = 2.5


def proves_mesh(reception: Reception, claim: auth.Claim, bind: bytes, dialer: bytes, answerer: bytes) -> bool:
    """Whether a claim of another relay proves the mesh key that is in force here."""
    return dialer != answerer and auth.check_mesh(claim, reception.mesh_key, bind, dialer, answerer)


def mesh_claim(
    reception: Reception, role: str, bind: bytes, dialer: bytes, answerer: bytes, unix_ms: int
) -> auth.Claim:
    """Ours, for the other relay."""
    proof = auth.mesh_proof(reception.mesh_key, role, bind, dialer, answerer)
    return auth.Claim(role=role, bind=bind.hex(), at=unix_ms, mesh=proof)


@final
class MeshTalk:
    """Begin it when the proofs are done; `look` at the time it gives, `leave` at the end."""

    def __init__(
        self, reception: Reception, port: Port, link: Link, outflow: Outflow, relay: bytes, now: float
    ) -> None:
        """relay: key of the one at the other end."""
        self._reception = reception
        self._port = port
        self._link = link
        self._outflow = outflow
        outflow.flows.limit = MAX_MESH_FLOWS
        self._attendance = Attendance(reception, port, now)
        self._joiner = Joiner(between_relays=True)
        self._asked_at = now
        self._since = now
        port.key = port.relay = relay
        port.is_quic = True
        port.become_link(False)
        link.echoes_left = float("inf")
        reception.quic_links[relay] = reception.quic_links.get(relay, 0) + 1
        reception.switch.push(port, derp.encode(derp.WATCH_CONNS, b""))

    def frame_untrusted(self, kind: int, body: bytes, now: float) -> None:
        """A frame of the control stream. Raises WireError."""
        presence = self._reception.presence
        if kind == derp.PEER_PRESENT:
            key, _, age_s = derp.decode_present(body)
            presence.learn(self._port, key, age_s)
        elif kind in frames.FLOW_FRAMES:
            self._outflow.flow_untrusted(kind, body)
        elif kind == derp.PEER_GONE:
            if len(body) < derp.KEY_BYTES:
                raise WireError("peer gone without a key")
            presence.unlearn(self._port, body[: derp.KEY_BYTES])
        elif kind == derp.CLOSE_PEER:
            if len(body) != derp.KEY_BYTES:
                raise WireError("mesh frame of a strange length")
            self._attendance.control(kind, body, now)
        elif kind in (derp.WATCH_CONNS, frames.FLOW_STATE):
            self._attendance.control(kind, body, now)

    def datagrams_untrusted(self, batch: list[bytes], now: float) -> None:
        """What is no packet, nor part of one, is skipped."""
        switch = self._reception.switch
        others, _ = switch.feed_datagrams(self._port, batch)
        for frame in others:
            try:
                whole = self._joiner.feed(frame[1:], now)
            except WireError:
                continue
            if whole is not None:
                switch.forwarded(self._port, *whole)

    def look(self, now: float) -> float:
        """Ask, or give up; returns when to look again."""
        heard_at = max(self._link.heard_at, self._since)
        if now - heard_at >= DEAD_S:
            self._link.close(frames.CLOSED, "the other relay is silent")
            return now + DEAD_S
        if now - max(heard_at, self._asked_at) >= ASK_S:
            self._asked_at = now
            self._link.ping()
        return min(max(heard_at, self._asked_at) + ASK_S, heard_at + DEAD_S)

    def leave(self) -> None:
        """The connection is gone, and the keys that were reached by it."""
        links = self._reception.quic_links
        relay = self._port.relay
        links[relay] -= 1
        if not links[relay]:
            del links[relay]
        self._attendance.leave()
