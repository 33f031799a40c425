"""Two path finders that never find each other directly, and the UDP relay's own core between them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gw.engine.paths import VIA_AFTER_S, PathFinder, PingResult, PlanChanged
from gw.engine.peerpath import ToRelay, ToUdp, Via
from gw.engine.viapaths import ASK_GAP_S, MAX_ASKED, ViaFinder
from gw.engine.viatable import Server
from gw.model.addresses import AddrPort
from gw.model.keys import DiscoSecret, NodeKey
from gw.model.sendplan import SendPlan
from gw.relay.peerrelay import PeerRelay
from gw.wire import geneve
from gw.wire.disco.envelope import Envelopes, sender
from gw.wire.disco.messages import Ping, decode, encode
from gw.wire.disco.udprelay import (
    CHALLENGE,
    AllocateRequest,
    AllocateResponse,
    Bind,
    CallMeMaybeVia,
    RelayEndpoint,
    pair_of,
)

RELAY_AT = AddrPort("192.0.2.9", 3478)
RELAY_KEY = NodeKey(bytes([99]) * 32)
REGION = 1
NODES = {"a": NodeKey(bytes([101]) * 32), "b": NodeKey(bytes([102]) * 32)}
OTHER = {"a": "b", "b": "a"}


def randoms(seed: int) -> Callable[[int], bytes]:
    return random.Random(seed).randbytes


class World:
    """a and b, the relay, and what is lost between them."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.relay = PeerRelay(DiscoSecret(bytes([9]) * 32), randoms(9), lambda: (RELAY_AT,))
        self.secrets = {"a": DiscoSecret(bytes([1]) * 32), "b": DiscoSecret(bytes([2]) * 32)}
        self.at = {"a": ("198.51.100.1", 1), "b": ("198.51.100.2", 2)}
        self.has_relay = True
        self.is_direct = False
        self.lose: Callable[[str, bytes], bool] = lambda name, datagram: False
        self.plans: dict[str, SendPlan] = {}
        self.pongs: list[PingResult] = []
        self.to_relay: list[bytes] = []
        self.finders = {
            name: PathFinder(self.secrets[name], NODES[name], randoms(number), servers=lambda home: self.servers(home))
            for number, name in enumerate(NODES, 1)
        }
        for name, finder in self.finders.items():
            other = OTHER[name]
            endpoint = AddrPort(*self.at[other])
            finder.set_peer(NODES[other], self.finders[other].disco_key, REGION, [endpoint], self.now)
            finder.set_own_endpoints([AddrPort(*self.at[name])], self.now)

    def servers(self, home: int) -> list[Server]:
        return [Server(home, RELAY_KEY, self.relay.key)] if self.has_relay else []

    def run(self, seconds: float, *, traffic: str = "ab") -> None:
        until = self.now + seconds
        while self.now < until:
            for name in traffic:
                self.finders[name].active(NODES[OTHER[name]], self.now)
            self.settle()
            self.now += 0.25
        self.settle()

    def settle(self) -> None:
        for _ in range(50):
            moved = False
            for name, finder in self.finders.items():
                out, events = finder.poll(self.now)
                for event in events:
                    if isinstance(event, PlanChanged):
                        self.plans[name] = event.plan
                    elif isinstance(event, PingResult):
                        self.pongs.append(event)
                for outgoing in out:
                    moved = True
                    self.carry(name, outgoing)
            self.relay.sweep(self.now)
            if not moved:
                return
        raise AssertionError("they never fall silent")

    def carry(self, name: str, outgoing: ToUdp | ToRelay) -> None:
        if isinstance(outgoing, ToRelay):
            if outgoing.peer == RELAY_KEY:
                answer = self.relay.request(NODES[name].raw, outgoing.datagram, self.now)
                if answer is not None:
                    self.finders[name].feed_server(answer, self.now)
            else:
                self.finders[OTHER[name]].feed_relay(outgoing.datagram, REGION, NODES[name], self.now)
            return
        if self.lose(name, outgoing.datagram):
            return
        if outgoing.to == RELAY_AT:
            self.to_relay.append(outgoing.datagram)
            for datagram, _, target in self.relay.feed(outgoing.datagram, 9000, self.at[name], self.now):
                for name_, address in self.at.items():
                    if address == target:
                        self.finders[name_].feed_via(datagram, RELAY_AT, self.now)
        elif self.is_direct:
            other = OTHER[name]
            if outgoing.to == AddrPort(*self.at[other]):
                self.finders[other].feed_udp(outgoing.datagram, AddrPort(*self.at[name]), self.now)

    def vias(self) -> Iterator[Via | None]:
        for name, finder in self.finders.items():
            found = finder.via(NODES[OTHER[name]], self.now)
            yield found[0] if found is not None else None


