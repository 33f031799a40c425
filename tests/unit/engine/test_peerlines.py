"""QUIC between peers: two real ends in memory. Spec quic §13."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gw.engine.peerline import PeerLine
from gw.engine.peerlines import PeerLines
from gw.model.addresses import AddrPort
from gw.model.keys import NodeKey, NodeSecret
from gw.quic.link import apart
from gw.wire.quic import frames, peering
from gw.wire.quic.peering import Routes
from gw.wire.x25519 import clamp, public_key

from .peers import Down, Moved, Net, Node, Ponged, RoutesTold, Up, transport


@pytest.mark.parametrize("dialer", ["ann", "bob"])
def test_messages_pass_both_ways_whoever_dialled(dialer: str) -> None:
    net = Net()
    net.connected(getattr(net, dialer))
    sent = [transport(number) for number in range(300)]
    for at in range(0, 300, 30):
        net.ann.lines.send(net.bob.key, sent[at : at + 30], net.now)
        net.bob.lines.send(net.ann.key, sent[at : at + 30], net.now)
        net.run(0.05)
    assert net.bob.got == net.ann.got == sent


def test_where_both_dial_at_once_one_connection_stays() -> None:
    net = Net()
    net.dial(net.ann)
    net.dial(net.bob)
    net.run(3)
    assert len(net.ann.lines._all) == len(net.bob.lines._all) == 1
    ours = net.ann.lines.view(net.bob.key)
    theirs = net.bob.lines.view(net.ann.key)
    assert ours is not None
    assert theirs is not None
    assert (ours.is_dialer, theirs.is_dialer) == (True, False)
    net.bob.lines.send(net.ann.key, [transport(1)], net.now)
    net.run(0.1)
    assert net.ann.got == [transport(1)]
    assert not net.ann.of(Down)
    assert not net.bob.of(Down)


def test_nobody_but_a_peer_of_the_map_gets_in() -> None:
    net = Net()
    net.bob.allowed.clear()
    net.dial()
    net.run(8)
    assert not net.bob.events
    assert not net.bob.lines._all
    assert net.ann.of(Down)


def test_who_is_no_longer_a_peer_by_the_time_of_the_proof_is_refused() -> None:
    net = Net()
    asked: list[NodeKey] = []

    def may(key: NodeKey) -> bool:
        asked.append(key)
        return len(asked) == 1  # the Initial passes, the proof does not

    net.bob.lines._may = may
    net.dial()
    net.run(3)
    assert [event.reason for event in net.ann.of(Down)] == ["not a peer of this node"]  # type: ignore[union-attr]
    assert not net.bob.of(Up)


def test_an_initial_from_where_disco_has_not_heard_a_peer_is_not_answered() -> None:
    """No work for strangers: not even a Retry."""
    net = Net()
    net.introduced = False
    sent: list[bytes] = []

    def lose(packet: bytes, sender: Node) -> bool:
        if sender is net.bob:
            sent.append(packet)
        return False

    net.lose = lose
    net.dial()
    net.run(8)
    assert sent == []
    assert not net.bob.lines._all


def test_forged_first_packets_from_a_peers_address_keep_nobody_else_out() -> None:
    """300 in 3 s from an endpoint of another peer: they cost that peer's handshakes alone, and leave no line."""
    net = Net()
    victim = NodeKey(b"v" * 32)
    net.bob.allowed.add(victim)

    def forge(seconds: float) -> None:
        end = net.now + seconds
        while net.now < end:
            packet = initial(net.random.randbytes(16))
            net.bob.lines.receive(packet, len(packet), AddrPort("192.0.2.9", 41641), victim, net.now)
            assert victim not in net.bob.lines._half
            net.run(0.01)

    forge(3)
    net.dial()
    forge(0.5)
    assert net.ann.is_up
    assert net.bob.is_up


