"""HuJSON: JSON with comments and trailing commas, read without losing where anything stood.

    value    = object | array | string | number | true | false | null
    object   = { [ name : value { , name : value } [ , ] ] }
    array    = [ [ value { , value } [ , ] ] ]
    between any two of these: space, tab, CR, LF, // to the end of the line, /* to */

Every value knows its first and last byte in the source, so that an error can point at it and an editor can replace it
and keep all comments.

Ref: spec policy §1; tailscale hujson/parse.go
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isinf
from typing import Final, TypeAlias, final

import msgspec

from gw.model.gojson import mend_surrogates

MAX_DEPTH: Final = 200

_LINE_END: Final = re.compile(rb"\n")
_SPACE: Final = re.compile(rb"[ \t\r\n]*")
_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_WORD: Final = re.compile(rb"[-+.0-9A-Za-z_]+")
_NUMBER: Final = re.compile(rb"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_CONSTANTS: Final[dict[bytes, bool | None]] = {b"true": True, b"false": False, b"null": None}
_SHOWN_LITERAL_BYTES: Final = 60

Scalar: TypeAlias = str | int | float | bool | None


class HuJSONError(Exception):
    """The text is not HuJSON. line and column count from 1, the column in bytes."""

    def __init__(self, raw: bytes, offset: int, reason: str) -> None:
        self.line, self.column = position(raw, offset)
        self.reason = reason
        super().__init__(f"hujson: line {self.line}, column {self.column}: {reason}")


@final
@dataclass(frozen=True, slots=True)
class Value:
    """A value and where it stands: `raw[start:end]`. data: scalar, list of values, or name → member."""

    start: int
    end: int
    data: Scalar | list[Value] | dict[str, Member]

    def plain(self) -> object:
        """The value as ordinary Python data, comments and positions dropped."""
        if isinstance(self.data, list):
            return [item.plain() for item in self.data]
        if isinstance(self.data, dict):
            return {name: member.value.plain() for name, member in self.data.items()}
        return self.data


@final
@dataclass(frozen=True, slots=True)
class Member:
    """One `name: value` of an object. start: where the name begins."""

    start: int
    value: Value


def position(raw: bytes, offset: int) -> tuple[int, int]:
    """Line and column of a byte, both from 1; the column counts bytes."""
    return raw.count(b"\n", 0, offset) + 1, offset - (raw.rfind(b"\n", 0, offset) + 1) + 1


def positions(raw: bytes, offsets: Sequence[int]) -> list[tuple[int, int]]:
    """Line and column of many bytes, the text gone through once."""
    starts = [0, *(match.end() for match in _LINE_END.finditer(raw))]
    lines = [bisect_right(starts, offset) for offset in offsets]
    return [(line, offset - starts[line - 1] + 1) for line, offset in zip(lines, offsets, strict=True)]


def parse(raw: bytes) -> Value:
    """The single top-level value of a HuJSON text. Raises HuJSONError, and nothing else, for any other bytes."""
    reader = _Reader(raw)
    reader.skip()
    value = reader.value(0)
    reader.skip()
    if reader.at < len(raw):
        raise reader.unexpected("after top-level value")
    return value


def compact(raw: bytes, value: Value) -> str:
    """A value as JSON with every literal as it is spelled, white space and comments left out."""
    if isinstance(value.data, list):
        return f"[{','.join(compact(raw, item) for item in value.data)}]"
    if isinstance(value.data, dict):
        return f"{{{','.join(_member(raw, member) for member in value.data.values())}}}"
    return raw[value.start : value.end].decode()


def unheard_of(value: Value) -> Value | None:
    """The first number in a value that is beyond what a 64-bit float holds: fine as JSON, of no use to a reader."""
    if isinstance(value.data, float) and isinf(value.data):
        return value
    items: Iterable[Value] = ()
    if isinstance(value.data, list):
        items = value.data
    elif isinstance(value.data, dict):
        items = (member.value for member in value.data.values())
    return next(filter(None, map(unheard_of, items)), None)


def _member(raw: bytes, member: Member) -> str:
    name = _STRING.match(raw, member.start)
    assert name is not None
    return f"{name.group().decode()}:{compact(raw, member.value)}"


def _text(literal: bytes) -> str:
    """Half a surrogate pair reads as U+FFFD, as in Go. Raises MsgspecError, UnicodeDecodeError."""
    try:
        return msgspec.json.decode(literal, type=str)
    except msgspec.DecodeError:
        return msgspec.json.decode(mend_surrogates(literal), type=str)


def _number(word: bytes) -> int | float:
    """Infinite where it is beyond a float: `1e400` is a number in JSON."""
    try:
        return msgspec.json.decode(word, type=int | float)
    except msgspec.MsgspecError:
        return float(word)


@final
class _Reader:
    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.at = 0

    def fault(self, reason: str, offset: int | None = None) -> HuJSONError:
        return HuJSONError(self.raw, self.at if offset is None else offset, reason)

    def unexpected(self, where: str) -> HuJSONError:
        shown = self.raw[self.at : self.at + 4].decode("utf-8", "replace")[:1]
        return self.fault(f"invalid character {shown!r} {where}")

    def ended(self, what: str) -> HuJSONError:
        return self.fault(f"parsing {what}: unexpected EOF", len(self.raw))

    def peek(self, what: str) -> int:
        if self.at >= len(self.raw):
            raise self.ended(what)
        return self.raw[self.at]

    def skip(self) -> None:
        """Move past white space and comments."""
        raw = self.raw
        while True:
            space = _SPACE.match(raw, self.at)
            self.at = space.end() if space else self.at
            if raw.startswith(b"//", self.at):
                end = raw.find(b"\n", self.at)
                length = 1
            elif raw.startswith(b"/*", self.at):
                end = raw.find(b"*/", self.at + 2)
                length = 2
            else:
                return
            if end < 0:
                raise self.ended("comment")
            try:
                raw[self.at : end].decode("utf-8")
            except UnicodeDecodeError:
                raise self.fault("invalid UTF-8 in comment") from None
            self.at = end + length

    def value(self, depth: int) -> Value:
        first = self.peek("value")
        if depth > MAX_DEPTH:
            raise self.fault(f"more than {MAX_DEPTH} levels deep")
        if first == ord("{"):
            return self.object(depth)
        if first == ord("["):
            return self.array(depth)
        if first == ord('"'):
            return self.string()
        return self.literal()

    def string(self) -> Value:
        start = self.at
        match = _STRING.match(self.raw, start)
        if match is None:
            raise self.ended("string")
        self.at = match.end()
        try:
            text = _text(match.group())
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise self.bad_literal(start, match.group()) from None
        return Value(start, self.at, text)

    def literal(self) -> Value:
        start = self.at
        match = _WORD.match(self.raw, start)
        if match is None:
            raise self.unexpected("at start of value")
        word = match.group()
        self.at = match.end()
        if word in _CONSTANTS:
            return Value(start, self.at, _CONSTANTS[word])
        if _NUMBER.fullmatch(word):
            return Value(start, self.at, _number(word))
        raise self.bad_literal(start, word)

    def bad_literal(self, start: int, word: bytes) -> HuJSONError:
        return self.fault(f"invalid literal: {word[:_SHOWN_LITERAL_BYTES].decode('utf-8', 'replace')}", start)

    def array(self, depth: int) -> Value:
        start = self.at
        self.at += 1
        items: list[Value] = []
        while True:
            self.skip()
            if self.peek("value") == ord("]"):
                break
            items.append(self.value(depth + 1))
            self.skip()
            after = self.peek("array after value")
            if after == ord("]"):
                break
            if after != ord(","):
                raise self.unexpected("after array value (expecting ',' or ']')")
            self.at += 1
        self.at += 1
        return Value(start, self.at, items)

    def object(self, depth: int) -> Value:
        start = self.at
        self.at += 1
        members: dict[str, Member] = {}
        while True:
            self.skip()
            first = self.peek("value")
            if first == ord("}"):
                break
            if first != ord('"'):
                raise self.unexpected("at start of object name")
            name = self.string()
            assert isinstance(name.data, str)
            if name.data in members:
                raise self.fault(f"duplicate object name {name.data!r}", name.start)
            self.skip()
            if self.peek("object after name") != ord(":"):
                raise self.unexpected("after object name")
            self.at += 1
            self.skip()
            members[name.data] = Member(name.start, self.value(depth + 1))
            self.skip()
            after = self.peek("object after value")
            if after == ord("}"):
                break
            if after != ord(","):
                raise self.unexpected("after object value (expecting ',' or '}')")
            self.at += 1
        self.at += 1
        return Value(start, self.at, members)
