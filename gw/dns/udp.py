"""The server's UDP socket: each answer leaves from the address that was asked.

On a host with several addresses the kernel would choose the source by itself, and a client drops an answer from an
address it did not ask.

Ref: ip(7) IP_PKTINFO; RFC 3542 §6
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Final, final

log: Final = logging.getLogger(__name__)

BATCH: Final = 64  # queries before the loop is given back
MAX_BYTES: Final = 4096
_ANCILLARY_BYTES: Final = 128
_IP_PKTINFO: Final = 8  # socket.IP_PKTINFO is of CPython 3.14

Reply = Callable[[bytes], None]


@final
class UdpSocket:
    """heard: (query, the asker's address, how to answer it). Takes the socket over."""

    def __init__(self, sock: socket.socket, heard: Callable[[bytes, str, Reply], None]) -> None:
        self._sock = sock
        self._heard = heard
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock, self._read)

    def close(self) -> None:
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock)
            self._sock.close()

    def _read(self) -> None:
        for _ in range(BATCH):
            try:
                data, ancillary, _flags, source = self._sock.recvmsg(MAX_BYTES, _ANCILLARY_BYTES)
            except BlockingIOError:
                return
            except OSError as error:  # a port that an earlier answer did not reach
                log.debug("UDP: %s", error)
                continue
            self._heard(data, source[0], self._reply(source, [_as_source(*each) for each in ancillary]))

    def _reply(self, source: tuple[object, ...], ancillary: list[tuple[int, int, bytes]]) -> Reply:
        def reply(answer: bytes) -> None:
            if self._sock.fileno() < 0:
                return
            try:
                self._sock.sendmsg([answer], ancillary, 0, source)
            except OSError as error:
                log.debug("UDP answer to %s: %s", source[0], error)

        return reply


def _as_source(level: int, kind: int, info: bytes) -> tuple[int, int, bytes]:
    """From where it came in to where it goes out: the address stays, the way is the kernel's choice."""
    if level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
        return level, kind, bytes(4) + info[8:12] + bytes(4)  # ipi_ifindex, ipi_spec_dst, ipi_addr
    if info[:2] == b"\xfe\x80":
        return level, kind, info  # link-local: the interface is part of the address
    return level, kind, info[:16] + bytes(4)
