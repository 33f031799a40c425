"""The relay's own key as a receiver: requests in any crowd, and no more of it than a turn's worth."""

from __future__ import annotations

import os
from typing import Any

from gw.model.addresses import AddrPort
from gw.model.keys import DiscoSecret, NodeKey
from gw.relay.allocating import OUT_BYTES, Desk
from gw.relay.peerrelay import PeerRelay
from gw.wire.derp.frames import MAX_PACKET_BYTES
from gw.wire.disco.envelope import Envelopes
from gw.wire.disco.messages import decode, encode
from gw.wire.disco.udprelay import AllocateRequest, AllocateResponse, pair_of

from .ends import Guest, House, settle
from .street import Street


def opened() -> tuple[Street, PeerRelay, NodeKey]:
    street = Street(House())
    relay = PeerRelay(DiscoSecret(bytes([9]) * 32), os.urandom, lambda: (AddrPort("192.0.2.9", 3478),))
    plane: Any = street  # it has a clock and timers
    Desk(plane, street.house.reception, relay)
    return street, relay, NodeKey(street.house.reception.identity.key)


def test_a_request_is_answered_in_a_turn_of_many_megabytes() -> None:
    street, relay, own = opened()
    house = street.house
    ann, bob = (Envelopes(DiscoSecret(bytes([number]) * 32)) for number in (11, 12))
    request = ann.seal(relay.key, os.urandom(24), encode(AllocateRequest(pair_of(ann.key, bob.key), 5)))
    flooders = [Guest(house, number) for number in range(2, 22)]
    asker = Guest(house, 1)
    for flooder in flooders:
        for packet in (bytes(MAX_PACKET_BYTES), request[:6] + bytes(MAX_PACKET_BYTES - 6)):
            flooder.client.send(own, [packet] * 4)
        flooder.end.session.feed(flooder.client.data_to_send(), 0.0)
    desk = house.switch.local[own.raw]
    assert desk.out_bytes <= OUT_BYTES + 2 * MAX_PACKET_BYTES
    asker.client.send(own, [request])
    asker.move()
    settle(asker)
    (answer,) = [packet for source, packet in asker.packets if source == own]
    assert isinstance(decode(ann.open(answer)), AllocateResponse)
    assert not house.switch.waits(desk)
    assert house.switch.dropped_queue > 0


def test_it_is_looked_after_as_any_receiver_that_packets_wait_for() -> None:
    """Its owner lacked what is asked of one: the look ended the loop."""
    street, _, own = opened()
    alice = Guest(street.house, 1)
    alice.client.send(own, [bytes(1000)] * 100)
    alice.end.session.feed(alice.client.data_to_send(), 0.0)
    desk = street.house.switch.local[own.raw]
    street.flush()
    assert desk.is_crowded
    assert not street.house.switch.waits(desk)
    street.run(1.0)
    assert not desk.is_crowded
