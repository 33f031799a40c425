"""The handshake and records, against the deterministic exchange in the protocol description."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gw.errors import WireError
from gw.model.keys import MachineKey, MachineSecret
from gw.wire.ts2021.noise import ClientHandshake, Session, accept, refusal
from gw.wire.x25519 import KeyPair, clamp, public_key

SERVER, MACHINE, CLIENT_EPHEMERAL, SERVER_EPHEMERAL = (clamp(bytes([byte]) * 32) for byte in (0x11, 0x22, 0x33, 0x44))
INITIATION = bytes.fromhex(
    "00710100607b0d47d93427f8311160781c7c733fd89f88970aef490d8aa0ee19a4cb8a1b14b903b541e3810f9a9f"
    "788541f1d8f2ec482568e39b9f0f56a9f4a7a56450f31a16e074e5ed607463b30e2e2e4b3ebfb893b1d248b6f90aa7d1"
    "0fd606e7f110c5"
)
RESPONSE = bytes.fromhex(
    "020030ff2ee45601ec1b67310c7790404585ae697331eee1c1f8cf2419731c1fff3e6ba8528731908eb6e8c967602ad319007a"
)


def handshake() -> ClientHandshake:
    server = MachineKey(public_key(SERVER))
    return ClientHandshake(MachineSecret(MACHINE), server, KeyPair(CLIENT_EPHEMERAL), 113)


def sessions() -> tuple[Session, Session]:
    client = handshake()
    accepted = accept(MachineSecret(SERVER), client.initiation(), KeyPair(SERVER_EPHEMERAL))
    return client.finish(accepted.response), accepted.session


def test_both_messages_are_those_of_the_vector() -> None:
    client = handshake()
    assert client.initiation() == INITIATION
    accepted = accept(MachineSecret(SERVER), INITIATION, KeyPair(SERVER_EPHEMERAL))
    assert accepted.response == RESPONSE
    assert (accepted.version, accepted.machine) == (113, MachineKey(public_key(MACHINE)))
    session = client.finish(RESPONSE)
    assert session.handshake_hash == accepted.session.handshake_hash
    assert session.handshake_hash.hex().startswith("f15e92d732d74672")


def test_records_count_their_nonces_big_endian() -> None:
    client, server = sessions()
    first, second = client.seal(b"ping"), client.seal(b"ping")
    assert first.hex() == "0400140ca5fb29806dc6281dd3f598202f728ed1cd7cf1"
    assert second.hex() == "0400143b8fffa8931608ff9e632ad4c49b7b45cebc07a5"
    assert server.feed(first + second) == b"pingping"
    assert client.feed(server.seal(b"")) == b""
    server.seal(b"zero")
    assert server.seal(b"pong").hex() == "040014ddad861cf9070cdfb9699ec80014756d403e9783"


@given(st.binary(max_size=20_000), st.lists(st.integers(1, 5000), max_size=20))
def test_any_data_in_any_pieces_arrives(data: bytes, cuts: list[int]) -> None:
    client, server = sessions()
    wire, got = client.seal(data), b""
    for cut in cuts:
        got += server.feed(wire[:cut])
        wire = wire[cut:]
    assert got + server.feed(wire) == data


def test_a_replayed_record_kills_the_session() -> None:
    client, server = sessions()
    record = client.seal(b"x")
    server.feed(record)
    for _ in range(2):
        with pytest.raises(WireError):
            server.feed(record)


def test_a_refusal_is_told_with_its_text() -> None:
    client = handshake()
    client.initiation()
    with pytest.raises(WireError, match="unsupported"):
        client.finish(refusal("unsupported"))


def test_a_client_that_expects_another_server_is_refused() -> None:
    with pytest.raises(WireError):
        accept(MachineSecret(clamp(b"\x55" * 32)), INITIATION, KeyPair(SERVER_EPHEMERAL))


@given(st.binary(max_size=120) | st.binary(min_size=96, max_size=96).map(lambda raw: INITIATION[:5] + raw))
def test_any_initiation_is_a_session_or_one_error(raw: bytes) -> None:
    with pytest.raises(WireError):
        accept(MachineSecret(SERVER), raw, KeyPair(SERVER_EPHEMERAL))


@given(st.binary(max_size=120) | st.binary(min_size=48, max_size=48).map(lambda raw: RESPONSE[:3] + raw))
def test_any_response_is_a_session_or_one_error(raw: bytes) -> None:
    client = handshake()
    client.initiation()
    with pytest.raises(WireError):
        client.finish(raw)
