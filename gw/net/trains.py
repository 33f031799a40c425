"""A UDP socket that takes and gives datagrams by the train: many of one size in one call, where the kernel can.

Ref: udp(7) UDP_SEGMENT, UDP_GRO; spec quic §5
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, final

from gw.net.answering import Source, answering, hear_destinations
from gw.net.udp import BUFFER_BYTES, SO_RCVBUFFORCE, SO_SNDBUFFORCE, SOL_UDP, UDP_GRO, UDP_SEGMENT

RECEIVE_BYTES: Final = 65536
CONTROL_BYTES: Final = 128
MAX_SEGMENTS: Final = 64
MAX_TRAIN_BYTES: Final = 65000
REFUSED_TRAINS: Final = 3  # so many, and no more are tried
IP_MTU_DISCOVER: Final = 10
IP_PMTUDISC_PROBE: Final = 3
IPV6_MTU_DISCOVER: Final = 23
ERRORS_A_TURN: Final = 64
IP_RECVERR: Final = 11
IPV6_RECVERR: Final = 25
_SIZE: Final = struct.Struct("=H")
_NOT_HERE: Final = (errno.EIO, errno.EINVAL, errno.ENOPROTOOPT, errno.EOPNOTSUPP)


@final
class TrainSocket:
    """Takes over a bound UDP socket and makes it non-blocking. shared: it is another's too and stays as it is; with GSO
    where that one has it on."""

    def __init__(self, channel: socket.socket, *, shared: bool = False, gso: bool = False) -> None:
        channel.setblocking(False)
        self.channel: Final = channel
        self._refused = 0  # trains in a row whose datagrams went out one by one
        self.unsent = 0  # datagrams that the kernel had no room for
        self._hears_destinations = False
        self.gro = False
        self.gso = gso
        if shared:
            return
        for force, plain in ((SO_RCVBUFFORCE, socket.SO_RCVBUF), (SO_SNDBUFFORCE, socket.SO_SNDBUF)):
            if not self._set(socket.SOL_SOCKET, force, BUFFER_BYTES):
                self._set(socket.SOL_SOCKET, plain, BUFFER_BYTES)
        self._set(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE)
        if channel.family == socket.AF_INET6:
            self._set(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, IP_PMTUDISC_PROBE)
        self.gro = self._set(SOL_UDP, UDP_GRO, 1)
        self.gso = self._set(SOL_UDP, UDP_SEGMENT, 0)

    def answer_from_where_asked(self) -> None:
        """From now on `receive` gives addresses to which `send` sends from where their datagram came in."""
        self._hears_destinations = hear_destinations(self.channel)

    def hear_refusals(self) -> None:
        """From now on `receive` raises ConnectionRefusedError where a host says that nobody listens at a port there."""
        self._set(socket.IPPROTO_IP, IP_RECVERR, 1)
        if self.channel.family == socket.AF_INET6:
            self._set(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)

    def take_refusals(self) -> bool:
        """Take what the kernel keeps of them, which makes the descriptor readable; whether there was any.

        Call it whenever `receive` raises: a `send` may have got the error itself.
        """
        found = False
        with suppress(OSError):
            for _ in range(ERRORS_A_TURN):
                _, ancillary, _, _ = self.channel.recvmsg(1, 512, socket.MSG_ERRQUEUE)
                found = found or any(
                    kind in (IP_RECVERR, IPV6_RECVERR)
                    and int.from_bytes(value[:4], sys.byteorder) == errno.ECONNREFUSED
                    for _, kind, value in ancillary
                )
        return found

    def _set(self, level: int, option: int, value: int) -> bool:
        try:
            self.channel.setsockopt(level, option, value)
        except OSError:
            return False
        return True

    @property
    def is_ipv6(self) -> bool:
        return self.channel.family == socket.AF_INET6

    def fileno(self) -> int:
        return self.channel.fileno()

    def close(self) -> None:
        self.channel.close()

    def receive(self) -> tuple[bytes, int, Any]:
        """Datagrams of one sender, their size (the last may be shorter), the sender. Raises OSError."""
        data, ancillary, _, source = self.channel.recvmsg(RECEIVE_BYTES, CONTROL_BYTES)
        segment = len(data)
        for level, kind, value in ancillary:
            if level == SOL_UDP and kind == UDP_GRO and len(value) >= 2:
                segment = int.from_bytes(value[:4], sys.byteorder)
        if self._hears_destinations:
            source = answering(source, ancillary)
        return data, segment or len(data), source

    def send(self, trains: Sequence[tuple[bytes, int, Any]]) -> int:
        """Send trains as `receive` gives them, in order; returns the errno of the last that failed for good, else 0.

        What the kernel has no room for is lost, as on any path.
        """
        failed = 0
        for data, segment, target in trains:
            failed = self.send_train(data, segment, target) or failed
        return failed

    def send_train(self, data: bytes, segment: int, target: Any) -> int:
        """The same for one: datagrams of `segment` bytes each, the last may be shorter."""
        size = len(data)
        if size > segment and self.gso:
            most = segment * max(1, min(MAX_SEGMENTS, MAX_TRAIN_BYTES // segment))
            if size > most:
                return self.send([(data[at : at + most], segment, target) for at in range(0, size, most)])
            try:
                control = [(SOL_UDP, UDP_SEGMENT, _SIZE.pack(segment))]
                if type(target) is Source:
                    control += target.control
                self.channel.sendmsg([data], control, 0, target)
                self._refused = 0
                return 0
            except BlockingIOError:
                self.unsent += -(-size // segment)
                return 0
            except OSError as error:
                if error.errno not in _NOT_HERE:
                    return error.errno or errno.EIO
        failed = 0
        for at in range(0, size, segment):
            try:
                self._send_one(data[at : at + segment], target)
            except BlockingIOError:
                self.unsent += 1
            except OSError as error:
                failed = error.errno or errno.EIO
        if size > segment and self.gso and not failed:  # it was this that was refused, not its datagrams
            self._refused += 1
            self.gso = self._refused < REFUSED_TRAINS
        return failed

    def _send_one(self, packet: bytes, target: Any) -> None:
        if type(target) is Source:
            self.channel.sendmsg([packet], target.control, 0, target)
        else:
            self.channel.sendto(packet, target)
