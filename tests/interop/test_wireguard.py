"""WireGuard is WireGuard: our tunnel and wireguard-go, each in a namespace of its own: see `wireguardpair.py`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.netns.namespaces import Namespaces, needs_namespaces

from .wireguardpair import PORT, Pair

pytestmark = [
    needs_namespaces(),
    pytest.mark.skipif(shutil.which("wireguard-go") is None, reason="needs wireguard-go"),
    pytest.mark.skipif(shutil.which("wg") is None, reason="needs wireguard-tools"),
    pytest.mark.timeout(300),
]

WAYS = {"all cores": {}, "one core": {"cores": {0}}, "four workers": {"lanes": 2}}


@pytest.fixture
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    """Ours on all cores of the machine, on one, or with two workers of each plane."""
    options = dict(WAYS[getattr(request, "param", "all cores")])
    if "cores" in options:
        options["cores"] = {min(os.sched_getaffinity(0))}
    with Namespaces("wg", ["ours", "go"]) as spaces:
        spaces.link("ours", "10.9.0.1/24", "go", "10.9.0.2/24")
        pair = Pair(spaces, tmp_path, **options)
        try:
            yield pair
        finally:
            pair.stop()


def test_we_initiate_and_packets_pass_both_ways(pair: Pair) -> None:
    pair.start(we_know=True, they_know=False)
    pair.ping("ours")
    pair.ping("go")
    shown = pair.spaces.run("go", "wg", "show", "wg0", "latest-handshakes").split()
    assert abs(int(shown[1]) - time.time()) < 30


def test_wireguard_go_initiates_and_packets_pass_both_ways(pair: Pair) -> None:
    pair.start(we_know=False, they_know=True)
    pair.ping("go")
    pair.ping("ours")
    assert pair.end is not None
    stats = pair.end.ask("stats")
    assert abs(float(str(stats["handshake"])) - time.time()) < 30
    assert int(str(stats["rx"])) > 0


def test_a_new_handshake_takes_over_without_loss(pair: Pair) -> None:
    pair.start(we_know=True, they_know=True)
    pair.ping("ours")
    assert pair.end is not None
    before = pair.end.ask("stats")["sessions"]
    for _ in range(3):
        pair.end.ask("renew")
        pair.ping("ours", 2)
        pair.ping("go", 2)
    assert pair.end.ask("stats")["sessions"] == int(str(before)) + 3


def test_the_peer_moves_and_is_followed(pair: Pair) -> None:
    pair.start(we_know=True, they_know=True)
    pair.ping("ours")
    pair.spaces.run("go", "wg", "set", "wg0", "listen-port", "51999")
    # the answer to its first packet may still go to the old place: the engine hears of the move beside it
    pair.spaces.run("go", "ping", "-n", "-c", "1", "-W", "1", "100.64.9.1", check=False)
    pair.ping("go")
    pair.ping("ours")


@pytest.mark.parametrize("pair", ["one core"], indirect=True)
def test_on_one_core_one_process_serves_both_planes(pair: Pair) -> None:
    pair.start(we_know=True, they_know=False)
    pair.ping("ours")
    assert pair.end is not None
    before = pair.end.ask("stats")["health"]["workers"]
    assert before["outbound"] == before["inbound"]
    pair.end.ask("kill outbound")
    time.sleep(1.5)
    pair.ping("ours")
    pair.ping("go")
    after = pair.end.ask("stats")["health"]["workers"]
    assert after["outbound"] == after["inbound"] != before["outbound"]


@pytest.mark.parametrize("kind", ["outbound", "inbound"])
def test_a_killed_worker_is_replaced_and_the_keypair_with_it(pair: Pair, kind: str) -> None:
    pair.start(we_know=True, they_know=True)
    pair.ping("ours")
    assert pair.end is not None
    before = int(str(pair.end.ask("stats")["sessions"]))
    pair.end.ask(f"kill {kind}")
    time.sleep(1.5)
    pair.ping("ours")
    pair.ping("go")
    after = pair.end.ask("stats")
    assert int(str(after["sessions"])) > before
    assert set(after["health"]["workers"]) == {"outbound", "inbound"}


def test_the_filter_denies_what_no_rule_allows(pair: Pair) -> None:
    pair.start(we_know=True, they_know=True)
    pair.ping("go")
    assert pair.end is not None
    pair.end.ask("filter none")
    out = pair.spaces.run("go", "ping", "-n", "-c", "2", "-i", "0.2", "-W", "1", "100.64.9.1", check=False)
    assert "100% packet loss" in out
    pair.ping("ours")  # answers to what we began pass
    drops = pair.end.ask("stats")["health"]["drops"]
    assert drops["acl"] >= 2
    pair.end.ask("filter all")
    pair.ping("go")


@pytest.mark.parametrize("pair", [*WAYS], indirect=True)
def test_bulk_tcp_passes_both_ways_and_whole(pair: Pair) -> None:
    pair.start(we_know=True, they_know=True)
    server = pair.listen("go")
    try:
        for extra in ([], ["-R"], ["-P", "4"], ["-u", "-b", "10M", "-l", "1200"]):
            report = json.loads(pair.spaces.run("ours", "iperf3", "-c", "100.64.9.2", "-t", "2", "-J", *extra))
            end = report["end"]
            received = end["sum"] if "-u" in extra else end["sum_received"]
            assert received["bytes"] > 1_000_000, end
            if "-u" in extra:
                assert received["lost_percent"] < 50  # a busy machine loses some
    finally:
        server.terminate()
        server.wait(timeout=10)
    assert pair.end is not None
    drops = pair.end.ask("stats")["health"]["drops"]
    assert not {"replay", "tag", "unknown-session", "spoofed"} & set(drops), drops


@pytest.mark.parametrize("pair", ["four workers"], indirect=True)
def test_several_lanes_share_the_work(pair: Pair) -> None:
    """Flows are spread over the outbound workers, sessions over the inbound ones, and wireguard-go misses nothing."""
    pair.start(we_know=True, they_know=True)
    assert pair.end is not None
    health = pair.end.ask("stats")["health"]
    assert health["lanes"] == 2
    assert set(health["workers"]) == {"outbound", "inbound", "outbound.1", "inbound.1"}
    assert len(set(health["workers"].values())) == 4
    for _ in range(6):  # sessions of new indices, so that both inbound lanes get some
        pair.end.ask("renew")
        pair.ping("ours", 2)
        pair.ping("go", 2)
    server = pair.listen("go")
    try:
        pair.spaces.run("ours", "iperf3", "-c", "100.64.9.2", "-t", "2", "-P", "16")
    finally:
        server.terminate()
        server.wait(timeout=10)
    lanes = pair.end.ask("lanes")
    outbound, inbound = (
        lanes["sent"][:2],
        lanes["sent"][2:],
    )  # a lane's inbound worker sends while there is little to do
    assert min(sum(lane) for lane in zip(outbound, inbound, strict=True)) > 0, lanes
    assert max(outbound) > 1000, lanes
    assert min(lanes["received"]) > 0, lanes


@pytest.mark.parametrize("pair", ["four workers"], indirect=True)
@pytest.mark.parametrize("kind", ["outbound", "inbound", "outbound.1", "inbound.1"])
def test_any_of_four_workers_is_replaced(pair: Pair, kind: str) -> None:
    pair.start(we_know=True, they_know=True)
    pair.ping("ours")
    assert pair.end is not None
    before = pair.end.ask("stats")["health"]["workers"]
    pair.end.ask(f"kill {kind}")
    for _ in range(300):
        after = pair.end.ask("stats")["health"]["workers"]
        if set(after) == set(before) and after[kind] != before[kind]:
            break
        time.sleep(0.1)
    pair.ping("ours")
    pair.ping("go")
    after = pair.end.ask("stats")["health"]["workers"]
    assert {name for name in before if before[name] != after[name]} == {kind}


def test_garbage_on_the_port_is_handed_over_or_dropped(pair: Pair) -> None:
    pair.start(we_know=True, they_know=True)
    script = (
        "import os,socket\n"
        "s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\n"
        "for n in (0,1,3,31,32,33,92,148,1400):\n"
        f"  s.sendto(os.urandom(n),('10.9.0.1',{PORT}))\n"
        f"  s.sendto(b'\\x04\\0\\0\\0'+os.urandom(n),('10.9.0.1',{PORT}))\n"
        f"  s.sendto(b'\\x01\\0\\0\\0'+os.urandom(144),('10.9.0.1',{PORT}))\n"
    )
    pair.spaces.run("go", sys.executable, "-c", script)
    pair.ping("ours")
    assert pair.end is not None
    assert pair.end.ask("stats")["health"]["drops"]["unknown-session"] >= 5


@pytest.mark.long
def test_rekey_after_two_minutes_loses_nothing(pair: Pair) -> None:
    """150 s of pings at 20 a second: the initiator's rekey at 120 s is not noticed."""
    pair.start(we_know=True, they_know=True)
    pair.ping("ours")
    out = pair.spaces.run("ours", "ping", "-n", "-q", "-i", "0.05", "-w", "150", "100.64.9.2", timeout=200)
    assert " 0% packet loss" in out
    assert pair.end is not None
    assert int(str(pair.end.ask("stats")["sessions"])) >= 2


