"""Flow numbers: three bytes in place of a key, for keys that packets come for again and again.

    sender of datagrams                    receiver
      DATA_KEY, key in every packet ─────▶
      FLOW_OPEN number, key  ────────────▶   remembers it, once and for all of this connection
      ◀────────────────────────── FLOW_OK   or FLOW_CLOSE: it takes no more
      DATA, number in every packet  ─────▶
      FLOW_CLOSE when the number makes room for another

Either direction has numbers of its own. A number is never used for a second key, so that a datagram that was overtaken
reaches nobody else. Between relays one number names the source of a packet and one its destination.

Ref: spec quic §8.2, §8.3
"""

from __future__ import annotations

from typing import Final, final

from gw.errors import WireError
from gw.wire.derp.frames import encode
from gw.wire.quic import frames

OPEN_AFTER: Final = 8  # packets by key, and again while there is no number
MAX_FLOWS: Final = 512  # of a client, in each direction
MAX_MESH_FLOWS: Final = 4096
MAX_NUMBER: Final = (1 << 24) - 1
NUMBER_BYTES: Final = 3
UNUSED: Final = 0  # why a flow is closed: its sender needs it no more
FULL: Final = 1  # its receiver takes no more


def encode_open(number: bytes, key: bytes) -> bytes:
    return encode(frames.FLOW_OPEN, number + key)


@final
class Flows:
    """Both directions of one connection. What methods return goes on the control stream."""

    def __init__(self, numbers: dict[bytes, bytes], keys: dict[bytes, bytes], limit: int = MAX_FLOWS) -> None:
        """numbers: by key, those that the other end has confirmed. keys: by number, of what it sends. Both are kept
        here, and read wherever packets are made and taken. limit: entries of each."""
        self._numbers = numbers
        self._keys = keys
        self.limit = limit
        self._opened: dict[bytes, bytes] = {}  # key → number, confirmed or not, oldest first
        self._named: dict[bytes, bytes] = {}  # the other way round
        self._next = 1
        self._is_refused = False  # the other end takes no more

    def want(self, key: bytes) -> bytes:
        """Packets for this key would rather have a number."""
        if key in self._opened or self._is_refused or self._next > MAX_NUMBER:
            return b""
        said = b""
        if len(self._opened) >= self.limit:
            said = self.forget(next(iter(self._opened)))
        number = self._opened[key] = self._next.to_bytes(NUMBER_BYTES, "big")
        self._named[number] = key
        self._next += 1
        return said + encode_open(number, key)

    def forget(self, key: bytes) -> bytes:
        """No more packets for this key."""
        number = self._opened.pop(key, None)
        if number is None:
            return b""
        del self._named[number]
        self._numbers.pop(key, None)
        return encode(frames.FLOW_CLOSE, number + bytes([UNUSED]))

    def frame_untrusted(self, kind: int, body: bytes) -> bytes:
        """A FLOW_OPEN, FLOW_OK or FLOW_CLOSE of the other end. Raises WireError. A repeated one changes nothing."""
        number = body[:NUMBER_BYTES]
        if len(number) < NUMBER_BYTES or not any(number):
            raise WireError("flow without a number")
        if kind == frames.FLOW_OPEN:
            return self._open_untrusted(number, body[NUMBER_BYTES:])
        if kind == frames.FLOW_OK:
            key = self._named.get(number)
            if key is not None:
                self._numbers[key] = number
            return b""
        if len(body) <= NUMBER_BYTES:
            raise WireError("flow closed without a reason")
        if body[NUMBER_BYTES] == UNUSED:
            self._keys.pop(number, None)
            return b""
        self._is_refused = True
        key = self._named.get(number)
        if key is not None:
            self.forget(key)
        return b""

    def _open_untrusted(self, number: bytes, key: bytes) -> bytes:
        if len(key) != frames.KEY_BYTES:
            raise WireError("flow without a key")
        known = self._keys.get(number)
        if known is None:
            if len(self._keys) >= self.limit:
                return encode(frames.FLOW_CLOSE, number + bytes([FULL]))
            self._keys[number] = key
        elif known != key:
            raise WireError("flow number for a second key")
        return encode(frames.FLOW_OK, number)


@final
class Counter:
    """Which keys have had OPEN_AFTER packets without a number, and as many again."""

    def __init__(self) -> None:
        self._counts: dict[bytes, int] = {}

    def is_due(self, key: bytes) -> bool:
        """One more packet for the key."""
        counts = self._counts
        if len(counts) >= MAX_FLOWS and key not in counts:
            counts.clear()
        count = counts[key] = counts.get(key, 0) + 1
        return count % OPEN_AFTER == 0
