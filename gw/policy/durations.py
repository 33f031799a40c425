"""Durations as Go writes them: `1h30m`, `-1m0s`, `1.5h`. Ref: Go time.ParseDuration, time.Duration.String"""

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
_PART: Final = re.compile("([0-9]*)(?:[.]([0-9]*))?([^.0-9]*)")
_LIMIT: Final = 1 << 63
_DIGITS: Final = 19  # of the limit: no longer number can count


def parse(text: str) -> int:
    """Nanoseconds. Raises ValueError with Go's message."""
    invalid = ValueError(f'time: invalid duration "{text}"')
    rest = text[1:] if text[:1] in ("+", "-") else text
    if rest == "0":
        return 0
    if not rest:
        raise invalid
    total = 0
    for match in _PART.finditer(rest):
        if not match.group():
            break
        whole, fraction, unit = match[1].lstrip("0"), match[2] or "", match[3]
        if not (match[1] or fraction) or len(whole) > _DIGITS:
            raise invalid
        if not unit:
            raise ValueError(f'time: missing unit in duration "{text}"')
        if unit not in _UNITS:
            raise ValueError(f'time: unknown unit "{unit}" in duration "{text}"')
        fraction = fraction[:_DIGITS]
        total += int(whole or 0) * _UNITS[unit] + int(fraction or 0) * _UNITS[unit] // 10 ** len(fraction)
        if total >= _LIMIT:
            raise invalid
    return -total if text.startswith("-") else total


def text_of(nanoseconds: int) -> str:
    """As Go prints it: `1h0m0s`, `2m0s`, `1.5s`, `500ms`."""
    sign = "-" if nanoseconds < 0 else ""
    size = abs(nanoseconds)
    if 0 < size < 10**9:
        unit, one = next(each for each in (("ns", 10**3), ("\u00b5s", 10**6), ("ms", 10**9)) if size < each[1])
        return f"{sign}{_decimal(size, one // 10**3)}{unit}"
    minutes, seconds = divmod(size, 60 * 10**9)
    hours, minutes = divmod(minutes, 60)
    tail = f"{_decimal(seconds, 10**9)}s"
    if hours:
        return f"{sign}{hours}h{minutes}m{tail}"
    return f"{sign}{minutes}m{tail}" if minutes else f"{sign}{tail}"


def _decimal(number: int, one: int) -> str:
    """number / one, exactly."""
    whole, rest = divmod(number, one)
    return str(whole) + (f".{rest:0{len(str(one)) - 1}d}".rstrip("0") if rest else "")
