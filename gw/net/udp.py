"""The node's UDP sockets, one a family on the same port, with the buffers and offloads that the kernel grants.

Ref: spec dataplane §2.6 to §2.8
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
import sys
from typing import Final, final

from gw.errors import Conflict, GwError
from gw.net.offloads import ALL, Offloads

BUFFER_BYTES: Final = 7 << 20
BYPASS_MARK: Final = 0x80000  # our own sockets escape the tunnel's routes
SOL_UDP: Final = 17
UDP_SEGMENT: Final = 103
UDP_GRO: Final = 104
SO_SNDBUFFORCE: Final = 32
SO_RCVBUFFORCE: Final = 33
SO_MARK: Final = 36
SO_REUSEPORT: Final = 15
SO_ATTACH_REUSEPORT_CBPF: Final = 51
_INSTRUCTION: Final = struct.Struct("=HBBI")  # struct sock_filter
_PROGRAM: Final = struct.Struct("@HP")  # struct sock_fprog


@final
class UdpSockets:
    """IPv4 and IPv6 on one port, non-blocking; all6 is empty where the host has no IPv6.

    With several lanes each family has a socket a lane, and the kernel gives a WireGuard transport datagram to the lane
    that the low bits of its receiver index name, everything else to the first.
    """

    def __init__(self, all4: list[socket.socket], all6: list[socket.socket], offloads: Offloads) -> None:
        self.all4 = all4
        self.all6 = all6
        self.port: Final[int] = all4[0].getsockname()[1]
        self.gro = offloads.gro and _try_all(all4 + all6, UDP_GRO, 1)
        self.gso = offloads.gso and _try_all(all4 + all6, UDP_SEGMENT, 0)

    @property
    def lanes(self) -> int:
        return len(self.all4)

    @property
    def v4(self) -> socket.socket:
        """For what is the engine's own to send."""
        return self.all4[0]

    @property
    def v6(self) -> socket.socket | None:
        return self.all6[0] if self.all6 else None

    def narrow(self) -> None:
        """Go on with the first lane alone."""
        for sock in self.all4[1:] + self.all6[1:]:
            sock.close()
        del self.all4[1:], self.all6[1:]

    def close(self) -> None:
        for sock in self.all4 + self.all6:
            sock.close()


def open_udp(port: int, lanes: int = 1, offloads: Offloads = ALL) -> UdpSockets:
    """Bind both families; port 0 chooses one. Raises Conflict where the port is taken.

    lanes: a power of two; there is one where the kernel does not steer by receiver index.
    """
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
    firsts = [v4] if v6 is None else [v4, v6]
    if lanes > 1:
        families = [sock.family for sock in firsts]
        for sock in firsts:  # the port is free: sockets that share it would not have noticed another's
            sock.close()
        groups = [_bind_group(family, bound, lanes) for family in families]
    else:
        groups = [[sock] for sock in firsts]
    sockets = UdpSockets(groups[0], groups[1] if len(groups) > 1 else [], offloads)
    if lanes > 1 and sum(_steer(group[0], lanes) for group in groups) < len(groups):
        sockets.narrow()
    return sockets


def _bind_group(family: socket.AddressFamily, port: int, lanes: int) -> list[socket.socket]:
    group: list[socket.socket] = []
    try:
        while len(group) < lanes:
            group.append(_bind(family, "", port, shared=True))
    except GwError:
        for sock in group:
            sock.close()
        raise
    return group


def _steer(sock: socket.socket, lanes: int) -> bool:
    """Have the kernel choose among the sockets of a port: classic BPF over the UDP payload."""
    return _attach(
        sock,
        (
            (0x20, 0, 0, 0),  # ld [0]
            (0x15, 0, 3, 0x04000000),  # is it type 4, transport data?
            (0x30, 0, 0, 4),  # ldb [4]: the low byte of the receiver index
            (0x54, 0, 0, lanes - 1),  # and
            (0x16, 0, 0, 0),  # ret A
            (0x06, 0, 0, 0),  # ret 0
        ),
    )


def steer_quic(sock: socket.socket, workers: int) -> bool:
    """Have the kernel give QUIC to the worker that its connection id names, what is relayed between two nodes (Geneve)
    to the one that its VNI names, everything else to the first.

    The first byte of an id, or the last of a VNI, divided by `workers`, leaves the number of the worker, in the order
    of binding. sock: one of those that share the port. False where the kernel does not do it.
    """
    return _attach(
        sock,
        (
            (0x30, 0, 0, 0),  # ldb [0]
            (0x45, 4, 0, 0x80),  # a long header?
            (0x45, 5, 0, 0x40),  # a short one?
            (0x30, 0, 0, 2),  # ldb [2]
            (0x15, 1, 0, 0x7A),  # Geneve?
            (0x06, 0, 0, 0),  # ret 0
            (0x30, 0, 0, 6),  # ldb [6]: behind version and length; the end of a VNI
            (0x05, 0, 0, 1),  # ja
            (0x30, 0, 0, 1),  # ldb [1]
            (0x94, 0, 0, workers),  # mod
            (0x16, 0, 0, 0),  # ret A
        ),
    )


def _attach(sock: socket.socket, program: tuple[tuple[int, int, int, int], ...]) -> bool:
    text = b"".join(_INSTRUCTION.pack(*each) for each in program)
    kept = ctypes.create_string_buffer(text, len(text))
    return _try(sock, socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, _PROGRAM.pack(len(program), ctypes.addressof(kept)))


def bypass(sock: socket.socket) -> None:
    """Mark a socket so that its packets do not enter the tunnel. Without permission nothing changes."""
    if sys.platform == "linux":
        _try(sock, socket.SOL_SOCKET, SO_MARK, BYPASS_MARK)


def _bind(family: socket.AddressFamily, host: str, port: int, *, shared: bool = False) -> socket.socket:
    try:
        sock = socket.socket(family, socket.SOCK_DGRAM)
    except OSError as error:
        raise GwError(f"no UDP socket: {error.strerror}") from error
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, SO_REUSEPORT, 1)
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


def _try_all(sockets: list[socket.socket], option: int, value: int) -> bool:
    """True where every one of them takes a UDP option."""
    return sum(_try(sock, SOL_UDP, option, value) for sock in sockets) == len(sockets)


def _try(sock: socket.socket, level: int, option: int, value: int | bytes) -> bool:
    try:
        sock.setsockopt(level, option, value)
    except OSError:
        return False
    return True
