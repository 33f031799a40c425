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

from librt.strings import BytesWriter, read_i32_be, read_i64_be, write_i32_be, write_i64_be
from mypy_extensions import i32, i64, mypyc_attr

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
MAX_SEGMENTS: Final = 64  # of a train
MAX_TRAIN_BYTES: Final = 65000
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
        """Packets start, …, stop - 1; what is too old to be kept changes nothing."""
        oldest = self.newest - WINDOW + 1
        if stop <= oldest:
            return
        if start < oldest:
            start = oldest
        if stop - 1 > self.newest:
            shift = stop - 1 - self.newest
            self.seen = (self.seen << shift) & ((1 << WINDOW) - 1) if shift < WINDOW else 0
            self.newest = stop - 1
        self.seen |= ((1 << (stop - start)) - 1) << (self.newest - stop + 1)
        if self.seen >> WINDOW:
            self.seen &= (1 << WINDOW) - 1

    def lacks(self, start: int, stop: int) -> bool:
        """Whether any of the packets start, …, stop - 1 counts as not received."""
        if stop > self.newest + 1:
            return True
        if start <= self.newest - WINDOW:
            start = self.newest - WINDOW + 1
        if stop <= start:
            return False
        mask = (1 << (stop - start)) - 1
        return (self.seen >> (self.newest - stop + 1)) & mask != mask

    def __contains__(self, number: int) -> bool:
        age = self.newest - number
        return age >= 0 and (age >= WINDOW or (self.seen >> age) & 1 == 1)


@final
@mypyc_attr(native_class=True)
class Keys:
    """One direction, one key phase. crypt: (packet number, data, associated data), raises where a tag is wrong. mask:
    samples of 16 bytes → as many."""

    def __init__(self, crypt: Callable[[int, bytes, bytes], bytes], mask: Callable[[bytes], bytes], phase: int) -> None:
        self.crypt: Callable[[int, bytes, bytes], bytes] = crypt
        self.mask: Callable[[bytes], bytes] = mask
        self.first: i64 = 0x43 | phase << 2


def seal_train(keys: Keys, cid: bytes, number: int, frames: list[bytes]) -> tuple[list[tuple[bytes, int]], list[int]]:
    """Packets `number`, `number + 1`, … of frames (0x30 and a payload), as trains: datagrams of one size each, of which
    the last may be shorter, and that size. And the sizes of all packets."""
    crypt = keys.crypt
    first: i64 = keys.first
    low: i64 = i64(number & 0xFFFFFFFF)
    writer = BytesWriter()
    for _ in frames:
        writer.append(first)
        writer.write(cid)
        write_i32_be(writer, _i32(low))
        low = (low + 1) & 0xFFFFFFFF
    plain = writer.getvalue()
    writer = BytesWriter()
    bodies: list[bytes] = []
    place: i64 = 0
    at: int = number
    for frame in frames:
        body = crypt(at, frame, plain[place : place + HEADER_BYTES])
        bodies.append(body)
        write_i64_be(writer, read_i64_be(body, 0))
        write_i64_be(writer, read_i64_be(body, 8))
        place += HEADER_BYTES
        at += 1
    masks = keys.mask(writer.getvalue())
    writer = BytesWriter()
    place = 0
    low = i64(number & 0xFFFFFFFF)
    for _ in frames:
        flip: i64 = masks[place]
        writer.append(first ^ (flip & 0x1F))
        writer.write(cid)
        write_i32_be(writer, _i32(low ^ (i64(read_i32_be(masks, place + 1)) & 0xFFFFFFFF)))
        low = (low + 1) & 0xFFFFFFFF
        place += SAMPLE_BYTES
    heads = writer.getvalue()
    trains: list[tuple[bytes, int]] = []
    sizes: list[int] = []
    pieces: list[bytes] = []
    segment: i64 = 0
    total: i64 = 0
    place = 0
    for body in bodies:
        size: i64 = len(body) + HEADER_BYTES
        sizes.append(int(size))
        if pieces and (size > segment or total + size > MAX_TRAIN_BYTES or len(pieces) == 2 * MAX_SEGMENTS):
            trains.append((b"".join(pieces), int(segment)))
            pieces = []
        if not pieces:
            segment = size
            total = 0
        pieces.append(heads[place : place + HEADER_BYTES])
        pieces.append(body)
        total += size
        place += HEADER_BYTES
        if size < segment:
            trains.append((b"".join(pieces), int(segment)))
            pieces = []
    if pieces:
        trains.append((b"".join(pieces), int(segment)))
    return trains, sizes


