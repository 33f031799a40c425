"""The journal: changes that are durable but not yet in their files.

    segment   journal/<16 digits>.log   one file, appended to; removed when all in it is settled
              8   magic `GWJRNL1\\n`
              …   records
    record    4   length of the body, little-endian
              4   CRC-32 of length and body
              …   body: MessagePack [number, wall seconds, [entry, …]]
    entry     [kind, key, fingerprint of the text before, text or nil for a deletion]

One record is one commit: all of its entries or none. Records are numbered from 1 without gaps through all segments of a
run. Reading stops at the first record that is not whole: a crash tears at most what nobody was told is safe.

A fingerprint is 63 bits of BLAKE2b of a file's text; 0 stands for "no file". It tells our writes from a person's, no
more.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Final, final

import msgspec

from gw.errors import GwError
from gw.state.documents import Key, Kind
from gw.state.files import inherit_owner, make_folder, sync_folder, translate

MAGIC: Final = b"GWJRNL1\n"
SEGMENT_SUFFIX: Final = ".log"
MAX_RECORD_BYTES: Final = 256 << 20
_HEAD: Final = struct.Struct("<II")
_LENGTH: Final = struct.Struct("<I")

log = logging.getLogger(__name__)


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One document's change. before: fingerprint of the text it replaces; text: None = deleted."""

    kind: Kind
    key: Key
    before: int
    text: bytes | None

    @property
    def after(self) -> int:
        """The fingerprint this change leaves."""
        return fingerprint(self.text)


class Record(msgspec.Struct, frozen=True, array_like=True):
    """One commit. wall: UTC seconds, for people; no decision rests on it."""

    number: int
    wall: float
    entries: list[Entry]


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Record).decode


def fingerprint(text: bytes | None) -> int:
    """63 bits of the text's hash; 0 for no file."""
    if text is None:
        return 0
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little") >> 1 or 1


def encode_record(record: Record) -> bytes:
    """The record as it stands in a segment. Raises GwError if it is too large."""
    body = _encode(record)
    if len(body) > MAX_RECORD_BYTES:
        raise GwError("too much in one change", hint="split it into several")
    length = _LENGTH.pack(len(body))
    return length + _LENGTH.pack(zlib.crc32(body, zlib.crc32(length))) + body


def decode_segment(raw: bytes) -> tuple[list[Record], int]:
    """The whole records at the front of a segment, and how many bytes they and the magic take. Raises nothing.

    raw: any bytes. Less than `len(raw)` means that the rest is torn or damaged.
    """
    if not raw.startswith(MAGIC):
        return [], 0
    records: list[Record] = []
    at = len(MAGIC)
    view = memoryview(raw)
    while at + _HEAD.size <= len(raw):
        length, checksum = _HEAD.unpack_from(raw, at)
        body = view[at + _HEAD.size : at + _HEAD.size + length]
        if not length or len(body) < length or zlib.crc32(body, zlib.crc32(view[at : at + 4])) != checksum:
            break
        try:
            record = _decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            break
        if records and record.number != records[-1].number + 1:
            break
        records.append(record)
        at += _HEAD.size + length
    return records, at


@dataclass(frozen=True, slots=True)
class Replay:
    """What a journal held. segments: the files it was read from; torn_bytes: at their ends, dropped."""

    records: list[Record]
    segments: list[Path]
    torn_bytes: int


def read_journal(folder: Path) -> Replay:
    """All whole records of a journal in order; an absent folder is an empty journal. Raises GwError."""
    records: list[Record] = []
    torn = 0
    try:
        segments = sorted(folder.glob(f"[0-9]*{SEGMENT_SUFFIX}")) if folder.is_dir() else []
        kept: list[Path] = []
        for segment in segments:
            try:
                raw = segment.read_bytes()
            except FileNotFoundError:  # settled and removed by a running server while we read
                continue
            kept.append(segment)
            found, whole = decode_segment(raw)
            torn += len(raw) - whole
            if records and found and found[0].number != records[-1].number + 1:
                log.warning("journal %s: records %d to %d are missing", segment.name, records[-1].number + 1,
                            found[0].number - 1)  # fmt: skip
            records += found
    except OSError as error:
        raise translate(error, "read the journal", folder) from error
    return Replay(records, kept, torn)


@final
class Journal:
    """The writing end. One caller at a time; every method blocks on the disk.

    Nothing touches the disk before the first `append`, so a program that changes nothing also runs on a full disk.
    """

    def __init__(self, folder: Path, replay: Replay) -> None:
        """replay: what `read_journal` found; numbering goes on from there."""
        self._folder = folder
        self._number = replay.records[-1].number + 1 if replay.records else 1
        self._serial = int(replay.segments[-1].stem) if replay.segments else 0
        self._segment: Path | None = None
        self._descriptor = -1
        self._good = 0  # bytes of the segment that are whole records
        self._broken = ""

    @property
    def next_number(self) -> int:
        """The number the next record must carry."""
        return self._number

    def append(self, records: Sequence[bytes]) -> None:
        """Write records with one `write` and one `fdatasync`; durable when it returns.

        records: from `encode_record`, numbered on from `next_number`.
        Raises GwError when they are not written; then none of them is there after a crash either.
        """
        if self._broken:
            raise GwError(
                f"the journal failed before: {self._broken}", hint="check the disk, then start the server again"
            )
        try:
            if self._segment is None:
                self._open_segment()
            assert self._segment is not None
            data = b"".join(records)
            left = memoryview(data)
            while left:
                left = left[os.write(self._descriptor, left) :]
            os.fdatasync(self._descriptor)
        except OSError as error:
            self._take_back(error)
            raise translate(error, "write the journal", self._segment or self._folder / "*") from error
        self._good += len(data)
        self._number += len(records)

    def _open_segment(self) -> None:
        make_folder(self._folder, 0o700)
        self._serial += 1  # never a name twice in a run: a settled segment may be removed at any moment
        segment = self._folder / f"{self._serial:016d}{SEGMENT_SUFFIX}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(segment, flags, 0o600)
        try:
            inherit_owner(descriptor, self._folder)
            if os.write(descriptor, MAGIC) != len(MAGIC):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(descriptor)
            sync_folder(self._folder)
        except OSError:
            os.close(descriptor)
            segment.unlink(missing_ok=True)
            raise
        self._segment, self._descriptor, self._good = segment, descriptor, len(MAGIC)

    def _take_back(self, cause: OSError) -> None:
        """Cut off a half-written group. If even that fails the journal takes no more: the disk's state is unknown."""
        if self._descriptor < 0:
            return
        try:
            os.ftruncate(self._descriptor, self._good)
            os.lseek(self._descriptor, self._good, os.SEEK_SET)
            os.fdatasync(self._descriptor)
        except OSError as error:
            self._broken = f"{error.strerror}"
        if cause.errno == errno.EIO:  # the kernel may have dropped pages that it could not write
            self._broken = f"{cause.strerror}"

    def finish_segment(self) -> Path | None:
        """Close the segment that is written to, so that it can be settled and removed; None if there is none."""
        segment = self._segment
        self.close()
        return segment

    def close(self) -> None:
        """Let go of the file. What was appended stays."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor, self._segment = -1, None


def remove_segments(segments: Sequence[Path]) -> None:
    """Remove settled segments. Raises OSError. A crash in between only settles the same again."""
    for segment in segments:
        segment.unlink(missing_ok=True)
    if segments:
        sync_folder(segments[0].parent)