def test_of_each_peer_one_connection_waits_for_its_proof() -> None:
    """A ClientHello can be forged too: what is newer waits, unless the older had its time."""
    net = Net()
    net.dial()
    (first, _), *_ = apart(net.ann.lines.poll(net.now)[0])
    net.ann.start()
    net.dial()
    (second, _), *_ = apart(net.ann.lines.poll(net.now)[0])
    for packet in (first, second):
        net.bob.lines.receive(packet, len(packet), net.ann.address, net.ann.key, net.now)
    assert len(net.bob.lines._all) == 1
    net.run(1.1, lambda: net.ann.is_up)  # the dialer's own repetition is heard
    net.run(3)
    assert net.ann.is_up
    assert len(net.bob.lines._all) == 1
    assert not net.bob.lines._half


def test_idle_connections_cost_a_flush_nothing() -> None:
    net = Net()
    net.connected()
    net.run(1)
    asked: list[PeerLine] = []
    lines = net.bob.lines
    for number in range(50):
        lines.dial(NodeKey(bytes([number]) * 32), AddrPort("203.0.113.1", 1 + number), net.now)
    net.pump(net.bob)
    plain = PeerLine.deadline
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PeerLine, "deadline", lambda line: asked.append(line) or plain(line))
        net.bob.lines.send(net.ann.key, [transport(1)], net.now)
        net.pump(net.bob)
        lines.deadline()
    assert set(asked) == {lines._lines[net.ann.key]}
    assert lines.deadline() == min(line.deadline() for line in lines._all)


def test_a_proof_by_another_key_than_that_of_the_peer_is_refused() -> None:
    """The dialer wants bob: another node of the map at his address does not get what is for him."""
    net = Net()
    secret = clamp(b"m" * 32)
    net.bob.secret, net.bob.key = NodeSecret(secret), NodeKey(public_key(secret))
    wanted = next(iter(net.ann.allowed))
    net.bob.start()
    net.ann.lines.dial(wanted, net.bob.address, net.now)
    net.run(8)
    assert net.ann.of(Down)
    assert not net.ann.of(Up)
    assert not net.ann.lines.send(wanted, [transport(1)], net.now)


def test_a_dialer_that_restarts_sends_its_first_message_in_the_first_flight() -> None:
    """Spec quic §10: 0-RTT after a restart, without another proof."""
    net = Net(delay_s=0.05)
    net.connected()
    assert net.ann.box.kept
    net.ann.start()
    net.bob.got.clear()
    began = net.now
    net.dial()
    net.ann.lines.send(net.bob.key, [b"\x01\0\0\0" + bytes(144)], net.now)
    assert net.run(2, lambda: bool(net.bob.got))
    assert net.now - began < 0.06
    net.run(1)
    up = net.ann.of(Up)[-1]
    assert isinstance(up, Up)
    assert (up.is_resumed, up.early) == (True, True)
    assert net.bob.got == [b"\x01\0\0\0" + bytes(144)]
    assert net.ann.box.kept  # a new one for the next time
    net.bob.lines.send(net.ann.key, [transport(5)], net.now)
    net.run(0.3)
    assert net.ann.got == [transport(5)]


def test_routes_in_early_data_wait_for_the_handshake() -> None:
    """Spec quic §10: nothing that changes what is known is taken from what may be a repetition."""
    net = Net(delay_s=0.05)
    net.connected()
    net.ann.start()
    net.bob.events.clear()
    net.dial()
    line = net.ann.lines._lines[net.bob.key]
    line.link.send_stream(peering.encode_routes(Routes(9, (ipaddress.ip_network("10.9.0.0/16"),))))
    net.ann.lines.send(net.bob.key, [b"\x01\0\0\0" + bytes(144)], net.now)
    assert net.run(1, lambda: bool(net.bob.got))
    assert not net.bob.of(RoutesTold)
    assert net.run(1, lambda: bool(net.bob.of(RoutesTold)))
    assert net.bob.of(Up)


def test_a_ticket_of_who_is_a_peer_no_longer_opens_nothing() -> None:
    net = Net()
    net.connected()
    kept = dict(net.ann.box.kept)
    net.ann.start()
    net.ann.box.kept = kept
    allowed = set(net.bob.allowed)
    asked = 0

    def may(key: NodeKey) -> bool:
        nonlocal asked
        asked += 1
        return asked == 1 and key in allowed

    net.bob.lines._may = may
    net.bob.got.clear()
    net.dial()
    net.ann.lines.send(net.bob.key, [b"\x01\0\0\0" + bytes(144)], net.now)
    net.run(3)
    assert net.bob.got == []
    assert [event.reason for event in net.ann.of(Down)] == ["not a peer of this node"]  # type: ignore[union-attr]


