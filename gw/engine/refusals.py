"""A host that says by ICMP that nobody listens at a relay's UDP port, and how far that is believed.

Anybody may forge such a word, so it is a reason to ask the relay: only where it is repeated while nothing of the relay
is heard is the relay gone. Then nobody waits for a time-out. No I/O.

Ref: RFC 8085 §5.2; RFC 9000 §21
"""

from __future__ import annotations

from typing import Final, final

BELIEVE_S: Final = 0.25
BELIEVE_RTTS: Final = 3.0
ASK_S: Final = 0.1


@final
class Refusals:
    def __init__(self) -> None:
        self._since = float("-inf")
        self._asked_at = float("-inf")

    def refused(self, heard_at: float, rtt_s: float, now: float) -> bool:
        """One more word. heard_at: when the relay was heard last. True where the relay is gone."""
        if self._since < heard_at or self._since == float("-inf"):
            self._since = now
        return now - self._since > max(BELIEVE_S, BELIEVE_RTTS * rtt_s)

    def may_ask(self, now: float) -> bool:
        """Whether to ask the relay now, or soon: once for many words."""
        if now - self._asked_at < ASK_S:
            return False
        self._asked_at = now
        return True
