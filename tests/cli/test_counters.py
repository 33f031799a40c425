"""`gw status`, `gw top` and `gw metrics` as a person and a script see them, against a local API with known counters."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any, cast

import pytest

from gw.localapi.server import Backend, local_api
from gw.localapi.status import PeerStatus, QuicStatus, Status
from gw.model.gojson import encode
from gw.state.paths import StatePaths

GW = Path(sys.executable).parent / "gw"
BEATS = 40  # then the daemon goes away
BEAT_S = 0.05  # of real time for each second of the daemon's


class Daemon:
    """Two peers, one of which moves 1000 bytes in and 500 out each second of a clock that runs fast."""

    def __init__(self) -> None:
        self.bob = PeerStatus(
            public_key="nodekey:bb", dns_name="bob.ghost.internal.", os="linux", tailscale_ips=["100.64.0.2"],
            cur_addr="198.51.100.7:41641", relay="home", online=True, active=True, rx_packets=12, tx_packets=34,
            rx_bytes=56789, tx_bytes=1234, drops={"acl": 7, "replay": 1}, latency_seconds=0.0042,
        )  # fmt: skip
        self.eve = PeerStatus(
            public_key="nodekey:ee", dns_name="eve\x1b[2J.ghost.internal.", tailscale_ips=["100.64.0.3"], relay="home",
            quic=QuicStatus(unrouted=["10.0.0.0/24", "10.0.1.0/24", "10.0.2.0/24", "fd00::/64"]),
        )  # fmt: skip

    def status(self) -> Status:
        own = PeerStatus(dns_name="ann.ghost.internal.", os="linux", tailscale_ips=["100.64.0.1"], online=True)
        plane: dict[str, object] = {"compiled": True, "lanes": 1, "udp_gso": True, "udp_gro": True}
        peers = {"nodekey:bb": self.bob, "nodekey:ee": self.eve}
        return Status(backend_state="Running", have_node_key=True, self_=own, peer=peers, data_plane=plane)

    def metrics(self, *, peers: bool) -> str:
        return "# TYPE tailscaled_home_derp_region_id gauge\ntailscaled_home_derp_region_id 901\n" + "each 1\n" * peers

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        yield {"At": 1_800_000_000.0, "Status": json.loads(encode(self.status()))}
        for beat in range(1, BEATS):
            await asyncio.sleep(BEAT_S)
            moved = {"RxBytes": 56789 + 1000 * beat, "TxBytes": 1234 + 500 * beat}
            yield {"At": 1_800_000_000.0 + beat, "Peers": {"nodekey:bb": moved}}
            yield {"Peers": {"nodekey:bb": {"RxPackets": 12 + beat}}}  # between two beats: no sample


@contextmanager
def serving(backend: object, socket: Path) -> Iterator[None]:
    ready = Event()
    loop = asyncio.new_event_loop()
    over = asyncio.Event()

    async def serve() -> None:
        async with local_api(cast(Backend, backend), socket):
            ready.set()
            await over.wait()

    thread = Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(20)
        yield
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
        loop.close()


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    with serving(Daemon(), StatePaths(tmp_path).node_socket):
        yield tmp_path


def gw(state: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [GW, "--state-dir", state, *words], capture_output=True, text=True, check=False, timeout=60,
        env={**os.environ, "COLUMNS": "120"},
    )  # fmt: skip


def test_status_names_the_peers_whose_packets_the_policy_drops(state: Path) -> None:
    result = gw(state, "status")
    assert result.stdout.splitlines()[1].startswith("100.64.0.2  bob")
    assert result.stderr.startswith("dropped by the policy since gwd began, packets: bob 7")
    assert result.stderr.splitlines()[1:] == [
        "eve?[2J offers 10.0.0.0/24, 10.0.1.0/24, 10.0.2.0/24 and 1 more, "
        "which the control server does not route there  (gwctl routes list)"
    ]
    assert gw(state, "status", "--no-peers").stderr == ""


def test_status_for_programs_has_the_counters(state: Path) -> None:
    bob = json.loads(gw(state, "status", "--json").stdout)["Peer"]["nodekey:bb"]
    assert (bob["RxBytes"], bob["TxBytes"], bob["RxPackets"], bob["TxPackets"]) == (56789, 1234, 12, 34)
    assert bob["Drops"] == {"acl": 7, "replay": 1}
    assert bob["CurAddr"] == "198.51.100.7:41641"


GOLDEN = """\
ann.ghost.internal  1/2 peers online  rx 8.0k  tx 4.0k b/s  compiled, 1+1 workers, offloads GSO GRO

