"""Go's JSON habits as msgspec structs: exact field names, omitted zero values, RFC 3339 times, nullable everything.

A Go decoder accepts `null` for any field, so every list, map and struct below is `… | None`; readers use `x or []`.
Keys and addresses are text here and become typed values where they are used.

Ref: spec of the control protocol §1.2
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import msgspec

from gw.errors import WireError

_WORDS: Final[dict[str, str]] = {
    "id": "ID", "ids": "IDs", "ip": "IP", "ips": "IPs", "derp": "DERP", "dns": "DNS", "url": "URL", "os": "OS",
    "udp": "UDP", "ssh": "SSH", "tka": "TKA", "nl": "NL", "upnp": "UPnP", "pmp": "PMP", "pcp": "PCP", "ipv4": "IPv4",
    "ipv6": "IPv6", "icmpv4": "ICMPv4", "stun": "STUN", "ipn": "IPN", "peerapi": "PeerAPI", "cap_map": "CapMap",
    "wol": "WoL", "ip_proto": "IPProto", "stunonly": "STUNOnly", "stunport": "STUNPort", "derpport": "DERPPort",
    "api": "API",
}  # fmt: skip


def go_name(name: str) -> str:
    """`allowed_ips` → `AllowedIPs`: the exported Go field for a Python one."""
    return "".join(_WORDS.get(word, word[:1].upper() + word[1:]) for word in name.split("_"))


class GoStruct(msgspec.Struct, rename=go_name, omit_defaults=True, kw_only=True):
    """Base of every control-protocol object. Fields at their default are left out when encoding."""


ZERO_TIME: Final = datetime(1, 1, 1, tzinfo=UTC)
ZERO_TIME_TEXT: Final = "0001-01-01T00:00:00Z"

T = TypeVar("T")
_ESCAPE: Final = (  # compiled when it is needed: seldom
    rb"(?s)\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?P<half>\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\."
)
_encoder: Final = msgspec.json.Encoder()


def encode(value: object) -> bytes:
    """JSON bytes of a struct, list or dict."""
    return _encoder.encode(value)


def mend_surrogates(raw: bytes) -> bytes:
    """JSON with U+FFFD for each escape that is a half of a surrogate pair without the other. Ref: Go encoding/json"""
    return re.sub(_ESCAPE, lambda match: b"\\ufffd" if match["half"] else match[0], raw)


def decoder(kind: type[T]) -> Callable[[bytes], T]:
    """A function bytes → `kind` that raises WireError and nothing else. Unknown fields are ignored.

    A half of a surrogate pair reads as U+FFFD, as Go reads it: a policy may hand out such a value.
    """
    decode = msgspec.json.Decoder(kind).decode

    def read(raw: bytes) -> T:
        try:
            try:
                return decode(raw)
            except msgspec.DecodeError:
                mended = mend_surrogates(raw)
                if mended == raw:
                    raise
                return decode(mended)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise WireError(f"{kind.__name__}: {error}") from None

    return read


def raw(value: Any) -> msgspec.Raw:
    """Any JSON-able value as bytes to embed verbatim in another object."""
    return msgspec.Raw(_encoder.encode(value))