def test_an_answerer_that_restarts_says_so_at_once() -> None:
    """A stateless reset by a key that follows from the node key."""
    net = Net()
    net.connected()
    net.bob.start()
    net.ann.lines.send(net.bob.key, [transport(1)], net.now)
    assert net.run(1, lambda: bool(net.ann.of(Down)))
    net.ann.events.clear()
    net.connected()
    net.ann.lines.send(net.bob.key, [transport(2)], net.now)
    net.run(0.2)
    assert net.bob.got == [transport(2)]


def test_a_peer_that_comes_back_replaces_its_silent_connection() -> None:
    net = Net()
    net.connected()
    net.lose = lambda packet, sender: packet[0] & 0x80 == 0 and len(packet) < 60  # no resets
    net.bob.start()
    net.run(3)
    net.ann.events.clear()
    net.connected(net.bob)
    net.bob.lines.send(net.ann.key, [transport(3)], net.now)
    net.run(0.2)
    assert net.ann.got == [transport(3)]
    assert len(net.ann.lines._all) == 1


@pytest.mark.parametrize("mover", ["ann", "bob"])
def test_either_side_may_move_and_messages_go_on(mover: str) -> None:
    """Spec quic §13: to aioquic nothing has moved; the path finder tells where the other side is."""
    net = Net()
    net.connected()
    moving = getattr(net, mover)
    staying = net.other(moving)
    moving.address = AddrPort("203.0.113.7", 5555)
    moving.lines.network_changed(net.now)
    assert net.run(1, lambda: bool(staying.of(Moved)))
    assert staying.of(Moved)[-1].source == moving.address  # type: ignore[union-attr]
    staying.lines.set_address(moving.key, moving.address, net.now)
    for number in range(40):
        for one, other in ((net.ann, net.bob), (net.bob, net.ann)):
            one.lines.send(other.key, [transport(number)], net.now)
        net.run(0.02)
    net.run(1)
    assert net.bob.got == net.ann.got == [transport(number) for number in range(40)]
    assert len(net.ann.of(Up)) == len(net.bob.of(Up)) == 1


def test_handshakes_go_before_data_and_the_oldest_data_gives_way() -> None:
    net = Net()
    net.connected()
    net.ann.lines.send(net.bob.key, [transport(number, 1312) for number in range(900)], net.now)
    handshake = b"\x02\0\0\0" + bytes(88)
    net.ann.lines.send(net.bob.key, [handshake], net.now)
    net.ann.lines.ping(net.bob.key, b"12345678")
    net.run(1)
    assert net.bob.got[0] == handshake
    assert net.bob.got[-1] == transport(899)
    view = net.ann.lines.view(net.bob.key)
    assert view is not None
    assert view.dropped + len(net.bob.got) == 901
    assert view.dropped > 500  # 128 KiB wait where nothing is known of the rate
    assert [event.data for event in net.ann.of(Ponged)] == [b"12345678"]  # type: ignore[union-attr]


def test_heartbeats_measure_and_reports_arrive() -> None:
    net = Net(delay_s=0.02)
    net.connected()
    for number in range(120):
        net.ann.lines.send(net.bob.key, [transport(number)], net.now)
        net.run(0.1)
    view, other = net.ann.lines.view(net.bob.key), net.bob.lines.view(net.ann.key)
    assert view is not None
    assert other is not None
    assert 0.035 < view.rtt_s < 0.08
    assert other.report is not None
    assert 90 <= other.report.sent <= 120
    assert view.report is not None
    assert 90 <= view.report.received <= 120


