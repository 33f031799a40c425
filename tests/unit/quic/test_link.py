from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gw.quic.connection import reset_token, stateless_reset
from gw.quic.link import apart
from gw.quic.selftest import fast_path_works
from gw.wire.quic import datagrams

from .ends import SERVER, Net


def test_the_fast_path_passes_its_own_test() -> None:
    assert fast_path_works()


@pytest.mark.parametrize("fast", [(True, True), (True, False), (False, True), (False, False)])
def test_datagrams_arrive_once_whichever_end_has_the_fast_path(fast: tuple[bool, bool]) -> None:
    """Spec quic §16: fast and stock are equivalent under 5 % loss and reordering."""
    dice = random.Random(7)
    net = Net(fast=fast, lose=lambda packet, up: len(packet) > 500 and dice.random() < 0.05)
    server = net.connected()
    sent = []
    for turn in range(100):
        for number in range(6):
            payload = b"%05d" % (turn * 6 + number) + bytes(700 + number)
            sent.append(payload)
            net.client.send(payload)
            server.send(payload)
        net.delay_s = 0.003 + dice.random() * 0.003  # some overtake others
        net.run(0.01)
    net.run(2)
    for got in (net.server_end.got, net.client_end.got):
        assert len(got) == len(set(got))
        assert set(got) <= set(sent)
        assert len(got) > 0.88 * len(sent)
    assert (net.client.is_fast, server.is_fast) == fast
    assert net.client.connection._loss.bytes_in_flight == 0
    assert server.connection._loss.bytes_in_flight == 0


def test_no_datagram_is_lost_by_a_key_update() -> None:
    """Trap 5: packets of the old phase that are still under way count."""
    net = Net()
    server = net.connected()
    for turn in range(60):
        if turn == 20:
            net.client.connection.request_key_update()
        if turn == 40:
            server.connection.request_key_update()
        for number in range(4):
            net.client.send(b"%d" % (turn * 4 + number))
            server.send(b"%d" % (turn * 4 + number))
        net.run(0.004)
    net.run(1)
    wanted = [b"%d" % number for number in range(240)]
    assert sorted(net.server_end.got, key=int) == wanted
    assert sorted(net.client_end.got, key=int) == wanted


def test_a_packet_300_places_late_is_no_duplicate() -> None:
    """Trap 3: aioquic alone takes everything older than 128 packets for a duplicate."""
    net = Net()
    server = net.connected()
    late = []
    net.lose = lambda packet, up: up and len(packet) > 900 and (late.append(packet) or True)
    net.client.send(b"late" + bytes(900))
    net.run(0.001)
    net.lose = lambda packet, up: False
    for _ in range(40):
        for _ in range(8):
            net.client.send(bytes(100))
        net.run(0.003)
    net.run(0.1)
    assert len(net.server_end.got) == 320
    server.receive(late[0], len(late[0]), net.client_address, net.now)
    assert net.server_end.got[-1][:4] == b"late"
    server.receive(late[0], len(late[0]), net.client_address, net.now)
    assert len(net.server_end.got) == 321


def test_acknowledgments_stay_short_though_packets_are_lost_for_long() -> None:
    """What the other side has heard of is not told again; control bytes that were lost go again meanwhile."""
    dice = random.Random(5)
    net = Net(lose=lambda packet, up: dice.random() < 0.03)
    server = net.connected()
    for turn in range(400):
        for _ in range(6):
            net.client.send(bytes(600))
            server.send(bytes(600))
        if turn % 20 == 0:
            net.client.send_stream(b"%04d" % turn)
        net.run(0.004)
    net.run(2)
    assert net.server_end.control == b"".join(b"%04d" % turn for turn in range(0, 400, 20))
    assert len(net.client_end.got) > 0.94 * 2400
    for link in (net.client, server):
        assert link.connection._loss.bytes_in_flight == 0
        assert len(link._fast._space.ack_queue) < 40  # type: ignore[union-attr]


