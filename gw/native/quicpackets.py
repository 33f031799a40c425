"""QUIC 1-RTT packets that hold one DATAGRAM frame or one ACK and nothing else, sealed and opened by the train.

    0x40 | key phase << 2 | 3   8 connection id   4 packet number   sealed(0x30 | payload)   16 tag
    └──────── masked ────────┘                    └── masked ──┘

Numbers of two bytes, as the stock connection writes them, are opened too. What is not of this form is left to it. A
payload has the frame type 0x30 before it here: sealing needs it there, and cutting it off costs a copy.

Ref: RFC 9000 §17.3.1; RFC 9001 §5; RFC 9221 §4
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, final

from librt.strings import read_i32_be
from mypy_extensions import i64, mypyc_attr

CID_BYTES: Final = 8
HEADER_BYTES: Final = 13
TAG_BYTES: Final = 16
SAMPLE_BYTES: Final = 16
OVERHEAD_BYTES: Final = 30  # header, frame type, tag
WINDOW: Final = 4096
DATAGRAM: Final = 0x30
DATAGRAM_WITH_LENGTH: Final = 0x31
ACK: Final = 0x02
PACKET_THRESHOLD: Final = 3
MAX_RANGES: Final = 256  # of an acknowledgment that is read here


@final
@mypyc_attr(native_class=True)
class Window:
    """Which packet numbers were received, the newest WINDOW of them; older ones count as received."""

    def __init__(self) -> None:
        self.newest: int = -1
        self.seen: int = 0  # bit 0 is `newest`

    def add(self, number: int) -> None:
        self.add_run(number, number + 1)

    def add_run(self, start: int, stop: int) -> None:
        """Packets start, …, stop - 1."""
        if stop - 1 > self.newest:
            shift = stop - 1 - self.newest
            self.seen = (self.seen << shift) & ((1 << WINDOW) - 1) if shift < WINDOW else 0
            self.newest = stop - 1
        self.seen |= ((1 << (stop - start)) - 1) << (self.newest - stop + 1)
        if self.seen >> WINDOW:
            self.seen &= (1 << WINDOW) - 1

    def __contains__(self, number: int) -> bool:
        age = self.newest - number
        return age >= 0 and (age >= WINDOW or (self.seen >> age) & 1 == 1)


@final
@mypyc_attr(native_class=True)
class Keys:
    """One direction, one key phase. crypt: (nonce, data, associated data). mask: samples of 16 bytes → as many."""

    def __init__(
        self,
        crypt: Callable[[bytes, bytes, bytes], bytes],
        mask: Callable[[bytes], bytes],
        iv: bytes,
        phase: int,
    ) -> None:
        self.crypt: Callable[[bytes, bytes, bytes], bytes] = crypt
        self.mask: Callable[[bytes], bytes] = mask
        self.iv: int = int.from_bytes(iv, "big")
        self.first: i64 = 0x43 | phase << 2


def seal_train(keys: Keys, cid: bytes, number: int, frames: list[bytes]) -> list[bytes]:
    """Packets `number`, `number + 1`, … of frames (0x30 and a payload)."""
    prefix = bytes([int(keys.first)]) + cid
    crypt = keys.crypt
    iv = keys.iv
    bodies: list[bytes] = []
    samples: list[bytes] = []
    at: int = number
    for frame in frames:
        body = crypt((iv ^ at).to_bytes(12, "big"), frame, prefix + _u32(i64(at & 0xFFFFFFFF)))
        bodies.append(body)
        samples.append(body[:SAMPLE_BYTES])
        at += 1
    masks = keys.mask(b"".join(samples))
    packets: list[bytes] = []
    place: i64 = 0
    low: i64 = i64(number & 0xFFFFFFFF)
    for body in bodies:
        flip: i64 = masks[place]
        word: i64 = i64(read_i32_be(masks, place + 1)) & 0xFFFFFFFF
        first: i64 = keys.first ^ (flip & 0x1F)
        packets.append(bytes([int(first)]) + cid + _u32(low ^ word) + body)
        place += SAMPLE_BYTES
        low = (low + 1) & 0xFFFFFFFF
    return packets


def open_train(
    keys: Keys,
    older: Keys | None,
    window: Window,
    cids: set[bytes],
    train: bytes,
    segment: i64,
    expected: int,
) -> tuple[list[bytes], list[int], list[list[int]], list[bytes]]:
    """Open what is of our form: frames (0x30 and payload), packet numbers of all opened as [start, stop, …],
    acknowledgments as `parse_ack` gives them, other packets.

    train: datagrams of `segment` bytes, the last may be shorter. older: keys of the phase before, while its packets
    may still be under way. expected: the next packet number. Repeated and forged packets are dropped.
    """
    frames: list[bytes] = []
    runs: list[int] = []
    acks: list[list[int]] = []
    others: list[bytes] = []
    starts: list[int] = []
    samples: list[bytes] = []
    size: i64 = len(train)
    at: i64 = 0
    while at < size:
        end: i64 = at + segment
        if end > size:
            end = size
        first: i64 = train[at]
        if end - at < OVERHEAD_BYTES or first & 0xC0 != 0x40:
            others.append(train[at:end])
        else:
            starts.append(int(at))
            samples.append(train[at + HEADER_BYTES : at + HEADER_BYTES + SAMPLE_BYTES])
        at = end
    if not starts:
        return frames, runs, acks, others
    masks = keys.mask(b"".join(samples))
    base: int = expected
    run_start: int = -1
    run_stop: int = -1
    known = b""
    prefix = b""
    prefix_first: i64 = -1
    place: i64 = 0
    for start in starts:
        at = start
        end = at + segment
        if end > size:
            end = size
        flip: i64 = masks[place]
        word: i64 = i64(read_i32_be(masks, place + 1)) & 0xFFFFFFFF
        place += SAMPLE_BYTES
        first = train[at]
        first ^= flip & 0x1F
        chosen = keys
        is_short: bool = first & 3 == 1  # a number of two bytes
        if first & 0xDC != keys.first & 0xDC or (first & 3 != 3 and not is_short):  # the spin bit may be anything
            if older is None or first & 0xDC != older.first & 0xDC or (first & 3 != 3 and not is_short):
                others.append(train[at:end])
                continue
            chosen = older
        cid = train[at + 1 : at + 1 + CID_BYTES]
        if cid != known:
            if cid not in cids:
                others.append(train[at:end])
                continue
            known = cid
            prefix_first = -1
        if first != prefix_first:
            prefix_first = first
            prefix = bytes([int(first)]) + cid
        low: i64 = (i64(read_i32_be(train, at + 1 + CID_BYTES)) & 0xFFFFFFFF) ^ word
        number: int
        head: bytes
        body: i64 = at + HEADER_BYTES
        if is_short:
            low >>= 16
            body -= 2
            number = (base >> 16 << 16) | int(low)
            if number - base > 0x8000 and number >= 0x10000:
                number -= 0x10000
            elif base - number > 0x8000:
                number += 0x10000
            head = prefix + bytes([int(low >> 8), int(low & 0xFF)])
        else:
            number = (base >> 32 << 32) | int(low)
            if number - base > 0x80000000 and number >= 0x100000000:
                number -= 0x100000000
            elif base - number > 0x80000000:
                number += 0x100000000
            head = prefix + _u32(low)
        if number != run_stop:
            if run_stop > run_start:
                window.add_run(run_start, run_stop)
                runs.append(run_start)
                runs.append(run_stop)
            run_start = run_stop = -1
            if number in window:
                continue
        elif number in window:
            continue
        try:
            frame = chosen.crypt((chosen.iv ^ number).to_bytes(12, "big"), train[body:end], head)
        except Exception:
            if older is not None:  # of another phase than its bit says
                others.append(train[at:end])
            continue
        kind: i64 = frame[0]
        if kind == ACK:
            ack = parse_ack(frame)
            if not ack:
                others.append(train[at:end])
                continue
            acks.append(ack)
        elif kind != DATAGRAM:
            frame = _without_length(frame)
            if not frame:
                others.append(train[at:end])
                continue
            frames.append(frame)
        else:
            frames.append(frame)
        if run_start < 0:
            run_start = number
        run_stop = number + 1
    if run_stop > run_start:
        window.add_run(run_start, run_stop)
        runs.append(run_start)
        runs.append(run_stop)
    return frames, runs, acks, others


def parse_ack(frame: bytes) -> list[int]:
    """An ACK frame that is the whole packet: [delay, start, stop, …], the newest range first; else []."""
    found: list[int] = []
    size: i64 = len(frame)
    at: i64 = 1
    place: i64 = 0
    ranges: i64 = 1
    low: int = 0
    while at < size:
        width: i64 = 1 << (i64(frame[at]) >> 6)
        if at + width > size:
            return []
        value: i64 = i64(frame[at]) & 0x3F
        step: i64 = 1
        while step < width:
            octet: i64 = frame[at + step]
            value = value << 8 | octet
            step += 1
        at += width
        if place == 0:
            low = int(value)
        elif place == 1:
            found.append(int(value))
        elif place == 2:
            if value > MAX_RANGES:
                return []
            ranges = value + 1
        elif place % 2 == 1:  # how many before the newest of this range
            if value > low:
                return []
            found.append(low - int(value))
            found.append(low + 1)
            low -= int(value)
            ranges -= 1
        else:  # packets missing between two ranges, less one
            if ranges == 0 or value + 2 > low:
                return []
            low -= int(value) + 2
        place += 1
    if ranges != 0 or place < 4 or place % 2 == 1:
        return []
    return found


def encode_ack(ranges: list[int], delay: int) -> bytes:
    """An ACK frame of [start, stop, …], the oldest range first; delay: in the units of the connection."""
    at: i64 = len(ranges) - 2
    low: int = ranges[at]
    parts: list[bytes] = [
        b"\x02",
        _varint(ranges[at + 1] - 1),
        _varint(delay),
        _varint(int(at // 2)),
        _varint(ranges[at + 1] - 1 - low),
    ]
    while at > 0:
        at -= 2
        parts.append(_varint(low - ranges[at + 1] - 1))
        parts.append(_varint(ranges[at + 1] - 1 - ranges[at]))
        low = ranges[at]
    return b"".join(parts)


def _varint(value: int) -> bytes:
    if value < 0x40:
        return bytes([value])
    if value < 0x4000:
        return (0x4000 | value).to_bytes(2, "big")
    if value < 0x40000000:
        return (0x80000000 | value).to_bytes(4, "big")
    return (0xC000000000000000 | value).to_bytes(8, "big")


def _without_length(frame: bytes) -> bytes:
    """A DATAGRAM frame with a length that fills the packet, as one without; empty for everything else."""
    size: i64 = len(frame)
    if size < 2 or frame[0] != DATAGRAM_WITH_LENGTH:
        return b""
    head: i64 = frame[1]
    width: i64 = 1 << (head >> 6)
    if size < 1 + width:
        return b""
    length: i64 = head & 0x3F
    at: i64 = 2
    while at < 1 + width:
        octet: i64 = frame[at]
        length = length << 8 | octet
        at += 1
    if 1 + width + length != size:
        return b""
    return b"0" + frame[1 + width :]


@final
@mypyc_attr(native_class=True)
class Batch:
    """Packets sent together. mark: what the congestion controller keeps of them."""

    def __init__(self, first: int, sizes: list[int], mark: object) -> None:
        self.first: int = first
        self.sizes: list[int] = sizes  # 0 when acknowledged or lost
        self.left: i64 = len(sizes)
        self.mark: object = mark


@final
@mypyc_attr(native_class=True)
class Ledger:
    """Sent packets that the stock connection does not know of: what became of each, told by the batch."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    def sent(self, first: int, sizes: list[int], mark: object) -> None:
        self.batches.append(Batch(first, sizes, mark))

    def settle(self, ranges: list[int], largest: int) -> list[tuple[object, int, int]]:
        """An acknowledgment of [start, stop, …]: (mark, bytes acknowledged, bytes lost) of each batch concerned.

        largest: the largest packet number ever acknowledged. Lost is what is PACKET_THRESHOLD older.
        """
        settled: list[tuple[object, int, int]] = []
        kept: list[Batch] = []
        threshold = largest - PACKET_THRESHOLD
        for batch in self.batches:
            if batch.first > largest:
                kept.append(batch)
                continue
            acked: int = 0
            lost: int = 0
            sizes = batch.sizes
            stop: int = batch.first + len(sizes)
            at: i64 = 0
            count: i64 = len(ranges)
            while at < count:
                low = ranges[at]
                high = ranges[at + 1]
                at += 2
                if high <= batch.first or low >= stop:
                    continue
                if low < batch.first:
                    low = batch.first
                if high > stop:
                    high = stop
                for place in range(low - batch.first, high - batch.first):
                    size = sizes[place]
                    if size:
                        acked += size
                        sizes[place] = 0
                        batch.left -= 1
            if batch.left > 0 and batch.first <= threshold:
                last = threshold + 1 - batch.first
                if last > len(sizes):
                    last = len(sizes)
                for place in range(last):
                    size = sizes[place]
                    if size:
                        lost += size
                        sizes[place] = 0
                        batch.left -= 1
            if acked or lost:
                settled.append((batch.mark, acked, lost))
            if batch.left > 0:
                kept.append(batch)
        self.batches = kept
        return settled


def _u32(value: i64) -> bytes:
    return bytes([(value >> 24) & 0xFF, (value >> 16) & 0xFF, (value >> 8) & 0xFF, value & 0xFF])