@pytest.fixture
def world() -> World:
    return World()


def test_without_a_direct_path_both_go_through_the_relay(world: World) -> None:
    world.run(VIA_AFTER_S - 0.5)
    assert list(world.vias()) == [None, None]
    world.run(2)
    one, other = world.vias()
    assert one is not None
    assert one == other
    assert one.address == RELAY_AT
    for name in NODES:
        assert world.plans[name] == SendPlan(udp=RELAY_AT, vni=one.vni)
        assert world.finders[name].via_at(RELAY_AT, one.vni) == NODES[OTHER[name]]
    assert len(world.relay) == 1
    world.run(120)
    assert list(world.vias()) == [one, other]
    assert world.relay.counts.allocated == 1


def test_one_that_sends_is_enough(world: World) -> None:
    world.run(5, traffic="a")
    assert next(world.vias()) is not None


def test_a_direct_path_is_preferred_and_always_tried(world: World) -> None:
    world.run(5)
    assert world.plans["a"].vni
    world.is_direct = True
    world.run(8)
    for name in NODES:
        assert world.plans[name] == SendPlan(udp=AddrPort(*world.at[OTHER[name]]))
    assert list(world.vias()) == [None, None]
    world.is_direct = False
    world.run(20)  # the direct path's trust runs out; the way through the relay is known
    assert world.plans["a"].vni
    assert world.relay.counts.allocated == 1


def test_where_a_direct_path_is_found_at_once_no_relay_is_asked(world: World) -> None:
    world.is_direct = True
    world.run(60)
    assert world.relay.counts.allocated == 0
    assert not world.to_relay


def test_a_ping_goes_through_the_relay(world: World) -> None:
    world.run(5)
    id_ = world.finders["a"].ping(NODES["b"], world.now)
    world.settle()
    (pong,) = world.pongs
    assert (pong.id, pong.endpoint, pong.via) == (id_, None, next(world.vias()))


@pytest.mark.parametrize("every", [2, 3])
def test_lost_datagrams_are_sent_again(world: World, every: int) -> None:
    counter = itertools.count()
    world.lose = lambda name, datagram: bool(next(counter) % every)
    world.run(40)
    counts = world.relay.counts
    assert counts.bound >= 2
    world.lose = lambda name, datagram: False
    world.run(40)
    assert None not in list(world.vias())


def test_a_node_that_moves_binds_again(world: World) -> None:
    world.run(5)
    before = next(world.vias())
    world.at["a"] = ("203.0.113.7", 7)
    world.finders["a"].network_changed(world.now)
    world.run(2)
    assert list(world.vias()) == [before, before]
    assert world.relay.counts.allocated == 1
    assert world.relay.counts.bound == 3


def test_a_node_that_is_moved_by_its_nat_comes_back(world: World) -> None:
    """Nobody tells it: pongs fail to come."""
    world.run(5)
    world.at["a"] = ("203.0.113.7", 7)
    world.run(12)
    assert None not in list(world.vias())
    assert world.relay.counts.allocated == 1


def test_another_relay_process_is_asked_when_the_old_one_is_gone(world: World) -> None:
    world.run(5)
    world.relay = PeerRelay(DiscoSecret(bytes([8]) * 32), randoms(8), lambda: (RELAY_AT,))
    world.run(10)
    assert world.plans["a"].vni == 0 or None not in list(world.vias())  # data goes by DERP meanwhile
    world.run(40)
    assert None not in list(world.vias())
    assert world.relay.counts.allocated == 1


def test_a_quiet_pair_is_left_alone(world: World) -> None:
    world.run(5)
    world.run(120, traffic="")
    count = len(world.to_relay)
    world.run(120, traffic="")
    assert len(world.to_relay) == count
    world.run(20)
    assert None not in list(world.vias())


def test_a_relay_that_does_not_answer_is_asked_seldom(world: World) -> None:
    world.relay.request = lambda source, datagram, now: asked.append(now)  # type: ignore[method-assign,assignment,func-returns-value]
    asked: list[float] = []
    world.run(3 * ASK_GAP_S, traffic="a")
    assert len(asked) == 6  # each time once more after 3 s