@pytest.mark.parametrize(("pause_s", "burst", "shortest", "longest"), [
    (0.001, 1, 0.003, 0.006), (0.010, 1, 0.007, 0.009), (0.010, 20, 0.0015, 0.003),
])  # fmt: skip
def test_an_acknowledgment_waits_for_a_few_packets_but_not_for_long(
    pause_s: float, burst: int, shortest: float, longest: float
) -> None:
    net = Net()
    server = net.connected()
    assert server._fast is not None
    for pause, packets, rounds in ((0.010, 1, 20), (pause_s, burst, 40)):  # it is as long as may be at first
        for _ in range(rounds):
            for _ in range(packets):
                net.client.send(b"x" * 100)
            net.run(pause)
        if rounds == 20:
            assert server._fast._ack_delay_s > 0.007
    assert shortest <= server._fast._ack_delay_s <= longest
    net.run(0.1)
    assert net.client.connection._loss.bytes_in_flight == 0


@pytest.mark.parametrize("fast", [True, False])
def test_a_datagram_too_large_is_dropped_and_holds_up_nothing(fast: bool) -> None:
    """Trap 1."""
    net = Net(fast=(fast, fast))
    net.connected()
    net.client.send(bytes(1400))
    net.client.send(b"next")
    net.run(0.1)
    assert net.server_end.got == [b"next"]
    assert net.client.dropped_large == 1


def test_control_goes_out_though_datagrams_flood() -> None:
    """Trap 2: aioquic writes datagrams before streams."""
    net = Net(fast=(False, False))
    net.connected()
    for _ in range(2000):
        net.client.send(bytes(1000))
    net.client.send_stream(b"control")
    net.run(0.1)
    assert net.server_end.control == b"control"


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(("mtu", "largest"), [(1500, 1452), (1430, 1400), (1280, 1200)])
def test_the_largest_size_that_passes_is_found(mtu: int, largest: int, fast: bool) -> None:
    """Spec quic §8.4."""
    net = Net(fast=(fast, fast), probes=True, mtu=mtu)
    server = net.connected()
    net.run(10)
    assert (net.client.udp_bytes, server.udp_bytes) == (largest, largest)
    net.client.send(bytes(net.client.limit))
    net.run(0.1)
    assert net.server_end.got == [bytes(net.client.limit)]


def test_a_path_that_becomes_narrow_is_noticed() -> None:
    net = Net(probes=True)
    net.connected()
    net.run(10)
    assert net.client.udp_bytes == 1452
    net.mtu = 1300
    for _ in range(400):
        net.client.send(bytes(net.client.limit))
        net.run(0.02)
    assert net.client.udp_bytes == 1200
    assert len(net.server_end.got[-1]) == net.client.limit


@pytest.mark.parametrize("fast", [True, False])
def test_a_client_that_moves_goes_on_without_a_handshake(fast: bool) -> None:
    """Spec quic §14: the padded probe lets the answers follow at once."""
    net = Net(fast=(fast, fast), probes=True)
    server = net.connected()
    net.run(5)
    net.client_address = ("203.0.113.9", 5555)
    net.client.move(net.now)
    net.run(0.006)  # the probe arrives
    server.send(b"down")
    net.run(0.02)
    assert net.server_end.moves == [("203.0.113.9", 5555)]
    assert net.client_end.got == [b"down"]
    for number in range(50):
        net.client.send(b"%d" % number)
        server.send(b"%d" % number)
        net.run(0.01)
    assert net.server_end.got == [b"%d" % number for number in range(50)]
    assert len(net.client_end.got) == 51
    net.run(5)
    assert (net.client.udp_bytes, server.udp_bytes) == (1452, 1452)
    assert net.server_end.ups == 1
    assert net.server_end.end is net.client_end.end is None


def test_an_address_that_nat_changes_needs_no_word_from_the_client() -> None:
    net = Net()
    server = net.connected()
    net.client_address = ("192.0.2.1", 61000)
    net.client.send(b"up")
    net.run(0.05)
    server.send(b"down")
    net.run(0.05)
    assert (net.server_end.got, net.client_end.got) == ([b"up"], [b"down"])


def test_early_data_is_there_a_round_trip_before_the_handshake_ends() -> None:
    """Spec quic §10."""
    first = Net()
    first.connected()
    first.store.keep(first.server_tickets[-1], b"n" * 32, first.now)
    again = Net(store=first.store, ticket=first.tickets[-1])
    again.client.send(b"early")
    again.client.send_stream(b"control")
    assert again.run(1, lambda: bool(again.server_end.got))
    assert again.server_end.ups == 0
    assert again.resumed_node == b"n" * 32
    again.connected()
    assert again.client.is_early_accepted
    assert again.server_end.control == b"control"
    assert again.server_end.got == [b"early"]


