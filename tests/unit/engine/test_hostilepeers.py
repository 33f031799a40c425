"""A peer of the tailnet that means harm: what it has us keep is bounded, and what ends is its own connection."""

from __future__ import annotations

import ipaddress
import logging
from types import SimpleNamespace
from typing import NoReturn

import pytest

from gw.engine import defects
from gw.engine.peerline import MAX_ASIDES, PeerLine
from gw.model.addresses import AddrPort
from gw.model.keys import NodeKey
from gw.quic.link import Link
from gw.quic.patience import SILENT_S
from gw.wire.quic import peering
from gw.wire.quic.frames import MAX_UNSENT_BYTES
from gw.wire.quic.peering import Routes

from .peers import Down, Net, transport

ELSEWHERE = AddrPort("203.0.113.7", 41641)
PING = peering.encode_ping(b"12345678")
ROUTES = peering.encode_routes(Routes(1, ()))
ROUTED = peering.encode_routes(Routes(1, (ipaddress.ip_network("10.0.0.0/8"),)))


@pytest.fixture(autouse=True)
def met(monkeypatch: pytest.MonkeyPatch) -> defects.Defects:
    """Of this test alone: many are logged seldom."""
    made = defects.Defects(SimpleNamespace(now=1.0))
    monkeypatch.setattr(defects, "of_node", made)
    return made


def lines(net: Net) -> tuple[PeerLine, PeerLine]:
    """Ann's end of the connection, and Bob's."""
    net.connected()
    return net.ann.lines._lines[net.bob.key], net.bob.lines._lines[net.ann.key]


def take_nothing(line: PeerLine) -> None:
    """The end never raises what it takes on streams: its own choice (RFC 9000 §4.1)."""
    connection = line.link.connection
    connection._write_stream_limits = lambda *a, **k: None  # type: ignore[method-assign]
    connection._write_connection_limits = lambda *a, **k: None  # type: ignore[method-assign]


@pytest.mark.parametrize("word", [PING, ROUTES], ids=["ping", "routes"])
def test_who_takes_no_answers_gets_no_more_and_is_closed(word: bytes) -> None:
    """Answers went into the send buffer of a stream for which no credit came: 1 MB of pings were 1 MB kept."""
    net = Net()
    mallory, ours = lines(net)
    take_nothing(mallory)
    most = 0
    for _ in range(200):
        mallory.link.send_stream(word * 300)
        net.ann.lines._dirty[mallory] = None
        net.run(0.05)
        most = max(most, ours.link.unsent)
        if ours.is_over:
            break
    assert most <= MAX_UNSENT_BYTES + len(word)
    assert [event.reason for event in net.ann.of(Down)] == ["takes nothing of what waits for it"]  # type: ignore[union-attr]
    assert not net.bob.lines._all


def test_who_is_silent_is_waited_for_longer() -> None:
    """It may be changing networks: as long as a relay waits, and no longer."""
    net = Net()
    _, ours = lines(net)
    net.lose = lambda packet, sender: True
    for number in range(2000):
        net.bob.lines.ping(net.ann.key, number.to_bytes(8, "big"))
    assert MAX_UNSENT_BYTES < ours.link.unsent < MAX_UNSENT_BYTES + 20
    began = net.now
    net.run(60, lambda: ours.is_over)
    assert SILENT_S <= net.now - began < SILENT_S + 0.5


def test_who_takes_answers_late_gets_them() -> None:
    net = Net()
    mallory, ours = lines(net)
    ours.link.connection._streams[0].max_stream_data_remote = ours.link.acknowledged
    mallory.link.send_stream(PING * 2000)
    net.ann.lines._dirty[mallory] = None
    net.run(1)
    assert ours.link.unsent > MAX_UNSENT_BYTES
    ours.link.connection._streams[0].max_stream_data_remote = 1 << 20
    ours.link._is_dirty = True
    net.run(3)
    assert ours.link.unsent == 0
    net.ann.lines.send(net.bob.key, [transport(1)], net.now)
    net.run(0.1)
    assert net.bob.got == [transport(1)]


