"""The UDP port of a relay without QUIC: STUN, what is relayed between nodes, and defects that a stranger finds."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from gw.model.addresses import AddrPort
from gw.relay.stunning import COMPLAINT_BURST, StunSocket
from gw.wire import geneve, stun
from gw.wire.geneve import Header

pytestmark = pytest.mark.enable_socket

RELAYED = geneve.encode(Header(geneve.WIREGUARD, 1)) + bytes(60)
TX_ID = bytes(range(12))


class Relay:
    """In place of `PeerRelay`: sends everything back, or meets a defect."""

    def __init__(self) -> None:
        self.fault: Exception | None = None

    def feed(self, train: bytes, segment: int, source: Any, now: float) -> list[tuple[bytes, int, Any]]:
        if self.fault is not None:
            raise self.fault
        return [(train, segment, source)]


@pytest.fixture
def ends() -> Iterator[tuple[StunSocket, Relay, socket.socket]]:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        channel.bind(("127.0.0.1", 0))
        client.connect(channel.getsockname())
        client.settimeout(10)
        responder, relay = StunSocket(channel), Relay()
        responder.peers = relay  # type: ignore[assignment]
        yield responder, relay, client


def test_what_is_relayed_goes_out_from_the_same_port(ends: tuple[StunSocket, Relay, socket.socket]) -> None:
    responder, _, client = ends
    client.send(RELAYED)
    responder.ready()
    assert client.recv(2048) == RELAYED


@pytest.mark.parametrize("fault", [KeyError("x"), ValueError("x"), IndexError("x"), AssertionError()])
def test_a_defect_costs_the_datagram_that_met_it_alone(
    ends: tuple[StunSocket, Relay, socket.socket], fault: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    responder, relay, client = ends
    relay.fault = fault
    for _ in range(3 * COMPLAINT_BURST):
        client.send(RELAYED)
    client.send(stun.encode_request(TX_ID))
    responder.ready()
    answer = stun.decode_answer(client.recv(2048))
    assert answer == (TX_ID, AddrPort("127.0.0.1", client.getsockname()[1]))
    assert responder.broken == 3 * COMPLAINT_BURST
    assert responder.requests == 1
    assert len(caplog.records) == COMPLAINT_BURST  # a stranger does not fill the log


def test_an_address_that_cannot_be_sent_to_is_no_defect(ends: tuple[StunSocket, Relay, socket.socket]) -> None:
    responder, relay, client = ends
    relay.fault = PermissionError(1, "firewall")
    client.send(RELAYED)
    responder.ready()
    assert (responder.broken, responder.ignored) == (0, 1)
