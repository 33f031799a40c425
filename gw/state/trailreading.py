"""Reading the event trail: new lines as they come, and the proof that none was altered, removed or cut off."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, final

import msgspec

from gw.errors import GwError
from gw.state.files import translate
from gw.state.heads import Head, decode_head
from gw.state.trail import BEGINNING, DAILY_HEADS, HEAD_FILE, day_files, digest_of, link_of

MAX_PROBLEMS: Final = 100


@final
class TrailReader:
    """Follows a trail from where it is put. Reads only files; works beside a running server and without one."""

    def __init__(self, folder: Path) -> None:
        """Begin with the oldest line."""
        self._folder = folder
        self._file = ""
        self._offset = 0

    def skip(self) -> None:
        """Go to the end: only lines that come after are read."""
        files = day_files(self._folder)
        if files:
            self._file = files[-1].name
            self._offset = files[-1].stat().st_size

    def seek(self, seq: int) -> None:
        """Go to the line after number `seq`: whole days before it are not read."""
        self._file, self._offset = "", 0
        for path in reversed(day_files(self._folder)):
            first = _first_seq(path)
            if first <= seq or not first:
                self._file = path.name
                break

    def read(self, limit: int = 10_000) -> list[bytes]:
        """Whole lines that were not read yet, at most `limit`. Raises GwError."""
        lines: list[bytes] = []
        try:
            for path in day_files(self._folder):
                if path.name < self._file:
                    continue
                if path.name != self._file:
                    self._file, self._offset = path.name, 0
                lines += self._read_file(path, limit - len(lines))
                if len(lines) >= limit:
                    break
        except OSError as error:
            raise translate(error, "read the events", self._folder) from error
        return lines

    def _read_file(self, path: Path, limit: int) -> list[bytes]:
        lines: list[bytes] = []
        with path.open("rb") as file:
            file.seek(self._offset)
            while len(lines) < limit:
                line = file.readline()
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                lines.append(line[:-1])
        return lines


def _first_seq(path: Path) -> int:
    try:
        with path.open("rb") as file:
            return link_of(file.readline()).seq
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return 0


def last_lines(folder: Path, wanted: int) -> list[bytes]:
    """The last `wanted` lines of a trail, oldest first."""
    found: list[bytes] = []
    for path in reversed(day_files(folder)):
        if len(found) >= wanted:
            break
        try:
            found = path.read_bytes().splitlines()[-(wanted - len(found)) :] + found
        except OSError as error:
            raise translate(error, "read the events", path) from error
    return found


@dataclass(frozen=True, slots=True)
class Problem:
    """One place where the trail is not what was written. line: counted from 1; 0 = the file as a whole."""

    file: str
    line: int
    what: str


@dataclass(slots=True)
class Verdict:
    """What `verify` found. unsigned: lines behind the newest head; unchained: lines from before there was a chain."""

    lines: int = 0
    last: int = 0
    unchained: int = 0
    heads: int = 0
    unsigned: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        return not self.problems

    def fault(self, file: str, line: int, what: str) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(Problem(file, line, what))


def kept_heads(folder: Path) -> Iterator[tuple[str, Head]]:
    """The heads that lie with the trail, and where. Raises UsageError for one that cannot be read."""
    daily = folder / DAILY_HEADS
    if daily.exists():
        for number, raw in enumerate(daily.read_bytes().splitlines(), 1):
            yield f"{DAILY_HEADS}:{number}", decode_head(raw, f"{DAILY_HEADS}:{number}")
    newest = folder / HEAD_FILE
    if newest.exists():
        yield HEAD_FILE, decode_head(newest.read_bytes(), HEAD_FILE)


def verify(folder: Path, trusted_key: str, heads: Iterable[tuple[str, Head]]) -> Verdict:
    """Check every line and every head. trusted_key: the public key (hex) that all heads must be signed by.

    heads: with where they come from. Reads the whole trail once.
    """
    verdict = Verdict()
    waiting: dict[int, list[tuple[str, Head]]] = {}
    newest = 0
    for where, head in heads:
        verdict.heads += 1
        if not head.is_genuine():
            verdict.fault(where, 0, "the signature does not fit: the head was altered")
        elif head.key != trusted_key:
            verdict.fault(where, 0, "signed by another key than the trail's")
        else:
            waiting.setdefault(head.seq, []).append((where, head))
            newest = max(newest, head.seq)
    digest, seq = BEGINNING, 0
    for path in day_files(folder):
        for number, line in enumerate(_lines(path), 1):
            digest, seq = _check(verdict, path.name, number, line, digest, seq)
            for where, head in waiting.pop(seq, ()):
                if head.hash != digest:
                    verdict.fault(path.name, number, f"event {seq} is not the one that was signed ({where})")
    verdict.last = seq
    verdict.unsigned = max(0, seq - newest)
    for missing, group in sorted(waiting.items()):
        for where, _ in group:
            verdict.fault(where, 0, f"the trail went on to event {missing}, now it ends with {seq}: lines were cut off")
    if verdict.lines and not verdict.heads:
        verdict.fault(HEAD_FILE, 0, "there is no signed head: nothing proves where the trail ends")
    return verdict


def _check(verdict: Verdict, file: str, number: int, line: bytes, digest: str, seq: int) -> tuple[str, int]:
    """Look at one line. digest, seq: of the one before. Returns those of this one."""
    verdict.lines += 1
    try:
        link = link_of(line)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        verdict.fault(file, number, "not an event: the line was altered or torn")
        return digest_of(line), seq
    if not link.seq:
        if seq:
            verdict.fault(file, number, "a line without a number: it was put in")
        else:
            verdict.unchained += 1
        return digest_of(line), seq
    if link.seq > seq + 1 and (seq or link.seq > 1):
        verdict.fault(file, number, f"events {seq + 1} to {link.seq - 1} are missing")
    elif link.seq <= seq:
        verdict.fault(file, number, f"event {link.seq} comes after event {seq}")
    elif link.prev != digest:
        verdict.fault(file, number, f"the line before is not the one that event {link.seq} follows: it was altered")
    return digest_of(line), link.seq


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            for line in file:
                yield line.removesuffix(b"\n")
    except OSError as error:
        raise translate(error, "read the events", path) from error


def read_head_file(path: Path) -> Head:
    """A head that was kept somewhere. Raises GwError."""
    try:
        return decode_head(path.read_bytes(), os.fspath(path))
    except OSError as error:
        raise translate(error, "read", path) from error


def own_head(folder: Path) -> Head | None:
    """The newest head that lies with the trail."""
    try:
        return decode_head((folder / HEAD_FILE).read_bytes(), HEAD_FILE)
    except (OSError, GwError):
        return None
