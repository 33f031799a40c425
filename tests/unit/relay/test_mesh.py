"""Relays of one region and workers of one relay, linked without sockets: every packet crosses one hop at most.

guests ── house A ══ house B ── guests        ══ two links, one dialled by each
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gw.errors import UsageError, WireError
from gw.relay.link import LinkSession
from gw.relay.meshing import Target, parse_target
from gw.wire.derp import client as c
from gw.wire.derp import frames

from .ends import Cable, End, Guest, House, flush, settle

GONE = frames.GONE_DISCONNECTED


def meshed(count: int) -> tuple[list[House], list[Cable]]:
    houses = [House(0x70 + number) for number in range(count)]
    return houses, [Cable(one, other) for one in houses for other in houses if one is not other]


def worker_pair() -> tuple[list[House], list[Cable]]:
    houses = [House(), House()]
    return houses, [Cable(houses[0], houses[1], is_sibling=True), Cable(houses[1], houses[0], is_sibling=True)]


@pytest.mark.parametrize("linked", [lambda: meshed(2), worker_pair])
def test_a_packet_reaches_a_client_of_the_other_process(linked) -> None:  # type: ignore[no-untyped-def]
    (one, other), cables = linked()
    alice, bob = Guest(one, 1), Guest(other, 2)
    settle(one, other, alice, bob, *cables)
    alice.send(bob.key, b"across", bytes(1400))
    settle(one, other, alice, bob, *cables)
    assert bob.packets == [(alice.key, b"across"), (alice.key, bytes(1400))]
    bob.send(alice.key, b"back")
    settle(one, other, alice, bob, *cables)
    assert alice.packets == [(bob.key, b"back")]
    alice.leave()
    settle(one, other, bob, *cables)
    assert bob.events[-1] == c.PeerGone(alice.key, GONE)
    assert not one.presence.holders
    assert other.presence.remote_keys == 0


def test_a_packet_takes_no_second_hop_between_relays() -> None:
    a, b, d = House(0x71), House(0x72), House(0x73)
    cables = [Cable(a, b), Cable(b, d)]  # a ═ b ═ d, and no link from a to d
    alice, dora = Guest(a, 1), Guest(d, 2)
    settle(a, b, d, alice, dora, *cables)
    forged = frames.encode(frames.FORWARD_PACKET, alice.key.raw + dora.key.raw + b"x")
    cables[0].session.port.out.append(forged)
    a.switch.push(cables[0].session.port, b"")
    settle(a, b, d, alice, dora, *cables)
    assert dora.packets == []
    assert b.switch.dropped_unknown_forwarded == 1


def test_an_outer_relay_reaches_every_worker() -> None:
    workers, inner = worker_pair()
    outer = House(0x55)
    cables = [*inner, Cable(outer, workers[0])]
    everything = [*workers, outer, *cables]
    bob = Guest(workers[1], 2)
    alice = Guest(outer, 1)
    settle(*everything, alice, bob)
    alice.send(bob.key, b"by the first worker")
    settle(*everything, alice, bob)
    assert bob.packets == [(alice.key, b"by the first worker")]
    bob.leave()
    settle(*everything, alice)
    assert outer.presence.remote_keys == 0


def test_keys_of_a_lost_link_are_gone_unless_another_relay_has_them() -> None:
    (a, b, d), cables = meshed(3)
    bob, again, alice = Guest(b, 2), Guest(d, 2), Guest(a, 1)
    settle(a, b, d, bob, again, alice, *cables)
    bob.send(alice.key, b"hi")
    settle(a, b, d, bob, again, alice, *cables)
    links = {(cable.own, cable.other): cable for cable in cables}
    links[a, b].cut()
    settle(a, b, d, bob, again, alice, *cables)
    assert c.PeerGone(bob.key, GONE) not in alice.events
    alice.send(bob.key, b"by the other")
    settle(a, b, d, bob, again, alice, *cables)
    assert again.packets == [(alice.key, b"by the other")]
    links[a, d].cut()
    settle(a, b, d, alice)
    assert c.PeerGone(bob.key, GONE) in alice.events


def test_a_local_client_wins_over_another_relay() -> None:
    (a, b), cables = meshed(2)
    there, here, alice = Guest(b, 2), Guest(a, 2), Guest(a, 1)
    settle(a, b, there, here, alice, *cables)
    alice.send(here.key, b"x")
    settle(a, b, there, here, alice, *cables)
    assert here.packets == [(alice.key, b"x")]
    assert there.packets == []


def test_of_two_workers_the_one_whose_connection_spoke_last_has_the_key() -> None:
    (one, other), cables = worker_pair()
    old, alice = Guest(one, 2), Guest(one, 1)
    settle(one, other, old, alice, *cables)
    new = Guest(other, 2)
    everything = [one, other, old, new, alice, *cables]
    settle(*everything)
    alice.send(new.key, b"to the new one")
    settle(*everything)
    assert new.packets == [(alice.key, b"to the new one")]
    old.send(alice.key, b"I am back")
    settle(*everything)
    alice.send(old.key, b"to the old one")
    settle(*everything)
    assert old.packets == [(alice.key, b"to the old one")]
    old.leave()
    settle(*everything[:2], new, alice, *cables)
    alice.send(new.key, b"to the new one again")
    settle(*everything[:2], new, alice, *cables)
    assert new.packets[-1] == (alice.key, b"to the new one again")


def test_clients_that_were_there_first_are_told_to_a_new_link() -> None:
    a, b = House(0x71), House(0x72)
    bob = Guest(b, 2)
    cable = Cable(a, b)
    settle(a, b, bob, cable)
    assert set(a.switch.remote) == {bob.key.raw}


def test_a_relay_that_dials_itself_stops() -> None:
    house = House()
    with pytest.raises(WireError, match="itself"):
        Cable(house, house)


def test_a_wrong_mesh_key_is_a_client_like_any_other() -> None:
    a, b = House(0x71), House(0x72)
    b.reception.mesh_key = "00" * 32
    with pytest.raises(WireError, match="mesh frame from a client"):
        Cable(a, b)
    b.reception.mesh_key = ""
    end = End(b)
    assert not end.port.is_mesh


def test_a_relay_may_have_a_client_disconnected_by_another() -> None:
    (one, other), cables = worker_pair()
    outer = House(0x55)
    cables.append(Cable(outer, one))
    bob = Guest(other, 2)
    settle(one, other, outer, bob, *cables)
    outer.switch.push(cables[2].session.port, frames.encode(frames.CLOSE_PEER, bob.key.raw))
    settle(one, other, outer, *cables)
    flush(other)
    assert bob.end.must_be_closed


@given(st.lists(st.binary(max_size=120), max_size=5), st.booleans())
def test_whatever_another_relay_says_is_taken_or_one_error(pieces: list[bytes], after_handshake: bool) -> None:
    a, b = House(0x71), House(0x72)
    cable = Cable(a, b)
    if not after_handshake:
        cable.session = LinkSession(
            a.presence, cable, a.secret, bytes(24), "", "x", own_key=a.reception.identity.key,
            connected=lambda: None, failed=cable.failures.append,
        )  # fmt: skip
    try:
        for piece in pieces:
            cable.session.feed(piece, 0.0)
    except WireError as error:
        assert cable.failures == [str(error)]
    cable.session.leave()
    assert not a.switch.remote


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("relay.example", Target("relay.example")),
        ("relay.example:8443", Target("relay.example", 8443)),
        ("relay.example/192.0.2.1", Target("relay.example", dial_host="192.0.2.1")),
        ("http://relay.example", Target("relay.example", 80, plain=True)),
        ("[2001:db8::1]:8443", Target("2001:db8::1", 8443)),
        ("192.0.2.1#sha256-raw:" + "0" * 64, Target("192.0.2.1", pin="sha256-raw:" + "0" * 64)),
    ],
)
def test_targets_of_the_mesh(text: str, target: Target) -> None:
    assert parse_target(text) == target


@pytest.mark.parametrize("text", ["", "#sha256-raw:00", "relay.example#md5:00", "relay.example:none"])
def test_targets_that_are_none(text: str) -> None:
    with pytest.raises(UsageError):
        parse_target(text)
