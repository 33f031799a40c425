"""Lengths of time as people write them: `90s`, `30m`, `24h`, `7d`, `1h30m`, `0`."""

from __future__ import annotations

import re
from typing import Final

from gw.errors import UsageError

UNIT_S: Final = {
    "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0, "y": 31536000.0,
}  # fmt: skip
LONGEST_S: Final = 200 * UNIT_S["y"]
_PART: Final = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)(ms|[smhdwy])", re.ASCII)


def parse_duration(text: str) -> float:
    """Seconds of a duration; `0` needs no unit. Raises UsageError, also above 200 years."""
    if text.strip() == "0":
        return 0.0
    total, at = 0.0, 0
    rest = text.strip()
    while at < len(rest):
        part = _PART.match(rest, at)
        if part is None:
            break
        total += float(part[1]) * UNIT_S[part[2]]
        at = part.end()
    if not rest or at != len(rest) or total > LONGEST_S:
        raise UsageError(f"not a duration: `{text}`", hint="write `90s`, `30m`, `24h`, `7d` or `0`")
    return total
