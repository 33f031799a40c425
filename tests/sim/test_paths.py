"""Real path finders on an internet in memory: who finds a direct path, how soon, and what happens when it dies."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gw.engine.netcheck import NetCheck, Report
from gw.model.addresses import AddrPort
from gw.model.derpmap import DERPMap, DERPNode, DERPRegion
from gw.wire import stun

from .internet import Host, Internet, Nat

KINDS = {
    "none": lambda outer: None,
    "independent": lambda outer: Nat(outer),
    "symmetric": lambda outer: Nat(outer, symmetric=True),
    "blocked": lambda outer: Nat(outer, blocked=True),
}


def two(net: Internet, one: str, other: str) -> tuple[Host, Host]:
    ann = Host(net, "ann", "10.0.0.1" if one != "none" else "198.51.100.1", KINDS[one]("198.51.100.101"))
    bob = Host(net, "bob", "10.0.1.1" if other != "none" else "198.51.100.2", KINDS[other]("198.51.100.102"))
    ann.knows(bob)
    bob.knows(ann)
    return ann, bob


DIRECT = [
    ("none", "none"), ("none", "independent"), ("none", "symmetric"), ("independent", "none"),
    ("independent", "independent"), ("symmetric", "none"),
]  # fmt: skip
RELAYED = [
    ("symmetric", "symmetric"), ("symmetric", "independent"), ("blocked", "none"), ("none", "blocked"),
    ("blocked", "symmetric"),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), DIRECT)
def test_a_direct_path_is_found_soon_where_there_can_be_one(one: str, other: str) -> None:
    net = Internet(1)
    ann, bob = two(net, one, other)
    began = net.now
    net.talk(ann, bob, 3)
    for host, peer in ((ann, bob), (bob, ann)):
        assert host.direct.get(peer.key) is not None, host.name
        assert host.plans[peer.key].udp == host.direct[peer.key]
        assert not host.plans[peer.key].relay
        assert host.changed_at[peer.key] - began < 1.5


@pytest.mark.parametrize(("one", "other"), RELAYED)
def test_the_relay_is_kept_where_there_can_be_none(one: str, other: str) -> None:
    net = Internet(2)
    ann, bob = two(net, one, other)
    net.talk(ann, bob, 60)
    assert ann.direct.get(bob.key) is None
    assert ann.plans[bob.key].relay
    assert bob.plans[ann.key].relay


def test_packets_go_by_relay_before_anything_is_known() -> None:
    net = Internet(3)
    ann, bob = two(net, "none", "none")
    assert ann.plans[bob.key].relay
    assert ann.plans[bob.key].wake


def test_a_path_that_dies_gives_way_to_the_relay_and_comes_back() -> None:
    net = Internet(4)
    ann, bob = two(net, "none", "independent")
    net.talk(ann, bob, 10)
    assert ann.direct[bob.key] is not None
    net.udp_works = False
    died = net.now
    net.talk(ann, bob, 12)
    assert ann.plans[bob.key].relay
    assert ann.direct[bob.key] is None
    assert ann.changed_at[bob.key] - died <= 6.5 + 3.0
    net.udp_works = True
    healed = net.now
    net.talk(ann, bob, 10)
    assert ann.direct[bob.key] is not None
    assert ann.changed_at[bob.key] - healed <= 8.0


def test_a_restarted_peer_is_found_again() -> None:
    net = Internet(5)
    ann, bob = two(net, "independent", "independent")
    net.talk(ann, bob, 5)
    bob.restart()
    bob.knows(ann)
    ann.knows(bob)
    net.talk(ann, bob, 15)
    assert ann.direct[bob.key] is not None
    assert bob.direct[ann.key] is not None


def test_an_idle_pair_falls_silent_and_wakes_again() -> None:
    net = Internet(6)
    ann, bob = two(net, "none", "none")
    net.talk(ann, bob, 5)
    net.run(60)
    before = ann.sent + bob.sent
    net.run(600)
    assert ann.sent + bob.sent == before
    assert ann.plans[bob.key].wake
    net.talk(ann, bob, 3)
    assert ann.direct[bob.key] is not None


def test_a_ping_is_answered_by_relay_and_by_the_direct_path() -> None:
    net = Internet(7)
    ann, bob = two(net, "symmetric", "symmetric")
    id_ = ann.paths.ping(bob.key, net.now)
    ann.pump()
    net.run(2)
    assert [(pong.id, pong.endpoint) for pong in ann.pongs] == [(id_, None)]
    net = Internet(8)
    ann, bob = two(net, "none", "none")
    net.talk(ann, bob, 3)
    ann.pongs.clear()
    ann.paths.ping(bob.key, net.now)
    ann.pump()
    net.run(2)
    assert ann.pongs[0].endpoint == bob.inner
    assert ann.pongs[0].latency_s == pytest.approx(0.04, abs=0.005)


@pytest.mark.parametrize("seed", range(12))
def test_loss_and_reordering_only_delay_the_direct_path(seed: int) -> None:
    net = Internet(seed, loss=0.2, jitter_s=0.1)
    one, other = DIRECT[seed % len(DIRECT)]
    ann, bob = two(net, one, other)
    held = 0
    for _ in range(60):  # two lost pongs in a row cost the trust for a while, so count the seconds
        net.talk(ann, bob, 1)
        held += ann.direct.get(bob.key) is not None
    assert held > 30, f"seed {seed}, {one} and {other}: direct for {held} of 60 s"


def test_many_peers_at_once() -> None:
    net = Internet(9)
    hosts = [Host(net, str(n), f"198.51.{n // 200}.{n % 200 + 1}") for n in range(30)]
    for one in hosts:
        for other in hosts:
            if one is not other:
                one.knows(other)
    for _ in range(3):
        for other in hosts[1:]:
            hosts[0].paths.active(other.key, net.now)
        hosts[0].pump()
        net.run(1.0)
    assert all(hosts[0].direct.get(other.key) == other.inner for other in hosts[1:])


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_dropped_quietly(data: bytes, shaped: bool) -> None:
    net = Internet(10)
    ann, bob = two(net, "none", "none")
    if shaped:
        data = b"TS\xf0\x9f\x92\xac" + bob.disco.raw + data
    ann.paths.feed_udp(data, AddrPort("192.0.2.9", 9), net.now)
    ann.paths.feed_relay(data, 1, bob.key, net.now)
    NetCheck(net.random.randbytes).feed(data, net.now)
    ann.pump()


def derp_map(*addresses: str) -> DERPMap:
    return DERPMap(
        regions={
            number: DERPRegion(
                region_id=number, nodes=[DERPNode(name=f"{number}a", region_id=number, host_name=a, ipv4=a)]
            )
            for number, a in enumerate(addresses, 1)
        }
    )


def report(
    check: NetCheck, relays: DERPMap, latency: dict[str, float], mapped: dict[str, AddrPort], now: float
) -> Report:
    """Run one report against servers that answer after their latency."""
    check.start(relays, now, has_v6=False)
    waiting: list[tuple[float, bytes]] = []
    while True:
        for datagram, server in check.poll(now):
            if server.host in latency:
                answer = stun.encode_answer(stun.decode_request(datagram), mapped[server.host])
                waiting.append((now + latency[server.host], answer))
        for entry in [entry for entry in waiting if entry[0] <= now]:
            waiting.remove(entry)
            check.feed(entry[1], now)
        found = check.take(now)
        if found is not None:
            return found
        now += 0.002


def test_the_nearest_relay_becomes_home_and_small_gains_do_not_move_it() -> None:
    check = NetCheck(Internet(11).random.randbytes)
    relays = derp_map("192.0.2.1", "192.0.2.2")
    ours = AddrPort("198.51.100.9", 1000)
    mapped = {"192.0.2.1": ours, "192.0.2.2": ours}
    first = report(check, relays, {"192.0.2.1": 0.020, "192.0.2.2": 0.050}, mapped, 100.0)
    assert first.has_udp
    assert first.varies is False
    never = lambda region: float("-inf")  # noqa: E731
    check.settle(first, 101.0)
    assert check.choose_home(first, 0, never, 101.0) == 1
    second = report(check, relays, {"192.0.2.1": 0.020, "192.0.2.2": 0.015}, mapped, 500.0)
    check.settle(second, 501.0)
    assert check.choose_home(second, 1, never, 501.0) == 1
    third = report(check, relays, {"192.0.2.1": 0.200, "192.0.2.2": 0.015}, mapped, 900.0)
    check.settle(third, 901.0)
    assert check.choose_home(third, 1, never, 901.0) == 2


def test_a_mapping_that_varies_is_noticed_and_no_answer_is_no_udp() -> None:
    check = NetCheck(Internet(12).random.randbytes)
    relays = derp_map("192.0.2.1", "192.0.2.2")
    mapped = {"192.0.2.1": AddrPort("198.51.100.9", 1000), "192.0.2.2": AddrPort("198.51.100.9", 2000)}
    found = report(check, relays, {"192.0.2.1": 0.01, "192.0.2.2": 0.02}, mapped, 100.0)
    assert found.varies is True
    silent = report(check, relays, {}, mapped, 500.0)
    assert not silent.has_udp
    assert silent.netinfo(0, os_has_v6=False).working_udp is False
