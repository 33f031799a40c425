"""Relays of one region linked over QUIC: who proves the mesh key, what crosses, what happens when one falls silent.

guests ── street A ═QUIC═ street B ── guests         and the TLS links beside it, where a test has them
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gw.native.relaying import Port
from gw.relay import quiclinks
from gw.relay.quicdialer import QuicDialer, udp_address
from gw.relay.quiclinks import QuicLinks
from gw.wire.derp import client as c
from gw.wire.derp import frames as derp
from gw.wire.derp.frames import encode
from gw.wire.quic import auth, frames

from .ends import MESH_KEY, Cable, Guest, House, settle
from .street import QuicGuest, Street


def region(count: int, *, fast: bool = True) -> list[Street]:
    """Relays that reach one another by UDP; the first has the smallest key."""
    houses = sorted((House(0x70 + number) for number in range(count)), key=lambda house: house.reception.identity.key)
    streets = [
        Street(house, fast=fast, address=(f"198.51.100.{number}", 3478)) for number, house in enumerate(houses, 1)
    ]
    for street in streets:
        street.others = [other for other in streets if other is not street]
    return streets


def run(streets: list[Street], seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
    end = streets[0].now + seconds
    while streets[0].now < end and not until():
        for street in streets:
            street.step()
    return until()


def key_of(street: Street) -> bytes:
    return street.house.reception.identity.key


def link(own: Street, other: Street) -> list[bool]:
    """Dial; the list gets how it ended."""
    ends: list[bool] = []
    assert QuicDialer(own.port).dial(*other.address, key_of(other), ends.append)
    return ends


def linked(own: Street, other: Street) -> bool:
    return key_of(other) in own.house.reception.quic_links and key_of(own) in other.house.reception.quic_links


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("size", [40, 1000, 1312, 2000])
def test_packets_cross_one_link_both_ways(size: int, fast: bool) -> None:
    """Of any transport, in one datagram or in two parts."""
    a, b = streets = region(2, fast=fast)
    link(a, b)
    assert run(streets, 3, lambda: linked(a, b))
    alice, bob, carol = QuicGuest(a, 1, fast=fast), QuicGuest(b, 2, fast=fast), Guest(b.house, 3)
    run(streets, 0.3)
    packet = os.urandom(size)
    alice.send(bob.key, packet)
    alice.send(carol.key, packet)
    bob.send(alice.key, packet)
    carol.send(alice.key, packet)
    run(streets, 0.3)
    carol.move()
    assert bob.packets == [(alice.key, packet)]
    assert carol.packets == [(alice.key, packet)]
    assert sorted(alice.packets, key=repr) == sorted([(bob.key, packet), (carol.key, packet)], key=repr)
    alice.link.close()
    run(streets, 0.3)
    assert c.PeerGone(alice.key, 0) in bob.events
    assert b.house.presence.remote_keys == 0


def test_who_was_there_before_the_link_is_announced() -> None:
    a, b = streets = region(2)
    guests = [QuicGuest(b, 1), QuicGuest(a, 2)]
    link(a, b)
    assert run(streets, 3, lambda: bool(a.house.switch.remote) and bool(b.house.switch.remote))
    assert set(a.house.switch.remote) == {guests[0].key.raw}
    assert set(b.house.switch.remote) == {guests[1].key.raw}


@pytest.mark.parametrize("who", ["dialer", "answerer"])
@pytest.mark.parametrize("key", ["", "00" * 32])
def test_a_relay_without_the_mesh_key_gets_nothing(who: str, key: str) -> None:
    a, b = streets = region(2)
    QuicGuest(b, 1)
    QuicGuest(a, 2)
    (a if who == "dialer" else b).house.reception.mesh_key = key
    ends = link(a, b)
    assert run(streets, 3, lambda: bool(ends))
    assert ends == [False]
    for street in streets:
        assert street.house.switch.remote == {}
        assert street.house.reception.quic_links == {}
        assert not street.house.presence.mesh_watchers
    run(streets, 1)
    assert [len(street.port) for street in streets] == [1, 1]  # the guests
    assert b.house.reception.refused == 1  # the answerer proves its key only to who has proven the same


def test_an_answer_without_the_proof_is_none() -> None:
    """A relay that has the key of another one, and not the mesh key: it would be sent all packets of the region."""
    a, b = streets = region(2)
    QuicGuest(a, 2)
    ends = link(a, b)
    (client,) = [each for each in a.port._all if not each.session.port.is_active]
    session: Any = client.session
    take = session._auth_ok_untrusted

    def stripped(body: bytes, now: float) -> None:
        claim = auth.Claim(role=auth.MESH_ANSWERER, bind=session.link.bind.hex(), at=a.unix_ms)
        take(auth.seal_claim(b.house.secret.raw, key_of(a), os.urandom(24), claim), now)

    session._auth_ok_untrusted = stripped
    assert run(streets, 3, lambda: bool(ends))
    assert a.house.reception.quic_links == {}
    assert b.house.switch.remote == {}


@pytest.mark.parametrize("change", ["role", "bind", "turned", "reflected"])
def test_a_proof_for_something_else_opens_nothing(change: str) -> None:
    bind, a, b = b"x" * 32, b"a" * 32, b"b" * 32
    wrong = {
        "role": auth.mesh_proof(MESH_KEY, auth.MESH_ANSWERER, bind, a, b),
        "bind": auth.mesh_proof(MESH_KEY, auth.MESH_DIALER, b"y" * 32, a, b),
        "turned": auth.mesh_proof(MESH_KEY, auth.MESH_DIALER, bind, b, a),
        "reflected": "",
    }
    right = auth.Claim(
        role=auth.MESH_DIALER, bind="", at=0, mesh=auth.mesh_proof(MESH_KEY, auth.MESH_DIALER, bind, a, b)
    )
    assert auth.check_mesh(right, MESH_KEY, bind, a, b)
    claim = auth.Claim(role=auth.MESH_DIALER, bind="", at=0, mesh=wrong[change])
    assert not auth.check_mesh(claim, MESH_KEY, bind, a, b)
    assert not auth.check_mesh(claim, "", bind, a, b)


def test_a_client_that_says_it_is_a_relay_gets_nothing() -> None:
    """It has a node key, and everything but the mesh key."""
    a, _ = region(2)
    QuicGuest(a, 2)
    mallory = QuicGuest(a, 66, join=False)

    def say(bind: bytes, now_ms: int, *, is_resumed: bool) -> None:
        claim = auth.Claim(role=auth.MESH_DIALER, bind=bind.hex(), at=now_ms, mesh="00" * 32)
        sealed = auth.seal_claim(mallory.secret.raw, key_of(a), os.urandom(24), claim)
        mallory.link.send_stream(frames.encode_auth(mallory.key.raw, sealed) + encode(derp.WATCH_CONNS, b""))

    mallory.client.begin = say  # type: ignore[method-assign]
    assert a.run(3, lambda: mallory.end is not None)
    assert mallory.end == (frames.NOT_ALLOWED, "no proof of the mesh key")
    assert not any(isinstance(event, c.PeerPresent) for event in mallory.events)


def test_frames_between_relays_are_not_for_clients() -> None:
    """A client forges presence and packets of others: it takes nobody's place."""
    a, _ = region(2)
    bob, mallory = QuicGuest(a, 2), QuicGuest(a, 66)
    present = encode(derp.PEER_PRESENT, b"v" * 32 + bytes(19))
    mallory.link.send_stream(present + encode(derp.WATCH_CONNS, b"") + encode(derp.CLOSE_PEER, bob.key.raw))
    mallory.link.send(b"\x07" + b"v" * 32 + bob.key.raw + b"forged")
    a.run(0.2)
    assert a.house.switch.remote == {}
    assert bob.packets == []
    assert bob.end is None


