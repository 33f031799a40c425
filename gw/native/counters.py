"""Counters that packet workers write and the engine reads, in memory both have mapped. No packet costs a message.

Each sealer (a worker that may read the TUN) and each inbound lane has a region of its own, so that every field has one
writer.

    0      drops by reason, i64 each                          (REASONS of them)
    2048   who reads the lane's TUN; is its inbound worker busy  (`gw.native.turn`; of the lane's outbound worker)
    4096   one block of 256 bytes a peer, by slot:
             0  packets, bytes, last data, last of any kind
            32  session, counter: how far this lane has come             (outbound)
            40  data packets that came without a relay, copies as well   (inbound)
           128  drops by reason that can be laid to the peer

Bytes are those of the inner packets. Times are CLOCK_MONOTONIC nanoseconds, 0 for never. A reader may see the
fields of a block a batch apart; each field is whole: it is packed first and copied then, for `pack_into` clears what it
is about to write, which a reader would see and a worker killed just then would leave.
"""

from __future__ import annotations

import struct
from mmap import mmap
from typing import Final, final

from mypy_extensions import i64, mypyc_attr

MAX_LANES: Final = 4
MAX_SEALERS: Final = 2 * MAX_LANES
MAX_PEERS: Final = 65536
READER_AT: Final = 2048
BUSY_AT: Final = 2056
PEERS_AT: Final = 4096
PEER_BYTES: Final = 256
PROGRESS_AT: Final = 32
DIRECT_AT: Final = 40
PEER_DROPS_AT: Final = 128
REGION_BYTES: Final = PEERS_AT + MAX_PEERS * PEER_BYTES
SHARED_BYTES: Final = (MAX_SEALERS + MAX_LANES) * REGION_BYTES  # a sparse file: what nobody writes takes no memory
OUTBOUND: Final = 0
INBOUND: Final = 1
REASONS: Final = 16
_SIX: Final = struct.Struct("<6q")
SIX_BYTES: Final = 48
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
    """One direction of one peer in one lane, kept by its worker and stored after each batch."""

    def __init__(self, shared: mmap, at: int) -> None:
        """at: offset of the peer's block; what stands there goes on counting (a worker that was restarted)."""
        packets, size, data, any_, _session, _counter = _SIX.unpack_from(shared, at)
        self.shared: mmap = shared
        self.at: int = at
        self.packets: i64 = packets
        self.size: i64 = size
        self.data_ns: i64 = data
        self.any_ns: i64 = any_
        self.session: i64 = 0
        self.counter: i64 = 0  # inbound: packets without a relay

    def store(self) -> None:
        self.shared[self.at : self.at + SIX_BYTES] = _SIX.pack(
            self.packets, self.size, self.data_ns, self.any_ns, self.session, self.counter
        )

    def drop(self, reason: int, count: int = 1) -> None:
        _add(self.shared, self.at + PEER_DROPS_AT + 8 * reason, count)

    def clear(self) -> None:
        """The peer is gone; its slot will be another's."""
        clear_block(self.shared, self.at)


@final
@mypyc_attr(native_class=True)
class Drops:
    """Dropped packets by reason, of one worker."""

    def __init__(self, shared: mmap, at: int) -> None:
        """at: where the lane's region begins."""
        self.shared: mmap = shared
        self.at: int = at

    def add(self, reason: int, count: int = 1) -> None:
        _add(self.shared, self.at + 8 * reason, count)


def region_at(plane: int, number: int) -> int:
    """Where a region begins: of a sealer for OUTBOUND, of a lane for INBOUND."""
    return (plane * MAX_SEALERS + number) * REGION_BYTES


def block_at(region: int, slot: int) -> int:
    """Where a peer's block begins."""
    return region + PEERS_AT + slot * PEER_BYTES


def clear_block(shared: mmap, at: int) -> None:
    shared[at : at + PEER_BYTES] = bytes(PEER_BYTES)


def put(shared: mmap, at: int, value: int) -> None:
    """Store one i64, whole."""
    shared[at : at + 8] = _ONE.pack(value)


def _add(shared: mmap, at: int, count: int) -> None:
    put(shared, at, _ONE.unpack_from(shared, at)[0] + count)
