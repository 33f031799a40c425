"""Packet numbers of a connection that packet workers use, and what becomes of their packets.

    take     numbers of the connection's one counter, never given twice: who takes them and dies takes them along
    sent     told before a packet leaves, so before anything about it can come back
    settle   what was acknowledged, and what is lost because something sent clearly later was

With several that send, the order of numbers is not the order of time. So here, and for aioquic's own packets of the
connection from then on, a packet is lost when one that was sent REORDER_S or a quarter round trip later has arrived.

Ref: RFC 9002 §6; RFC 8985 (RACK) for loss by time of sending
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, final

from aioquic import tls
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicSentPacket
from aioquic.quic.recovery import QuicPacketSpace

from gw.native.quicpackets import Ledger
from gw.quic.congestion import Sent

REORDER_S: Final = 0.005
NEVER_LOST: Final = 1 << 62  # by its number


@final
class Shared:
    """Made once a connection: from then on losses are found here."""

    def __init__(self, connection: QuicConnection, space: QuicPacketSpace) -> None:
        self._connection = connection
        self._space = space
        self._ledger = Ledger()
        self._newest_acked = 0.0  # when the last packet was sent that is known to have arrived
        self._detect_stock: Callable[..., None] = connection._loss._detect_loss
        connection._loss._detect_loss = self._detect  # type: ignore[method-assign]
        connection._on_ack_delivery = self._on_ack_delivery  # type: ignore[method-assign]
        space.loss_time = None

    def take(self, count: int) -> int:
        """The first of so many numbers that nobody has used or will use but who gets them."""
        first = self._connection._packet_number
        self._connection._packet_number = first + count
        return first

    @property
    def newest(self) -> int:
        """The number that comes next."""
        return self._connection._packet_number

    def sent(self, first: int, sizes: list[int], sent_at: float, cc: Any) -> None:
        """Book packets `first`, `first` + 1, … of these sizes; the last is known to aioquic, for its timers."""
        *others, last_size = sizes
        if others:
            mark = Sent(sum(others), sent_at)
            cc.on_packet_sent(packet=mark)
            self._ledger.sent(first, others, mark)
        space = self._space
        number = first + len(others)
        is_late = bool(space.sent_packets) and next(reversed(space.sent_packets)) > number
        self._connection._loss.on_packet_sent(
            packet=QuicSentPacket(
                epoch=tls.Epoch.ONE_RTT, in_flight=True, is_ack_eliciting=True, is_crypto_packet=False,
                packet_number=number, packet_type=QuicPacketType.ONE_RTT, sent_time=sent_at, sent_bytes=last_size,
            ),
            space=space,
        )  # fmt: skip
        if is_late:  # aioquic looks for numbers by halves
            space.sent_packets = dict(sorted(space.sent_packets.items()))

    def settle(self, ranges: list[int], before: list[QuicSentPacket], now: float, cc: Any) -> None:
        """An acknowledgment of [start, stop, …]. before: what aioquic waited for until then."""
        loss, space = self._connection._loss, self._space
        newest = 0.0
        for packet in before:
            if packet.packet_number not in space.sent_packets:
                newest = max(newest, packet.sent_time or 0.0)
        for mark, acked, _ in self._ledger.settle(ranges, space.largest_acked_packet, NEVER_LOST):
            assert isinstance(mark, Sent)
            newest = max(newest, mark.sent_time)
            cc.on_packet_acked(now=now, packet=mark.part(acked))
        if newest <= self._newest_acked:
            return
        self._newest_acked = newest
        cc.on_rtt_measurement(now=now, rtt=max(now - newest, 0.0))  # of numbers in order aioquic has measured it too
        horizon = newest - max(loss._rtt_smoothed / 4, REORDER_S)
        self._lose(horizon, now, cc)
        old = [packet for packet in space.sent_packets.values() if (packet.sent_time or 0.0) < horizon]
        if old:
            loss._on_packets_lost(congestion_event=True, now=now, packets=old, space=space)

    def _lose(self, horizon: float, now: float, cc: Any) -> None:
        kept, lost = [], []
        for batch in self._ledger.batches:
            mark = batch.mark
            assert isinstance(mark, Sent)
            if mark.sent_time < horizon:
                lost.append(mark.part(sum(batch.sizes)))
            else:
                kept.append(batch)
        if lost:
            self._ledger.batches = kept
            cc.on_packets_lost(now=now, packets=lost)

    def _detect(self, *, now: float, space: QuicPacketSpace) -> None:
        if space is not self._space:
            self._detect_stock(now=now, space=space)

    def _on_ack_delivery(self, delivery: object, space: QuicPacketSpace, highest_acked: int) -> None:
        """aioquic would forget all numbers up to that one, also those that came after the acknowledgment had gone."""
