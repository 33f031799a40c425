"""Disco messages about a UDP relay between two nodes, big-endian. Longer bodies than known are read.

    04 bind       u32 VNI | u32 generation | 32 the other client's disco key | 32 challenge
    05 challenge  as bind: the relay's answer, with a challenge for the address that the bind came from
    06 answer     as bind: the challenge comes back from there
    07 call-me-maybe-via  an endpoint: by relay, to the other client
    08 allocate request   32 + 32 the clients' disco keys | u32 generation
    09 allocate response  u32 generation | an endpoint

    endpoint: 32 relay's disco key | 32 + 32 the clients' | u64 lamport id | u32 VNI |
              u64 ns until both have to be bound | u64 ns that either may be silent | n × (16 + 2) its addresses

Ref: tailscale disco/disco.go, net/udprelay/endpoint
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from gw.errors import WireError
from gw.model.addresses import ADDR_PORT_BYTES, AddrPort
from gw.model.keys import DiscoKey

BIND: Final = 0x04
CHALLENGE: Final = 0x05
ANSWER: Final = 0x06
CALL_ME_MAYBE_VIA: Final = 0x07
ALLOCATE_REQUEST: Final = 0x08
ALLOCATE_RESPONSE: Final = 0x09
KINDS: Final = frozenset(range(BIND, ALLOCATE_RESPONSE + 1))
CHALLENGE_BYTES: Final = 32
MAX_ADDRESSES: Final = 32
MAX_LIFETIME_S: Final = 86_400.0  # whatever a relay says
_BIND: Final = struct.Struct(">II32s32s")
_REQUEST: Final = struct.Struct(">32s32sI")
_ENDPOINT: Final = struct.Struct(">32s32s32sQIQQ")


@dataclass(frozen=True, slots=True)
class Bind:
    """kind: BIND, CHALLENGE or ANSWER. remote: the other client. generation: of the client's handshakes, not 0."""

    kind: int
    vni: int
    generation: int
    remote: DiscoKey
    challenge: bytes = bytes(CHALLENGE_BYTES)


@dataclass(frozen=True, slots=True)
class RelayEndpoint:
    """What a relay has allocated for two clients. clients: sorted. Lifetimes in seconds."""

    server: DiscoKey
    clients: tuple[DiscoKey, DiscoKey]
    lamport: int
    vni: int
    bind_s: float
    steady_s: float
    addresses: tuple[AddrPort, ...]


@dataclass(frozen=True, slots=True)
class CallMeMaybeVia:
    endpoint: RelayEndpoint


@dataclass(frozen=True, slots=True)
class AllocateRequest:
    clients: tuple[DiscoKey, DiscoKey]
    generation: int


@dataclass(frozen=True, slots=True)
class AllocateResponse:
    generation: int
    endpoint: RelayEndpoint


UdpRelayMessage = Bind | CallMeMaybeVia | AllocateRequest | AllocateResponse


def pair_of(one: DiscoKey, other: DiscoKey) -> tuple[DiscoKey, DiscoKey]:
    """Two clients in the order in which messages name them."""
    return (one, other) if one.raw <= other.raw else (other, one)


def encode_body(message: UdpRelayMessage) -> tuple[int, bytes]:
    """Type and body."""
    if isinstance(message, Bind):
        body = _BIND.pack(message.vni, message.generation, message.remote.raw, message.challenge)
        return message.kind, body
    if isinstance(message, CallMeMaybeVia):
        return CALL_ME_MAYBE_VIA, _encode_endpoint(message.endpoint)
    if isinstance(message, AllocateRequest):
        one, other = message.clients
        return ALLOCATE_REQUEST, _REQUEST.pack(one.raw, other.raw, message.generation)
    return ALLOCATE_RESPONSE, message.generation.to_bytes(4, "big") + _encode_endpoint(message.endpoint)


def decode_body(kind: int, body: bytes) -> UdpRelayMessage:
    """The message of one of KINDS. Raises WireError where it is cut off or makes no sense."""
    if kind in (BIND, CHALLENGE, ANSWER):
        if len(body) < _BIND.size:
            raise WireError("bind cut off")
        vni, generation, remote, challenge = _BIND.unpack_from(body)
        if not generation:
            raise WireError("bind of generation 0")
        return Bind(kind, vni, generation, DiscoKey(remote), challenge)
    if kind == ALLOCATE_REQUEST:
        if len(body) < _REQUEST.size:
            raise WireError("allocate request cut off")
        one, other, generation = _REQUEST.unpack_from(body)
        if one >= other:
            raise WireError("clients of an allocation are out of order")
        return AllocateRequest((DiscoKey(one), DiscoKey(other)), generation)
    if kind == CALL_ME_MAYBE_VIA:
        return CallMeMaybeVia(_decode_endpoint(body))
    if len(body) < 4:
        raise WireError("allocate response cut off")
    return AllocateResponse(int.from_bytes(body[:4], "big"), _decode_endpoint(body[4:]))


def _encode_endpoint(endpoint: RelayEndpoint) -> bytes:
    one, other = endpoint.clients
    return _ENDPOINT.pack(
        endpoint.server.raw, one.raw, other.raw, endpoint.lamport, endpoint.vni, int(endpoint.bind_s * 1e9),
        int(endpoint.steady_s * 1e9),
    ) + b"".join(address.pack() for address in endpoint.addresses)  # fmt: skip


def _decode_endpoint(body: bytes) -> RelayEndpoint:
    if len(body) < _ENDPOINT.size + ADDR_PORT_BYTES:
        raise WireError("relay endpoint cut off")
    server, one, other, lamport, vni, bind_ns, steady_ns = _ENDPOINT.unpack_from(body)
    if one >= other:
        raise WireError("clients of a relay endpoint are out of order")
    if not 0 < vni < 1 << 24:
        raise WireError(f"not a VNI: {vni}")
    rest = body[_ENDPOINT.size :]
    count = min(len(rest) // ADDR_PORT_BYTES, MAX_ADDRESSES)
    addresses = tuple(AddrPort.unpack(rest[at : at + ADDR_PORT_BYTES]) for at in range(0, count * 18, ADDR_PORT_BYTES))
    return RelayEndpoint(
        DiscoKey(server), (DiscoKey(one), DiscoKey(other)), lamport, vni, min(bind_ns / 1e9, MAX_LIFETIME_S),
        min(steady_ns / 1e9, MAX_LIFETIME_S), addresses,
    )  # fmt: skip