def test_routes_wait_for_who_does_not_take_what_was_said_before() -> None:
    net = Net()
    mallory, ours = lines(net)
    ours.link.connection._streams[0].max_stream_data_remote = ours.link.acknowledged
    mallory.link.send_stream(PING * 2000)
    net.ann.lines._dirty[mallory] = None
    net.run(0.1)
    unsent = ours.link.unsent
    net.bob.lines.set_routes((next(iter(peering.decode_routes(ROUTED[5:]).prefixes)),))
    net.run(0.1)
    assert ours.link.unsent == unsent
    ours.link.connection._streams[0].max_stream_data_remote = 1 << 20
    ours.link._is_dirty = True
    net.run(3)
    assert mallory.routes == net.bob.lines.routes.prefixes


def test_reports_that_nobody_takes_do_not_pile_up() -> None:
    """Each was a stream more, for as long as the connection lived."""
    net = Net()
    _, ours = lines(net)
    ours.link.connection._remote_max_streams_uni = 0
    for number in range(60):
        net.ann.lines.send(net.bob.key, [transport(number)], net.now)
        net.run(6)
    assert ours.link.asides <= MAX_ASIDES
    assert len(ours.link.connection._streams) < 10


BROKEN = (
    "poll", "receive", "send", "ping", "restart_path", "move", "tell_routes", "close", "connect", "sent_by", "opened",
)  # fmt: skip


class Broken:
    """A link with a defect in one of its methods."""

    def __init__(self, link: Link, where: str) -> None:
        self._link, self._where = link, where

    def __getattr__(self, name: str) -> object:
        return fail if name == self._where else getattr(self._link, name)


@pytest.mark.parametrize("where", BROKEN)
def test_a_defect_ends_the_connection_that_meets_it_and_no_other(
    where: str, caplog: pytest.LogCaptureFixture, met: defects.Defects
) -> None:
    """One line that raised lost what the others had to send, and the timer."""
    net = Net()
    net.connected()
    lines, other = net.bob.lines, NodeKey(b"o" * 32)
    count, line = len(lines._all), lines._lines[net.ann.key]
    if where != "connect":
        lines.dial(other, ELSEWHERE, net.now)
        net.pump(net.bob)
        line = lines._lines[other]
        line.is_proven = line.link.is_up = True
        if where in ("send", "ping", "tell_routes", "close", "sent_by", "opened"):
            line.__dict__[where] = fail
        else:
            line.__dict__["link"] = Broken(line.link, where)
    with caplog.at_level(logging.ERROR), pytest.MonkeyPatch.context() as patch:
        match where:
            case "poll":
                lines._dirty = {line: None, **dict.fromkeys(lines._all)}
            case "receive":
                cid = line.cids[0]
                lines.receive(b"\x40" + cid + bytes(40), 49, ELSEWHERE, other, net.now)
            case "send":
                lines.send(other, [transport(1)], net.now)
            case "ping":
                lines.ping(other, b"12345678")
            case "restart_path":
                lines.set_address(other, AddrPort("203.0.113.8", 1), net.now)
            case "move":
                lines.network_changed(net.now)
            case "tell_routes":
                lines.set_routes((ipaddress.ip_network("10.0.0.0/8"),))
            case "close":
                lines.drop(other, "not wanted")
            case "sent_by":
                assert not lines.sent(line.number, 0, 5, [100], net.now)
            case "opened":
                lines.opened(line.number, 1, [], [5, 6], [], None, net.now)
            case "connect":
                patch.setattr(Link, "connect", fail)
                lines.dial(other, ELSEWHERE, net.now)
        lines.send(net.ann.key, [transport(2)], net.now)
        net.run(0.5)
    assert met.met == 1
    assert "a defect, please report it" in caplog.text
    assert [event.reason for event in net.bob.of(Down)] == ["a defect"]  # type: ignore[union-attr]
    assert len(lines._all) == (1 if where != "connect" else count)
    assert other not in lines._lines
    assert net.ann.got == [transport(2)]
    assert net.ann.is_up
    assert lines.deadline() < float("inf")


def fail(*arguments: object, **others: object) -> NoReturn:
    raise RuntimeError("a defect")
