"""A defect of the relay, wherever in the loop a client or a timer meets it, ends that client or call; others go on.

alice ⇄ bob talk over a live plane; mallory meets the defect.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gw.engine.defects import COMPLAINT_BURST
from gw.native.relaying import Port
from gw.relay.admission import Admission
from gw.relay.forwarding import Connection
from gw.relay.presence import Presence
from gw.relay.session import Session
from gw.wire.x25519 import clamp, public_key

from .forwardingplane import UPGRADE, Flow, Running, received


class Boom(Exception):
    """What nobody thought of."""


@pytest.fixture
def running() -> Iterator[Running]:
    running = Running()
    yield running
    running.close()


@pytest.fixture
def flows(running: Running) -> Iterator[list[Flow]]:
    flows = [Flow(running, number).connected() for number in (1, 2)]
    yield flows
    for flow in flows:
        flow.close()


def until(wanted: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not wanted():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_closed(sock: socket.socket) -> bool:
    try:
        return not sock.recv(100)
    except ConnectionResetError:
        return True


def talk(flows: list[Flow]) -> None:
    word = os.urandom(8)
    flows[0].send(flows[1].key, word)
    flows[1].until(received(word))


def raising_for(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, is_hers: Callable[..., bool]) -> None:
    """From now on a method meets a defect, for whom it is about mallory."""
    sound = getattr(owner, name)

    def method(self: Any, *args: Any) -> Any:
        if is_hers(self, *args):
            raise Boom
        return sound(self, *args)

    monkeypatch.setattr(owner, name, method)


@pytest.mark.parametrize("method", ["readable", "flush", "writable", "resume"])
def test_a_connection_that_meets_one_ends_alone(
    running: Running, flows: list[Flow], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    mallory = Flow(running, 3).connected()
    flows.append(mallory)
    (port,) = running.reception.presence.ports_of(mallory.key.raw)
    connection = port.owner
    assert isinstance(connection, Connection)
    raising_for(monkeypatch, Connection, method, lambda self: self is connection)
    if method == "resume":
        running.plane.call(lambda: running.plane.arm(running.plane.now, "resume", connection))
    elif method == "writable":
        running.plane.call(lambda: running.plane.watch(connection.number, 4))
    else:
        mallory.send(mallory.key, b"x")
    assert is_closed(mallory.sock)
    until(lambda: len(running.plane) == 2 and mallory.key.raw not in running.reception.switch.local)
    assert running.plane.defects.met == 1
    talk(flows)


def test_a_session_that_cannot_begin_is_closed(
    running: Running, flows: list[Flow], monkeypatch: pytest.MonkeyPatch
) -> None:
    raising_for(monkeypatch, Connection, "begin", lambda *args: True)
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", running.port), timeout=10) as newcomer:
            newcomer.sendall(UPGRADE)
            assert is_closed(newcomer)
    until(lambda: len(running.plane) == 2)
    talk(flows)


def test_a_decision_that_meets_one_ends_who_waits_for_it(
    running: Running, flows: list[Flow], monkeypatch: pytest.MonkeyPatch
) -> None:
    running.verdicts[public_key(clamp(bytes([3]) * 32))] = Admission.UNKNOWN
    mallory = Flow(running, 3)
    flows.append(mallory)
    until(lambda: running.plane._waiting)
    raising_for(monkeypatch, Session, "decide", lambda *args: True)
    running.plane.look_again()
    assert is_closed(mallory.sock)
    talk(flows)


def test_a_leaving_that_meets_one_leaves_nothing_that_packets_go_to(
    running: Running, flows: list[Flow], monkeypatch: pytest.MonkeyPatch
) -> None:
    mallory = Flow(running, 3).connected()
    raising_for(monkeypatch, Presence, "leave", lambda self, port: port.key == mallory.key.raw)
    mallory.close()
    until(lambda: len(running.plane) == 2 and mallory.key.raw not in running.reception.switch.local)
    assert running.plane.defects.met
    flows[0].send(mallory.key, b"x")
    talk(flows)
    assert running.reception.switch.dropped_unknown == 1


def test_calls_orders_and_looks_that_meet_one_end_alone(
    running: Running, flows: list[Flow], caplog: pytest.LogCaptureFixture
) -> None:
    plane, switch = running.plane, running.reception.switch
    done: list[int] = []

    class Broken:
        def __len__(self) -> int:
            return 0

        def counts(self) -> tuple[int, ...]:
            return (0,) * 8

        def _fail(self, *args: object) -> None:
            raise Boom

        decide = limit = goodbye = close_links = flush = close = _fail

        @property
        def drained(self) -> int:
            raise Boom

    def fail() -> None:
        raise Boom

    def sow() -> None:
        broken: Any = Broken()
        plane.transports.append(broken)
        plane.arm_call(plane.now, fail)
        plane.arm_call(plane.now, lambda: done.append(1))
        listed = Port(broken)
        switch.push(listed, b"x")
        switch.crowded.append(Port(broken))
        running.reception.presence.holders[b"broken"] = [Port(broken)]

    plane.call(fail)
    plane.call(sow)
    plane.call(plane.limit)
    plane.call(plane.close_links)
    plane.drop(b"broken")
    plane.look_again()
    until(lambda: plane.defects.met == 8)
    assert done == [1]
    talk(flows)
    caplog.clear()
    for _ in range(int(5 * COMPLAINT_BURST)):  # a stranger does not fill the log
        plane.call(fail)
    until(lambda: plane.defects.met == 8 + int(5 * COMPLAINT_BURST))
    assert len(caplog.records) <= COMPLAINT_BURST
    assert all(record.levelno == logging.ERROR for record in caplog.records)
    running.reception.presence.holders.pop(b"broken")
    talk(flows)


def test_what_is_attached_may_meet_one(flows: list[Flow], running: Running) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:

        def ready() -> None:
            ours.recv(100)
            raise Boom

        def attach() -> None:
            running.plane.attach(ours.fileno(), ready)
            running.plane._epoll.register(ours.fileno(), select.EPOLLIN)

        running.plane.call(attach)
        for met in (1, 2):
            theirs.send(b"x")
            until(lambda met=met: running.plane.defects.met == met)  # type: ignore[misc]
        talk(flows)
        running.plane.call(lambda: running.plane._epoll.unregister(ours.fileno()))
        talk(flows)