def test_a_packet_from_another_relay_takes_no_second_hop() -> None:
    a, b, d = streets = region(3)
    link(a, b)
    link(b, d)
    assert run(streets, 3, lambda: linked(a, b) and linked(b, d))
    dora = QuicGuest(d, 4)
    run(streets, 0.3)
    (port,) = [each.session.port for each in a.port._all]
    frame = encode(derp.FORWARD_PACKET, b"s" * 32 + dora.key.raw + b"x" * 40)
    a.house.switch.push(port, frame)
    run(streets, 0.3)
    assert dora.packets == []
    assert b.house.switch.dropped_unknown_forwarded == 1


def test_a_relay_that_falls_silent_is_given_up_and_the_tls_link_carries() -> None:
    a, b = streets = region(2)
    ends = link(a, b)
    assert run(streets, 3, lambda: linked(a, b))
    cables = [Cable(a.house, b.house), Cable(b.house, a.house)]
    alice, bob = Guest(a.house, 1), Guest(b.house, 2)
    everything = (a.house, b.house, alice, bob, *cables)
    run(streets, 0.2)
    settle(*everything)
    assert a.house.switch.remote[bob.key.raw].is_quic  # though TLS has it too
    run(streets, 10)
    assert linked(a, b)  # idle is not silent
    for street in streets:
        street.others = []
    began = a.now
    assert run(streets, 5, lambda: bool(ends))
    assert a.now - began < 3
    assert ends == [True]
    run(streets, 1)
    assert not a.house.switch.remote[bob.key.raw].is_quic
    settle(*everything)
    alice.send(bob.key, b"by TLS")
    settle(*everything)
    assert bob.packets == [(alice.key, b"by TLS")]
    assert a.house.reception.quic_links == b.house.reception.quic_links == {}


