"""A connection whose bulk packet workers seal and open: two real ends in memory, with two workers each."""

from __future__ import annotations

import random
from collections import deque

import pytest

from gw.engine.peerlines import Bulk
from gw.engine.peershare import Numbers, Opening, Sealing
from gw.native.quicpackets import WINDOW, open_train, seal_train
from gw.native.quicsealing import MESSAGE, OpeningLine, SealingLine
from gw.quic.protection import keys_of

from .peers import Net, Node, transport

SEALERS = 2


class Workers:
    """What `gw.native.outbound` and `gw.native.inbound` do with a connection, for one node."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.sealing: list[SealingLine | None] = [None] * SEALERS
        self.opening: OpeningLine | None = None
        self.address = node.address
        self.used: list[int] = []  # numbers, in the order of sealing
        self.out: deque[bytes] = deque()
        self.got: list[bytes] = []

    def hear(self) -> None:
        """Take what the engine has to say."""
        for event in self.node.events:
            if isinstance(event, Sealing):
                self.address = event.address
                for sealer, before in enumerate(self.sealing):
                    made = None
                    if event.secrets.key:
                        keys = keys_of(event.secrets, sealing=True)
                        made = SealingLine(event.line, keys, event.cid, None, None, event.limit)
                        for frame in before.waiting if before is not None else ():
                            made.put(frame)
                    self.sealing[sealer] = made
            elif isinstance(event, Numbers):
                line = self.sealing[event.sealer]
                if line is not None and line.number == event.line:
                    line.give(event.first, event.stop, event.fresh, event.room)
                    self.board(event.sealer)
            elif isinstance(event, Opening):
                before, self.opening = self.opening, None
                if event.cids:
                    keys = keys_of(event.secrets, sealing=False)
                    self.opening = OpeningLine(0, event.line, keys, list(event.cids), event.expected)
                    if before is not None and before.number == event.line:
                        self.opening.follow(before, 0)
        self.node.events = [event for event in self.node.events if not isinstance(event, Sealing | Numbers | Opening)]

    def send(self, sealer: int, messages: list[bytes]) -> bool:
        line = self.sealing[sealer]
        if line is None:
            return False
        for message in messages:
            line.put(MESSAGE + message)
        self.board(sealer)
        return True

    def board(self, sealer: int) -> None:
        line, now = self.sealing[sealer], self.node.net.now
        assert line is not None
        while line.waiting:
            first, count = line.take(min(len(line.waiting), 48))
            if count == 0:
                if not line.asked:
                    line.asked = True
                    self.node.lines.sent(line.number, sealer, 0, [], now)
                return
            trains, sizes = seal_train(line.keys, line.cid, first, line.next(count))
            self.node.lines.sent(line.number, sealer, first, sizes, now)
            self.used += range(first, first + count)
            for data, size in trains:
                self.out += [data[at : at + size] for at in range(0, len(data), size)]

    def take(self, packet: bytes, source: object, now: float) -> bool:
        """Open a packet; False where it is the engine's."""
        line = self.opening
        if line is None or packet[0] & 0x80 or packet[1:9] not in line.cids:
            return False
        frames, runs, acks, others = open_train(
            line.keys, line.older, line.window, line.cids, packet, len(packet), line.window.newest + 1
        )
        bulk = [frame for frame in frames if frame[1:6] == b"\x10\x04\0\0\0"]
        self.got += [frame[2:] for frame in bulk]
        rest = [frame for frame in frames if frame not in bulk]
        self.node.lines.opened(line.number, len(frames), rest, runs, acks, source, now)  # type: ignore[arg-type]
        return not others


