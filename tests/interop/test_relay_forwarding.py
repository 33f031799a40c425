"""The forwarding plane in its thread, clients on loopback: the slow, the broken and the many harm nobody."""

from __future__ import annotations

import os
import resource
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
from nacl.public import Box, PrivateKey, PublicKey

from gw.model.addresses import AddrPort
from gw.model.keys import DiscoSecret, NodeKey
from gw.relay import certificates
from gw.relay.admission import Admission
from gw.relay.allocating import Desk
from gw.relay.forwarding import LONG_READ, SHORT_READS, Limits
from gw.relay.peerrelay import PeerRelay
from gw.relay.session import Session
from gw.relay.waiting import WaitingRoom
from gw.wire.derp import client as c
from gw.wire.derp import frames
from gw.wire.derp.buckets import Bucket
from gw.wire.disco.envelope import Envelopes
from gw.wire.disco.messages import decode, encode
from gw.wire.disco.udprelay import AllocateRequest, AllocateResponse, pair_of
from gw.wire.x25519 import clamp, public_key

from .forwardingplane import UPGRADE, Flow, Running, received

T = TypeVar("T")


@pytest.fixture
def running() -> Iterator[Running]:
    running = Running()
    yield running
    running.close()


@pytest.fixture
def flows() -> Iterator[list[Flow]]:
    flows: list[Flow] = []
    yield flows
    for flow in flows:
        flow.close()


def test_a_reader_that_stands_still_costs_others_nothing_and_is_closed(running: Running, flows: list[Flow]) -> None:
    flows += [Flow(running, 1).connected(), Flow(running, 2).connected()]
    flows.append(Flow(running, 3, receive_buffer=4096).connected())
    alice, bob, sloth = flows
    for n in range(3000):
        alice.send(sloth.key, bytes(1400))
        if n % 100 == 0:
            alice.send(bob.key, b"to bob %d" % n)
    bob.until(received(b"to bob 2900"))
    assert running.reception.switch.dropped_queue > 0
    deadline = time.monotonic() + 10
    while len(running.plane) > 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(running.plane) == 2
    alice.send(bob.key, b"still here")
    bob.until(received(b"still here"))


def test_who_waits_for_admission_comes_in_once_it_is_known(running: Running, flows: list[Flow]) -> None:
    key = public_key(clamp(bytes([5]) * 32))
    running.verdicts[key] = Admission.UNKNOWN
    flows.append(Flow(running, 5))
    waiting = flows[0]
    time.sleep(0.2)
    assert not any(isinstance(event, c.Connected) for event in waiting.events)
    assert running.sources == {"127.0.0.1"}
    running.verdicts[key] = Admission.ALLOWED
    running.plane.look_again()
    waiting.connected()
    running.plane.drop(key)
    assert waiting.sock.recv(100) == b""


def test_an_answer_about_one_key_looks_at_its_clients_alone_and_the_room_is_bounded(
    running: Running, flows: list[Flow], monkeypatch: pytest.MonkeyPatch
) -> None:
    running.plane._waiting = WaitingRoom(3)
    for number in (1, 2, 3, 4):
        running.verdicts[public_key(clamp(bytes([number]) * 32))] = Admission.UNKNOWN
    flows += [Flow(running, number) for number in (1, 2, 3)]
    deadline = time.monotonic() + 10
    while len(running.plane._waiting) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    flows.append(Flow(running, 4))
    assert not flows[3].sock.recv(1000)  # no room
    looked: list[bytes] = []
    decide = Session.decide

    def counted(self: Session, now: float) -> None:
        looked.append(self.node)
        decide(self, now)

    monkeypatch.setattr(Session, "decide", counted)
    running.verdicts[flows[0].key.raw] = Admission.ALLOWED
    running.plane.look_again(flows[0].key.raw)
    flows[0].connected()
    assert looked == [flows[0].key.raw]
    running.verdicts.clear()
    running.plane.look_again()
    for flow in flows[1:3]:
        flow.connected()


