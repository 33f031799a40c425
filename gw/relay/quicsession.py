"""One client over QUIC, from its first packet. No I/O.

    SHAKING ──handshake──▶ AUTH ──node key proven──▶ WAITING (for admission) ──▶ UP: datagrams to the Switch
       │  └──resumed: the ticket stands for the proof──────▲
       └ early data: packets are forwarded, for they repel replays themselves; all that changes something waits

What goes out: packets of `Port.out` as datagrams, in two parts where the path is narrow; other frames on the control
stream.

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
from gw.native.relaying import Port
from gw.quic.gate import Newcomer
from gw.quic.link import Link
from gw.relay.admission import Admission
from gw.relay.session import Attendance, Reception
from gw.wire.derp import frames as derp
from gw.wire.derp.buckets import Bucket
from gw.wire.quic import auth, frames
from gw.wire.quic.datagrams import Joiner, encode_packet

logger = logging.getLogger(__name__)

MAX_EARLY_BYTES: Final = 64 << 10  # of the control stream, before the handshake is over
MAX_EARLY_PACKETS: Final = 64
DATAGRAM_OVERHEAD_BYTES: Final = 2  # frame type and kind
EARLY_ECHOES: Final = 8  # answers to probes of a client that has not proven its node key
MAX_UNSENT_BYTES: Final = 16 << 10  # of the control stream; above it pings are not answered
DEAF_S: Final = 2.0  # who sends, and takes nothing of what waits for it
SILENT_S: Final = 10.0  # who does not even send: it may be changing networks
TRANSPORT_CODES: Final = 0x200  # errors below are of QUIC and TLS (RFC 9000 §20.1)
NEVER: Final = float("inf")


class Stage(Enum):
    SHAKING = "shaking"
    AUTH = "auth"
    WAITING = "waiting"
    UP = "up"
    GONE = "gone"


@final
class Patience:
    """How long somebody may take nothing of what waits."""

    def __init__(self) -> None:
        self._mark = -1
        self._since = NEVER
        self._heard_since = NEVER

    def look(self, is_held: bool, mark: int, link: Link, now: float) -> float:
        """When it is over, if nothing changes. mark: moves whenever something was taken."""
        if not is_held:
            self._since = self._heard_since = NEVER
            return NEVER
        if self._since == NEVER or mark != self._mark:
            self._mark, self._since, self._heard_since = mark, now, NEVER
        if self._heard_since == NEVER and link.heard_at > self._since:
            self._heard_since = now
            link.nudge()  # whatever the timers say: who is back answers this
        return min(self._since + SILENT_S, self._heard_since + DEAF_S)


@final
class QuicSession:
    """Implements `LinkHandler`. The owner feeds the link, and sends what it gives after `pour`."""

    def __init__(
        self,
        reception: Reception,
        secret: RelaySecret,
        newcomer: Newcomer,
        owner: Any,
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
        self._packets_wait, self._control_waits = Patience(), Patience()
        self.patient_until = NEVER  # when it is closed, if it takes nothing until then
        self.stage = Stage.SHAKING
        self._now = now
        self._node = b""
        self._early = b""
        self._early_packets = 0
        self._said_hello = False
        self._reader = frames.relay_reader()
        self._joiner: Joiner | None = None
        self._parts = 0
        self._attendance: Attendance | None = None
        self.tokens: Bucket | None = None
        self.limited = 0
        self.moves = 0
        self.was_faulty = False  # whether it ended because the protocol was broken

    @property
    def is_up(self) -> bool:
        return self.stage is Stage.UP

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
            self._early_datagrams(batch)
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
        if self._attendance is not None:
            self._attendance.leave()
        else:
            self.port.is_closed = True

    # What comes in

    def _early_datagrams(self, batch: list[bytes]) -> None:
        """Packets in early data: WireGuard and disco know a replay. The sender becomes nobody's active connection."""
        resumed = self._newcomer.resumed
        if resumed is None or self.stage is not Stage.SHAKING:
            return
        if self._reception.admit(resumed.node, self.source.host) is not Admission.ALLOWED:
            return
        switch = self._reception.switch
        self.port.key = resumed.node
        for frame in batch:
            if self._early_packets >= MAX_EARLY_PACKETS:
                return
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
        is_over = self.tokens is not None and self.tokens.spend(len(data), now) > 0
        for kind, body in self._reader.feed(data):
            if kind == frames.AUTH:
                self._auth_untrusted(body, now)
            elif self._attendance is None:
                if self.stage is Stage.AUTH:
                    raise WireError("frame before auth")
            elif kind == derp.PING:
                if not 8 <= len(body) <= relaying.MAX_PING_BYTES:
                    raise WireError("ping of a strange length")
                if is_over or self.link.unsent > MAX_UNSENT_BYTES:
                    self.limited += 1
                    continue
                self._attendance.control(kind, body, now)
            elif kind == derp.NOTE_PREFERRED:
                if len(body) != 1:
                    raise WireError("note preferred of a strange length")
                self._attendance.control(kind, body, now)

    def _hello(self) -> None:
        self._said_hello = True
        self.link.send_stream(frames.encode_hello(self._reception.identity.key))

    def _auth_untrusted(self, body: bytes, now: float) -> None:
        if self.stage is not Stage.AUTH:
            return
        node, sealed = frames.decode_auth(body)
        auth.open_claim(self._secret.raw, node, sealed, role=auth.CLIENT, bind=self.link.bind, now_ms=self._unix_ms())
        self._node = node
        self.stage = Stage.WAITING
        self.decide(now)

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
            burst=reception.burst_bytes,
        )  # fmt: skip
        sealed = auth.seal_claim(self._secret.raw, self._node, reception.nonce(), claim)
        if not self._said_hello:
            self._hello()
        self.link.send_stream(derp.encode(frames.AUTH_OK, sealed) + frames.encode_observed(self.source))
        self.limit()
        self._newcomer.keep_ticket(self._node, now)
        reception.presence.enter(self.port, self.source, derp.PRESENT_REGULAR)

    def limit(self) -> None:
        """The rate limit holds from now on, or another one."""
        reception = self._reception
        rate = reception.bytes_per_second
        before = self.tokens
        self.tokens = Bucket(rate, reception.burst_bytes) if rate else None
        if self.stage is Stage.UP and (before is not None or rate):
            self.link.send_stream(frames.encode_limits(rate, reception.burst_bytes))

    # What goes out

    def pour(self, now: float) -> None:
        """Give the link what is in `Port.out`, unless it still has datagrams waiting. Polled next."""
        switch, link, port = self._reception.switch, self.link, self.port
        self.patient_until = min(
            self._packets_wait.look(link.waiting > 0, link.delivered, link, now),
            self._control_waits.look(link.unsent > MAX_UNSENT_BYTES, link.acknowledged, link, now),
        )
        if self.patient_until <= now:
            link.close(frames.CLOSED, "takes nothing of what waits for it")
            self.patient_until = NEVER
        if link.waiting:
            switch.set_aside(port)
            return
        small, control, large = switch.take_datagrams(port, link.limit)
        if control:
            link.send_stream(control)
        if small:
            link.send_frames(small)
        for packet in large:
            self._parts += 1
            for part in encode_packet(packet[:32], packet[32:], link.limit, self._parts):
                link.send(part)

    def poured(self) -> None:
        """The link was polled: where nothing waits any more, what the queues hold goes out next."""
        port, switch = self.port, self._reception.switch
        if port.is_blocked and not self.link.waiting and not port.is_closed:
            switch.taken(port)
        elif self.link.waiting:
            port.is_blocked = True
