"""Keys of the fast path: AWS-LC's and `cryptography`'s seal and open alike, and the trains made of them are the stock
connection's packets."""

from __future__ import annotations

from typing import Any

import pytest
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.tls import CipherSuite
from cryptography.exceptions import InvalidTag

from gw.native.quicpackets import Window, open_train, seal_train
from gw.quic import protection
from gw.wire import awslc

SUITES = [CipherSuite.AES_128_GCM_SHA256, CipherSuite.AES_256_GCM_SHA384, CipherSuite.CHACHA20_POLY1305_SHA256]
CID = bytes(range(8))


def pair(suite: CipherSuite) -> CryptoPair:
    made = CryptoPair()
    for context in (made.send, made.recv):
        context.setup(cipher_suite=suite, secret=bytes(range(48 if "384" in suite.name else 32)), version=1)
    return made


@pytest.fixture(params=["aws-lc", "openssl"])
def source(request: Any, monkeypatch: Any) -> None:
    if request.param == "openssl":
        monkeypatch.setattr(protection, "_awslc", lambda: None)


@pytest.mark.usefixtures("source")
@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("number", [0, 255, 70_000, (1 << 32) - 2, (1 << 40) + 5])
def test_trains_open_as_they_were_sealed_and_aioquic_opens_them(suite: CipherSuite, number: int) -> None:
    keys = pair(suite)
    frames = [b"0" + bytes([at]) * size for at, size in enumerate((1300, 1300, 1300, 40, 1300, 41, 41))]
    trains, sizes = seal_train(protection.make_keys(keys.send, sealing=True), CID, number, frames)
    assert [segment for _, segment in trains] == [1330, 1330, 71]
    assert sizes == [len(frame) + 29 for frame in frames]
    assert sum(len(train) for train, _ in trains) == sum(sizes)
    opening, window = protection.make_keys(keys.recv, sealing=False), Window()
    got: list[bytes] = []
    for train, segment in trains:
        opened, runs, acks, others = open_train(opening, None, window, {CID}, train, segment, number)
        assert not acks
        assert not others
        assert len(runs) == 2
        got += opened
        assert open_train(opening, None, window, {CID}, train, segment, number)[0] == []  # a replay
    assert got == frames
    first = trains[0][0][:1330]
    _, plain, heard, _ = keys.recv.decrypt_packet(first, 9, number)
    assert (plain, heard) == (frames[0], number)


@pytest.mark.usefixtures("source")
@pytest.mark.parametrize("suite", SUITES)
def test_packets_of_aioquic_are_opened(suite: CipherSuite) -> None:
    """It writes numbers of two bytes, and a length into the frame."""
    keys = pair(suite)
    builder = QuicPacketBuilder(
        host_cid=b"", peer_cid=CID, version=1, is_client=True, max_datagram_size=1200, packet_number=7
    )
    builder.start_packet(QuicPacketType.ONE_RTT, keys)
    builder.start_frame(0x31, capacity=103).push_bytes(b"\x40\x64" + b"x" * 100)
    (packet,), _ = builder.flush()
    opened, runs, _, others = open_train(
        protection.make_keys(keys.recv, sealing=False), None, Window(), {CID}, packet, len(packet), 7
    )
    assert (opened, runs, others) == ([b"0" + b"x" * 100], [7, 8], [])


@pytest.mark.parametrize("suite", SUITES)
def test_what_was_changed_is_refused(suite: CipherSuite) -> None:
    keys = pair(suite)
    ((train, size),), _ = seal_train(protection.make_keys(keys.send, sealing=True), CID, 9, [b"0" + b"x" * 60])
    opening = protection.make_keys(keys.recv, sealing=False)
    for at in range(size):
        wrong = train[:at] + bytes([train[at] ^ 1]) + train[at + 1 :]
        assert open_train(opening, None, Window(), {CID}, wrong, size, 9)[0] == []


def test_aws_lc_is_used_where_it_is_and_not_where_it_is_wrong(monkeypatch: Any) -> None:
    module = awslc.load()
    if module is None:
        pytest.skip("AWS-LC is not installed for this system")
    assert protection._awslc() is module

    class Wrong:
        CryptoError = InvalidTag
        AeadAes256Gcm = module.AeadAes256Gcm
        AeadChaCha20Poly1305 = module.AeadChaCha20Poly1305

        @staticmethod
        def AeadAes128Gcm(key: bytes, iv: bytes) -> Any:
            return module.AeadAes128Gcm(key[::-1], iv)

    monkeypatch.setattr(protection.awslc, "load", lambda: Wrong)
    protection._awslc.cache_clear()
    try:
        assert protection._awslc() is None
    finally:
        protection._awslc.cache_clear()
