"""Looking around: what servers' answers say of our NAT, which relay is home, and what names cost."""

from __future__ import annotations

import itertools

from gw.engine.netcheck import RESOLVE_AGAIN_S, RETRY_NAME_S, STUN_PHASE_S, NetCheck, Report
from gw.model.addresses import AddrPort
from gw.model.derpmap import DERPMap, DERPNode, DERPRegion
from gw.wire import stun

OURS = AddrPort("203.0.113.9", 41641)


def region(number: int, *hosts: str, **fields: object) -> DERPRegion:
    nodes = [DERPNode(name=f"{number}{host}", region_id=number, host_name=host, **fields) for host in hosts]  # type: ignore[arg-type]
    return DERPRegion(region_id=number, nodes=nodes)


def check() -> NetCheck:
    serial = itertools.count(1)
    return NetCheck(lambda size: next(serial).to_bytes(size, "big"))


def answer(
    netcheck: NetCheck, sent: list[tuple[bytes, AddrPort]], now: float, seen: dict[str, AddrPort] | None = None
) -> None:
    for request, server in sent:
        mapped = (seen or {}).get(server.host, OURS)
        netcheck.feed(stun.encode_answer(stun.decode_request(request), mapped), now)


def report(netcheck: NetCheck, relays: DERPMap, delays: dict[str, float], start: float, **words: object) -> Report:
    """One report in which each server answers after its delay."""
    netcheck.start(relays, start, has_v6=False, **words)  # type: ignore[arg-type]
    flying = [(start + delays[server.host], request, server) for request, server in netcheck.poll(start)]
    for at, request, server in sorted(flying, key=lambda each: each[0]):
        answer(netcheck, [(request, server)], at)
    done = netcheck.take(start + STUN_PHASE_S)
    assert done is not None
    netcheck.settle(done, start + STUN_PHASE_S)
    return done


def test_the_same_mapping_at_two_servers_does_not_vary_and_another_does() -> None:
    relays = DERPMap(regions={1: region(1, "192.0.2.1"), 2: region(2, "192.0.2.2")})
    for other, varies in ((OURS, False), (AddrPort(OURS.host, 5000), True)):
        netcheck = check()
        netcheck.start(relays, 0.0, has_v6=False)
        answer(netcheck, netcheck.poll(0.0), 0.01, {"192.0.2.2": other})
        done = netcheck.take(STUN_PHASE_S)
        assert done is not None
        assert done.varies is varies
        assert set(done.mapped) == {OURS, other}


def test_silence_is_no_udp_and_ends_in_time() -> None:
    netcheck = check()
    netcheck.start(DERPMap(regions={1: region(1, "192.0.2.1")}), 0.0, has_v6=False)
    asked = sum(len(netcheck.poll(now / 100)) for now in range(100))
    assert asked == 3
    assert netcheck.take(STUN_PHASE_S - 0.01) is None
    done = netcheck.take(STUN_PHASE_S)
    assert done is not None
    assert not done.has_udp


def test_an_answer_that_nobody_asked_for_changes_nothing() -> None:
    netcheck = check()
    netcheck.start(DERPMap(regions={1: region(1, "192.0.2.1")}), 0.0, has_v6=False)
    netcheck.poll(0.0)
    assert netcheck.feed(stun.encode_answer(b"x" * 12, AddrPort("198.51.100.66", 1)), 0.01)
    done = netcheck.take(STUN_PHASE_S)
    assert done is not None
    assert not done.mapped


def test_home_is_the_nearest_and_not_left_for_a_small_gain() -> None:
    relays = DERPMap(regions={1: region(1, "192.0.2.1"), 2: region(2, "192.0.2.2")})
    netcheck = check()
    first = report(netcheck, relays, {"192.0.2.1": 0.020, "192.0.2.2": 0.030}, 0.0)
    assert netcheck.choose_home(first, 0, lambda _: float("-inf"), 3.0) == 1
    near = report(netcheck, relays, {"192.0.2.1": 0.020, "192.0.2.2": 0.015}, 400.0)
    assert netcheck.choose_home(near, 1, lambda _: float("-inf"), 403.0) == 1
    far = report(netcheck, relays, {"192.0.2.1": 0.090, "192.0.2.2": 0.015}, 800.0)
    assert netcheck.choose_home(far, 1, lambda _: float("-inf"), 803.0) == 2


def test_a_home_that_the_map_no_longer_has_is_left() -> None:
    relays = DERPMap(regions={2: region(2, "192.0.2.2")})
    netcheck = check()
    silent = report(netcheck, DERPMap(regions={}), {}, 0.0)
    assert netcheck.choose_home(silent, 1, lambda _: 0.0, 3.0) == 0
    found = report(netcheck, relays, {"192.0.2.2": 0.5}, 10.0)
    assert netcheck.choose_home(found, 1, lambda _: 12.9, 13.0) == 2


def test_names_are_asked_for_again_but_not_every_time() -> None:
    """A relay that moves is found again; one whose name is unknown does not hold up every look around."""
    relays = DERPMap(regions={1: region(1, "relay.example", "gone.example")})
    netcheck = check()
    assert netcheck.needs(relays, 0.0) == ["gone.example", "relay.example"]
    netcheck.resolved("relay.example", ["192.0.2.1"], 0.0)
    netcheck.resolved("gone.example", [], 0.0)
    assert netcheck.needs(relays, 1.0) == []
    assert netcheck.needs(relays, RETRY_NAME_S) == ["gone.example"]
    assert netcheck.needs(relays, RESOLVE_AGAIN_S) == ["gone.example", "relay.example"]
    netcheck.resolved("relay.example", [], RESOLVE_AGAIN_S)  # the resolver is away: what was known stays
    netcheck.start(relays, RESOLVE_AGAIN_S, has_v6=False)
    assert {server.host for _, server in netcheck.poll(RESOLVE_AGAIN_S)} == {"192.0.2.1"}
