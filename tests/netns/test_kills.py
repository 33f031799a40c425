"""Packet workers killed under load: flows go on, and no keypair of a dead worker is ever used again.

A listener on the cable sees every datagram of both ends. A pair of receiver index and counter that is seen twice would
be a keystream used twice; a datagram that is sent again from elsewhere must not be taken.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import pytest

from .namespaces import needs_namespaces
from .tunnels import tunnels

pytestmark = [needs_namespaces(), pytest.mark.timeout(900)]

KILL_EVERY_S = 2.3  # more than five deaths in ten seconds would be taken for workers that cannot live
BACK_S: Final = 1.0

# A flow until the time is over: 32 KiB every 10 ms, in every other second every millisecond, so that the workers hand
# the TUN to each other. The server tells what came, and the longest silence.
FLOW_SERVER = """
import hashlib, json, socket, time
s = socket.create_server(('100.64.9.2', 7001))
print('ready', flush=True)
c, _ = s.accept()
seen, size, last, longest = hashlib.sha256(), 0, time.monotonic(), 0.0
while data := c.recv(1 << 16):
    now = time.monotonic()
    longest, last = max(longest, now - last), now
    seen.update(data); size += len(data)
print(json.dumps({'size': size, 'digest': seen.hexdigest(), 'silence': longest}))
"""
FLOW_CLIENT = """
import hashlib, json, os, socket, sys, time
c = socket.create_connection(('100.64.9.2', 7001))
end, seen, size = time.monotonic() + float(sys.argv[1]), hashlib.sha256(), 0
while time.monotonic() < end:
    data = os.urandom(32768)
    c.sendall(data); seen.update(data); size += len(data)
    time.sleep(0.01 if int(time.monotonic()) % 2 else 0.001)
print(json.dumps({'size': size, 'digest': seen.hexdigest()}))
"""
# A beat of one datagram every 5 ms: the longest pause between two arrivals after a kill is how long nothing passed.
BEAT_CATCHER = """
import json, socket, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(('100.64.9.2', 7002))
print('ready', flush=True)
came = []
while s.recv(100) != b'end':
    came.append(time.monotonic())
print(json.dumps(came))
"""
BEAT = """
import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    s.sendto(b'beat', ('100.64.9.2', 7002))
    time.sleep(0.005)
for _ in range(5):
    s.sendto(b'end', ('100.64.9.2', 7002))
    time.sleep(0.1)
"""
# Datagrams from port 51820 on the cable, by virtio_net_hdr, which says how a train is cut. A line on stdin ends it.
LISTENER = """
import json, select, socket, struct, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
s.setsockopt(263, 15, 1)  # PACKET_VNET_HDR
s.setsockopt(socket.SOL_SOCKET, 33, 1 << 26)
s.bind(('v1a', 0))
print('ready', flush=True)
seen, twice, kept = set(), 0, []
while True:
    ready = select.select([s, sys.stdin], [], [])[0]
    if s in ready:
        data = s.recv(1 << 17)
        step = struct.unpack_from('<H', data, 4)[0] if data[1] else 0
        frame = data[10:]
        if frame[12:14] != b'\\x08\\x00' or frame[23] != 17 or frame[34:36] != b'\\xca\\x6c':
            continue
        source, payload = frame[26:30], frame[42:14 + struct.unpack_from('>H', frame, 16)[0]]
        step = step or len(payload)
        for at in range(0, len(payload), step):
            one = payload[at:at + step]
            if one[:4] == b'\\x04\\0\\0\\0':
                name = (source, one[4:16])
                twice += name in seen
                seen.add(name)
                if source[3] == 2 and len(seen) % 7 == 0:
                    kept = kept[-99:] + [one]
    if sys.stdin in ready:
        if sys.stdin.readline() != 'kept\\n':
            break
        print(json.dumps([each.hex() for each in kept]), flush=True)