def send_and_be_shut_out(port: int, garbage: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.sendall(garbage)
        sock.shutdown(socket.SHUT_WR)
        try:
            while sock.recv(4096):
                pass
        except ConnectionResetError:
            pass


def test_garbage_ends_its_own_connection_only(running: Running, flows: list[Flow]) -> None:
    flows.append(Flow(running, 1).connected())
    for garbage in (b"\x00" * 100, b"GET / HTTP/9\r\n\r\n", os.urandom(5000), UPGRADE + b"\xff" * 40):
        send_and_be_shut_out(running.port, garbage)
    flows.append(Flow(running, 2).connected())
    flows[0].send(flows[1].key, b"hello")
    flows[1].until(received(b"hello"))


def test_a_sealed_mesh_key_that_is_none_ends_its_own_connection_only(running: Running, flows: list[Flow]) -> None:
    flows.append(Flow(running, 1).connected())
    running.reception.mesh_key = "ab" * 32
    secret = clamp(b"\x66" * 32)
    box = Box(PrivateKey(secret), PublicKey(running.reception.identity.key))
    for key in (b"\\ud800", b"ab", b"ab" * 31 + b"\\u00e9"):
        said = public_key(secret) + bytes(box.encrypt(b'{"meshKey":"%s","version":2}' % key))
        send_and_be_shut_out(running.port, UPGRADE + frames.encode(frames.CLIENT_INFO, said))
    flows[0].send(flows[0].key, b"still here")
    flows[0].until(received(b"still here"))


def test_a_changed_mesh_key_ends_the_links_of_who_knew_the_old_one(running: Running, flows: list[Flow]) -> None:
    """Also one that watches nothing and announces nothing; clients and other workers stay."""
    running.reception.mesh_key, running.reception.sibling_key = "ab" * 32, "cd" * 32
    flows.append(Flow(running, 1).connected())
    other, worker = (Flow(running, number, mesh_key=key) for number, key in ((2, "ab" * 32), (3, "cd" * 32)))
    flows += [other.connected(), worker.connected()]
    running.reception.mesh_key = "ef" * 32
    running.plane.call(running.plane.close_links)
    try:
        while other.sock.recv(1000):
            pass
    except ConnectionResetError:
        pass
    flows[0].send(flows[0].key, b"still here")
    flows[0].until(received(b"still here"))
    assert len(running.plane) == 2
    late = Flow(running, 4, mesh_key="ab" * 32).connected()  # to whom the old key is worth nothing
    flows.append(late)
    late.sock.sendall(frames.encode(frames.WATCH_CONNS, b""))
    assert not late.sock.recv(1000)


def hold(running: Running) -> None:
    """The plane finds all that comes now in one turn, as a busy one does."""
    running.plane.call(lambda: time.sleep(0.3))


def test_a_flood_for_the_key_of_the_relay_itself_costs_only_the_flood(running: Running, flows: list[Flow]) -> None:
    relay = PeerRelay(DiscoSecret(clamp(b"\x55" * 32)), os.urandom, lambda: (AddrPort("192.0.2.1", 3478),))
    running.plane.call(lambda: Desk(running.plane, running.reception, relay) and None)
    flows += [Flow(running, number).connected() for number in range(1, 8)]
    asker, flooders = flows[0], flows[1:]
    own = NodeKey(running.reception.identity.key)
    ann, bob = (Envelopes(DiscoSecret(clamp(bytes([number]) * 32))) for number in (11, 12))
    request = encode(AllocateRequest(pair_of(ann.key, bob.key), 5))
    for packet in (bytes(60_000), b"TS\xf0\x9f\x92\xac" + bytes(60_000)):
        hold(running)
        for flooder in flooders:
            flooder.client.send(own, [packet, packet])
            flooder.sock.sendall(flooder.client.data_to_send())
        asker.send(own, ann.seal(relay.key, os.urandom(24), request))
        answer = asker.until(lambda event: isinstance(event, c.Received) and event.source == own)
        assert isinstance(answer, c.Received)
        assert isinstance(decode(ann.open(answer.packet)), AllocateResponse)
        asker.events.remove(answer)
    assert running.reception.switch.dropped_queue > 0
    time.sleep(0.3)  # the look at whom packets waited for
    asker.send(asker.key, b"still here")
    asker.until(received(b"still here"))


def test_garbage_on_the_tls_port_ends_its_own_connection_only(tmp_path: Path) -> None:
    from datetime import UTC, datetime

    pem = certificates.self_signed(tmp_path / "self-signed.pem", "localhost", datetime.now(UTC))
    private = b"-----BEGIN PRIVATE" + pem.partition(b"-----BEGIN PRIVATE")[2]
    running = Running(certificates.context(tmp_path, pem, private, b"\x01" * 32, datetime.now(UTC)))
    try:
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(3000), b"\x16\x03\x01\xff\xff" + os.urandom(500)):
            send_and_be_shut_out(running.port, garbage)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with (
            socket.create_connection(("127.0.0.1", running.port), timeout=10) as sock,
            context.wrap_socket(sock) as tls,
        ):
            tls.sendall(UPGRADE)
            assert tls.recv(100).startswith(b"HTTP/1.1 101 ")
    finally:
        running.close()