def test_the_port_answers_nothing_to_a_stranger(pair: Pair) -> None:
    pair.start(we_know=True, they_know=True)
    script = (
        "import socket\n"
        "s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.settimeout(1)\n"
        f"s.sendto(b'\\x01\\0\\0\\0'+bytes(144),('10.9.0.1',{PORT}))\n"
        "try:\n  s.recv(100); raise SystemExit('answered')\nexcept TimeoutError: pass\n"
    )
    pair.spaces.run("go", sys.executable, "-c", script)


# A cable for UDP that loses, doubles and overtakes; many kernels come without netem.
BAD_CABLE = """
import random, select, socket
outside = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); outside.bind(('10.9.0.2', 51999))
inside = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); inside.connect(('127.0.0.1', 51820))
for s in (outside, inside):
    s.setsockopt(socket.SOL_SOCKET, 33, 1 << 23)
chance, peer, late = random.Random(1), None, {outside: [], inside: []}
print('ready', flush=True)
while True:
    for s in select.select([outside, inside], [], [], 0.005)[0] or [None]:
        if s is None:  # quiet: nobody waits for ever
            for where, held in late.items():
                for data in held:
                    where.send(data) if where is inside else where.sendto(data, peer)
                held.clear()
            continue
        data, source = s.recvfrom(2048)
        if s is outside:
            peer, to = source, inside
        else:
            to = outside
        roll, ready = chance.random(), [data]
        if roll < 0.01:
            continue
        if roll < 0.03:
            ready = [data, data]
        elif roll < 0.08:
            late[to].append(data)
            continue
        if len(late[to]) > 3:
            ready += late[to]
            late[to] = []
        for each in ready:
            to.send(each) if to is inside else to.sendto(each, peer)
"""


