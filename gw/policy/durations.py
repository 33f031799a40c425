"""Durations as Go writes them: `1h30m`, `-1m0s`, `1.5h`. Ref: Go time.ParseDuration"""

from __future__ import annotations

import re
from typing import Final

_UNITS: Final = {
    "ns": 1,
    "us": 10**3,
    "\u00b5s": 10**3,
    "\u03bcs": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
_PART: Final = re.compile("([0-9]*)(?:[.]([0-9]*))?(ns|us|\u00b5s|\u03bcs|ms|s|m|h)")


def parse(text: str) -> int:
    """Nanoseconds. Raises ValueError with Go's message."""
    fault = ValueError(f'time: invalid duration "{text}"')
    rest = text.removeprefix("-").removeprefix("+") if text[:1] in "+-" else text
    if rest == "0":
        return 0
    total, at = 0, 0
    while at < len(rest):
        match = _PART.match(rest, at)
        if match is None or not (match[1] or match[2]):
            raise fault
        unit = _UNITS[match[3]]
        total += int(match[1] or 0) * unit
        if match[2]:
            total += int(match[2]) * unit // 10 ** len(match[2])
        at = match.end()
    if not rest or total >= 1 << 63:
        raise fault
    return -total if text.startswith("-") else total


def text_of(nanoseconds: int) -> str:
    """As Go prints it, for whole seconds: `1h0m0s`, `2m0s`, `5s`."""
    sign = "-" if nanoseconds < 0 else ""
    seconds, fraction = divmod(abs(nanoseconds), 10**9)
    hours, minutes = seconds // 3600, seconds // 60 % 60
    tail = f"{seconds % 60}" + (f".{fraction:09d}".rstrip("0") if fraction else "")
    if hours:
        return f"{sign}{hours}h{minutes}m{tail}s"
    return f"{sign}{minutes}m{tail}s" if minutes else f"{sign}{tail}s"