def test_out_of_descriptors_new_clients_wait_and_the_thread_rests(running: Running, flows: list[Flow]) -> None:
    flows.append(Flow(running, 1).connected())
    waiting = socket.socket()
    waiting.settimeout(10)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    full = os.dup(waiting.fileno())  # the lowest free number: at it the process is full
    os.close(full)
    resource.setrlimit(resource.RLIMIT_NOFILE, (full, hard))
    try:
        waiting.connect(("127.0.0.1", running.port))
        waiting.sendall(UPGRADE)
        time.sleep(0.3)
        before = time.clock_gettime(time.pthread_getcpuclockid(running.thread.ident or 0))
        time.sleep(0.5)
        assert time.clock_gettime(time.pthread_getcpuclockid(running.thread.ident or 0)) - before < 0.1
        flows[0].send(flows[0].key, b"to myself")  # who is in is served
        flows[0].until(received(b"to myself"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert waiting.recv(100).startswith(b"HTTP/1.1 101 ")
    waiting.close()


def test_stopping_an_ending_plane_and_orders_after_its_end_are_harmless() -> None:
    running = Running()
    running.plane.stop()
    running.thread.join(5)
    running.plane.stop()
    running.plane.look_again()
    running.plane.drop(b"\x01" * 32)
    running.close()


def test_a_client_that_floods_gets_its_bucket_and_others_their_throughput() -> None:
    running = Running(rate=400_000, burst=100_000)
    flows = [Flow(running, number).connected() for number in (1, 2, 3, 4)]
    flooder, alice, sink, bob = flows
    try:
        got = {"sink": 0}

        def drain() -> None:
            try:
                while data := sink.sock.recv(1 << 16):
                    got["sink"] += len(data)
            except OSError:
                pass

        def flood() -> None:
            frame = bytes([4]) + (1432).to_bytes(4, "big") + sink.key.raw + bytes(1400)
            try:
                while True:
                    flooder.sock.sendall(frame * 20)
            except OSError:
                pass

        threads = [threading.Thread(target=drain), threading.Thread(target=flood)]
        for thread in threads:
            thread.start()
        began = time.monotonic()
        for n in range(100):
            alice.send(bob.key, b"%d" % n + bytes(1000))
            bob.until(received(b"%d" % n + bytes(1000)))
        quiet_s = time.monotonic() - began
        time.sleep(max(0.0, 2.0 - quiet_s))
        elapsed = time.monotonic() - began
        assert got["sink"] < 400_000 * elapsed + 100_000 + 300_000  # its rate, its burst, one read
        assert got["sink"] > 100_000
        assert running.plane.limited > 0
    finally:
        for flow in flows:
            flow.sock.shutdown(socket.SHUT_RDWR)
            flow.close()
        for thread in threads:
            thread.join(10)
        running.close()


def test_connections_above_the_limits_are_closed_at_once() -> None:
    running = Running(limits=Limits(Bucket(0, 0), clients_an_address=2))
    try:
        flows = [Flow(running, 1).connected(), Flow(running, 2).connected()]
        with socket.create_connection(("127.0.0.1", running.port), timeout=10) as third:
            assert third.recv(10) == b""
        flows.pop().close()
        deadline = time.monotonic() + 10
        while len(running.plane) > 1 and time.monotonic() < deadline:
            time.sleep(0.02)
        flows.append(Flow(running, 3).connected())
        running.plane.limits = Limits(Bucket(0.001, 0))
        with socket.create_connection(("127.0.0.1", running.port), timeout=10) as late:
            assert late.recv(10) == b""
        assert running.plane.rejected == 2
        for flow in flows:
            flow.close()
    finally:
        running.close()


def asked(running: Running, what: Callable[[], T]) -> T:
    """What the plane's thread finds."""
    found: list[T] = []
    settled = threading.Event()

    def look() -> None:
        found.append(what())
        settled.set()

    running.plane.call(look)
    assert settled.wait(20)
    return found[0]


def test_only_bulk_that_trickles_is_waited_for(running: Running) -> None:
    """Who waits for each packet before it sends the next has never two in a read; a long read needs no company."""
    plane = running.plane

    def after(short: int) -> bool:
        plane.reads, plane.short_reads = {7: 5000}, {7: short}
        plane._pace()
        return plane._gathers

    found = [asked(running, partial(after, short)) for short in (0, SHORT_READS - 1, SHORT_READS, 0)]
    assert found == [False, False, True, False]


def test_reads_of_a_few_packets_are_counted(running: Running, flows: list[Flow]) -> None:
    flows += [Flow(running, 1).connected(), Flow(running, 2).connected()]
    alice, bob = flows
    counted: list[int] = []
    for count in (1, 3, LONG_READ):
        asked(running, running.plane.short_reads.clear)
        alice.sock.sendall(b"".join(frames.encode(frames.SEND_PACKET, bob.key.raw + b"%d" % n) for n in range(count)))
        bob.until(received(b"%d" % (count - 1)))
        counted.append(asked(running, lambda: sum(running.plane.short_reads.values())))
        bob.events.clear()
    assert counted == [0, 1, 0]