def measured(pair: Pair, *extra: str) -> dict[str, Any]:
    """What iperf3 reports at its end, asked again where its own exchange of results timed out."""
    for _ in range(3):
        report = json.loads(pair.spaces.run("ours", "iperf3", "-c", "100.64.9.2", "-t", "3", "-J", *extra))
        if "sum_received" in report["end"]:
            break
    assert "sum_received" in report["end"], report.get("error")
    end: dict[str, Any] = report["end"]
    return end


@pytest.mark.parametrize("pair", ["all cores", "four workers"], indirect=True)
def test_a_bad_cable_loses_no_byte(pair: Pair) -> None:
    """Loss, reordering and duplication under load: TCP inside is whole, doubles are dropped as replays."""
    with subprocess.Popen(
        pair.spaces.argv("go", sys.executable, "-c", BAD_CABLE), stdout=subprocess.PIPE, text=True
    ) as cable:
        try:
            assert cable.stdout is not None
            assert cable.stdout.readline() == "ready\n"
            pair.start(we_know=True, they_know=False, port=51999)
            pair.spaces.run("ours", "ping", "-n", "-c", "5", "-i", "0.2", "-W", "5", "100.64.9.2")
            server = pair.listen("go")
            try:
                for extra in ([], ["-R"], ["-P", "4"]):
                    assert measured(pair, *extra)["sum_received"]["bytes"] > 500_000
            finally:
                server.terminate()
                server.wait(timeout=10)
        finally:
            cable.kill()
    assert pair.end is not None
    drops = pair.end.ask("stats")["health"]["drops"]
    assert drops["replay"] > 0
    assert not {"tag", "spoofed", "malformed"} & set(drops), drops
