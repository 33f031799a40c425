"""Who is in the region, and what is remembered of who was."""

from __future__ import annotations

from gw.model.addresses import AddrPort
from gw.native.relaying import Port, Switch
from gw.relay.presence import MIN_LEFT, Presence
from gw.wire.derp.frames import decode_present

ANYWHERE = AddrPort("192.0.2.1", 1)


class Carrier:
    """Implements `Owner`, and is never asked for anything."""

    drained = 0

    def flush(self) -> None: ...

    def close(self) -> None: ...


def client(presence: Presence, key: bytes) -> Port:
    port = Port(Carrier())
    port.key = key
    presence.enter(port, ANYWHERE, 1)
    return port


def test_whom_packets_reached_is_forgotten_after_it_left() -> None:
    """One source that talks to ever new clients kept an entry for each of them until it left itself."""
    switch = Switch()
    presence = Presence(switch)
    source, stays = client(presence, b"s" * 32), client(presence, b"t" * 32)
    switch.forward(source, stays.key, b"x")
    for number in range(20 * MIN_LEFT):
        port = client(presence, number.to_bytes(32, "big"))
        switch.forward(source, port.key, b"x")
        presence.leave(port)
        assert len(switch.reached[source.key]) <= MIN_LEFT + 2
    assert stays.key in switch.reached[source.key]
    back = client(presence, port.key)  # the last one that got something comes back
    switch.forward(source, back.key, b"x")
    assert back.key in switch.reached[source.key]
    presence.leave(source)
    for who in (stays, back):
        assert any(frame[:1] == b"\x08" and source.key in frame for frame in who.out)  # told who left, as ever
    assert source.key not in switch.reached


class Region:
    """One relay's view of others, with a clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.switch = Switch()
        self.presence = Presence(self.switch, lambda: self.now)

    def link(self, relay: bytes, *, is_quic: bool = True, is_sibling: bool = False) -> Port:
        port = Port(Carrier())
        port.relay, port.is_quic = relay, is_quic
        port.become_link(is_sibling)
        return port

    @property
    def way(self) -> tuple[bytes, bool]:
        port = self.switch.remote[KEY]
        return port.relay, port.is_quic


KEY = b"k" * 32


def test_a_link_that_comes_anew_takes_no_key_from_the_relay_where_the_client_came_last() -> None:
    """Its relay has not noticed yet that the connection is dead, and tells of it again. Spec quic §12."""
    region = Region()
    one, other = region.link(b"A"), region.link(b"B")
    region.presence.learn(one, KEY, 0.0)
    region.now += 60
    region.presence.learn(other, KEY, 0.0)
    assert region.way == (b"B", True)
    region.now += 5
    region.presence.leave(one)
    again = region.link(b"A")
    region.presence.learn(again, KEY, 65.0)
    assert region.way == (b"B", True)
    region.presence.learn(again, KEY, 0.0)  # it goes back
    assert region.way == (b"A", True)
    region.presence.unlearn(again, KEY)
    assert region.way == (b"B", True)


def test_a_stock_relay_tells_no_age_and_what_it_has_at_first_is_old() -> None:
    region = Region()
    one, other = region.link(b"A"), region.link(b"B", is_quic=False)
    region.presence.learn(one, KEY, 30.0)
    region.presence.learn(other, KEY)
    assert region.way == (b"A", True)
    region.now += 10
    region.presence.learn(other, KEY)
    assert region.way == (b"B", False)


def test_of_two_links_to_one_relay_the_one_over_quic_is_used_whichever_told_first() -> None:
    for first in (True, False):
        region = Region()
        for is_quic in (first, not first):
            region.presence.learn(region.link(b"A", is_quic=is_quic), KEY, 10.0)
            region.now += 0.02
        assert region.way == (b"A", True)
        region.presence.learn(region.link(b"W", is_sibling=True), KEY, 99.0)  # a worker of ours goes before all
        assert region.way == (b"W", True)


def test_a_client_that_comes_back_is_announced_again_with_its_age() -> None:
    """Also where its old connection is still there: it was at another relay meanwhile."""
    region = Region()
    watcher = region.link(b"A")
    region.presence.watch(watcher)
    for _ in range(2):
        client(region.presence, KEY)
        region.now += 7
    late = region.link(b"B")
    region.presence.watch(late)
    ages = [[decode_present(frame[5:])[2] for frame in port.out] for port in (watcher, late)]
    assert ages == [[0.0, 0.0], [7.0]]


def test_the_age_at_a_worker_is_told_on() -> None:
    region = Region()
    region.presence.learn(region.link(b"W", is_sibling=True), KEY, 12.5)
    watcher = region.link(b"A")
    region.presence.watch(watcher)
    assert decode_present(watcher.out[0][5:])[2] == 12.5
    assert decode_present(watcher.out[0][5:][:51])[:2] == (KEY, 1)  # as stock relays take it
