"""DNS messages: hostile bytes meet dnslib here and come out typed, or as one WireError.

Only what a server for names and addresses needs; anything else is passed on as bytes.

Ref: RFC 1035, RFC 6891 (EDNS), RFC 2308 (negative answers)
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass
from typing import Any, Final

import dnslib

from gw.errors import WireError

A: Final = 1
NS: Final = 2
SOA: Final = 6
PTR: Final = 12
HINFO: Final = 13
TXT: Final = 16
AAAA: Final = 28
SRV: Final = 33
CNAME: Final = 5
OPT: Final = 41
IXFR: Final = 251
AXFR: Final = 252
ANY: Final = 255
CLASS_IN: Final = 1

NOERROR: Final = 0
FORMERR: Final = 1
SERVFAIL: Final = 2
NXDOMAIN: Final = 3
NOTIMP: Final = 4
REFUSED: Final = 5

HEADER_BYTES: Final = 12
PLAIN_UDP_BYTES: Final = 512
EDNS_UDP_BYTES: Final = 1232
MAX_QUERY_BYTES: Final = 4096
MAX_NAME_BYTES: Final = 253


@dataclass(frozen=True, slots=True)
class Query:
    """A question. name: lower case, without the trailing dot. udp_bytes: what the asker takes in one datagram."""

    id: int
    name: str
    kind: int
    recursion: bool
    udp_bytes: int
    edns: bool
    question: bytes  # as it was asked, letter case included


@dataclass(frozen=True, slots=True)
class Record:
    """One resource record. data: an address as text for A and AAAA, a name for PTR, text for TXT."""

    name: str
    kind: int
    ttl: int
    data: str


def read_query(raw: bytes) -> Query:
    """A standard query with one question. Raises WireError."""
    if not HEADER_BYTES < len(raw) <= MAX_QUERY_BYTES:
        raise WireError("DNS query of a strange size")
    id_, flags, questions, answers, authorities, extras = struct.unpack_from(">6H", raw)
    if flags & 0x8000:
        raise WireError("not a query")
    if flags & 0x7800:
        raise WireError("not a standard query")
    if questions != 1 or answers or authorities or extras > 8:
        raise WireError("not one question")
    try:
        message = dnslib.DNSRecord.parse(raw)
        question = message.questions[0]
        name = str(question.qname).rstrip(".").lower()
        edns = [extra for extra in message.ar if extra.rtype == OPT]
    except Exception as error:  # dnslib lets several kinds of exception out for bytes that make no sense
        raise WireError(f"DNS query makes no sense: {type(error).__name__}") from None
    if len(name) > MAX_NAME_BYTES or len(edns) > 1 or question.qclass not in (CLASS_IN, ANY):
        raise WireError("DNS question refused")
    size = max(PLAIN_UDP_BYTES, min(int(edns[0].rclass), EDNS_UDP_BYTES)) if edns else PLAIN_UDP_BYTES
    end = HEADER_BYTES
    while raw[end]:
        end += 1 + raw[end] if raw[end] < 64 else len(raw)  # a question's name comes first: it cannot be compressed
        if end >= len(raw):
            raise WireError("DNS name makes no sense")
    return Query(id_, name, int(question.qtype), bool(flags & 0x0100), size, bool(edns), raw[HEADER_BYTES : end + 5])


def answer(
    query: Query,
    records: list[Record],
    *,
    code: int = NOERROR,
    authoritative: bool = True,
    soa: tuple[str, int] | None = None,
    limit: int = 65535,
) -> bytes:
    """A whole response of at most `limit` bytes; truncated (TC) where the records do not fit.

    soa: (zone, negative TTL in seconds) for answers that say "no".
    """
    flags = 0x8000 | (0x0400 if authoritative else 0) | (0x0180 if query.recursion else 0x0080) | code
    parts: list[Any] = [_encode(record) for record in records]
    authority = [_soa(*soa)] if soa is not None else []
    opt = b"\0" + struct.pack(">HHIH", OPT, EDNS_UDP_BYTES, 0, 0) if query.edns else b""
    size = HEADER_BYTES + len(query.question) + len(opt) + sum(map(len, parts)) + sum(map(len, authority))
    if size > limit:
        flags |= 0x0200
        parts, authority = [], []
    counts = (1, len(parts), len(authority), 1 if opt else 0)
    return struct.pack(">6H", query.id, flags, *counts) + query.question + b"".join(parts + authority) + opt


def refusal(raw: bytes, code: int) -> bytes:
    """An answer to bytes that are no query we understand; empty where even the id is missing, or for a response."""
    if len(raw) < HEADER_BYTES or raw[2] & 0x80:
        return b""
    return raw[:2] + struct.pack(">H", 0x8000 | (raw[2] & 0x78) << 8 | code) + bytes(8)


def truncated(raw: bytes, limit: int) -> bytes:
    """An upstream's answer for an asker who takes `limit` bytes."""
    if len(raw) <= limit:
        return raw
    end = HEADER_BYTES
    while end < len(raw) and raw[end]:
        end += 1 + raw[end]
    return raw[:2] + bytes([raw[2] | 0x02, raw[3]]) + b"\0\1" + bytes(6) + raw[HEADER_BYTES : end + 5]