def test_the_newest_relay_of_a_key_is_where_packets_go() -> None:
    """A relay died, its link is not known to be dead, and its client is at another one by now."""
    a, b, d = streets = region(3)
    for other in (b, d):
        link(a, other)
    assert run(streets, 3, lambda: linked(a, b) and linked(a, d))
    bob = QuicGuest(b, 2)
    run(streets, 0.2)
    b.others = []
    a.others = [d]
    again = Guest(d.house, 2)
    run([a, d], 0.3)
    alice = QuicGuest(a, 1)
    run([a, d], 0.1)
    alice.send(bob.key, b"where are you")
    run([a, d], 0.1)
    again.move()
    assert again.packets == [(alice.key, b"where are you")]


def test_the_smaller_key_dials_and_dials_again() -> None:
    a, b = streets = region(2)
    managers = [QuicLinks(QuicDialer(street.port), street) for street in streets]
    for other, manager in ((b, managers[0]), (a, managers[1])):
        manager.found(key_of(other), *other.address)
    assert run(streets, 2, lambda: linked(a, b))
    run(streets, 5)
    assert (a.port.accepted, b.port.accepted) == (0, 1)
    assert a.house.reception.quic_links == {key_of(b): 1}
    (client,) = a.port._all
    client.close()
    a.flush()
    assert run(streets, 1, lambda: not linked(a, b))
    assert run(streets, 4, lambda: linked(a, b))


def test_the_larger_key_dials_where_nobody_comes() -> None:
    """The workers of a relay each need a link: who was not dialled dials."""
    a, b = streets = region(2)
    QuicLinks(QuicDialer(b.port), b).found(key_of(a), *a.address)
    run(streets, quiclinks.LEAD_S - 0.5)
    assert not linked(a, b)
    assert run(streets, 3, lambda: linked(a, b))


def test_a_relay_that_does_not_answer_is_asked_ever_more_seldom() -> None:
    a, b = region(2)
    a.others = []
    QuicLinks(QuicDialer(a.port), a).found(key_of(b), *b.address)
    a.run(100)
    dials = len({packet[6:14] for packet, _ in a.strays})
    assert 3 <= dials <= 8
    assert len(a.port) <= 1


def test_a_link_without_its_tls_link_ends_after_a_minute() -> None:
    a, b = streets = region(2)
    manager = QuicLinks(QuicDialer(a.port), a)
    manager.found(key_of(b), *b.address)
    assert run(streets, 2, lambda: linked(a, b))
    manager.lost(key_of(b))
    run(streets, 50)
    assert linked(a, b)
    assert run(streets, 20, lambda: not linked(a, b))
    run(streets, 5)
    assert manager._known == {}
    assert not linked(a, b)


