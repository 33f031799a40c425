"""The handshake against the vector that two independent implementations agree on."""

from __future__ import annotations

import hashlib

import pytest

from gw.errors import WireError
from gw.wire.wg.cookies import CookieJar
from gw.wire.wg.handshake import (
    CHAIN_START,
    HASH_START,
    StaticKey,
    finish,
    identify,
    initiate,
    receive_initiation,
    respond,
)
from gw.wire.wg.messages import INITIATION, RESPONSE, kind_of
from gw.wire.wg.primitives import kdf, tai64n
from gw.wire.wg.transport import open_packet, seal_packet
from gw.wire.x25519 import exchange

I_STATIC, I_EPHEMERAL, R_STATIC, R_EPHEMERAL, PSK = (bytes([n]) * 32 for n in range(1, 6))
STAMP = bytes.fromhex("400000006553f10a00000000")
I_INDEX, R_INDEX = 0x11223344, 0x55667788

KDF3 = [
    (
        b"test-key",
        b"test-input",
        "6f0e5ad38daba1bea8a0d213688736f19763239305e0f58aba697f9ffc41c633",
        "df1194df20802a4fe594cde27e92991c8cae66c366e8106aaa937a55fa371e8a",
        "fac6e2745a325f5dc5d11a5b165aad08b0ada28e7b4e666b7c077934a4d76c24",
    ),
    (
        b"wireguard",
        b"wireguard",
        "491d43bbfdaa8750aaf535e334ecbfe5129967cd64635101c566d4caefda96e8",
        "1e71a379baefd8a79aa4662212fcafe19a23e2b609a3db7d6bcba8f560e3d25f",
        "31e1ae48bddfbe5de38f295e5452b1909a1b4e38e183926af3780b0c1e1f0160",
    ),
]


@pytest.mark.parametrize(("key", "data", "one", "two", "three"), KDF3)
def test_kdf_matches_wireguard_go(key: bytes, data: bytes, one: str, two: str, three: str) -> None:
    assert [part.hex() for part in kdf(key, data, 3)] == [one, two, three]


def test_starting_values_match_the_whitepaper() -> None:
    assert CHAIN_START.hex() == "60e26daef327efc02ec335e2a025d2d016eb4206f87277f52d38d1988b78cd36"
    assert HASH_START.hex() == "2211b361081ac566691243db458ad5322d9c6c662293e8b70ee19c65ba079ef3"


def test_the_whole_handshake_matches_the_vector() -> None:
    initiator, responder = StaticKey.of(I_STATIC), StaticKey.of(R_STATIC)
    assert initiator.public.hex() == "a4e09292b651c278b9772c569f5fa9bb13d906b46ab68c9df9dc2b4409f8a209"
    assert responder.public.hex() == "5dfedd3b6bd47f6fa28ee15d969d5bb0ea53774d488bdaf9df1c6e0124b3ef22"
    shared = exchange(initiator.secret, responder.public)
    body, pending = initiate(
        initiator, responder.public, static_shared=shared, index=I_INDEX, ephemeral=I_EPHEMERAL, timestamp=STAMP
    )
    first = CookieJar(responder.public).sign(body, 0.0)
    assert kind_of(first) == INITIATION
    assert hashlib.sha256(first).hexdigest() == "25b01dd73357717116cc795641c2ad743a4cb2d87b3d32c5ba7b2ab4aa6c21b6"

    sender, chain, hashed = identify(responder, first)
    assert sender == initiator.public
    received = receive_initiation(first, sender, chain, hashed, exchange(responder.secret, sender))
    assert received.timestamp == STAMP
    body, theirs = respond(received, index=R_INDEX, ephemeral=R_EPHEMERAL, now=1.0, psk=PSK)
    second = CookieJar(initiator.public).sign(body, 0.0)
    assert kind_of(second) == RESPONSE
    assert hashlib.sha256(second).hexdigest() == "65f1c8d0524cce4fba2546bdb815b42a1442bb11b87794d48ef066edec02a4d3"

    ours = finish(initiator, pending, second, now=2.0, psk=PSK)
    assert ours.send_key.hex() == "03cbd449e17a6c83186e51c449f2e78e26ea3235f4210f71aa3bf24332b0fa7e"
    assert ours.receive_key.hex() == "539378d7413e9ea9a531524c1ecd1ffa5739c2c2b03e6b4691b6adeb22a75db6"
    assert (theirs.send_key, theirs.receive_key) == (ours.receive_key, ours.send_key)
    keepalive = seal_packet(ours, 0, b"")
    assert keepalive.hex() == "04000000887766550000000000000000" + "2506ced6f427740e9c840da55b2896dc"
    assert open_packet(theirs, keepalive) == (0, b"")


def test_a_wrong_preshared_key_is_refused() -> None:
    initiator, responder = StaticKey.of(I_STATIC), StaticKey.of(R_STATIC)
    shared = exchange(initiator.secret, responder.public)
    body, pending = initiate(
        initiator, responder.public, static_shared=shared, index=1, ephemeral=I_EPHEMERAL, timestamp=STAMP
    )
    first = body + bytes(32)
    received = receive_initiation(first, *identify(responder, first), shared)
    answer, _ = respond(received, index=2, ephemeral=R_EPHEMERAL, now=0.0, psk=PSK)
    with pytest.raises(WireError):
        finish(initiator, pending, answer + bytes(32), now=0.0)


def test_time_stamps_compare_as_the_time_does_and_hide_its_low_bits() -> None:
    stamps = [tai64n(ns) for ns in (0, 1 << 24, 999_999_999, 1_000_000_000, 1_700_000_000_000_000_000)]
    assert stamps == sorted(stamps)
    assert tai64n((1 << 24) - 1) == tai64n(0)