def test_a_replayed_first_flight_brings_no_early_data() -> None:
    first = Net()
    first.connected()
    first.store.keep(first.server_tickets[-1], b"n" * 32, first.now)
    flight: list[bytes] = []
    again = Net(store=first.store, ticket=first.tickets[-1], lose=lambda packet, up: up and bool(flight.append(packet)))
    again.client.send(b"early")
    again.connected()
    assert again.server_end.got == [b"early"]
    replayed = Net(store=first.store)
    for packet in flight:
        if replayed.server is None:
            replayed.server = replayed._serve(packet)
        replayed.server.receive(packet, len(packet), ("203.0.113.66", 1), replayed.now)
    assert replayed.server_end.got == []
    assert replayed.server_end.ups == 0


def test_a_server_that_forgot_us_says_so_and_nobody_else_can() -> None:
    """RFC 9000 §10.3: the token proves that it was the server."""
    net = Net()
    server = net.connected()
    cid = net.client.connection._peer_cid.cid
    forged = stateless_reset(b"x" * 32, cid, 100)
    net.client.receive(forged, len(forged), SERVER, net.now)
    assert net.client_end.end is None
    true = stateless_reset(b"k" * 32, cid, 100)
    assert len(true) < 100
    net.client.receive(true, len(true), SERVER, net.now)
    assert net.client_end.end is not None
    assert server.connection._host_cids[0].stateless_reset_token == reset_token(b"k" * 32, server.connection.cids[0])


def test_both_ends_hear_of_an_end_once() -> None:
    net = Net()
    net.connected()
    net.client.close(0x123, "done")
    net.run(0.1)
    assert net.client_end.end == net.server_end.end == (0x123, "done")
    net.run(70)


def test_silence_ends_the_connection() -> None:
    net = Net()
    net.connected()
    net.lose = lambda packet, up: True
    net.client.ping()
    assert net.run(200, lambda: net.client_end.end is not None)


def test_both_ends_have_the_same_exporter_value_and_no_two_connections_share_it() -> None:
    """Spec quic §9; also after a resumption."""
    first = Net()
    server = first.connected()
    assert len(first.client.bind) == 32
    assert first.client.bind == server.bind
    first.store.keep(first.server_tickets[-1], b"n" * 32, first.now)
    again = Net(store=first.store, ticket=first.tickets[-1])
    resumed = again.connected()
    assert again.client.is_resumed
    assert again.client.bind == resumed.bind != server.bind


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_hostile_packets_change_nothing(data: st.DataObject) -> None:
    """Noise, and real packets with bytes changed or cut, at a server that is fast."""
    net = _shared()
    server = net.server
    assert server is not None
    kind = data.draw(st.sampled_from(["noise", "mutated", "cut"]))
    net.client.send(b"x" * 40)
    packets = [packet for packet, _ in apart(net.client.poll(net.now))]
    if kind == "noise":
        train = data.draw(st.binary(max_size=300))
    else:
        raw = bytearray(b"".join(packets))
        if kind == "cut":
            train = bytes(raw[: data.draw(st.integers(0, max(0, len(raw) - 1)))])
        else:
            raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
            train = bytes(raw)
    segment = data.draw(st.integers(1, max(1, len(train))))
    before = len(net.server_end.got)
    server.receive(train, segment, net.client_address, net.now)
    assert len(net.server_end.got) == before
    for packet in packets:
        server.receive(packet, len(packet), net.client_address, net.now)
    assert len(net.server_end.got) == before + 1
    net.run(0.05)
    assert net.server_end.end is None


_nets: list[Net] = []


def _shared() -> Net:
    if not _nets:
        _nets.append(Net())
        _nets[0].connected()
    return _nets[0]


def test_probes_are_answered_and_not_handed_on() -> None:
    net = Net()
    server = net.connected()
    server.send(datagrams.encode_probe(5, 77, 100))
    net.run(0.1)
    assert net.client_end.got == []
