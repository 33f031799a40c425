"""Which line of a TOML document a key stands on, for error messages.

tomli tells no positions of keys, so this walks the text again. It assumes that tomli accepted the text, and it is used
only after something was found wrong in it.
"""

from __future__ import annotations

import re
from typing import Final, final

KeyPath = tuple[str | int, ...]

_BLANK: Final = re.compile(r"[ \t]*")
_SPACE: Final = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_BARE_VALUE: Final = re.compile(r"[^,\]}#\n]*")
_STRINGS: Final = (
    re.compile(r'"""(?:[^\\]|\\.)*?"{3,5}', re.DOTALL),
    re.compile(r"'''.*?'{3,5}", re.DOTALL),
    re.compile(r'"(?:[^"\\\n]|\\.)*"'),
    re.compile(r"'[^'\n]*'"),
)


def line_of(text: str, path: KeyPath) -> int | None:
    """The line (from 1) of the key at `path`, or of the nearest table around it; None if nothing is near."""
    try:
        lines = _Walk(text).lines()
    except (IndexError, RecursionError):
        return None
    while path:
        if path in lines:
            return lines[path]
        path = path[:-1]
    return None


@final
class _Walk:
    """One pass over the text that notes the line of each key, table and array item."""

    def __init__(self, text: str) -> None:
        self._text = text.replace("\r\n", "\n") + "\n"
        self._at = 0
        self._found: dict[KeyPath, int] = {}
        self._arrays: dict[KeyPath, int] = {}  # arrays of tables → index of the last item
        self._counted_at, self._counted = 0, 1

    def lines(self) -> dict[KeyPath, int]:
        table: KeyPath = ()
        while True:
            self._skip(_SPACE)
            if self._at >= len(self._text):
                return self._found
            if self._text[self._at] == "[":
                table = self._header()
            else:
                self._assignment(table)

    def _skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self._text, self._at)
        if match is not None:
            self._at = match.end()

    def _note(self, path: KeyPath) -> None:
        self._counted += self._text.count("\n", self._counted_at, self._at)
        self._counted_at = self._at
        self._found.setdefault(path, self._counted)

    def _header(self) -> KeyPath:
        is_array = self._text.startswith("[[", self._at)
        self._at += 2 if is_array else 1
        names = self._key()
        path: KeyPath = ()
        for position, name in enumerate(names):
            path = (*path, name)
            last = position == len(names) - 1
            if path in self._arrays and not (last and is_array):
                path = (*path, self._arrays[path])
            self._note(path)
        if is_array:
            self._arrays[path] = self._arrays.get(path, -1) + 1
            path = (*path, self._arrays[path])
            self._note(path)
        self._at += 2 if is_array else 1
        return path

    def _key(self) -> list[str]:
        names: list[str] = []
        while True:
            self._skip(_BLANK)
            if self._text[self._at] in "\"'":
                names.append(self._string()[1:-1])
            else:
                match = _BARE_KEY.match(self._text, self._at)
                if match is None:
                    raise IndexError(self._at)
                names.append(match[0])
                self._at = match.end()
            self._skip(_BLANK)
            if self._text[self._at] != ".":
                return names
            self._at += 1

    def _string(self) -> str:
        for pattern in _STRINGS:
            match = pattern.match(self._text, self._at)
            if match is not None:
                self._at = match.end()
                return match[0]
        raise IndexError(self._at)

    def _assignment(self, table: KeyPath) -> None:
        start = self._at
        path = (*table, *self._key())
        end, self._at = self._at, start
        for depth in range(len(table) + 1, len(path) + 1):
            self._note(path[:depth])
        self._at = end + 1  # past the `=`
        self._value(path)

    def _value(self, path: KeyPath) -> None:
        self._skip(_SPACE)
        opening = self._text[self._at]
        if opening in "\"'":
            self._string()
        elif opening in "[{":
            self._at += 1
            index = 0
            while True:
                self._skip(_SPACE)
                if self._text[self._at] in "]}":
                    self._at += 1
                    return
                if opening == "[":
                    self._note((*path, index))
                    self._value((*path, index))
                    index += 1
                else:
                    self._assignment(path)
                self._skip(_SPACE)
                if self._text[self._at] == ",":
                    self._at += 1
        else:
            self._skip(_BARE_VALUE)
