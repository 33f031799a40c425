"""Several connections with one key: a process that changes its transport hears nothing, two machines do."""

from __future__ import annotations

import json

import pytest
from nacl.public import Box, PrivateKey, PublicKey

from gw.model.keys import RelaySecret
from gw.relay.presence import DUPLICATE
from gw.wire.derp import client as c
from gw.wire.derp.handshake import RelayIdentity
from gw.wire.x25519 import clamp, public_key

from .ends import Guest, House, settle
from .street import QuicGuest, Street

HERE, THERE = bytes([1]) * 16, bytes([2]) * 16
COMPLAINT = c.Health(DUPLICATE)
Case = tuple[bytes, bytes, bool]
CASES: list[Case] = [  # what the first says, what the second, whether the first is told
    (HERE, HERE, False),
    (HERE, THERE, True),
    (HERE, b"", True),
    (b"", HERE, True),
    (b"", b"", True),
]


@pytest.mark.parametrize(("first", "second", "is_told"), CASES)
def test_over_tls(first: bytes, second: bytes, is_told: bool) -> None:
    house = House()
    one, two = Guest(house, 1, instance=first), Guest(house, 1, instance=second, fast=True)
    settle(house, one, two)
    assert (COMPLAINT in one.events) is is_told
    assert COMPLAINT not in two.events
    assert house.presence.duplicates == is_told


@pytest.mark.parametrize("knows_key", [True, False])
@pytest.mark.parametrize(("first", "second", "is_told"), CASES)
def test_quic_after_tls(first: bytes, second: bytes, is_told: bool, knows_key: bool) -> None:
    house = House()
    street = Street(house)
    one = Guest(house, 1, instance=first)
    two = QuicGuest(street, 1, instance=second, knows_key=knows_key)
    settle(house, one)
    assert (COMPLAINT in one.events) is is_told
    assert COMPLAINT not in two.events


@pytest.mark.parametrize(("first", "second", "is_told"), CASES)
def test_tls_after_quic(first: bytes, second: bytes, is_told: bool) -> None:
    house = House()
    street = Street(house)
    one = QuicGuest(street, 1, instance=first)
    two = Guest(house, 1, instance=second)
    street.run(0.1)
    settle(house, two)
    assert (COMPLAINT in one.events) is is_told
    assert COMPLAINT not in two.events


@pytest.mark.parametrize(("said", "is_told"), [(HERE, False), (THERE, True)])
def test_who_resumes_says_it_after_coming_in(said: bytes, is_told: bool) -> None:
    """The ticket lets in before the control stream says anything."""
    house = House()
    street = Street(house)
    before = QuicGuest(street, 1, instance=HERE)
    street.run(0.1)
    street.guests.remove(before)
    before.link.close()
    for packet, _ in before.poll():
        street.arrive(packet, before.address)
    tls = Guest(house, 1, instance=HERE)
    again = QuicGuest(street, 1, ticket=before.tickets[-1], instance=said)
    street.run(0.1)
    settle(house, tls)
    assert street.port.resumed == 1
    assert (COMPLAINT in tls.events) is is_told
    assert COMPLAINT not in again.events
    assert house.presence.duplicates == is_told


def test_the_fight_of_two_machines_is_told_at_every_turn() -> None:
    house = House()
    bob = Guest(house, 2)
    one, two = Guest(house, 1, instance=HERE), Guest(house, 1, instance=THERE)
    settle(house, one, two)
    for speaker, loser in ((one, two), (two, one)):
        told = loser.events.count(COMPLAINT)
        speaker.send(bob.key, b"x")
        settle(house, one, two)
        assert loser.events.count(COMPLAINT) == told + 1


def test_two_connections_of_one_process_take_turns_in_silence() -> None:
    house = House()
    bob = Guest(house, 2)
    one, two = Guest(house, 1, instance=HERE), Guest(house, 1, instance=HERE)
    for speaker in (one, two, one):
        speaker.send(bob.key, b"x")
        bob.send(speaker.key, b"y")
        settle(house, one, two)
        assert speaker.packets[-1] == (bob.key, b"y")
    assert COMPLAINT not in one.events + two.events


@pytest.mark.parametrize("told", [None, 7, "", "zz" * 16, "ab" * 15, "ab" * 17, ["ab" * 16], {}])
def test_an_instance_that_makes_no_sense_is_none(told: object) -> None:
    identity = RelayIdentity(RelaySecret(clamp(bytes([9]) * 32)))
    secret = clamp(bytes([1]) * 32)
    box = Box(PrivateKey(secret), PublicKey(identity.key))
    said = json.dumps({"version": 2, "ghostwireInstance": told}).encode()
    assert identity.open_client_info(public_key(secret) + box.encrypt(said, bytes(24))).instance is None
