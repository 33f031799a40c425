"""Counters that packet workers write and the engine reads, in memory both have mapped. No packet costs a message.

    0      drops of the outbound worker, by reason, i64 each     (REASONS of them)
    2048   drops of the inbound worker
    4096   one block of 128 bytes a peer, by slot:
             0  sent: packets, bytes, last data, last of any kind      written by the outbound worker
            64  received: packets, bytes, last data, last of any kind  written by the inbound worker

Bytes are those of the inner packets. Times are CLOCK_MONOTONIC nanoseconds, 0 for never. A reader may see the
fields of a block a batch apart; each field is whole.
"""

from __future__ import annotations

import struct
from mmap import mmap
from typing import Final, final

from mypy_extensions import i64, mypyc_attr

PEERS_AT: Final = 4096
INBOUND_DROPS_AT: Final = 2048
PEER_BYTES: Final = 128
RECEIVED_AT: Final = 64
MAX_PEERS: Final = 65536
SHARED_BYTES: Final = PEERS_AT + MAX_PEERS * PEER_BYTES
REASONS: Final = 16
_FOUR: Final = struct.Struct("<4q")
_ONE: Final = struct.Struct("<q")

# Why a packet was dropped
DROP_MALFORMED: Final = 0
DROP_NO_ROUTE: Final = 1
DROP_QUEUE_FULL: Final = 2
DROP_UNREACHABLE: Final = 3
DROP_SEND: Final = 4
DROP_UNKNOWN_SESSION: Final = 5
DROP_TAG: Final = 6
DROP_REPLAY: Final = 7
DROP_SPOOFED: Final = 8
DROP_ACL: Final = 9
DROP_MULTICAST: Final = 10
DROP_LINK_LOCAL: Final = 11
DROP_NOT_LOCAL: Final = 12
DROP_FRAGMENT: Final = 13
DROP_UNKNOWN_PROTOCOL: Final = 14
DROP_TUN: Final = 15
REASON_NAMES: Final = (
    "malformed",
    "no-route",
    "queue-full",
    "unreachable",
    "send",
    "unknown-session",
    "tag",
    "replay",
    "spoofed",
    "acl",
    "multicast",
    "link-local-unicast",
    "not-local",
    "fragment",
    "unknown-protocol",
    "tun",
)


@final
@mypyc_attr(native_class=True)
class Tally:
    """One direction of one peer, kept by its worker and stored after each batch."""

    def __init__(self, shared: mmap, at: int) -> None:
        """at: offset of the four fields; what stands there goes on counting (a worker that was restarted)."""
        packets, size, data, any_ = _FOUR.unpack_from(shared, at)
        self.shared: mmap = shared
        self.at: int = at
        self.packets: i64 = packets
        self.size: i64 = size
        self.data_ns: i64 = data
        self.any_ns: i64 = any_

    def store(self) -> None:
        _FOUR.pack_into(self.shared, self.at, self.packets, self.size, self.data_ns, self.any_ns)

    def clear(self) -> None:
        """The peer is gone; its slot will be another's."""
        _FOUR.pack_into(self.shared, self.at, 0, 0, 0, 0)


@final
@mypyc_attr(native_class=True)
class Drops:
    """Dropped packets by reason, of one worker."""

    def __init__(self, shared: mmap, at: int) -> None:
        self.shared: mmap = shared
        self.at: int = at

    def add(self, reason: int, count: int = 1) -> None:
        place = self.at + 8 * reason
        _ONE.pack_into(self.shared, place, _ONE.unpack_from(self.shared, place)[0] + count)


def sent_at(slot: int) -> int:
    return PEERS_AT + slot * PEER_BYTES


def received_at(slot: int) -> int:
    return PEERS_AT + slot * PEER_BYTES + RECEIVED_AT
