"""The node's UDP sockets, one a family on the same port, with the buffers and offloads that the kernel grants.

Ref: spec dataplane §2.6 to §2.8
"""

from __future__ import annotations

import errno
import socket
import sys
from dataclasses import dataclass
from typing import Final

from gw.errors import Conflict, GwError

BUFFER_BYTES: Final = 7 << 20
BYPASS_MARK: Final = 0x80000  # our own sockets escape the tunnel's routes
SOL_UDP: Final = 17
UDP_SEGMENT: Final = 103
UDP_GRO: Final = 104
SO_SNDBUFFORCE: Final = 32
SO_RCVBUFFORCE: Final = 33
SO_MARK: Final = 36


@dataclass(frozen=True, slots=True)
class UdpSockets:
    """v4 and v6 on one port. v6 is None where the host has no IPv6. Both are non-blocking."""

    v4: socket.socket
    v6: socket.socket | None
    port: int
    gso: bool
    gro: bool

    def close(self) -> None:
        self.v4.close()
        if self.v6 is not None:
            self.v6.close()


def open_udp(port: int) -> UdpSockets:
    """Bind both families; port 0 chooses one. Raises Conflict where the port is taken."""
    tries = 1 if port else 8
    while True:
        v4 = _bind(socket.AF_INET, "", port)
        bound = v4.getsockname()[1]
        try:
            v6 = _bind(socket.AF_INET6, "", bound)
        except Conflict:
            v4.close()
            tries -= 1
            if tries <= 0:
                raise
            continue
        except GwError:
            v6 = None  # no IPv6 on this host
        break
    sockets = [v4] if v6 is None else [v4, v6]
    gro = [_try(sock, SOL_UDP, UDP_GRO, 1) for sock in sockets]
    gso = [_try(sock, SOL_UDP, UDP_SEGMENT, 0) for sock in sockets]
    return UdpSockets(v4, v6, bound, all(gso), all(gro))


def bypass(sock: socket.socket) -> None:
    """Mark a socket so that its packets do not enter the tunnel. Without permission nothing changes."""
    if sys.platform == "linux":
        _try(sock, socket.SOL_SOCKET, SO_MARK, BYPASS_MARK)


def _bind(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    try:
        sock = socket.socket(family, socket.SOCK_DGRAM)
    except OSError as error:
        raise GwError(f"no UDP socket: {error.strerror}") from error
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise Conflict(f"UDP port {port} is in use", hint="give `--port` another number, or 0 for any") from None
        raise GwError(f"cannot listen on UDP port {port}: {error.strerror}") from error
    sock.setblocking(False)
    for force, plain in ((SO_RCVBUFFORCE, socket.SO_RCVBUF), (SO_SNDBUFFORCE, socket.SO_SNDBUF)):
        if not _try(sock, socket.SOL_SOCKET, force, BUFFER_BYTES):
            _try(sock, socket.SOL_SOCKET, plain, BUFFER_BYTES)
    bypass(sock)
    return sock


def _try(sock: socket.socket, level: int, option: int, value: int) -> bool:
    try:
        sock.setsockopt(level, option, value)
    except OSError:
        return False
    return True
