"""A server's newcomers: which first packets become connections, and with what they are answered otherwise.

    Initial ──▶ Connection          resumed ones know their node key (`Newcomer.resumed`)
            ──▶ Retry               while many have not proven anything: the address has to be true first
    another version ──▶ Version Negotiation

Ref: RFC 9000 §6, §8.1, §14.1; spec quic §2, §10, §11
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, final

from aioquic._buffer import Buffer
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.packet import (
    QuicHeader,
    QuicPacketType,
    QuicProtocolVersion,
    encode_quic_retry,
    encode_quic_version_negotiation,
    pull_quic_header,
)
from aioquic.quic.retry import QuicRetryTokenHandler
from aioquic.tls import SessionTicket

from gw.quic.connection import CidMaker, Connection, random_cid
from gw.quic.tickets import Resumed, TicketStore
from gw.wire.quic.demux import CID_BYTES

MIN_INITIAL_BYTES: Final = 1200
CONTROL_WINDOW_BYTES: Final = 64 << 10  # what a newcomer may have us keep


@final
class Newcomer:
    """A connection that has just begun. resumed: what its ticket stands for, once the first packet was taken."""

    def __init__(self, store: TicketStore) -> None:
        self.connection: Connection
        self.resumed: Resumed | None = None
        self.ticket: SessionTicket | None = None  # issued to it, to be kept when its node key is proven
        self._store = store
        self._now = 0.0

    def keep_ticket(self, node: bytes, now: float) -> None:
        """Its node key is proven: with the ticket it may come back without."""
        if self.ticket is not None:
            self._store.keep(self.ticket, node, now)
            self.ticket = None

    def _fetch(self, name: bytes) -> SessionTicket | None:
        self.resumed = self._store.take(name, self._now)
        return None if self.resumed is None else self.resumed.ticket

    def _issued(self, ticket: SessionTicket) -> None:
        self.ticket = ticket


@final
class Gate:
    """What meets first packets. `settings` may be replaced, for a renewed certificate."""

    def __init__(self, settings: QuicConfiguration, reset_key: bytes, new_cid: CidMaker = random_cid) -> None:
        self.settings = settings
        self._reset_key = reset_key
        self.new_cid = new_cid
        self._tickets = TicketStore()
        self._retry = QuicRetryTokenHandler()

    def meet(
        self, packet: bytes, address: Any, now: float, *, is_busy: bool, has_room: Callable[[], bool] = lambda: True
    ) -> Newcomer | bytes:
        """What a packet of no known connection becomes: a connection, or an answer to send (empty: none).

        address: (host, port, …). is_busy: nobody gets state before an answer proved the address. has_room: asked before
        a connection is made, which costs much more than all before it.
        """
        try:
            header = pull_quic_header(Buffer(data=packet), host_cid_length=CID_BYTES)
        except ValueError:
            return b""
        if len(packet) < MIN_INITIAL_BYTES or header.packet_type is QuicPacketType.VERSION_NEGOTIATION:
            return b""
        if header.version != QuicProtocolVersion.VERSION_1:
            return encode_quic_version_negotiation(
                source_cid=header.destination_cid,
                destination_cid=header.source_cid,
                supported_versions=[QuicProtocolVersion.VERSION_1],
            )
        if header.packet_type is not QuicPacketType.INITIAL or len(header.destination_cid) < CID_BYTES:
            return b""
        if header.token or is_busy:
            return self._after_retry(header, address, now, has_room)
        if not has_room():
            return b""
        return self._newcomer(now, original_destination_connection_id=header.destination_cid)

    def _after_retry(
        self, header: QuicHeader, address: Any, now: float, has_room: Callable[[], bool]
    ) -> Newcomer | bytes:
        plain = (str(address[0]).partition("%")[0], address[1])
        if header.token:
            try:
                original = self._retry.validate_token(
                    address=plain, destination_cid=header.destination_cid, token=header.token, now=now
                )
            except ValueError:
                return b""
            if not has_room():
                return b""
            return self._newcomer(
                now,
                original_destination_connection_id=original,
                retry_source_connection_id=header.destination_cid,
            )
        cid = self.new_cid()
        token = self._retry.create_token(
            address=plain,
            original_destination_connection_id=header.destination_cid,
            retry_source_connection_id=cid,
            now=now,
        )
        return encode_quic_retry(
            version=QuicProtocolVersion.VERSION_1,
            source_cid=cid,
            destination_cid=header.source_cid,
            original_destination_cid=header.destination_cid,
            retry_token=token,
        )

    def _newcomer(self, now: float, **ids: bytes) -> Newcomer:
        made = Newcomer(self._tickets)
        made._now = now
        made.connection = Connection(
            configuration=self.settings,
            new_cid=self.new_cid,
            reset_key=self._reset_key,
            session_ticket_fetcher=made._fetch,
            session_ticket_handler=made._issued,
            streams=(1, 0),
            window=CONTROL_WINDOW_BYTES,
            **ids,
        )
        return made
