"""Answers that leave from the address a datagram was sent to, on a host with several.

A socket that is bound to every address answers from the one that the kernel finds best for the way back, and who asked
another one takes no notice. So the kernel is asked with each datagram where it came in, and told with each answer.

Ref: ip(7) IP_PKTINFO; RFC 3542 §6
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any, Final, final

IP_PKTINFO: Final = 8
IPV6_RECVPKTINFO: Final = 49
IPV6_PKTINFO: Final = 50
EVERYWHERE: Final = ("0.0.0.0", "::")  # noqa: S104  compared with, not bound to
_LINK_LOCAL: Final = b"\xfe\x80"

Control = list[tuple[int, int, bytes]]


@final
class Source(tuple[Any, ...]):
    """A sender's address as `recvmsg` has it, and what `sendmsg` has to be told for the answer."""

    control: Control


def hear_destinations(channel: socket.socket) -> bool:
    """Have the kernel tell where datagrams came in. False where the socket has one address, or the kernel does not."""
    if channel.getsockname()[0] not in EVERYWHERE:
        return False
    try:
        if channel.family == socket.AF_INET6:
            channel.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVPKTINFO, 1)
        else:
            channel.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
    except OSError:
        return False
    return True


def answering(source: Sequence[Any], ancillary: Sequence[tuple[int, int, bytes]]) -> Source:
    """The sender of a datagram that came with these control messages."""
    made = Source(source)
    made.control = []
    for level, kind, value in ancillary:
        if level == socket.IPPROTO_IP and kind == IP_PKTINFO and len(value) >= 12:
            made.control = [(level, kind, bytes(4) + value[4:8] + bytes(4))]  # by any interface
        elif level == socket.IPPROTO_IPV6 and kind == IPV6_PKTINFO and len(value) >= 20:
            interface = value[16:20] if value[:2] == _LINK_LOCAL else bytes(4)
            made.control = [(level, kind, value[:16] + interface)]
    return made
