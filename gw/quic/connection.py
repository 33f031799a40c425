"""aioquic's connection with what GhostWire needs of it.

Connection ids come from us, so that they steer to a worker and never look like disco; reset tokens follow from the id,
so that a restarted relay can still end a connection; the exporter value binds node keys to the session; what the other
side may send on streams is what was read of them and a fixed window.

Ref: spec quic §2, §5, §9; RFC 8446 §7.5; RFC 9000 §10.3
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
from collections.abc import Callable
from typing import Any, Final, final

from aioquic import tls
from aioquic._buffer import Buffer
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection, QuicConnectionError, QuicReceiveContext
from aioquic.quic.packet import QuicErrorCode
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream
from cryptography.hazmat.primitives import hashes

from gw.wire.quic.auth import BIND_BYTES, EXPORTER_LABEL
from gw.wire.quic.demux import CID_BYTES, FORBIDDEN_FIRST

logging.getLogger("quic").setLevel(logging.CRITICAL)  # aioquic's own: strangers would write to our log

RESET_TOKEN_BYTES: Final = 16
MIN_RESET_BYTES: Final = 21
MAX_STREAMS: Final = 128
MAX_SENT: Final = 64  # packets that wait for an acknowledgment, before those that need none are looked for
SENT_KEPT: Final = 16  # of the newest
MAX_GAPS: Final = 256  # in what came of a stream; a window of ours in single packets has fewer
MAX_CRYPTO_BYTES: Final = 64 << 10  # of handshake messages past what was read; aioquic: 512 KiB

CidMaker = Callable[[], bytes]


def random_cid() -> bytes:
    """A connection id that no other protocol of the port is mistaken for."""
    while True:
        cid = os.urandom(CID_BYTES)
        if cid[0] != FORBIDDEN_FIRST:
            return cid


def worker_cid(slot: int, workers: int) -> CidMaker:
    """Ids whose first byte leaves `slot` when divided by `workers`: the kernel gives their packets to that worker."""

    def make() -> bytes:
        while True:
            cid = random_cid()
            if cid[0] % workers == slot:
                return cid

    return make


def reset_token(key: bytes, cid: bytes) -> bytes:
    """The stateless reset token of a connection id under a static key."""
    return hmac.new(key, b"ghostwire reset" + cid, hashlib.sha256).digest()[:RESET_TOKEN_BYTES]


def stateless_reset(key: bytes, cid: bytes, size: int) -> bytes:
    """The packet that ends a connection nobody here knows; b"" where the packet it answers (`size`) was too small.

    It is smaller than what it answers, so that two hosts never keep resetting one another.
    """
    if size <= MIN_RESET_BYTES:
        return b""
    noise = os.urandom(min(size - 1, 42) - RESET_TOKEN_BYTES)
    return bytes([0x40 | noise[0] & 0x3F]) + noise[1:] + reset_token(key, cid)


@final
class Connection(QuicConnection):
    """bind: the exporter value of the session for its ALPN, empty before the handshake is over."""

    def __init__(
        self,
        *,
        configuration: QuicConfiguration,
        new_cid: CidMaker = random_cid,
        reset_key: bytes = b"",
        first_cid: bytes = b"",
        streams: tuple[int, int] = (MAX_STREAMS, MAX_STREAMS),
        window: int = 0,
        **others: Any,
    ) -> None:
        """reset_key: of a server. first_cid: of a client, the destination of its first packet. others: aioquic's.

        streams: that the other side may have open, in both directions and in its own. window: bytes that it may send
        on them before they are read, 0 for those of the configuration.
        """
        super().__init__(configuration=configuration, **others)
        for limit, count in zip((self._local_max_streams_bidi, self._local_max_streams_uni), streams, strict=True):
            limit.value = limit.sent = count
        if window:
            self._local_max_data.value = self._local_max_data.sent = window
            self._local_max_stream_data_bidi_local = self._local_max_stream_data_bidi_remote = window
            self._local_max_stream_data_uni = window
        self._data_window = self._local_max_data.value
        self._stream_window = self._local_max_stream_data_bidi_remote
        self._sent_limit = MAX_SENT
        self._new_cid = new_cid
        self._reset_key = reset_key
        self.bind = b""
        own = self._host_cids[0]
        own.cid = new_cid()
        if not self._is_client:
            own.stateless_reset_token = self._token(own.cid)
        self.host_cid = self._local_initial_source_connection_id = own.cid
        if self._is_client and first_cid:
            self._peer_cid.cid = self._original_destination_connection_id = first_cid

    def _token(self, cid: bytes) -> bytes:
        return reset_token(self._reset_key, cid) if self._reset_key else os.urandom(RESET_TOKEN_BYTES)

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        self.tls._supported_groups = [tls.Group.X25519]
        inner = self.tls.update_traffic_key_cb
        # the transcript is exactly that of the exporter when the server's application secret comes up
        wanted = tls.Direction.DECRYPT if self._is_client else tls.Direction.ENCRYPT

        def installed(direction: tls.Direction, epoch: tls.Epoch, suite: tls.CipherSuite, secret: bytes) -> None:
            if epoch is tls.Epoch.ONE_RTT and direction is wanted:
                self._export()
            inner(direction, epoch, suite, secret)

        self.tls.update_traffic_key_cb = installed

    def _export(self) -> None:
        schedule = self.tls.key_schedule
        assert schedule is not None
        master = schedule.derive_secret(b"exp master")
        algorithm = schedule.algorithm
        derived = tls.hkdf_expand_label(algorithm, master, EXPORTER_LABEL, _hash(algorithm, b""), algorithm.digest_size)
        context = (self.tls.alpn_negotiated or (self._configuration.alpn_protocols or [""])[0]).encode()
        self.bind = tls.hkdf_expand_label(algorithm, derived, b"exporter", _hash(algorithm, context), BIND_BYTES)

    def _replenish_connection_ids(self) -> None:
        before = len(self._host_cids)
        super()._replenish_connection_ids()
        for made in self._host_cids[before:]:
            made.cid = self._new_cid()
            made.stateless_reset_token = self._token(made.cid)

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Any]]:
        out: list[tuple[bytes, Any]] = super().datagrams_to_send(now)
        for space in self._loss.spaces:
            if len(space.sent_packets) > self._sent_limit:
                self._forget_bare_acks(space)
        return out

    def _forget_bare_acks(self, space: QuicPacketSpace) -> None:
        """aioquic books them until something is acknowledged, which who has us send them need never do."""
        sent = space.sent_packets
        for number in list(sent)[:-SENT_KEPT]:
            if not sent[number].in_flight:
                del sent[number]
        self._sent_limit = max(MAX_SENT, 2 * len(sent))

    # aioquic doubles a limit when the highest offset passes half of it, and fills the gap before a byte with zeros

    def _write_connection_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace) -> None:
        limit = self._local_max_data
        received = limit.used
        if limit.value - received < self._data_window // 2:
            receivers = [each.receiver for each in self._streams.values()]
            unread = sum(each.highest_offset - each.starting_offset() for each in receivers if not each.is_finished)
            limit.value = max(limit.value, received - unread + self._data_window)
        limit.used = 0
        try:
            super()._write_connection_limits(builder=builder, space=space)
        finally:
            limit.used = received

    def _write_stream_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace, stream: QuicStream) -> None:
        receiver, limit = stream.receiver, stream.max_stream_data_local
        if limit and limit - receiver.starting_offset() < self._stream_window // 2:
            stream.max_stream_data_local = receiver.starting_offset() + self._stream_window
        highest, receiver.highest_offset = receiver.highest_offset, 0
        try:
            super()._write_stream_limits(builder=builder, space=space, stream=stream)
        finally:
            receiver.highest_offset = highest

    def _handle_stream_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        start = buf.tell()
        which = buf.pull_uint_var()
        buf.seek(start)
        super()._handle_stream_frame(context, frame_type, buf)
        stream = self._streams.get(which)
        if stream is not None and len(stream.receiver._ranges) > MAX_GAPS:
            raise QuicConnectionError(QuicErrorCode.INTERNAL_ERROR, frame_type, "too many gaps in a stream")

    def _handle_crypto_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        start = buf.tell()
        end = buf.pull_uint_var() + buf.pull_uint_var()
        buf.seek(start)
        if end - self._crypto_streams[context.epoch].receiver.starting_offset() > MAX_CRYPTO_BYTES:
            raise QuicConnectionError(QuicErrorCode.CRYPTO_BUFFER_EXCEEDED, frame_type, "too much crypto buffering")
        super()._handle_crypto_frame(context, frame_type, buf)

    @property
    def cids(self) -> list[bytes]:
        """The ids by which the other side reaches us."""
        return [each.cid for each in self._host_cids]

    @property
    def peer_certificate(self) -> bytes:
        """DER of what the other side showed, empty where it showed none (resumption)."""
        from cryptography.hazmat.primitives.serialization import Encoding

        shown = self.tls._peer_certificate
        return b"" if shown is None else shown.public_bytes(Encoding.DER)

    def is_reset(self, packet: bytes) -> bool:
        """Whether a packet that belongs to no id of ours ends the connection (RFC 9000 §10.3.1)."""
        if len(packet) < MIN_RESET_BYTES or packet[0] & 0x80:
            return False
        shown = packet[-RESET_TOKEN_BYTES:]
        known = [self._peer_cid, *self._peer_cid_available]
        return any(
            each.stateless_reset_token and hmac.compare_digest(each.stateless_reset_token, shown) for each in known
        )


def _hash(algorithm: hashes.HashAlgorithm, data: bytes) -> bytes:
    digest = hashes.Hash(algorithm)
    digest.update(data)
    return digest.finalize()
