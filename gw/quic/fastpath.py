"""DATAGRAM packets past aioquic's packet builder, with its books kept as if it had sent and received them itself.

    send      numbers of aioquic's one counter; the last packet of a batch is known to its loss recovery, the rest stand
              in a ledger that acknowledgments settle by range, so that the congestion controller sees every byte
    receive   acknowledgment queue, duplicate window, largest and expected number, idle timer: per run of packets

What it touches of aioquic's inside is listed in NEEDED; `usable` says whether this release has it, and
`gw.quic.selftest` whether it behaves. Without the fast path everything goes the stock way.

Ref: spec quic §6
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, final

from aioquic import tls
from aioquic.quic.connection import QuicConnection
from aioquic.quic.crypto import CryptoContext
from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicSentPacket
from aioquic.quic.rangeset import RangeSet
from aioquic.quic.recovery import MAX_ACK_RANGES, QuicPacketSpace

from gw.native.quicpackets import Keys, Ledger, Window, encode_ack, open_train, seal_train
from gw.quic.congestion import Sent
from gw.quic.protection import make_keys
from gw.quic.shared import Shared

BATCH: Final = 48
RESERVE_PACKETS: Final = 4  # of the window, for control
RESERVE_SHARE: Final = 10  # but not more than this part of it
UPDATE_AFTER: Final = 1 << 22  # AES-GCM: packets under one key, of 2^23 allowed
OLD_KEYS_PTOS: Final = 3
ACK_AFTER: Final = 64  # packets: acknowledged at once
ACK_GATHERS: Final = 4  # of fewer an acknowledgment waits for about so many, at least and at most so long
MIN_ACK_DELAY_S: Final = 0.002
MAX_ACK_DELAY_S: Final = 0.008
TOLD_PACKETS: Final = 256
NEEDED: Final = (
    "_packet_number", "_peer_cid", "_host_cids", "host_cid", "_network_paths", "_cryptos", "_spaces", "_loss",
    "_close_at", "_idle_timeout", "_ack_delay", "_handshake_confirmed", "_close_pending", "_state",
    "_ack_eliciting_sent_since_receipt",
)  # fmt: skip
_NEEDED_OF_SPACE: Final = (
    "ack_at", "ack_queue", "expected_packet_number", "largest_received_packet", "largest_received_time",
    "received_packets", "largest_acked_packet",
)  # fmt: skip
_ONE_RTT: Final = tls.Epoch.ONE_RTT


def usable(connection: QuicConnection) -> bool:
    """Whether this release of aioquic has what we touch."""
    space = QuicPacketSpace(is_application_data=True)
    return (
        all(hasattr(connection, name) for name in NEEDED)
        and all(hasattr(space, name) for name in _NEEDED_OF_SPACE)
        and all(hasattr(connection._loss, name) for name in ("on_packet_sent", "on_ack_received", "_cc"))
    )


@final
class FastPath:
    """Made when the handshake is confirmed. Not to be called from inside aioquic."""

    def __init__(self, connection: QuicConnection) -> None:
        self._connection = connection
        self._pair = connection._cryptos[_ONE_RTT]
        self._space = connection._spaces[_ONE_RTT]
        self._cc = connection._loss._cc
        self._ledger = Ledger()
        self._window = self._take_window()
        self._sent_under_key = 0
        self.look_at = float("inf")  # when the stock connection is wanted, because of an acknowledgment
        self._told: tuple[int, list[int]] | None = None  # an acknowledgment of ours, and what it told: [start, stop, …]
        self._unacked = 0  # packets received since the first that the acknowledgment that is due tells of
        self._gathers_since = 0.0  # when that one came
        self._ack_delay_s = MIN_ACK_DELAY_S
        self._sealing, self._send_secret = make_keys(self._pair.send, sealing=True), self._pair.send.secret
        self._opening, self._receive_secret = make_keys(self._pair.recv, sealing=False), self._pair.recv.secret
        self._older: Keys | None = None
        self._older_until = 0.0
        self._cids: set[bytes] = set()
        self.shared: Shared | None = None  # with packet workers, which seal and open packets of this connection
        self.follow()
        self._settle_stock: Callable[..., None] = connection._loss.on_ack_received
        connection._loss.on_ack_received = self._on_ack  # type: ignore[method-assign]

    def _take_window(self) -> Window:
        """Replace aioquic's window of 128 packets, whose content is taken over, by ours."""
        window, space = Window(), self._space
        newest = space.largest_received_packet
        if newest >= 0:
            before = space.received_packets
            window.add_run(max(0, newest - 4095), newest + 1)
            for number in range(max(0, newest - 255), newest + 1):
                if number not in before:
                    window.seen &= ~(1 << (newest - number))
        space.received_packets = window  # type: ignore[assignment]
        return window

    def follow(self) -> None:
        """The stock connection took a packet: the ids that the other side uses may be others.

        A server leaves the first packet to another id to aioquic, which then changes ids itself.
        """
        connection = self._connection
        self._cids = {each.cid for each in connection._host_cids} if connection._is_client else {connection.host_cid}

    # Sending

    @property
    def may_send(self) -> bool:
        connection = self._connection
        return bool(connection._network_paths[0].is_validated) and not connection._close_pending

    def room(self) -> int:
        """Bytes of UDP payload that the congestion window has left."""
        cc = self._cc
        window = cc.congestion_window
        reserve = min(RESERVE_PACKETS * self._connection._max_datagram_size, window // RESERVE_SHARE)
        return int(window - cc.bytes_in_flight - reserve)

    def seal(self, frames: list[bytes], now: float) -> list[tuple[bytes, int]]:
        """Trains (datagrams of one size, the last may be shorter; that size) of at most BATCH frames (0x30 and payload
        each), booked as sent."""
        connection = self._connection
        self._renew_sealing()
        first = connection._packet_number
        trains, sizes = seal_train(self._sealing, connection._peer_cid.cid, first, frames)
        connection._packet_number = first + len(sizes)
        count = len(sizes)
        last_size = sizes.pop()
        if sizes:
            mark = Sent(sum(sizes), now)
            self._cc.on_packet_sent(packet=mark)  # type: ignore[arg-type]
            self._ledger.sent(first, sizes, mark)
        last = QuicSentPacket(
            epoch=_ONE_RTT, in_flight=True, is_ack_eliciting=True, is_crypto_packet=False,
            packet_number=connection._packet_number - 1, packet_type=QuicPacketType.ONE_RTT, sent_time=now,
            sent_bytes=last_size,
        )  # fmt: skip
        connection._loss.on_packet_sent(packet=last, space=self._space)
        self._booked(count, now)
        return trains

    @property
    def sealing(self) -> tuple[CryptoContext, bytes]:
        """What others need to seal: the context, and the connection id of the other side."""
        self._renew_sealing()
        return self._pair.send, self._connection._peer_cid.cid

    @property
    def opening(self) -> tuple[CryptoContext, set[bytes]]:
        """What others need to open: the context, and the ids that the other side uses."""
        return self._pair.recv, self._cids

    @property
    def expected(self) -> int:
        """The packet number that comes next."""
        return self._space.expected_packet_number

    def _renew_sealing(self) -> None:
        if self._pair.send.secret is not self._send_secret:
            self._sealing, self._send_secret = (
                make_keys(self._pair.send, sealing=True, mask=self._sealing.mask),
                self._pair.send.secret,
            )
            self._sent_under_key = 0

    def _on_ack(self, *, ack_rangeset: RangeSet, ack_delay: float, now: float, space: QuicPacketSpace) -> None:
        shared = self.shared
        before = list(space.sent_packets.values()) if shared is not None else []
        self._settle_stock(ack_rangeset=ack_rangeset, ack_delay=ack_delay, now=now, space=space)
        if space is not self._space:
            return
        told = self._told
        if told is not None and any(told[0] in each for each in ack_rangeset):
            for at in range(0, len(told[1]), 2):  # it was heard: what it told needs no mention any more
                space.ack_queue.subtract(told[1][at], told[1][at + 1])
            self._told = None
        if not self._ledger.batches and shared is None:
            return
        ranges: list[int] = []
        for each in ack_rangeset:
            ranges += (each.start, each.stop)
        cc = self._cc
        if shared is not None:
            shared.settle(ranges, before, now, cc)
        lost: list[Any] = []
        for mark, acked_bytes, lost_bytes in self._ledger.settle(ranges, space.largest_acked_packet):
            assert isinstance(mark, Sent)
            if acked_bytes:
                cc.on_packet_acked(now=now, packet=mark.part(acked_bytes))  # type: ignore[arg-type]
            if lost_bytes:
                lost.append(mark.part(lost_bytes))
        if lost:
            cc.on_packets_lost(now=now, packets=lost)

    def share(self) -> Shared:
        """From now on packet workers seal and open packets as well."""
        if self.shared is None:
            self.shared = Shared(self._connection, self._space)
        return self.shared

    def sent(self, first: int, sizes: list[int], sent_at: float) -> None:
        """A packet worker is about to send these, with numbers that `Shared.take` gave."""
        if self.shared is not None and sizes:
            self.shared.sent(first, sizes, sent_at, self._cc)
            self._booked(len(sizes), sent_at)

    def _booked(self, count: int, now: float) -> None:
        connection = self._connection
        if not connection._ack_eliciting_sent_since_receipt:
            connection._close_at = now + connection._idle_timeout()
            connection._ack_eliciting_sent_since_receipt = True
        self._sent_under_key += count
        if self._sent_under_key >= UPDATE_AFTER and not self._pair._update_key_requested:
            connection.request_key_update()

    def moved(self, cc: Any) -> None:
        """The congestion controller was replaced, and the bytes in flight carried over."""
        self._cc = cc

    # Receiving

    def open(self, train: bytes, segment: int, now: float) -> tuple[list[bytes], list[bytes]]:
        """Frames (0x30 and payload) of our form, booked as received; and packets for the stock connection."""
        connection, space = self._connection, self._space
        if self._pair.recv.secret is not self._receive_secret:
            self._older = self._opening
            self._older_until = now + OLD_KEYS_PTOS * connection._loss.get_probe_timeout()
            self._opening = make_keys(self._pair.recv, sealing=False, mask=self._opening.mask)
            self._receive_secret = self._pair.recv.secret
        if self._older is not None and now > self._older_until:
            self._older = None
        frames, runs, acks, others = open_train(
            self._opening, self._older, self._window, self._cids, train, segment, space.expected_packet_number
        )
        if runs:
            self._book(len(frames), runs, acks, now)
        return frames, others

    def opened(self, count: int, runs: list[int], acks: list[list[int]], now: float) -> None:
        """A packet worker has opened these: datagrams, numbers, acknowledgments as `open_train` gives them."""
        new: list[int] = []
        for at in range(0, len(runs), 2):
            start, stop = runs[at], runs[at + 1]
            if self._window.lacks(start, stop):  # else another lane has had it, or it is older than anybody remembers
                self._window.add_run(start, stop)
                new += (start, stop)
        if new:
            self._book(count, new, acks, now)

    def _book(self, count: int, runs: list[int], acks: list[list[int]], now: float) -> None:
        connection, space = self._connection, self._space
        if acks:
            self._take_acks(acks, now)
        queue = space.ack_queue
        for at in range(0, len(runs), 2):
            start, stop = runs[at], runs[at + 1]
            queue.add(start, stop)
            if stop - 1 > space.largest_received_packet:
                space.largest_received_packet = stop - 1
                space.largest_received_time = now
            if stop > space.expected_packet_number:
                space.expected_packet_number = stop
        while len(queue) > MAX_ACK_RANGES:
            queue.shift()
        if count:
            if space.ack_at is None:
                space.ack_at = now + self._ack_delay_s
                self._unacked = 0
            if not self._unacked:
                self._gathers_since = now
            self._unacked += count
            if self._unacked >= ACK_AFTER:
                space.ack_at = now
        connection._close_at = now + connection._idle_timeout()
        connection._ack_eliciting_sent_since_receipt = False

    def _take_acks(self, acks: list[list[int]], now: float) -> None:
        connection = self._connection
        for ack in acks:
            ranges = RangeSet()
            for at in range(len(ack) - 2, 0, -2):
                ranges.add(ack[at], ack[at + 1])
            delay_s = (ack[0] << connection._remote_ack_delay_exponent) / 1e6
            connection._loss.on_ack_received(ack_rangeset=ranges, ack_delay=delay_s, now=now, space=self._space)
        loss_at = self._space.loss_time
        if loss_at is not None:
            self.look_at = min(self.look_at, loss_at)
        if any(not stream.sender.buffer_is_empty for stream in connection._streams_queue):
            self.look_at = now  # stream bytes were lost: they go again

    def acknowledge(self, now: float) -> bytes:
        """The packet that acknowledges what was received, b"" for nothing; it asks for no answer and is not booked."""
        connection, space = self._connection, self._space
        ranges: list[int] = []
        for each in space.ack_queue:
            ranges += (each.start, each.stop)
        space.ack_at = None
        if not ranges:
            return b""
        if self._unacked:
            fitting = (now - self._gathers_since) * ACK_GATHERS / self._unacked
            self._ack_delay_s = min(max(fitting, MIN_ACK_DELAY_S), MAX_ACK_DELAY_S)
            self._unacked = 0
        since = now - (space.largest_received_time or now)
        frame = encode_ack(ranges, int(max(0.0, since) * 1e6) >> connection._local_ack_delay_exponent)
        self._renew_sealing()
        number = connection._packet_number
        connection._packet_number = number + 1
        if self._told is None or number - self._told[0] > TOLD_PACKETS:  # that one was lost
            self._told = number, ranges
        return seal_train(self._sealing, connection._peer_cid.cid, number, [frame])[0][0][0]

    @property
    def ack_at(self) -> float | None:
        return self._space.ack_at
