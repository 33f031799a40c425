"""UDP or QUIC, by what is measured. Spec quic §15."""

from __future__ import annotations

import pytest

from gw.engine.transport import MAX_GAP_S, Chooser, Mode, Way
from gw.model.keys import NodeKey

PEER = NodeKey(b"\x07" * 32)
PACKET_BYTES = 1200


class Path:
    """A path that delivers a share of what is sent over UDP, asked by a heartbeat every 3 s."""

    def __init__(self, chooser: Chooser, share: float = 1.0, rate: int = 100, quic_rate: int = 0) -> None:
        """rate: packets a second over UDP; quic_rate: bytes a second that QUIC delivers when it is used."""
        self.chooser, self.share, self.rate, self.quic_rate = chooser, share, rate, quic_rate
        self.now = 1000.0
        self.sent = self.quic_bytes = 0
        self.received = 0.0
        self.dials = 0
        self.quic_works = True
        self.ways: list[Way] = []

    def run(self, seconds: int) -> Way:
        for _ in range(seconds):
            self.now += 1
            way = self.chooser.way(PEER)
            if way in (Way.DIRECT, Way.FALLBACK, Way.PROBING):
                self.sent += self.rate
                self.received += self.rate * self.share
            if way in (Way.QUIC, Way.PROBING):
                self.quic_bytes += self.quic_rate
            _, measure = self.chooser.tick(PEER, self.quic_bytes, self.now)
            if measure or int(self.now) % 3 == 0:
                self.chooser.delivered(PEER, self.sent, int(self.received), self.sent * PACKET_BYTES, self.now)
            if self.chooser.wants_line(PEER, self.now):
                self.dials += 1
                if self.quic_works:
                    self.chooser.line(PEER, self.now, is_up=True)
            if not self.ways or self.ways[-1] is not self.chooser.way(PEER):
                self.ways.append(self.chooser.way(PEER))
        return self.chooser.way(PEER)


def test_a_path_that_delivers_stays_plain() -> None:
    path = Path(Chooser())
    assert path.run(600) is Way.DIRECT
    assert (path.dials, path.ways) == (0, [Way.DIRECT])


@pytest.mark.parametrize("rate", [1, 100])
def test_where_nothing_arrives_quic_is_taken_within_seconds(rate: int) -> None:
    path = Path(Chooser(), rate=rate)
    path.run(20)
    path.share = 0.0
    assert path.run(12) is Way.QUIC
    assert path.chooser.reason(PEER) == "blocked"


def test_until_quic_is_there_data_goes_by_relay_too_and_dialling_grows_seldom() -> None:
    path = Path(Chooser(), share=0.0)
    path.quic_works = False
    assert path.run(600) is Way.FALLBACK
    assert 4 <= path.dials <= 12
    path.share = 1.0
    assert path.run(6) is Way.DIRECT


def test_udp_is_tried_again_and_taken_when_it_delivers() -> None:
    path = Path(Chooser(), share=0.0, quic_rate=100_000)
    path.run(20)
    path.run(60)
    assert Way.PROBING in path.ways
    assert path.chooser.way(PEER) in (Way.QUIC, Way.PROBING)
    path.share = 1.0
    assert path.run(130) is Way.DIRECT


def test_probes_grow_seldom_where_udp_stays_blocked() -> None:
    path = Path(Chooser(), share=0.0, quic_rate=100_000)
    path.run(7200)
    probes = path.ways.count(Way.PROBING)
    assert 7200 / MAX_GAP_S / 2 < probes < 7200 / MAX_GAP_S + 8


def test_a_throttled_path_is_left_where_quic_delivers_more() -> None:
    path = Path(Chooser(), share=0.7, rate=100, quic_rate=1_000_000)
    assert path.run(60) in (Way.QUIC, Way.PROBING)
    assert path.chooser.reason(PEER) == "lossy"
    path.run(1200)
    assert Way.DIRECT not in path.ways[1:]


def test_a_lossy_path_is_kept_where_quic_delivers_no_more() -> None:
    """Radio loses QUIC's packets just the same."""
    path = Path(Chooser(), share=0.9, rate=100, quic_rate=100_000)
    path.run(3600)
    assert path.ways.count(Way.QUIC) >= 2  # it is tried again, ever more seldom
    assert path.ways.count(Way.QUIC) < 12


def test_what_is_faster_than_quic_could_be_is_not_given_up_for_some_loss() -> None:
    path = Path(Chooser(), share=0.9, rate=50_000)
    assert path.run(300) is Way.DIRECT
    assert path.dials == 0


def test_handshakes_that_get_no_answer_lead_to_quic() -> None:
    chooser = Chooser()
    assert not chooser.stalled(PEER, 0.5)
    assert chooser.stalled(PEER, 2.0)
    assert chooser.way(PEER) is Way.FALLBACK
    assert chooser.wants_line(PEER, 1.0)
    assert not chooser.wants_line(PEER, 1.5)
    assert chooser.line(PEER, 2.0, is_up=True)
    assert chooser.way(PEER) is Way.QUIC


def test_a_handshake_of_the_peer_inside_quic_says_that_udp_fails_it() -> None:
    chooser = Chooser()
    chooser.line(PEER, 1.0, is_up=True)
    assert chooser.way(PEER) is Way.DIRECT
    assert chooser.brought(PEER, 1.0)
    assert chooser.way(PEER) is Way.QUIC


def test_a_peer_that_only_prefers_quic_is_not_followed_where_udp_was_measured_to_deliver() -> None:
    path = Path(Chooser(), quic_rate=100_000)
    path.chooser.line(PEER, path.now, is_up=True)
    assert path.chooser.brought(PEER, path.now)
    assert path.run(60) is Way.DIRECT
    assert not path.chooser.brought(PEER, path.now + 100)
    assert path.chooser.brought(PEER, path.now + 1000)


def test_a_connection_that_is_gone_leaves_what_works() -> None:
    chooser = Chooser()
    chooser.stalled(PEER, 2.0)
    chooser.line(PEER, 2.0, is_up=True)
    assert chooser.line(PEER, 3.0, is_up=False)
    assert chooser.way(PEER) is Way.FALLBACK
    assert chooser.wants_line(PEER, 3.0)


def test_who_asks_for_quic_gets_it_and_udp_is_never_left_by_who_asks_for_that() -> None:
    chooser = Chooser(Mode.QUIC)
    assert chooser.wants_line(PEER, 1.0)
    assert chooser.way(PEER) is Way.DIRECT
    chooser.line(PEER, 1.0, is_up=True)
    assert (chooser.way(PEER), chooser.reason(PEER)) == (Way.QUIC, "asked")
    chooser.set_mode(Mode.UDP)
    assert chooser.way(PEER) is Way.DIRECT
    assert not chooser.stalled(PEER, 9.0)
    path = Path(chooser, share=0.0)
    assert path.run(100) is Way.DIRECT
    assert path.dials == 0


def test_counters_that_begin_anew_say_nothing() -> None:
    """A worker was restarted, here or there."""
    path = Path(Chooser())
    path.run(30)
    path.received = 0.0
    path.run(3)
    path.sent, path.received = 0, 0.0
    assert path.run(60) is Way.DIRECT