class SharedNet(Net):
    """Packets of workers pass the same path as the engine's own."""

    def __init__(self, **options: float) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        for node in self.nodes:
            node.sealers = SEALERS
            node.start()
            node.workers = Workers(node)

    def pump(self, node: Node) -> None:
        super().pump(node)
        node.workers.hear()
        while node.workers.out:
            self.put(node, node.workers.out.popleft(), node.workers.address)

    def deliver(self, node: Node, packet: bytes, source: object) -> None:
        if not node.workers.take(packet, source, self.now):
            super().deliver(node, packet, source)  # type: ignore[arg-type]

    def ready(self) -> None:
        self.connected()
        assert self.run(5, lambda: all(all(node.workers.sealing) and node.workers.opening for node in self.nodes))


def exchange(net: SharedNet, count: int, sealers: tuple[int, ...] = (0,)) -> list[bytes]:
    """Both send so many messages by their workers, as fast as they may."""
    sent = [transport(number) for number in range(count)]
    for at in range(0, count, 20):
        for node in net.nodes:
            assert node.workers.send(sealers[at // 20 % len(sealers)], sent[at : at + 20])
        net.run(0.004)
    net.run(3)
    return sent


@pytest.mark.parametrize("sealers", [(0,), (0, 1), (0, 0, 0, 0, 1)])
def test_bulk_passes_without_the_engine_and_is_acknowledged(sealers: tuple[int, ...]) -> None:
    net = SharedNet()
    net.ready()
    sent = exchange(net, 3000, sealers)
    for node in net.nodes:
        other = net.other(node)
        assert sorted(other.workers.got) == sorted(sent)
        assert not other.of(Bulk)
        line = node.lines._lines[other.key]
        assert line.link.connection._loss.bytes_in_flight == 0
        assert line.sent >= 3000
        assert line.received >= 3000
        assert line.link.rate > 1e5


def test_no_number_is_used_twice() -> None:
    """Whoever seals: two workers, and the engine for control, heartbeats, acknowledgments."""
    net = SharedNet()
    net.ready()
    engine: list[int] = []
    link = net.ann.lines._lines[net.bob.key].link
    fast = link.sharable
    assert fast is not None
    take = fast.share().take
    given: list[int] = []

    def watched(count: int) -> int:
        first = take(count)
        given.extend(range(first, first + count))
        return first

    fast.share().take = watched  # type: ignore[method-assign]
    before = link.connection._packet_number
    exchange(net, 2000, (0, 1))
    engine = sorted(set(range(before, link.connection._packet_number)) - set(given))
    used = net.ann.workers.used
    assert len(used) == len(set(used)) == 2000
    assert len(given) == len(set(given))
    assert not set(used) & set(engine)
    assert engine  # and it did send


def test_what_is_lost_is_found_and_leaves_the_window() -> None:
    """By time of sending: the order of numbers says nothing where two send."""
    dice = random.Random(3)
    net = SharedNet()
    net.ready()
    net.lose = lambda packet, sender: len(packet) > 600 and dice.random() < 0.03
    sent = exchange(net, 3000, (0, 1))
    for node in net.nodes:
        got = node.workers.got
        assert len(got) == len(set(got))
        assert len(got) > 0.93 * len(sent)
        assert net.ann.lines._lines[net.bob.key].link.connection._loss.bytes_in_flight == 0


def test_when_everything_was_lost_it_goes_on() -> None:
    net = SharedNet()
    net.ready()
    net.lose = lambda packet, sender: True
    for at in range(0, 400, 20):
        net.ann.workers.send(0, [transport(number) for number in range(at, at + 20)])
    net.run(1)
    net.lose = lambda packet, sender: False
    net.run(3)
    assert net.ann.workers.send(0, [transport(1000)])
    net.run(3)
    assert transport(1000) in net.bob.workers.got
    assert net.ann.lines._lines[net.bob.key].link.connection._loss.bytes_in_flight == 0


def test_keys_are_renewed_for_workers_too() -> None:
    net = SharedNet()
    net.ready()
    sent = exchange(net, 200)
    net.ann.lines._lines[net.bob.key].link.connection.request_key_update()
    net.ann.lines.ping(net.bob.key, b"12345678")
    net.run(1)
    sent += exchange(net, 200)
    phases = {line.keys.first for node in net.nodes for line in node.workers.sealing if line is not None}
    assert phases == {0x47}
    for node in net.nodes:
        assert sorted(node.workers.got) == sorted(sent)


def test_a_worker_that_sent_little_is_given_numbers_near_the_newest() -> None:
    """Older ones a receiver would not take."""
    net = SharedNet()
    net.ready()
    exchange(net, 6000, (0,))
    line = net.ann.workers.sealing[1]
    assert line is not None
    newest = max(net.ann.workers.used)
    assert newest > WINDOW
    assert newest - line.ranges[0] < WINDOW // 2
    before = len(net.bob.workers.got)
    assert net.ann.workers.send(1, [transport(9999)])
    net.run(0.5)
    assert net.bob.workers.got[before:] == [transport(9999)]


def test_workers_that_were_started_anew_are_told_again() -> None:
    """With numbers that nobody has had."""
    net = SharedNet()
    net.ready()
    exchange(net, 100)
    used = set(net.ann.workers.used)
    net.ann.workers = Workers(net.ann)
    net.ann.lines.share_again()
    net.run(0.1)
    sent = [transport(number) for number in range(5000, 5050)]
    assert net.ann.workers.send(0, sent)
    net.run(1)
    assert not used & set(net.ann.workers.used)
    assert net.bob.workers.got[-50:] == sent


def test_a_connection_that_ends_takes_it_back() -> None:
    net = SharedNet()
    net.ready()
    net.ann.lines.drop(net.bob.key, "the test is over")
    net.run(1)
    for node in net.nodes:
        assert node.workers.sealing == [None, None]
        assert node.workers.opening is None


def test_a_path_that_begins_anew_is_the_engines_until_it_carries_full_packets() -> None:
    net = SharedNet()
    net.ready()
    net.ann.lines.network_changed(net.now)
    net.pump(net.ann)
    assert net.ann.workers.sealing == [None, None]
    assert net.run(5, lambda: all(net.ann.workers.sealing))


def test_a_closed_window_stays_closed() -> None:
    """Nothing is acknowledged any more: whoever has data waits, however often one looks."""
    net = SharedNet()
    net.ready()
    exchange(net, 600, (0, 1))
    loss = net.ann.lines._lines[net.bob.key].link.connection._loss
    net.lose = lambda packet, sender: True
    over = 0
    for at in range(300):
        for sealer in range(SEALERS):
            net.ann.workers.send(sealer, [transport(at)] * 5)
        net.run(0.005)
        net.ann.lines._dirty[net.ann.lines._lines[net.bob.key]] = None
        over = max(over, loss.bytes_in_flight - loss._cc.congestion_window)
    assert over < 40_000  # what was given before, and a handful for who had not sent for long


def test_a_peer_that_remembers_little_gets_its_packets_from_the_engine_in_order() -> None:
    """Without the fast path it takes what is above 128 behind its newest for a repetition."""
    net = SharedNet()
    net.bob.fast = False
    net.bob.start()
    net.connected()
    net.run(3)
    assert net.ann.workers.sealing == [None, None]
    for number in range(300):
        net.ann.lines.send(net.bob.key, [transport(number)], net.now)
        net.run(0.002)
    net.run(0.5)
    assert len(net.bob.got) == 300


def test_what_a_lane_tells_twice_is_booked_once() -> None:
    net = SharedNet()
    net.ready()
    line = net.bob.lines._lines[net.ann.key]
    connection = line.link.connection
    newest = line.link.newest
    net.now += 1
    closes_at = connection._close_at
    net.bob.lines.opened(line.number, 1, [], [newest, newest + 1], [], None, net.now)
    assert connection._close_at == closes_at
    net.bob.lines.opened(line.number, 1, [], [newest + 1, newest + 2], [], None, net.now)
    assert line.link.newest == newest + 1
    assert connection._close_at == net.now + connection._idle_timeout()
