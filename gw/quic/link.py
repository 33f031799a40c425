"""One QUIC connection as a relay, a client or a peer uses it: datagrams, the control stream, timers, moves.

    receive(train, …)  ─▶ handler: datagrams, stream bytes, up, moved, closed
    send, send_stream  ─▶ poll(now) gives packets to send, control before datagrams     deadline(): when to poll again

The owner brings sockets and time. A datagram waits here only as long as the congestion window is full: who has a queue
with a policy looks at `waiting` and keeps the rest there.

Ref: spec quic §3 (traps), §6, §8.4, §14
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, Protocol, final

from aioquic import tls
from aioquic.quic import events
from aioquic.quic.congestion.base import create_congestion_control
from aioquic.quic.connection import END_STATES, NetworkAddress

from gw.errors import WireError
from gw.native.quicpackets import MAX_SEGMENTS, MAX_TRAIN_BYTES, has_kind
from gw.quic import congestion
from gw.quic.configuration import START_BYTES
from gw.quic.connection import Connection
from gw.quic.fastpath import BATCH, FastPath
from gw.wire.quic import datagrams, frames
from gw.wire.quic.demux import CID_BYTES

STOCK_BURST: Final = 16
PACKET_BYTES: Final = 29  # around a frame with its type
STOCK_OVERHEAD_BYTES: Final = 33  # with the frame's length
BATCHES_A_POLL: Final = 4
LOOK_S: Final = 0.02  # how long the stock timer may lie behind while the fast path sends
PROBE_SIZES: Final = (
    1349,
    1400,
    1452,
)  # UDP payloads worth knowing: the usual tunnel packet, PPPoE and the like, Ethernet
PROBE_TRIES: Final = 3
PROBE_S: Final = 0.5  # for an echo
REPROBE_S: Final = 600.0
CONTROL_STREAM: Final = 0
_ONE_RTT: Final = tls.Epoch.ONE_RTT
MAX_EARLY_BYTES: Final = 64 << 10


Train = tuple[bytes, int, NetworkAddress]  # datagrams of one size (the last may be shorter), the size, where to


class LinkHandler(Protocol):
    """What a link tells its owner."""

    def up(self) -> None:
        """The handshake is over: node keys may be proven now (`Link.bind`)."""

    def datagrams(self, batch: list[bytes], now: float) -> None:
        """Payloads with 0x30 before each."""

    def stream(self, data: bytes, now: float) -> None:
        """Bytes of the control stream. Raises WireError where they make no sense: the link is closed then."""

    def moved(self, address: NetworkAddress) -> None:
        """The other side has another address now."""

    def closed(self, code: int, reason: str) -> None:
        """The connection is gone; nothing follows."""


@final
class Link:
    """After `receive`, `send`, `send_stream`, `close` call `poll`."""

    def __init__(self, connection: Connection, handler: LinkHandler, *, fast: bool, probes: bool = True) -> None:
        """fast: whether the fast path may be used (`gw.quic.selftest`). probes: whether to look for a larger MTU."""
        self.connection: Final = connection
        self._handler = handler
        self._fast_allowed = fast
        self._fast: FastPath | None = None
        self._queue: deque[bytes] = deque()  # frames: 0x30 and payload
        self._is_dirty = True
        self._look_at = 0.0  # when the stock connection wants to be looked at
        self._address: NetworkAddress | None = None
        self._probes = probes
        self._size = START_BYTES  # of UDP payloads, proven
        self._probe_sequence = int.from_bytes(os.urandom(3), "big")
        self._probing: tuple[int, int, int] | None = None  # sequence, index of the size, tries
        self._probe_at = float("inf")
        self._is_doubting = False  # whether the size that was proven is asked for again
        self._echo = b""  # to the last probe of the other side
        self.echoes_left = float("inf")  # that it may still ask for
        self.cids_changed = False  # whether `Connection.cids` may be others than when the owner set it to False
        self.is_up = False
        self.is_closed = False
        self.is_resumed = False
        self.is_early_accepted = False
        self.heard_at = float("-inf")
        self.dropped_large = 0
        self.aside: Callable[[int, bytes, bool], None] | None = None  # takes others' streams: id, bytes, is the end

    # What the owner asks

    @property
    def bind(self) -> bytes:
        """The exporter value that claims are bound to."""
        return self.connection.bind

    @property
    def limit(self) -> int:
        """The largest datagram that fits now."""
        return self._size - STOCK_OVERHEAD_BYTES

    @property
    def waiting(self) -> int:
        """Datagrams that the congestion window has no room for."""
        return len(self._queue)

    @property
    def has_understood(self) -> bool:
        """Whether any packet of the other side could be decrypted."""
        return any(each.largest_received_packet >= 0 for each in self.connection._spaces.values())

    @property
    def unsent(self) -> int:
        """Bytes of the control stream that the other side has not acknowledged."""
        return len(stream.sender._buffer) if (stream := self.connection._streams.get(CONTROL_STREAM)) else 0

    @property
    def acknowledged(self) -> int:
        """Bytes of the control stream that it has."""
        return stream.sender._buffer_start if (stream := self.connection._streams.get(CONTROL_STREAM)) else 0

    @property
    def asides(self) -> int:
        """Messages of `send_aside` that the other side does not have yet."""
        connection = self.connection
        own = 2 if connection._is_client else 3
        return sum(number & 3 == own for number in connection._streams)

    @property
    def newest(self) -> int:
        """The highest packet number that the other side has proven to have sent, -1 before the first."""
        return int(self.connection._spaces[_ONE_RTT].largest_received_packet) if self.connection._spaces else -1

    @property
    def delivered(self) -> int:
        """Bytes of packets that were acknowledged, since the path is what it is."""
        controller = self.connection._loss._cc
        return controller.delivered if isinstance(controller, congestion.RateControl) else 0

    @property
    def rate(self) -> float:
        """Bytes a second that the path has delivered lately."""
        controller = self.connection._loss._cc
        return controller.rate if isinstance(controller, congestion.RateControl) else 0.0

    @property
    def is_finding(self) -> bool:
        """Whether what the path delivers was not found out yet."""
        controller = self.connection._loss._cc
        return isinstance(controller, congestion.RateControl) and controller.is_starting

    @property
    def is_dirty(self) -> bool:
        """Whether `poll` has something to do at once, datagrams apart."""
        return self._is_dirty

    def wants_poll(self, now: float) -> bool:
        """Whether `poll` has something to do at once."""
        return self._is_dirty or bool(self._queue) or bool(self._echo) or self.deadline() <= now

    @property
    def is_fast(self) -> bool:
        return self._fast is not None

    @property
    def is_settled(self) -> bool:
        """Whether the handshake is confirmed: the first destination of a client is no longer used."""
        return self.connection._handshake_confirmed

    @property
    def udp_bytes(self) -> int:
        """The largest UDP payload that was proven to pass."""
        return self._size

    @property
    def address(self) -> NetworkAddress | None:
        """Where the other side is."""
        return self.connection.get_peer_address()

    @property
    def rtt_s(self) -> float:
        """The smoothed round trip, 0 before there is one."""
        return float(self.connection._loss._rtt_smoothed)

    def deadline(self) -> float:
        """When to call `poll` if nothing happens before."""
        if self.is_closed:
            return float("inf")
        fast = self._fast
        due = min(self._look_at, self._probe_at)
        if fast is not None and fast.ack_at is not None and fast.may_send:
            due = min(due, fast.ack_at)
        return due

    # What the owner wants

    def connect(self, address: NetworkAddress, now: float) -> None:
        """A client's first step. Datagrams and stream bytes given before the first `poll` go as early data."""
        self.connection.connect(address, now)
        self._address = address
        self._is_dirty = True

    def send(self, payload: bytes) -> None:
        """Queue one datagram. One larger than `limit` is dropped: it would hold up all others for ever."""
        if len(payload) > self.limit:
            self.dropped_large += 1
            return
        self._queue.append(b"0" + payload)

    def send_frames(self, batch: list[bytes]) -> None:
        """Queue payloads with 0x30 before each, all of them within `limit`."""
        self._queue.extend(batch)

    def send_stream(self, data: bytes) -> None:
        """Bytes for the control stream. Of a server only after the client opened it."""
        if not self.is_closed:
            try:
                self.connection.send_stream_data(CONTROL_STREAM, data)
            except ValueError:  # the other side ended the stream, or never opened it
                self.connection.close(error_code=frames.BROKEN, reason_phrase="no control stream")
            self._is_dirty = True

    def send_aside(self, data: bytes) -> None:
        """A whole message on a stream of its own, which holds up no other."""
        if not self.is_closed:
            stream = self.connection.get_next_available_stream_id(is_unidirectional=True)
            self.connection.send_stream_data(stream, data, end_stream=True)
            self._is_dirty = True

    def ping(self) -> None:
        """Have the other side acknowledge something."""
        self.connection.send_ping(0)
        self._is_dirty = True

    def nudge(self) -> None:
        """The same though the congestion window is full."""
        self.connection._probe_pending = True
        self._is_dirty = True

    def close(self, code: int = frames.CLOSED, reason: str = "") -> None:
        self.connection.close(error_code=code, reason_phrase=reason)
        self._is_dirty = True

    def abandon(self, reason: str) -> None:
        """The connection is gone at once, and the other side is not told."""
        self._end(frames.BROKEN, reason)

    def move(self, now: float) -> None:
        """We send from another address now: take another connection id, and tell the other side at once.

        The padded probe gives a server three times its size of credit before it has validated the new path.
        """
        self.connection.change_connection_id()
        self.restart_path(now)
        self._probe_sequence += 1
        self._queue.appendleft(b"0" + datagrams.encode_probe(self._probe_sequence, int(now * 1e6), self.limit))
        self._is_dirty = True

    def restart_path(self, now: float) -> None:
        """What was known of the path is no longer true: window, round trip and MTU begin anew."""
        loss = self.connection._loss
        fresh = create_congestion_control(congestion.NAME, max_datagram_size=self.connection._max_datagram_size)
        fresh.bytes_in_flight = loss._cc.bytes_in_flight
        loss._cc = fresh
        if self._fast is not None:
            self._fast.moved(fresh)
        loss._rtt_initialized = False
        loss._rtt_min = float("inf")
        loss._pto_count = 0
        self._shrink()
        self._begin_probing(now)

    def _shrink(self) -> None:
        """Back to the size that every path carries; what is larger would hold up the rest."""
        connection = self.connection
        self._size = connection._max_datagram_size = START_BYTES
        self._queue = deque(frame for frame in self._queue if len(frame) - 1 <= self.limit)
        pending = [each for each in connection._datagrams_pending if len(each) <= self.limit]
        connection._datagrams_pending.clear()
        connection._datagrams_pending.extend(pending)

    # What packet workers may do

    @property
    def sharable(self) -> FastPath | None:
        """What packet workers are given keys and numbers by; None where they may not send now."""
        fast = self._fast
        return fast if fast is not None and fast.may_send and self.is_up and not self.is_closed else None

    def sent(self, first: int, sizes: list[int], sent_at: float) -> None:
        """A packet worker is about to send these packets."""
        fast = self._fast
        if fast is not None and not self.is_closed:
            fast.sent(first, sizes, sent_at)
            self._look_at = min(self._look_at, sent_at + LOOK_S)

    # What comes in

    def receive(self, train: bytes, segment: int, address: NetworkAddress, now: float) -> None:
        """Datagrams of `segment` bytes, the last may be shorter."""
        if self.is_closed or not train:
            return
        self.heard_at = now
        fast = self._fast
        if fast is None or train[0] & 0x80 or address != self._address:
            for at in range(0, len(train), segment):
                self._receive_stock(train[at : at + segment], address, now)
        else:
            got, others = fast.open(train, segment, now)
            self._opened(fast, got, now)
            if not others:
                return
            for packet in others:
                self._receive_stock(packet, address, now)
        self._drain(now)

    def take(self, count: int, got: list[bytes], runs: list[int], acks: list[list[int]], now: float) -> None:
        """What a packet worker has opened of this connection: so many datagrams, those of them that it has no use for,
        numbers and acknowledgments as `gw.native.quicpackets.open_train` gives them."""
        fast = self._fast
        if fast is not None and not self.is_closed:
            self.heard_at = now
            fast.opened(count, runs, acks, now)
            self._opened(fast, got, now)

    def _opened(self, fast: FastPath, got: list[bytes], now: float) -> None:
        if got:
            self._take(got, now)
        if fast.look_at < self._look_at:
            self._look_at = fast.look_at
        fast.look_at = float("inf")

    def _receive_stock(self, packet: bytes, address: NetworkAddress, now: float) -> None:
        connection = self.connection
        self._is_dirty = True
        if packet and not packet[0] & 0x80 and packet[1 : 1 + CID_BYTES] not in connection.cids:
            if connection._is_client and connection.is_reset(packet):
                self._end(frames.CLOSED, "the other side does not know this connection any more")
            return
        try:
            connection.receive_datagram(packet, address, now)
        except Exception as error:  # hostile bytes must not end the loop that serves everybody
            connection.close(error_code=frames.BROKEN, reason_phrase=type(error).__name__)

    def _drain(self, now: float) -> None:
        connection, handler = self.connection, self._handler
        batch: list[bytes] = []
        while (event := connection.next_event()) is not None:
            if isinstance(event, events.DatagramFrameReceived):
                batch.append(b"0" + event.data)
                continue
            if batch:
                self._take(batch, now)
                batch = []
            if isinstance(event, events.StreamDataReceived):
                if event.stream_id == CONTROL_STREAM:
                    self._stream(event.data, now)
                elif self.aside is not None and event.stream_id & 2:
                    self.aside(event.stream_id, event.data, event.end_stream)
                else:
                    connection.stop_stream(event.stream_id, frames.CLOSED)
            elif isinstance(event, events.HandshakeCompleted):
                self.is_resumed, self.is_early_accepted = event.session_resumed, event.early_data_accepted
                self._discard_early_keys()
                self.is_up = True
                self._begin_probing(now)
                handler.up()
            elif isinstance(event, events.ConnectionTerminated):
                self._end(event.error_code, event.reason_phrase)
                return
        if batch:
            self._take(batch, now)
        if self._fast is None and self._fast_allowed and connection._handshake_confirmed:
            self._fast = FastPath(connection)
        if self._is_dirty:
            self.cids_changed = True
            if self._fast is not None:
                self._fast.follow()
        address = connection.get_peer_address()
        if address != self._address:
            before, self._address = self._address, address
            if before is not None and address is not None:
                if before[0] != address[0]:
                    self.restart_path(now)
                handler.moved(address)

    def _discard_early_keys(self) -> None:
        """A server takes no early data any more once the client has proven that it is there."""
        connection = self.connection
        if not connection._is_client:
            early = connection._cryptos[tls.Epoch.ZERO_RTT].recv
            if early.is_valid():
                early.teardown()

    def _stream(self, data: bytes, now: float) -> None:
        try:
            self._handler.stream(data, now)
        except WireError as error:
            self.close(frames.BROKEN, str(error))

    def _take(self, batch: list[bytes], now: float) -> None:
        """Datagrams: probes and echoes are for us."""
        if has_kind(batch, datagrams.PROBE, datagrams.ECHO):
            own = [frame for frame in batch if len(frame) > 1 and frame[1] in (datagrams.PROBE, datagrams.ECHO)]
            batch = [frame for frame in batch if not (len(frame) > 1 and frame[1] in (datagrams.PROBE, datagrams.ECHO))]
            for frame in own:
                self._probe_untrusted(frame[1:], now)
        if batch:
            self._handler.datagrams(batch, now)

    def _end(self, code: int, reason: str) -> None:
        if self.is_closed:
            return
        self.is_closed = True
        self._queue.clear()
        self._handler.closed(code, reason)

    # What goes out

    def poll(self, now: float) -> list[Train]:
        """What to send, control first. Call it again at `deadline`."""
        out: list[Train] = []
        if self.is_closed:
            return out
        fast = self._fast
        if now >= self._probe_at:
            self._probe(now, out)
        if self._is_dirty or now >= self._look_at:
            self._look(now, out)
        if fast is not None and fast.ack_at is not None and fast.ack_at <= now and not self.is_closed:
            address = self._address
            if fast.may_send and address is not None:
                packet = fast.acknowledge(now)
                if packet:
                    out.append((packet, len(packet), address))
        if self._echo:
            self._queue.append(self._echo)
            self._echo = b""
            self.echoes_left -= 1
        if self._queue:
            self._flush(now, out)
        return out

    def _look(self, now: float, out: list[Train]) -> None:
        connection = self.connection
        due = connection.get_timer()
        if due is not None and due <= now:
            before = connection._loss._pto_count
            connection.handle_timer(now)
            if connection._loss._pto_count > before and self._size > START_BYTES and not self._is_doubting:
                self._is_doubting = True  # perhaps only the large ones are lost: ask again
                self._probing, self._probe_at = None, now
            self._drain(now)
            if self.is_closed:
                return
        out += _trains(connection.datagrams_to_send(now))
        if connection._state in END_STATES:  # nobody waits for the end of a closing connection
            event = connection._close_event
            self._end(event.error_code if event else frames.CLOSED, event.reason_phrase if event else "")
            return
        due = connection.get_timer()
        self._look_at = due if due is not None else float("inf")
        self._is_dirty = False

    def _flush(self, now: float, out: list[Train]) -> None:
        fast, queue = self._fast, self._queue
        address = self._address
        if fast is None or not fast.may_send or address is None:
            self._flush_stock(now, out)
            return
        room = fast.room()
        for _ in range(BATCHES_A_POLL):
            batch: list[bytes] = []
            count = min(len(queue), BATCH)
            if room >= count * PROBE_SIZES[-1]:  # whatever their sizes are
                batch = [queue.popleft() for _ in range(count)]
                room -= sum(map(len, batch)) + PACKET_BYTES * count
            else:
                while len(batch) < count:
                    room -= len(queue[0]) + PACKET_BYTES
                    if room < 0:
                        break
                    batch.append(queue.popleft())
            if not batch:
                break
            out += [(train, segment, address) for train, segment in fast.seal(batch, now)]
            if room < 0:
                break
        self._look_at = min(self._look_at, now + LOOK_S)
        if self._queue and room >= 0:
            self._look_at = now  # more than a poll may send: come back at once

    def _flush_stock(self, now: float, out: list[Train]) -> None:
        connection, queue = self.connection, self._queue
        pending = connection._datagrams_pending
        early = not self.is_up
        while queue and len(pending) < STOCK_BURST:
            connection.send_datagram_frame(queue.popleft()[1:])
            if len(pending) == STOCK_BURST or not queue:
                out += _trains(connection.datagrams_to_send(now))
                if early or pending:
                    break
        due = connection.get_timer()
        self._look_at = due if due is not None else float("inf")
        if pending or queue:
            self._look_at = min(self._look_at, now + 0.001 if connection._pacing_at is None else connection._pacing_at)
            self._is_dirty = bool(pending)

    # How large a datagram the path carries

    def _begin_probing(self, now: float) -> None:
        if self._probes and self.is_up:
            self._probing = None
            self._probe_at = now
            self._is_doubting = False

    def _probe(self, now: float, out: list[Train]) -> None:
        """Send the next probe; without an echo of the last one its size is too large."""
        index, tries = 0, 0
        if self._probing is not None:
            _, index, tries = self._probing
            if tries >= PROBE_TRIES:
                self._probing, self._probe_at = None, now + REPROBE_S
                if self._is_doubting:
                    self._shrink()
                    self._begin_probing(now)
                return
        if self._is_doubting:
            index = PROBE_SIZES.index(self._size)
        else:
            while index < len(PROBE_SIZES) and PROBE_SIZES[index] <= self._size:
                index += 1
        if index == len(PROBE_SIZES):
            self._probing, self._probe_at = None, now + REPROBE_S
            return
        if not self.connection._handshake_confirmed or not self.connection._network_paths[0].is_validated:
            self._probe_at = now + PROBE_S / 10
            return
        self._probe_sequence += 1
        self._probing = self._probe_sequence, index, tries + 1
        self._probe_at = now + PROBE_S
        size = PROBE_SIZES[index]
        probe = datagrams.encode_probe(self._probe_sequence, int(now * 1e6), size - STOCK_OVERHEAD_BYTES)
        if self._fast is not None:
            self._queue.appendleft(b"0" + probe)
        else:
            out += self._probe_stock(probe, size, now)

    def _probe_stock(self, probe: bytes, size: int, now: float) -> list[Train]:
        """aioquic's builder makes a larger packet where it is told of a larger size, just for this one."""
        connection = self.connection
        if connection._datagrams_pending:
            return []
        connection._max_datagram_size = size
        connection.send_datagram_frame(probe)
        out = _trains(connection.datagrams_to_send(now))
        connection._max_datagram_size = self._size
        connection._datagrams_pending.clear()  # the window was full: it would hold up what is smaller
        self._is_dirty = True
        return out

    def _probe_untrusted(self, datagram: bytes, now: float) -> None:
        try:
            if datagram[0] == datagrams.PROBE:
                if not self._queue and self.echoes_left > 0:  # one a poll, and none while something waits
                    self._echo = b"0" + datagrams.echo_of(datagram)
                return
            sequence, _ = datagrams.decode_echo(datagram)
        except WireError:
            return
        if self._probing is not None and sequence == self._probing[0]:
            self._size = PROBE_SIZES[self._probing[1]]
            self.connection._max_datagram_size = self._size
            self._probing, self._probe_at = None, now  # a second copy of the echo proves nothing
            if self._is_doubting:
                self._is_doubting, self._probe_at = False, now + REPROBE_S


def apart(trains: Iterable[Train]) -> list[tuple[bytes, NetworkAddress]]:
    """The single datagrams of trains."""
    return [
        (data[at : at + segment], address) for data, segment, address in trains for at in range(0, len(data), segment)
    ]


def _trains(packets: list[tuple[bytes, NetworkAddress]]) -> list[Train]:
    """Packets of the stock connection, those of one size to one address together."""
    trains: list[Train] = []
    for packet, address in packets:
        if trains:
            data, segment, other = trains[-1]
            if (
                other == address
                and len(packet) <= segment
                and len(data) % segment == 0
                and len(data) < segment * MAX_SEGMENTS
                and len(data) + len(packet) <= MAX_TRAIN_BYTES
            ):
                trains[-1] = data + packet, segment, address
                continue
        trains.append((packet, len(packet), address))
    return trains