def response_code(raw: bytes) -> int:
    """The code of an answer. Raises WireError for what is none."""
    if len(raw) < HEADER_BYTES or not raw[2] & 0x80:
        raise WireError("not a DNS response")
    return raw[3] & 0x0F


def lowest_ttl(raw: bytes) -> int:
    """Seconds that an upstream's answer may be kept, 0 for not at all. Raises WireError."""
    try:
        message = dnslib.DNSRecord.parse(raw)
        if message.rr:
            return int(min(record.ttl for record in message.rr))
        times = [min(int(entry.ttl), int(entry.rdata.times[4])) for entry in message.auth if entry.rtype == SOA]
        return min(times, default=0)
    except Exception as error:  # as in read_query
        raise WireError(f"DNS answer makes no sense: {type(error).__name__}") from None


def _encode(record: Record) -> bytes:
    if record.kind == A:
        data = bytes(int(part) for part in record.data.split("."))
    elif record.kind == AAAA:
        data = ipaddress.IPv6Address(record.data).packed
    elif record.kind in (PTR, CNAME, NS):
        data = encode_name(record.data)
    elif record.kind == TXT:
        text = record.data.encode()
        data = b"".join(bytes([len(text[at : at + 255])]) + text[at : at + 255] for at in range(0, len(text) or 1, 255))
    else:
        raise WireError(f"no form for records of type {record.kind}")
    head = struct.pack(">HHIH", record.kind, CLASS_IN, record.ttl, len(data))
    # every record answers the question's name, which stands at offset 12, or names its own
    name = b"\xc0\x0c" if not record.name else encode_name(record.name)
    return name + head + data


def _soa(zone: str, ttl: int) -> bytes:
    names = encode_name(f"ns.{zone}") + encode_name(f"hostmaster.{zone}")
    data = names + struct.pack(">5I", 1, 3600, 600, 86400, ttl)
    return encode_name(zone) + struct.pack(">HHIH", SOA, CLASS_IN, ttl, len(data)) + data


def encode_name(name: str) -> bytes:
    """Labels with their lengths. Raises WireError where one does not fit, or the whole is too long."""
    out = b""
    for label in name.rstrip(".").split(".") if name.rstrip(".") else []:
        try:
            raw = label.encode("idna") if not label.isascii() else label.encode()
        except UnicodeError:
            raw = b""
        if not 0 < len(raw) < 64:
            raise WireError(f"not a DNS label: {label!r}")
        out += bytes([len(raw)]) + raw
    if len(out) > MAX_NAME_BYTES + 1:
        raise WireError("DNS name too long")
    return out + b"\0"
