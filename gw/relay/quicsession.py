"""One client over QUIC, from its first packet. No I/O.

    SHAKING ──handshake──▶ AUTH ──node key proven──▶ WAITING (for admission) ──▶ UP: datagrams to the Switch
       │  └──resumed: the ticket stands for the proof──────▲
       └ early data: packets are forwarded, for they repel replays themselves; all that changes something waits

Another relay of the region comes the same way: with the proof of the mesh key it is a link (`gw.relay.quicmesh`).

Ref: spec quic §8 to §11
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from enum import Enum
from typing import Any, Final, final

from gw.errors import WireError
from gw.model.addresses import AddrPort
from gw.model.keys import RelaySecret
from gw.native import relaying
from gw.native.relaying import Owner, Port
from gw.quic.gate import Newcomer
from gw.quic.link import Link
from gw.quic.patience import NEVER
from gw.relay.admission import Admission
from gw.relay.quicmesh import MeshTalk, mesh_claim, proves_mesh
from gw.relay.quicoutflow import Outflow
from gw.relay.session import Attendance, Reception
from gw.wire.derp import frames as derp
from gw.wire.derp.buckets import Bucket
from gw.wire.quic import auth, frames
from gw.wire.quic.datagrams import Joiner

logger = logging.getLogger(__name__)

MAX_EARLY_BYTES: Final = 64 << 10  # of the control stream, before the handshake is over
MAX_EARLY_PACKETS: Final = 64
MAX_DEBT_S: Final = 5.0  # of a client whose control stream used up its bucket: its packets are dropped so long
EARLY_ECHOES: Final = 8.0  # answers to probes of a client that has not proven its node key
TRANSPORT_CODES: Final = 0x200  # errors below are of QUIC and TLS (RFC 9000 §20.1)


class Stage(Enum):
    SHAKING = "shaking"
    AUTH = "auth"
    WAITING = "waiting"
    UP = "up"
    GONE = "gone"


@final
class QuicSession:
    """Implements `LinkHandler`. The owner feeds the link, and sends what it gives after `pour`."""

    def __init__(
        self,
        reception: Reception,
        secret: RelaySecret,
        newcomer: Newcomer,
        owner: Owner,
        source: AddrPort,
        now: float,
        unix_ms: Callable[[], int],
        *,
        fast: bool,
    ) -> None:
        """owner: of the port. unix_ms: the time that claims are held against."""
        self._reception = reception
        self._secret = secret
        self._newcomer = newcomer
        self._unix_ms = unix_ms
        self.source = source
        self.port: Final = Port(owner)
        self.link: Final = Link(newcomer.connection, self, fast=fast)
        self.link.echoes_left = EARLY_ECHOES
        self._outflow = Outflow(reception.switch, self.port, self.link)
        self.patient_until = NEVER  # when to pour again, whatever happens
        self.stage = Stage.SHAKING
        self._now = now
        self._node = b""
        self._early = b""
        self._early_packets = 0
        self._said_hello = False
        self._reader = frames.relay_reader()
        self._joiner: Joiner | None = None
        self._attendance: Attendance | None = None
        self._talk: MeshTalk | None = None  # of another relay
        self.tokens: Bucket | None = None
        self._limit = 0, 0  # bytes a second and burst of it
        self.limited = 0
        self.moves = 0
        self._instance = b""
        self.was_faulty = False  # whether it ended because the protocol was broken

    @property
    def is_up(self) -> bool:
        return self.stage is Stage.UP

    @property
    def node(self) -> bytes:
        """The key that it has proven."""
        return self._node

    @property
    def is_waiting(self) -> bool:
        """Whether `decide` is to be called when admission learned something."""
        return self.stage is Stage.WAITING

    def receive(self, train: bytes, segment: int, address: Any, now: float) -> None:
        self._now = now
        self.link.receive(train, segment, address, now)

    # LinkHandler

    def up(self) -> None:
        resumed = self._newcomer.resumed
        if self.link.is_resumed and resumed is not None:
            self._node = resumed.node
            self.stage = Stage.WAITING
            self.decide(self._now)
        else:
            self.stage = Stage.AUTH
        early, self._early = self._early, b""
        if early:
            try:
                self._feed(early, self._now)
            except WireError as error:
                self.link.close(frames.BROKEN, str(error))

    def stream(self, data: bytes, now: float) -> None:
        if not self._said_hello and self.link.is_up:
            self._hello()
        if not self.link.is_up:  # nothing of early data may change anything: it waits
            self._early += data
            if len(self._early) > MAX_EARLY_BYTES:
                raise WireError("too much before the handshake")
            return
        self._feed(data, now)

    def datagrams(self, batch: list[bytes], now: float) -> None:
        if self.stage is not Stage.UP:
            self._early_datagrams(batch, now)
            return
        if self._talk is not None:
            self._talk.datagrams_untrusted(batch, now)
            return
        if self.tokens is not None:
            batch = [frame for frame in batch if self._may_send(frame, now)]
        others, control = self._reception.switch.feed_datagrams(self.port, batch)
        attendance = self._attendance
        assert attendance is not None
        for kind, payload in control:
            attendance.control(kind, payload, now)
        for frame in others:
            self._part_untrusted(frame[1:], now)

    def moved(self, address: Any) -> None:
        self.source = AddrPort.of(str(address[0]).partition("%")[0], int(address[1]))
        self.moves += 1
        if self.stage is Stage.UP:
            self.link.send_stream(frames.encode_observed(self.source))

    def closed(self, code: int, reason: str) -> None:
        self.was_faulty = 0 < code < TRANSPORT_CODES or code == frames.BROKEN
        if code not in (0, frames.CLOSED):
            logger.debug("QUIC client %s ends: %#x %s", self.source, code, reason)
        self.stage = Stage.GONE
        if self._talk is not None:
            self._talk.leave()
        elif self._attendance is not None:
            self._attendance.leave()
        else:
            self.port.is_closed = True

    # What comes in

    def _early_datagrams(self, batch: list[bytes], now: float) -> None:
        """Packets in early data: WireGuard and disco know a replay. The sender becomes nobody's active connection.
        They count for the rate limit, as all that it sends."""
        resumed = self._newcomer.resumed
        if resumed is None or self.stage is not Stage.SHAKING:
            return
        if self._reception.admit(resumed.node, self.source.host) is not Admission.ALLOWED:
            return
        switch = self._reception.switch
        self.port.key = resumed.node
        self._take_limit()
        for frame in batch:
            if self._early_packets >= MAX_EARLY_PACKETS:
                return
            if self.tokens is not None and not self._may_send(frame, now):
                continue
            if len(frame) >= relaying.DATAGRAM_HEAD_BYTES and frame[1] == relaying.DATAGRAM_BY_KEY:
                self._early_packets += 1
                head = relaying.DATAGRAM_HEAD_BYTES
                switch.forward(self.port, frame[2:head], frame[head:])

    def _may_send(self, frame: bytes, now: float) -> bool:
        assert self.tokens is not None
        if self.tokens.take(len(frame), now):
            return True
        self.limited += 1
        return False

    def _part_untrusted(self, datagram: bytes, now: float) -> None:
        """Half a packet; other kinds are skipped."""
        if self._joiner is None:
            self._joiner = Joiner()
        try:
            whole = self._joiner.feed(datagram, now)
        except WireError:
            return
        if whole is not None:
            self._reception.switch.packets_received += 1
            self._reception.switch.forward(self.port, *whole)

    def _feed(self, data: bytes, now: float) -> None:
        if not self._said_hello:
            self._hello()
        debt_s = self.tokens.spend(len(data), now) if self.tokens is not None else 0.0
        if debt_s > MAX_DEBT_S:
            self.link.close(frames.FLOODING, "more on the control stream than the rate limit allows")
            return
        is_over = debt_s > 0
        for kind, body in self._reader.feed(data):
            if self._talk is not None:
                self._talk.frame_untrusted(kind, body, now)
            elif kind == frames.AUTH:
                self._auth_untrusted(body, now)
            elif kind == frames.INSTANCE:
                self._instance_untrusted(body)
            elif self._attendance is None:
                if self.stage is Stage.AUTH:
                    raise WireError("frame before auth")
            elif kind in frames.FLOW_FRAMES:
                self._outflow.flow_untrusted(kind, body)
            elif kind == derp.PING:
                if not 8 <= len(body) <= relaying.MAX_PING_BYTES:
                    raise WireError("ping of a strange length")
                if is_over or self.link.unsent > frames.MAX_UNSENT_BYTES:
                    self.limited += 1
                    continue
                self._attendance.control(kind, body, now)
            elif kind == derp.NOTE_PREFERRED:
                if len(body) != 1:
                    raise WireError("note preferred of a strange length")
                self._attendance.control(kind, body, now)

    def _instance_untrusted(self, body: bytes) -> None:
        if self._instance or len(body) < derp.INSTANCE_BYTES:
            return
        self._instance = body[: derp.INSTANCE_BYTES]
        if self._attendance is not None:
            self._reception.presence.identify(self.port, self._instance)

    def _hello(self) -> None:
        self._said_hello = True
        self.link.send_stream(frames.encode_hello(self._reception.identity.key))

    def _auth_untrusted(self, body: bytes, now: float) -> None:
        if self.stage is not Stage.AUTH:
            return
        node, sealed = frames.decode_auth(body)
        claim = auth.open_claim(
            self._secret.raw, node, sealed, role=(auth.CLIENT, auth.MESH_DIALER), bind=self.link.bind,
            now_ms=self._unix_ms(),
        )  # fmt: skip
        if claim.role == auth.MESH_DIALER:
            self._link_untrusted(claim, node, now)
            return
        self._node = node
        self.stage = Stage.WAITING
        self.decide(now)

    def _link_untrusted(self, claim: auth.Claim, relay: bytes, now: float) -> None:
        """Another relay: it has to have the mesh key, and then we show that we have it."""
        reception, bind = self._reception, self.link.bind
        own = reception.identity.key
        if not proves_mesh(reception, claim, bind, relay, own):
            reception.refused += 1
            self.link.close(frames.NOT_ALLOWED, "no proof of the mesh key")
            return
        answer = mesh_claim(reception, auth.MESH_ANSWERER, bind, relay, own, self._unix_ms())
        sealed = auth.seal_claim(self._secret.raw, relay, reception.nonce(), answer)
        self.link.send_stream(derp.encode(frames.AUTH_OK, sealed))
        self.stage = Stage.UP
        self._reader = frames.mesh_reader()  # it says nothing more before our answer
        self._talk = MeshTalk(reception, self.port, self.link, self._outflow, relay, now)

    # Admission

    def decide(self, now: float) -> None:
        """Ask whether this client may come in; again when admission learned something."""
        if self.stage is not Stage.WAITING:
            return
        reception = self._reception
        verdict = reception.admit(self._node, self.source.host)
        if verdict is Admission.UNKNOWN:
            return
        if verdict is Admission.DENIED:
            reception.refused += 1
            self.link.close(frames.NOT_ALLOWED, "node key is not admitted")
            return
        self.stage = Stage.UP
        self.link.echoes_left = NEVER
        self.port.key = self._node
        self.port.hears_flow = True
        self._attendance = Attendance(reception, self.port, now)
        claim = auth.Claim(
            role=auth.RELAY, bind=self.link.bind.hex(), at=self._unix_ms(), rate=reception.bytes_per_second,
            burst=reception.burst_bytes, peer_relay=reception.peer_relay.hex(),
        )  # fmt: skip
        sealed = auth.seal_claim(self._secret.raw, self._node, reception.nonce(), claim)
        if not self._said_hello:
            self._hello()
        self.link.send_stream(derp.encode(frames.AUTH_OK, sealed) + frames.encode_observed(self.source))
        self.limit()
        self._newcomer.keep_ticket(self._node, now)
        instance = self._instance or (b"" if self.link.is_resumed else None)  # who resumes says it after coming in
        reception.presence.enter(self.port, self.source, derp.PRESENT_REGULAR, instance)

    def limit(self) -> None:
        """The rate limit holds from now on, or another one."""
        before = self.tokens
        if self._talk is not None:  # relays among themselves know none
            return
        self._take_limit()
        if self.stage is Stage.UP and (before is not None or self.tokens is not None):
            self.link.send_stream(frames.encode_limits(*self._limit))

    def _take_limit(self) -> None:
        """The bucket of the limit in force; what was taken from it stays taken."""
        limit = self._reception.bytes_per_second, self._reception.burst_bytes
        if limit != self._limit:
            self._limit = limit
            self.tokens = Bucket(*limit) if limit[0] else None

    # What goes out

    def wants_turn(self, now: float) -> bool:
        """Whether `pour` and a poll of the link have something to do at once."""
        return bool(self.port.out) or self.port.is_blocked or self.patient_until != NEVER or self.link.wants_poll(now)

    def pour(self, now: float) -> None:
        """Give the link what is in `Port.out`, unless it still has datagrams waiting. Polled next."""
        until = self._talk.look(now) if self._talk is not None else NEVER
        self._outflow.pour(now)
        self.patient_until = min(until, self._outflow.patient_until)

    def poured(self) -> None:
        """The link was polled: where nothing waits any more, what the queues hold goes out next."""
        self._outflow.poured()