NAME     PATH                       RX b/s  TX b/s  RX pkts  TX pkts  DROPS  LATENCY  HANDSHAKE
bob      direct 198.51.100.7:41641    8.0k    4.0k       13       34      8   4.2 ms          -
eve?[2J  offline                         0       0        0        0      0        -          -
"""


def test_top_without_a_terminal_prints_once(state: Path) -> None:
    result = gw(state, "top")
    assert result.returncode == 0
    assert result.stdout == GOLDEN


def test_top_with_a_count_prints_so_many_tables(state: Path) -> None:
    result = gw(state, "top", "-n", "3", "-d", "1")
    assert result.stdout.count("NAME ") == 3
    assert "\x1b" not in result.stdout


def test_top_for_programs_prints_an_object_for_each_refresh(state: Path) -> None:
    result = gw(state, "top", "--json", "-n", "3", "-d", "3")
    objects = [json.loads(line) for line in result.stdout.splitlines()]
    assert [each["At"] for each in objects] == [1_800_000_003, 1_800_000_006, 1_800_000_009]
    for each in objects:
        bob, eve = each["Peers"]
        assert (bob["Name"], bob["RxRate"], bob["TxRate"]) == ("bob.ghost.internal", 1000, 500)
        assert bob["Drops"] == {"acl": 7, "replay": 1}
        assert (eve["RxRate"], eve["Path"]) == (0, "offline")


def test_top_says_what_is_wrong(state: Path, tmp_path: Path) -> None:
    assert "hint: gw top -d 1" in gw(state, "top", "-d", "0.1").stderr
    gone = gw(tmp_path / "nowhere", "top")
    assert (gone.returncode, gone.stdout) == (3, "")
    assert "gwd is not running" in gone.stderr
    ended = gw(state, "top", "--json", "-n", "100", "-d", "1")  # the stream ends before
    assert ended.returncode == 3
    assert "closed the connection" in ended.stderr


@pytest.mark.parametrize("no_color", ["", "1"])
def test_top_on_a_terminal_renews_its_screen_and_gives_it_back(state: Path, no_color: str) -> None:
    shown = on_a_terminal([str(GW), "--state-dir", str(state), "top", "-d", "1"], {"NO_COLOR": no_color})
    assert shown.startswith("\x1b[?1049h\x1b[?25l")
    assert shown.endswith("\x1b[?25h\x1b[?1049l")
    assert shown.count("\x1b[H") >= 3
    assert ("\x1b[33mbob" in shown) is not bool(no_color)
    assert ("\x1b[1m" in shown) is not bool(no_color)


def test_top_on_a_dumb_terminal_prints_once(state: Path) -> None:
    shown = on_a_terminal([str(GW), "--state-dir", str(state), "top"], {"TERM": "dumb"}, leave=False)
    assert "\x1b" not in shown
    assert shown.count("NAME ") == 1


def on_a_terminal(argv: list[str], environment: dict[str, str], *, leave: bool = True) -> str:
    """What the program writes to a terminal of its own; leave: press q once it has drawn three times."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(argv[0], argv, {**os.environ, "TERM": "xterm", **environment})
    shown = b""
    deadline = time.monotonic() + 60
    try:
        while time.monotonic() < deadline:
            if select.select([terminal], [], [], 1.0)[0]:
                try:
                    data = os.read(terminal, 65536)
                except OSError:  # EIO: the program has closed it
                    break
                if not data:
                    break
                shown += data
                if leave and shown.count(b"\x1b[H") >= 3:
                    os.write(terminal, b"q")
                    leave = False
        else:
            os.kill(pid, signal.SIGKILL)
    finally:
        _, status = os.waitpid(pid, 0)
        os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0, shown
    return shown.decode()


def test_metrics_are_printed_as_the_daemon_has_them(state: Path) -> None:
    plain = gw(state, "metrics")
    assert plain.stdout == gw(state, "metrics", "print").stdout == Daemon().metrics(peers=False)
    assert gw(state, "metrics", "--peers").stdout == Daemon().metrics(peers=True)
    assert gw(state, "metrics", "print", "--peers").stdout == Daemon().metrics(peers=True)


def test_metrics_are_written_whole_or_not_at_all(state: Path, tmp_path: Path) -> None:
    file = tmp_path / "out" / "ghostwire.prom"
    missing = gw(state, "metrics", "write", str(file))
    assert missing.returncode != 0
    assert str(file) in missing.stderr
    file.parent.mkdir()
    assert gw(state, "metrics", "write", str(file)).returncode == 0
    assert file.read_text() == Daemon().metrics(peers=False)
    assert file.stat().st_mode & 0o777 == 0o644
    assert [each.name for each in file.parent.iterdir()] == ["ghostwire.prom"]
    wrong = gw(state, "metrics", "--peers", "write", str(file))
    assert (wrong.returncode, file.read_text()) == (2, Daemon().metrics(peers=False))


def test_the_table_of_top_does_without_the_dashboards_library() -> None:
    program = (
        "import sys, gw.tui.toptable, gw.commands.gw_top\n"
        "print([name for name in ('textual', 'rich', 'asyncio') if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