def test_without_a_relay_nothing_happens(world: World) -> None:
    world.has_relay = False
    world.run(60)
    assert world.plans["a"].relay
    assert not world.to_relay


def test_a_peer_that_is_removed_is_forgotten(world: World) -> None:
    world.run(5)
    finder = world.finders["a"]
    finder.remove_peer(NODES["b"])
    vias: ViaFinder = finder._vias
    assert not vias._peers and not vias._legs and len(vias._handshakes) == 0
    world.run(60, traffic="b")


class RelayingPeer:
    """A peer that relays, as tailscaled does: asked and answering with its own disco key, the endpoint has another."""

    key = NodeKey(bytes([103]) * 32)

    def __init__(self, world: World) -> None:
        self.world = world
        self.envelopes = Envelopes(DiscoSecret(bytes([33]) * 32))
        self.nonces = itertools.count(1)
        self.asked = 0
        self.forged: RelayEndpoint | None = None  # to answer with instead
        world.servers = lambda home: [Server(REGION, self.key, self.envelopes.key)]  # type: ignore[method-assign]
        for finder in world.finders.values():
            finder.set_peer(self.key, self.envelopes.key, REGION, [], world.now)
        carry = world.carry
        world.carry = lambda name, outgoing: (  # type: ignore[method-assign]
            self.answer(name, outgoing.datagram)
            if isinstance(outgoing, ToRelay) and outgoing.peer == self.key
            else carry(name, outgoing)
        )

    def answer(self, name: str, datagram: bytes) -> None:
        request = decode(self.envelopes.open(datagram))
        if not isinstance(request, AllocateRequest):
            return
        self.asked += 1
        client = Envelopes(self.world.secrets[name])
        nonce = next(self.nonces).to_bytes(24, "big")
        asked = client.seal(self.world.relay.key, nonce, encode(request))
        told = self.world.relay.request(NODES[name].raw, asked, self.world.now)
        assert told is not None
        response = decode(client.open(told))
        assert isinstance(response, AllocateResponse)
        if self.forged is not None:
            response = AllocateResponse(response.generation, self.forged)
        sealed = self.envelopes.seal(client.key, nonce, encode(response))
        self.world.finders[name].feed_relay(sealed, REGION, self.key, self.world.now)


def test_a_peer_that_relays_is_asked_and_gone_through(world: World) -> None:
    peer = RelayingPeer(world)
    world.run(VIA_AFTER_S + 2)
    one, other = world.vias()
    assert one is not None
    assert one == other
    assert world.plans["a"] == SendPlan(udp=RELAY_AT, vni=one.vni)
    world.run(60)
    assert list(world.vias()) == [one, other]
    assert peer.asked <= 2  # by each of the two


def test_a_peer_is_not_asked_to_relay_to_itself(world: World) -> None:
    world.servers = lambda home: [  # type: ignore[method-assign]
        Server(REGION, NODES["b"], world.finders["b"].disco_key)
    ]
    world.run(30, traffic="a")
    assert not world.finders["a"]._vias._peers[NODES["b"]].asked


def test_an_answer_that_nobody_asked_for_or_for_others_begins_nothing(world: World) -> None:
    peer = RelayingPeer(world)
    clients = pair_of(world.finders["a"].disco_key, peer.envelopes.key)
    peer.forged = RelayEndpoint(world.relay.key, clients, 1, 7, 30.0, 300.0, (RELAY_AT,))
    world.run(10)
    assert peer.asked
    assert list(world.vias()) == [None, None]
    assert not world.to_relay


def test_of_many_that_relay_some_are_asked_at_a_time_and_others_the_next(world: World) -> None:
    many = [
        Server(REGION, NodeKey(number.to_bytes(32, "big")), Envelopes(DiscoSecret(number.to_bytes(32, "big"))).key)
        for number in range(1, 101)
    ]
    world.servers = lambda home: many  # type: ignore[method-assign]
    asked: list[set[bytes]] = []
    vias = world.finders["a"]._vias
    for _ in range(3):
        world.run(ASK_GAP_S + 1, traffic="a")
        asked.append({server.node.raw for server in vias._peers[NODES["b"]].asked.values()})
    assert [len(each) for each in asked] == [MAX_ASKED] * 3
    assert len(set.union(*asked)) > MAX_ASKED


