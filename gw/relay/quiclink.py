"""The dialling end of a link to another relay over QUIC. No I/O.

    SHAKING ──handshake──▶ AUTH: our claim with the proof of the mesh key ──its claim, with its proof──▶ UP: `MeshTalk`

The certificate says nothing here: the relay's key is known from the TLS link, and both claims are bound to the session.

Ref: spec quic §9, §12
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final, final

from gw.errors import WireError
from gw.model.addresses import AddrPort
from gw.model.keys import RelaySecret
from gw.native.relaying import Owner, Port
from gw.quic.connection import Connection
from gw.quic.link import Link
from gw.quic.patience import NEVER
from gw.relay.quicmesh import MeshTalk, mesh_claim, proves_mesh
from gw.relay.quicoutflow import Outflow
from gw.relay.quicsession import TRANSPORT_CODES, Stage
from gw.relay.session import Reception
from gw.wire.quic import auth, frames

logger = logging.getLogger(__name__)

OPEN_S: Final = 5.0


@final
class QuicLink:
    """Implements `LinkHandler`, and `Speaker` of `gw.relay.quicport`."""

    is_waiting = False  # for nobody's admission
    node = b""

    def __init__(
        self,
        reception: Reception,
        secret: RelaySecret,
        connection: Connection,
        owner: Owner,
        source: AddrPort,
        relay: bytes,
        now: float,
        unix_ms: Callable[[], int],
        ended: Callable[[bool], None],
        *,
        fast: bool,
    ) -> None:
        """relay: the key that the other end has to prove. ended: called once, with whether the link was up."""
        self._reception = reception
        self._secret = secret
        self._relay = relay
        self._unix_ms = unix_ms
        self._ended = ended
        self._open_until = now + OPEN_S
        self.source = source
        self.port: Final = Port(owner)
        self.port.become_link(False)
        self.link: Final = Link(connection, self, fast=fast)
        self._outflow = Outflow(reception.switch, self.port, self.link)
        self.patient_until = self._open_until
        self.stage = Stage.SHAKING
        self._reader = frames.mesh_reader()
        self._talk: MeshTalk | None = None
        self.moves = self.limited = 0
        self.was_faulty = False

    @property
    def is_up(self) -> bool:
        return self.stage is Stage.UP

    def receive(self, train: bytes, segment: int, address: Any, now: float) -> None:
        self.link.receive(train, segment, address, now)

    def decide(self, now: float) -> None:
        """Nobody has to admit it."""

    def limit(self) -> None:
        """No rate limit holds between relays."""

    # LinkHandler

    def up(self) -> None:
        self.stage = Stage.AUTH
        own = self._reception.identity.key
        claim = mesh_claim(self._reception, auth.MESH_DIALER, self.link.bind, own, self._relay, self._unix_ms())
        sealed = auth.seal_claim(self._secret.raw, self._relay, self._reception.nonce(), claim)
        self.link.send_stream(frames.encode_auth(own, sealed))

    def stream(self, data: bytes, now: float) -> None:
        for kind, body in self._reader.feed(data):
            if kind == frames.HELLO:
                if frames.decode_hello(body) != self._relay:
                    raise WireError("another relay than the one dialled")
            elif kind == frames.AUTH_OK:
                self._auth_ok_untrusted(body, now)
            elif self._talk is None:
                raise WireError("a word before the proof of the mesh key")
            else:
                self._talk.frame_untrusted(kind, body, now)

    def _auth_ok_untrusted(self, body: bytes, now: float) -> None:
        if self.stage is not Stage.AUTH:
            return
        bind, own = self.link.bind, self._reception.identity.key
        claim = auth.open_claim(
            self._secret.raw, self._relay, body, role=auth.MESH_ANSWERER, bind=bind, now_ms=self._unix_ms()
        )
        if not proves_mesh(self._reception, claim, bind, own, self._relay):
            raise WireError("no proof of the mesh key")
        self.stage = Stage.UP
        self._talk = MeshTalk(self._reception, self.port, self.link, self._outflow, self._relay, now)
        logger.info("link to %s over QUIC is up", self.source)

    def datagrams(self, batch: list[bytes], now: float) -> None:
        if self._talk is not None:
            self._talk.datagrams_untrusted(batch, now)

    def moved(self, address: Any) -> None:
        """A relay that answers does not move."""

    def closed(self, code: int, reason: str) -> None:
        self.was_faulty = 0 < code < TRANSPORT_CODES or code == frames.BROKEN
        was_up, self.stage = self.is_up, Stage.GONE
        level = logging.INFO if was_up else logging.DEBUG
        logger.log(level, "link to %s over QUIC ended: %s", self.source, reason or hex(code))
        if self._talk is not None:
            self._talk.leave()
        else:
            self.port.is_closed = True
        self._ended(was_up)

    # What goes out

    def wants_turn(self, now: float) -> bool:
        """Whether `pour` and a poll of the link have something to do at once."""
        return bool(self.port.out) or self.port.is_blocked or self.link.wants_poll(now)

    def pour(self, now: float) -> None:
        """Give the link what is in `Port.out`. Polled next."""
        until = NEVER
        if self._talk is not None:
            until = self._talk.look(now)
        elif now >= self._open_until:
            self.link.close(frames.CLOSED, "no answer")
        else:
            until = self._open_until
        self._outflow.pour(now)
        self.patient_until = min(until, self._outflow.patient_until)

    def poured(self) -> None:
        self._outflow.poured()