def test_addresses_of_another_family_are_not_dialled() -> None:
    assert udp_address("192.0.2.1", 5, is_ipv6=False) == ("192.0.2.1", 5)
    assert udp_address("::ffff:192.0.2.1", 5, is_ipv6=False) == ("192.0.2.1", 5)
    assert udp_address("2001:db8::1", 5, is_ipv6=False) is None
    assert udp_address("192.0.2.1", 5, is_ipv6=True) == ("::ffff:192.0.2.1", 5, 0, 0)
    assert udp_address("2001:db8::1", 5, is_ipv6=True) == ("2001:db8::1", 5, 0, 0)


def test_a_relay_of_the_mesh_is_told_the_udp_port_and_nobody_else() -> None:
    a, b = House(0x71), House(0x72)
    b.reception.udp_port = 3478
    guest = Guest(b, 1)
    assert not any(isinstance(event, c.SpeaksQuic) for event in guest.events)
    cable = Cable(a, b)
    assert any(isinstance(port, Port) for port in b.presence.mesh_watchers)
    assert cable.session._udp_port == 3478
    Cable(a, b, is_sibling=True)
    assert [port.is_sibling for port in b.presence.sibling_watchers] == [True]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=200)), max_size=5), st.binary(max_size=300))
def test_whatever_a_linked_relay_says_ends_no_more_than_its_link(
    said: list[tuple[int, bytes]], datagram: bytes
) -> None:
    a, b = streets = _shared()
    if not linked(a, b):
        link(a, b)
        assert run(streets, 3, lambda: linked(a, b))
    (client,) = [each for each in a.port._all if each.session.port.is_quic]
    for kind, body in said:
        client.session.link.send_stream(encode(kind, body))
    client.session.link.send(datagram)
    client.session.link.send(b"\x08" + datagram)
    a.port.rouse(client)
    run(streets, 0.05)
    bob, carol = _guests
    before = len(carol.packets)
    bob.send(carol.key, b"still" * 8)
    run(streets, 0.03)
    assert len(carol.packets) == before + 1
    assert b.port.broken == a.port.broken == 0


_kept: list[list[Street]] = []
_guests: list[QuicGuest] = []


def _shared() -> list[Street]:
    if not _kept:
        _kept.append(region(2))
        _guests.extend(QuicGuest(_kept[0][1], number) for number in (1, 2))
        _kept[0][0].now = _kept[0][1].now
    return _kept[0]


def test_between_relays_two_numbers_stand_for_two_keys() -> None:
    a, b = streets = region(2)
    link(a, b)
    assert run(streets, 3, lambda: linked(a, b))
    alice, bob = QuicGuest(a, 1), QuicGuest(b, 2)
    run(streets, 0.3)
    sent = [b"%04d" % number + os.urandom(400) for number in range(60)]
    for packet in sent:
        alice.send(bob.key, packet)
        run(streets, 0.003)
    run(streets, 0.2)
    assert [packet for _, packet in bob.packets] == sent
    (port,) = [each.session.port for each in b.port._all if each.session.port.is_quic]
    assert set(port.keys.values()) == {alice.key.raw, bob.key.raw}
    (near,) = [each.session.port for each in a.port._all if each.session.port.is_quic]
    before = b.house.switch.dropped_unknown_forwarded
    near.numbers[alice.key.raw] = b"\xff\xff\xff"
    alice.send(bob.key, b"by a number that nobody opened")
    run(streets, 0.1)
    assert b.house.switch.dropped_unknown_forwarded == before + 1


def test_a_changed_mesh_key_ends_links_over_quic_at_both_ends() -> None:
    a, b = streets = region(2)
    ends = link(a, b)
    assert run(streets, 3, lambda: linked(a, b))
    alice, bob = QuicGuest(a, 1), QuicGuest(b, 2)
    run(streets, 0.3)
    assert a.house.switch.remote
    a.house.reception.mesh_key = "ef" * 32
    a.port.close_links()
    assert not a.house.reception.quic_links
    assert bob.key.raw not in a.house.switch.remote
    run(streets, 0.5)
    assert not b.house.reception.quic_links
    assert alice.key.raw not in b.house.switch.remote
    assert ends == [True]
    assert alice.end is bob.end is None
    link(b, a)  # who has only the old one is refused
    run(streets, 2)
    assert not a.house.reception.quic_links
