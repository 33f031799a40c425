"""A policy's text in one style, its comments kept: tabs, a comma behind every entry, an entry a line.

What stood on one line stays on one line, so a table of rules keeps its shape.

Ref: spec policy §1
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, final

from gw.policy.hujson import parse

_TOKEN: Final = re.compile(
    r'(?P<line>//[^\n]*)|(?P<block>/\*.*?\*/)|(?P<text>"(?:[^"\\]|\\.)*")|(?P<sign>[{}\[\],:])|(?P<word>[^\s{}\[\],:"/]+)'
    r"|(?P<space>[ \t\r\n]+)",
    re.DOTALL,
)
_CLOSING: Final = {"{": "}", "[": "]"}


def formatted(raw: bytes) -> bytes:
    """Raises HuJSONError where the text is no HuJSON."""
    parse(raw)
    reader = _Reader([(str(match.lastgroup), match.group()) for match in _TOKEN.finditer(raw.decode())])
    before = reader.comments()
    root = reader.value()
    after = reader.comments()
    lines = _Lines()
    lines.comments(before)
    lines.value(root)
    lines.behind(comment for comment in after if comment.is_beside)
    lines.end()
    lines.comments([comment for comment in after if not comment.is_beside])
    return "".join(lines.out).encode()


@final
@dataclass(frozen=True, slots=True)
class _Comment:
    """lines: how many line ends stood before it."""

    text: str
    lines: int

    @property
    def is_beside(self) -> bool:
        """On the line of what is before it."""
        return self.lines == 0

    @property
    def block(self) -> str:
        """So that something may follow on its line."""
        if self.text.startswith("/*"):
            return self.text
        return f"/* {self.text[2:].strip().replace('*/', '* /')} */"


@final
@dataclass(slots=True)
class _Entry:
    """before: comments on lines of their own. within: between name and value. behind: on its line."""

    before: list[_Comment]
    is_apart: bool  # a blank line stood before it
    name: str = ""
    within: list[_Comment] = field(default_factory=list)
    value: str | _Composite = ""
    behind: list[_Comment] = field(default_factory=list)


@final
@dataclass(slots=True)
class _Composite:
    """beside: comments behind its opening. last: before its closing."""

    opening: str
    is_inline: bool
    beside: list[_Comment] = field(default_factory=list)
    entries: list[_Entry] = field(default_factory=list)
    last: list[_Comment] = field(default_factory=list)


@final
class _Reader:
    """From tokens to a tree that has every comment."""

    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self._tokens = tokens
        self._at = 0
        self._lines = 0  # line ends before the token at hand

    def comments(self) -> list[_Comment]:
        """All that stand here; then the next token is none."""
        found: list[_Comment] = []
        self._lines = 0
        while self._at < len(self._tokens):
            kind, text = self._tokens[self._at]
            if kind == "space":
                self._lines += text.count("\n")
            elif kind in ("line", "block"):
                found.append(_Comment(text.rstrip(), self._lines))
                self._lines = 0
            else:
                break
            self._at += 1
        return found

    def value(self) -> str | _Composite:
        text = self._take()
        return self._composite(text) if text in _CLOSING else text

    def _take(self) -> str:
        self._at += 1
        return self._tokens[self._at - 1][1]

    def _peek(self) -> str:
        return self._tokens[self._at][1]

    def _composite(self, opening: str) -> _Composite:
        made = _Composite(opening, self._is_inline())
        found = self.comments()
        made.beside = [comment for comment in found if comment.is_beside]
        waiting = [comment for comment in found if not comment.is_beside]
        while self._peek() != _CLOSING[opening]:
            entry = _Entry(waiting, is_apart=self._lines > 1)
            made.entries.append(entry)
            entry.value = self.value()
            found = self.comments()
            if self._peek() == ":":
                entry.name, entry.within = str(entry.value), found
                self._take()
                entry.within += self.comments()
                entry.value = self.value()
                found = self.comments()
            waiting = self._behind(entry, found)
            if self._peek() == ",":
                self._take()
                found = self.comments()
                waiting += found if made.is_inline else self._behind(entry, found)
        made.last = waiting
        self._take()
        return made

    def _behind(self, entry: _Entry, found: list[_Comment]) -> list[_Comment]:
        """Give an entry the comments on its line; returns the others."""
        beside = 0
        while beside < len(found) and found[beside].is_beside and not _ends_line(entry.behind):
            entry.behind.append(found[beside])
            beside += 1
        return found[beside:]

    def _is_inline(self) -> bool:
        """Whether the composite that has just begun ends on its line."""
        depth = 1
        for at in range(self._at, len(self._tokens)):
            kind, text = self._tokens[at]
            if kind == "line" or (kind in ("block", "space") and "\n" in text):
                return False
            if kind == "sign":
                depth += (text in "{[") - (text in "}]")
                if depth == 0:
                    return True
        return True


def _ends_line(comments: list[_Comment]) -> bool:
    return bool(comments) and comments[-1].text.startswith("//")


@final
class _Lines:
    """Writes a tree."""

    def __init__(self) -> None:
        self.out: list[str] = []
        self._depth = 0
        self._is_start = True

    def put(self, text: str) -> None:
        if self._is_start:
            self.out.append("\t" * self._depth)
            self._is_start = False
        self.out.append(text)

    def end(self) -> None:
        if not self._is_start:
            self.out.append("\n")
            self._is_start = True

    def comments(self, found: list[_Comment], *, is_first: bool = False) -> None:
        """Each on a line of its own; of blank lines before one, one is kept."""
        for comment in found:
            if comment.lines > 1 and self.out and not is_first:
                self.out.append("\n")
            self.put(comment.text)
            self.end()
            is_first = False

    def behind(self, found: Iterable[_Comment]) -> None:
        for comment in found:
            self.put(f" {comment.text}")

    def value(self, value: str | _Composite) -> None:
        if isinstance(value, str):
            self.put(value)
        elif value.is_inline or not (value.entries or value.beside or value.last):
            self.put(_inline(value))
        else:
            self._lines_of(value)

    def _lines_of(self, composite: _Composite) -> None:
        self.put(composite.opening)
        self.behind(composite.beside)
        self.end()
        self._depth += 1
        is_first = True
        for entry in composite.entries:
            self.comments(entry.before, is_first=is_first)
            if entry.is_apart and not (is_first and not entry.before):
                self.out.append("\n")
            if entry.name:
                self.put("".join([entry.name, *(f" {comment.block}" for comment in entry.within), ": "]))
            self.value(entry.value)
            self.put(",")
            self.behind(entry.behind)
            self.end()
            is_first = False
        self.comments(composite.last, is_first=is_first)
        self._depth -= 1
        self.put(_CLOSING[composite.opening])


def _inline(value: str | _Composite) -> str:
    if isinstance(value, str):
        return value
    parts = []
    for entry in value.entries:
        words = [comment.text for comment in entry.before]
        if entry.name:
            words.append("".join([entry.name, *(f" {comment.block}" for comment in entry.within), ":"]))
        words += [_inline(entry.value), *(comment.text for comment in entry.behind)]
        parts.append(" ".join(words))
    words = [comment.text for comment in value.beside]
    words += [", ".join(parts)] if parts else []
    words += [comment.text for comment in value.last]
    return value.opening + " ".join(words) + _CLOSING[value.opening]