def test_who_may_not_use_relays_asks_none_and_follows_nobody_to_one(world: World) -> None:
    """The node attribute `disable-relay-client`."""
    world.finders["a"].allow_vias(False)
    world.run(60)
    assert list(world.vias()) == [None, None]
    assert world.plans["a"] == world.plans["b"] == SendPlan(udp=None, relay=True)
    vias = world.finders["a"]._vias
    assert not vias._peers and len(vias._handshakes) == 0
    world.finders["a"].allow_vias(True)
    world.run(ASK_GAP_S + 5)
    assert None not in world.vias()


def test_who_may_no_longer_use_relays_leaves_the_way_at_once(world: World) -> None:
    world.run(5)
    assert world.plans["a"].vni
    world.finders["a"].allow_vias(False)
    world.settle()
    assert world.plans["a"] == SendPlan(udp=None, relay=True)
    assert not world.finders["a"]._vias._legs
    world.run(30)
    assert list(world.vias()) == [None, None]


def test_what_a_hostile_peer_calls_us_to_is_bounded(world: World) -> None:
    finder = world.finders["a"]
    b = Envelopes(world.secrets["b"])
    clients = pair_of(finder.disco_key, b.key)
    for number in range(200):
        server = Envelopes(DiscoSecret(number.to_bytes(32, "big")))
        endpoint = RelayEndpoint(server.key, clients, 1, 7, 30.0, 300.0, (AddrPort("192.0.2.66", 9),) * 32)
        datagram = b.seal(finder.disco_key, number.to_bytes(24, "big"), encode(CallMeMaybeVia(endpoint)))
        finder.feed_relay(datagram, REGION, NODES["b"], world.now)
        world.now += 0.1
    out, _ = finder.poll(world.now)
    at_victim = [each for each in out if isinstance(each, ToUdp) and each.to.host == "192.0.2.66"]
    assert len(at_victim) <= 4 * 8 * 5
    assert len(finder._vias._handshakes) <= 4


def test_a_peer_does_not_make_us_speak_to_our_own_host(world: World) -> None:
    finder = world.finders["a"]
    b = Envelopes(world.secrets["b"])
    server = Envelopes(DiscoSecret(bytes([55]) * 32))
    hosts = ("127.0.0.1", "::1", "224.0.0.1", "255.255.255.255", "0.0.0.0", "192.0.2.66")
    endpoint = RelayEndpoint(
        server.key, pair_of(finder.disco_key, b.key), 1, 7, 30.0, 300.0, tuple(AddrPort(host, 53) for host in hosts)
    )
    finder.feed_relay(
        b.seal(finder.disco_key, bytes(24), encode(CallMeMaybeVia(endpoint))), REGION, NODES["b"], world.now
    )
    out, _ = finder.poll(world.now)
    assert [each.to.host for each in out if isinstance(each, ToUdp)] == ["192.0.2.66"]


def called_to(world: World, by: DiscoSecret, node: NodeKey, server: Envelopes, hosts: list[AddrPort], vni: int) -> None:
    """A peer calls `a` to a relay of its own."""
    finder, peer = world.finders["a"], Envelopes(by)
    endpoint = RelayEndpoint(server.key, pair_of(finder.disco_key, peer.key), 1, vni, 30.0, 300.0, tuple(hosts))
    call = peer.seal(finder.disco_key, randoms(vni)(24), encode(CallMeMaybeVia(endpoint)))
    finder.feed_relay(call, REGION, node, world.now)


def test_a_peer_does_not_make_us_look_for_a_relay_at_our_own_addresses(world: World) -> None:
    """They are this host as much as its loopback is: a peer had us send to any UDP port of it."""
    finder = world.finders["a"]
    finder.set_own_hosts({"198.51.100.1", "fd00::1", "100.64.0.1"})
    server = Envelopes(DiscoSecret(bytes([55]) * 32))
    own = [AddrPort("198.51.100.1", 53), AddrPort("fd00::1", 53), AddrPort.of("::ffff:100.64.0.1", 53)]
    called_to(world, world.secrets["b"], NODES["b"], server, own, 7)
    assert len(finder._vias._handshakes) == 0
    world.now += 1
    called_to(world, world.secrets["b"], NODES["b"], server, [*own, AddrPort("192.0.2.66", 53)], 7)
    for _ in range(8):
        out, _ = finder.poll(world.now)
        assert {each.to.host for each in out if isinstance(each, ToUdp)} <= {"192.0.2.66"}
        world.now += 1
    assert len(finder._vias._handshakes) == 1


def test_a_relay_on_our_own_host_is_used_where_we_have_asked_it(world: World) -> None:
    """One box may be relay and node."""
    world.finders["a"].set_own_hosts({RELAY_AT.host})
    world.run(5)
    assert all(via is not None and via.address == RELAY_AT for via in world.vias())