def open_train(
    keys: Keys,
    older: Keys | None,
    window: Window,
    cids: set[bytes],
    train: bytes,
    segment: i64,
    expected: int,
    floor: int = 0,
) -> tuple[list[bytes], list[int], list[list[int]], list[bytes]]:
    """Open what is of our form: frames (0x30 and payload), packet numbers of all opened as [start, stop, …],
    acknowledgments as `parse_ack` gives them, other packets.

    train: datagrams of `segment` bytes, the last may be shorter. older: keys of the phase before, while its packets
    may still be under way. expected: the next packet number. floor: lower numbers are left to others, who know which
    of them have come. Repeated and forged packets are dropped.
    """
    frames: list[bytes] = []
    runs: list[int] = []
    acks: list[list[int]] = []
    others: list[bytes] = []
    heads = _unmask(keys, train, segment)
    size: i64 = len(train)
    at: i64 = 0
    end: i64 = 0
    place: i64 = -HEADER_BYTES
    run_start: int = -1
    run_stop: int = -1
    known: i64 = 0
    is_known: bool = False
    while end < size:
        at = end
        end = at + segment
        if end > size:
            end = size
        if not _may_be_ours(train, at, end):
            others.append(train[at:end])
            continue
        place += HEADER_BYTES
        first: i64 = heads[place]
        chosen = keys
        is_short: bool = first & 3 == 1  # a number of two bytes
        if first & 0xDC != keys.first & 0xDC or (first & 3 != 3 and not is_short):  # the spin bit may be anything
            if older is None or first & 0xDC != older.first & 0xDC or (first & 3 != 3 and not is_short):
                others.append(train[at:end])
                continue
            chosen = older
        cid: i64 = read_i64_be(train, at + 1)
        if not is_known or cid != known:
            if train[at + 1 : at + 1 + CID_BYTES] not in cids:
                others.append(train[at:end])
                continue
            known = cid
            is_known = True
        low: i64 = i64(read_i32_be(heads, place + 1 + CID_BYTES)) & 0xFFFFFFFF
        number: int
        body: i64 = at + HEADER_BYTES
        after: i64 = place + HEADER_BYTES
        if is_short:
            body -= 2
            after -= 2
            number = _nearest(expected, int(low >> 16), 16)
        else:
            number = _nearest(expected, int(low), 32)
        if number != run_stop:
            if run_stop > run_start:
                window.add_run(run_start, run_stop)
                runs.append(run_start)
                runs.append(run_stop)
            run_start = run_stop = -1
        if number < floor:
            others.append(train[at:end])
            continue
        if number in window:
            continue
        try:
            frame = chosen.crypt(number, train[body:end], heads[place:after])
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


def _may_be_ours(train: bytes, at: i64, end: i64) -> bool:
    """Whether the datagram in [at, end) has a short header and room for all that we look at."""
    first: i64 = train[at]
    return end - at >= OVERHEAD_BYTES and first & 0xC0 == 0x40


def _unmask(keys: Keys, train: bytes, segment: i64) -> bytes:
    """The headers of those that may be ours, HEADER_BYTES each, as they were before they were protected."""
    writer = BytesWriter()
    size: i64 = len(train)
    at: i64 = 0
    while at < size:
        if _may_be_ours(train, at, size if at + segment > size else at + segment):
            write_i64_be(writer, read_i64_be(train, at + HEADER_BYTES))
            write_i64_be(writer, read_i64_be(train, at + HEADER_BYTES + 8))
        at += segment
    samples = writer.getvalue()
    if not samples:
        return samples
    masks = keys.mask(samples)
    writer = BytesWriter()
    place: i64 = 0
    at = 0
    while at < size:
        if _may_be_ours(train, at, size if at + segment > size else at + segment):
            first: i64 = train[at]
            flip: i64 = masks[place]
            writer.append(first ^ (flip & 0x1F))
            write_i64_be(writer, read_i64_be(train, at + 1))
            write_i32_be(writer, read_i32_be(train, at + 1 + CID_BYTES) ^ read_i32_be(masks, place + 1))
            place += SAMPLE_BYTES
        at += segment
    return writer.getvalue()


def _nearest(expected: int, low: int, bits: int) -> int:
    """The packet number nearest to `expected` that ends in the bits `low` (RFC 9000 §A.3)."""
    number = (expected >> bits << bits) | low
    half = 1 << (bits - 1)
    if number - expected > half and number >= 2 * half:
        return number - 2 * half
    if expected - number > half:
        return number + 2 * half
    return number


def has_kind(frames: list[bytes], one: i64, other: i64) -> bool:
    """Whether any of the frames (0x30 and payload) has a payload that begins with one of two bytes."""
    for frame in frames:
        if len(frame) > 1:
            kind: i64 = frame[1]
            if kind == one or kind == other:
                return True
    return False


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

    def settle(
        self, ranges: list[int], largest: int, threshold: int = PACKET_THRESHOLD
    ) -> list[tuple[object, int, int]]:
        """An acknowledgment of [start, stop, …]: (mark, bytes acknowledged, bytes lost) of each batch concerned.

        largest: the largest packet number ever acknowledged. Lost is what is `threshold` older.
        """
        settled: list[tuple[object, int, int]] = []
        kept: list[Batch] = []
        limit = largest - threshold
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
            if batch.left > 0 and batch.first <= limit:
                last = limit + 1 - batch.first
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


def _i32(value: i64) -> i32:
    """The same 32 bits as a signed number."""
    return i32(value - 0x100000000 if value >= 0x80000000 else value)