lost = struct.unpack('II', s.getsockopt(263, 6, 8))[1]  # PACKET_STATISTICS
print(json.dumps({'seen': len(seen), 'twice': twice, 'lost': lost}))
"""
REPLAY = """
import json, socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for n, each in enumerate(json.loads(sys.stdin.read())):
    s.sendto(bytes.fromhex(each), ('10.9.0.1', 51820))
    if n % 10 == 9:
        time.sleep(0.01)
"""


def run_with_kills(folder: Path, kills: int, lanes: int) -> None:
    with tunnels(folder, lanes=lanes) as pair:
        spaces, ends = pair.spaces, pair.ends

        def python(space: str, *argv: str) -> subprocess.Popen[str]:
            return subprocess.Popen(
                spaces.argv(space, sys.executable, "-c", *argv),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip

        with (
            python("one", LISTENER) as listener,
            python("two", FLOW_SERVER) as server,
            python("two", BEAT_CATCHER) as catcher,
        ):
            assert listener.stdin and listener.stdout and server.stdout and catcher.stdout
            assert {each.stdout.readline() for each in (listener, server, catcher)} == {"ready\n"}
            length_s = str(kills * KILL_EVERY_S + 3)
            killed: list[float] = []
            with python("one", FLOW_CLIENT, length_s) as client, python("one", BEAT, length_s):
                assert client.stdout
                time.sleep(1)
                victims = itertools.cycle(
                    [(end, name) for name in ends["one"].ask("stats")["health"]["workers"] for end in ("one", "two")]
                )
                for end, name in itertools.islice(victims, kills):
                    killed.append(time.monotonic())
                    ends[end].ask(f"kill {name}")
                    time.sleep(KILL_EVERY_S)
                # what was taken once, or was sealed for a keypair that is gone, is taken from nobody
                listener.stdin.write("kept\n")
                listener.stdin.flush()
                kept = listener.stdout.readline()
                before = ends["one"].ask("stats")
                subprocess.run(
                    spaces.argv("two", sys.executable, "-c", REPLAY), input=kept, text=True, check=True, timeout=60
                )
                sent = json.loads(client.stdout.read())
            got = json.loads(server.stdout.read())
            beats: list[float] = json.loads(catcher.stdout.read())
            after = ends["one"].ask("stats")
            listener.stdin.write("end\n")
            listener.stdin.flush()
            seen = json.loads(listener.stdout.read())
        refused = sum(
            after["health"]["drops"].get(why, 0) - before["health"]["drops"].get(why, 0)
            for why in ("replay", "unknown-session")
        )
        assert got["digest"] == sent["digest"], (got, sent)
        assert seen["twice"] == 0, seen
        assert seen["lost"] < seen["seen"] // 100, seen  # by the listener: what it did not see it cannot tell
        assert seen["seen"] > 100 * kills, seen
        assert refused >= len(json.loads(kept)) > 5, (refused, after)
        assert after["sessions"] > kills // 4, after
        assert set(after["health"]["workers"]) == set(before["health"]["workers"])
        gaps = list(itertools.pairwise(beats))  # one clock: both ends are on this machine
        back = sorted(max(b - a for a, b in gaps if at < b and a < at + KILL_EVERY_S) for at in killed)
        middle, worst = back[len(back) // 2], back[-1]
        calm = max((b - a for a, b in gaps if b < killed[0]), default=0.0)  # of a machine with other work
        assert middle < BACK_S + 3 * calm, (back, calm)
        print(
            f"{kills} kills, {seen}, packets pass again after {middle:.2f} s, at worst {worst:.2f} s; "
            f"longest silence of the flow {got['silence']:.2f} s, {refused} replays refused"
        )


@pytest.mark.parametrize("lanes", [1, 2])
def test_flows_live_on_and_no_counter_is_used_twice(tmp_path: Path, lanes: int) -> None:
    run_with_kills(tmp_path, 4 * lanes, lanes)


@pytest.mark.long
def test_a_hundred_kills(tmp_path: Path) -> None:
    run_with_kills(tmp_path, 100, 1)