MALLORY = DiscoSecret(bytes([66]) * 32)
MALLORYS_NODE = NodeKey(bytes([166]) * 32)


def challenge(world: World, server: Envelopes, vni: int, source: AddrPort) -> None:
    """Mallory's relay answers the newest bind of `a`, as if it were where another relay is."""
    finder = world.finders["a"]
    peer = finder._vias._peers[MALLORYS_NODE]
    generation = peer.handshakes[server.key].generation
    message = encode(Bind(CHALLENGE, vni, generation, Envelopes(MALLORY).key, bytes(32)))
    head = geneve.encode(geneve.Header(geneve.DISCO, vni, control=True))
    finder.feed_via(head + server.seal(finder.disco_key, randoms(99)(24), message), source, world.now)


def test_a_peer_does_not_take_the_leg_of_another(world: World) -> None:
    """A leg says whose key opens what comes there: the other peer was cut off."""
    world.run(5)
    via = next(world.vias())
    assert via is not None
    finder, server = world.finders["a"], Envelopes(DiscoSecret(bytes([77]) * 32))
    finder.set_peer(MALLORYS_NODE, Envelopes(MALLORY).key, REGION, [], world.now)
    called_to(world, MALLORY, MALLORYS_NODE, server, [AddrPort("192.0.2.66", 9)], via.vni)
    challenge(world, server, via.vni, via.address)
    assert finder.via_at(via.address, via.vni) == NODES["b"]
    world.run(40)  # the handshake that came to nothing has ended
    assert finder.via_at(via.address, via.vni) == NODES["b"]
    assert list(world.vias()) == [via, via]


def test_a_leg_that_its_holder_has_left_is_free(world: World) -> None:
    """A relay that was restarted may give a number again. The old holder's end takes nothing from the new one."""
    world.run(5)
    via = next(world.vias())
    assert via is not None
    finder, server = world.finders["a"], Envelopes(DiscoSecret(bytes([77]) * 32))
    finder.set_peer(MALLORYS_NODE, Envelopes(MALLORY).key, REGION, [], world.now)
    world.lose = lambda name, datagram: True
    world.run(8)
    called_to(world, MALLORY, MALLORYS_NODE, server, [AddrPort("192.0.2.66", 9)], via.vni)
    challenge(world, server, via.vni, via.address)
    assert finder.via_at(via.address, via.vni) == MALLORYS_NODE
    finder.remove_peer(NODES["b"])
    assert finder.via_at(via.address, via.vni) == MALLORYS_NODE
    finder.remove_peer(MALLORYS_NODE)
    assert finder.via_at(via.address, via.vni) is None


def test_a_stranger_s_ping_through_the_relay_gets_no_answer(world: World) -> None:
    world.run(5)
    via = next(world.vias())
    assert via is not None
    finder = world.finders["a"]
    stranger = Envelopes(DiscoSecret(bytes([77]) * 32))
    head = geneve.encode(geneve.Header(geneve.DISCO, via.vni))
    ping = stranger.seal(finder.disco_key, bytes(24), encode(Ping(bytes(12), NODES["b"])))
    finder.poll(world.now)
    finder.feed_via(head + ping, RELAY_AT, world.now)
    assert not [each for each in finder.poll(world.now)[0] if isinstance(each, ToUdp)]
    good = Envelopes(world.secrets["b"]).seal(finder.disco_key, bytes(24), encode(Ping(bytes(12), NODES["b"])))
    finder.feed_via(head + good, AddrPort("192.0.2.10", 3478), world.now)  # not by the relay that we know
    assert not [each for each in finder.poll(world.now)[0] if isinstance(each, ToUdp)]
    finder.feed_via(head + good, RELAY_AT, world.now)
    (pong,) = [each for each in finder.poll(world.now)[0] if isinstance(each, ToUdp)]
    assert sender(pong.datagram[8:]) == finder.disco_key


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_through_a_relay_change_nothing(noise: bytes, is_ours: bool) -> None:
    world = World()
    world.run(4)
    via = next(world.vias())
    assert via is not None
    if is_ours:
        noise = geneve.encode(geneve.Header(geneve.DISCO, via.vni)) + noise
    world.finders["a"].feed_via(noise, RELAY_AT, world.now)
    world.finders["a"].feed_server(noise, world.now)
    assert next(world.vias()) == via