def test_control_passes_a_flood_and_reports_wait_for_its_end() -> None:
    """Spec quic §11: control, handshakes, data, then metrics."""
    net = Net(delay_s=0.02)
    net.connected()
    budget = [0.0]

    def narrow(packet: bytes, sender: Node) -> bool:
        """300 kB a second: the window is full all the time."""
        if sender is net.bob or net.now - 1000.0 < 1:
            return False
        budget[0] = max(budget[0], net.now)
        if budget[0] - net.now > 0.05:
            return True
        budget[0] += len(packet) / 300e3
        return False

    net.lose = narrow
    before = net.now
    waits: list[float] = []
    while net.now - before < 6:
        net.ann.lines.send(net.bob.key, [transport(number) for number in range(60)], net.now)
        net.ann.events.clear()
        net.ann.lines.ping(net.bob.key, b"pingpong")
        began = net.now
        net.run(1, lambda: bool(net.ann.of(Ponged)))
        waits.append(net.now - began)
    assert sorted(waits)[len(waits) // 2] < 0.2
    view = net.bob.lines.view(net.ann.key)
    assert view is not None
    told = view.report.sent if view.report is not None else 0
    net.lose = lambda packet, sender: False
    net.run(8)
    after = net.bob.lines.view(net.ann.key)
    assert after is not None
    assert after.report is not None
    assert after.report.sent > told


def test_routes_are_told_now_and_when_they_change() -> None:
    net = Net()
    lan = ipaddress.ip_network("10.1.0.0/16")
    net.ann.lines.set_routes((lan,))
    net.connected()
    net.run(0.2)
    assert [event.prefixes for event in net.bob.of(RoutesTold)] == [(lan,)]  # type: ignore[union-attr]
    net.ann.lines.set_routes(())
    net.run(0.2)
    assert net.bob.of(RoutesTold)[-1].prefixes == ()  # type: ignore[union-attr]


def test_an_idle_connection_lives_for_minutes_and_then_ends() -> None:
    net = Net()
    net.connected()
    net.run(200)
    assert net.ann.is_up
    assert net.run(200, lambda: bool(net.ann.of(Down)))


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_hostile_packets_change_nothing(data: st.DataObject) -> None:
    """Noise, real packets cut or changed, from the peer's own address; what is real arrives afterwards."""
    net = _shared()
    net.ann.lines.send(net.bob.key, [transport(1)], net.now)
    packets = [packet for packet, _ in apart(net.ann.lines.poll(net.now)[0])]
    raw = bytearray(b"".join(packets))
    kind = data.draw(st.sampled_from(["noise", "changed", "cut"]))
    if kind == "noise":
        raw = bytearray(data.draw(st.binary(max_size=1300)))
    elif kind == "cut":
        raw = raw[: data.draw(st.integers(0, len(raw)))]
    elif raw:
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    before = len(net.bob.got)
    segment = data.draw(st.integers(1, max(1, len(raw))))
    net.bob.lines.receive(bytes(raw), segment, net.ann.address, net.ann.key, net.now)
    for packet in packets:
        net.bob.lines.receive(packet, len(packet), net.ann.address, net.ann.key, net.now)
    net.run(0.1)
    assert len(net.bob.got) == before + 1
    assert not net.bob.of(Down)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200))
def test_any_control_bytes_end_at_most_their_own_connection(noise: bytes) -> None:
    net = Net(seed=7)
    net.connected()
    line = net.ann.lines._lines[net.bob.key]
    line.link.send_stream(noise)
    line.link.send_aside(noise)
    net.ann.lines.ping(net.bob.key, bytes(8))  # it has them sent
    net.run(0.3)
    for event in net.bob.of(Down):
        assert isinstance(event, Down)
    assert isinstance(net.bob.lines, PeerLines)


def initial(ids: bytes) -> bytes:
    """Has the form of a first packet; its seal is noise. ids: 16 bytes."""
    head = b"\xc3\0\0\0\1\x08" + ids[:8] + b"\x08" + ids[8:] + b"\0"
    rest = 1200 - len(head) - 2
    return head + (0x4000 | rest).to_bytes(2, "big") + bytes(rest)


_nets: list[Net] = []


def _shared() -> Net:
    if not _nets:
        _nets.append(Net())
        _nets[0].connected()
        _nets[0].run(3)
    return _nets[0]


def test_the_protocol_has_its_own_name() -> None:
    assert frames.PEER_ALPN == "gw-peer/1"
