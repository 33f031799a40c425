"""The roaming demo: a node changes its network in the middle of an iperf3 run, and the TCP connection inside lives on.

    relay    bob ── relay ── cat    over QUIC: no direct path between these NATs
    quic     ann ─────────── cat    directly, asked for by `gw set --transport quic`

cat moves: its own address, its router's network and its router's outer address are others from one moment to the next.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from gw.errors import GwError, NotFound, TimedOut
from gw.lab.demo import resolve, settled_path
from gw.lab.lab import Lab, last_words
from gw.lab.topology import HUB, Nat, NodeSpec, move

NODES: Final = (
    NodeSpec("ann", Nat.NONE),
    NodeSpec("bob", Nat.ENDPOINT_INDEPENDENT),
    NodeSpec("cat", Nat.SYMMETRIC),
)
MOVER: Final = "cat"
SENDERS: Final = {"relay": "bob", "quic": "ann"}
WAYS: Final = tuple(SENDERS)
READY_S: Final = 30.0
FRESH_S: Final = 2.5  # the relay's figures are a second old
SLICE_S: Final = 0.1
GRACE_S: Final = 60.0  # for what is to end by itself
SESSION_S: Final = 110.0  # WireGuard makes a new session of an older one by itself
QUIC_UP: Final = "QUIC connection is up"
_METRICS: Final = (
    "import ssl,urllib.request as u;"
    "print(u.urlopen('https://127.0.0.1/metrics',context=ssl._create_unverified_context()).read().decode())"
)


class Run(msgspec.Struct, frozen=True):
    """One iperf3 run through a move. by: `relay` or `quic`; megabits: that arrived in each second; pause_s: the longest
    time without a byte, counted in tenths; moved_at_s: since the flow began."""

    by: str
    sender: str
    mover: str
    before: str
    after: str
    moved_at_s: float
    megabits: list[float]
    arrived_bytes: int
    pause_s: float
    new_quic: int
    new_sessions: int
    problems: list[str]


def roam(say: Callable[[str], None], ways: Sequence[str] = WAYS, seconds: int = 15) -> list[Run]:
    """Run it all. Raises GwError where a connection did not live on as it should; then the logs stay."""
    if shutil.which("iperf3") is None:
        raise NotFound("no program `iperf3`", hint="apt install iperf3")
    began = time.monotonic()
    lab = Lab(NODES, say=lambda text: say(f"[{time.monotonic() - began:4.1f} s] {text}"), peer_relay=False)
    runs: list[Run] = []
    try:
        with lab:
            for by in ways:
                runs.append(run_one(lab, by, seconds, lambda text: say(f"    {text}")))
                problems = runs[-1].problems
                if problems:
                    raise GwError(f"by {by}: {'; '.join(problems)}")
            lab.say("taking everything down")
    except GwError as error:
        if lab.folder.exists():
            error.hint = f"{error.hint + '; ' if error.hint else ''}logs: {lab.folder}"
        raise
    say(f"[{time.monotonic() - began:4.1f} s] done: every connection lived on, nothing is left behind")
    return runs


def run_one(lab: Lab, by: str, seconds: int, say: Callable[[str], None]) -> Run:
    """One flow by one way. What did not hold is in the result's `problems`. Raises GwError where nothing can begin."""
    sender = SENDERS[by]
    lab.say(f"{sender} -> {MOVER} {describe(by)}: iperf3 for {seconds} s, {MOVER} moves in the middle")
    prepare(lab, by, sender)
    quic, session = _quic_connections(lab, by, sender), _session(lab, sender)
    flow = _Flow(lab, by, sender, seconds)
    time.sleep(seconds / 2)
    moved_at_s = time.monotonic() - flow.began
    before, after = move(lab.ledger, MOVER)
    say(f"{moved_at_s:4.1f} s  {MOVER} moves: {before} -> {after}")
    problems = flow.finish()
    slices = flow.received()
    each = round(1 / SLICE_S)
    megabits = [sum(slices[at : at + each]) * 8 / 1e6 for at in range(0, seconds * each, each)]
    for second, amount in enumerate(megabits):
        mark = "  <- moved" if second == int(moved_at_s) else ""
        say(f"second {second + 1:3}  {amount:8.1f} Mb/s{mark}")
    if not sum(slices[int((moved_at_s + 1) / SLICE_S) :]):
        problems.append(f"nothing arrived after {MOVER} had moved")
    new_quic = _quic_connections(lab, by, sender) - quic
    if new_quic:
        problems.append("a new QUIC connection was made")
    now_session = _session(lab, sender)
    new_sessions = int(now_session != session and time.time() - session < SESSION_S)
    if new_sessions:
        problems.append("a new WireGuard handshake was made")
    if not _goes_by(lab, by, sender):
        problems.append(f"the path is another at the end: {lab.run(sender, 'gw', 'ping', '-c', '1', MOVER).strip()}")
    pause_s = longest_pause(slices)
    say(f"longest pause {pause_s:.1f} s, {sum(slices) / 1e6:.0f} MB arrived in one TCP connection")
    say(f"new QUIC connections: {new_quic}; new WireGuard handshakes: {new_sessions}")
    return Run(
        by, sender, MOVER, before, after, round(moved_at_s, 2), [round(each, 1) for each in megabits], sum(slices),
        pause_s, new_quic, new_sessions, problems,
    )  # fmt: skip


def describe(by: str) -> str:
    return "by the relay over QUIC" if by == "relay" else "directly over QUIC"


def prepare(lab: Lab, by: str, sender: str) -> None:
    """Until both nodes use the way that is to be shown. Raises TimedOut."""
    resolve(lab, sender, MOVER)
    if by == "quic":
        for name in (sender, MOVER):
            lab.run(name, "gw", "set", "--transport", "quic")
    else:
        settled_path(lab, sender, MOVER)
    deadline = time.monotonic() + READY_S
    while True:
        lab.run(sender, "ping", "-n", "-c", "1", "-W", "5", MOVER)
        if _goes_by(lab, by, sender):
            return
        if time.monotonic() > deadline:
            raise TimedOut(f"{sender} does not reach {MOVER} {describe(by)}")
        time.sleep(0.3)


def longest_pause(slices: Sequence[int]) -> float:
    """Seconds of the longest row of slices in which nothing arrived."""
    longest = here = 0
    for size in slices:
        here = 0 if size else here + 1
        longest = max(longest, here)
    return round(longest * SLICE_S, 1)


class _Flow:
    """iperf3 at both ends, inside the tunnel."""

    def __init__(self, lab: Lab, by: str, sender: str, seconds: int) -> None:
        self._lab, self._seconds = lab, seconds
        self._labels = f"iperf3-{by}-server", f"iperf3-{by}-client"
        address = resolve(lab, sender, MOVER)
        fine = ("-J", "-i", str(SLICE_S))
        self._server = lab.start(MOVER, self._labels[0], "iperf3", "-s", "-1", "-B", address, *fine)
        deadline = time.monotonic() + READY_S
        while not lab.run(MOVER, "ss", "-Hltn", "sport", "=", ":5201").strip():
            if time.monotonic() > deadline or self._server.poll() is not None:
                raise TimedOut(f"{MOVER}: iperf3 does not listen", hint=f"log: {self._log(0)}")
            time.sleep(0.05)
        self._client = lab.start(
            sender, self._labels[1], "iperf3", "-c", address, "-t", str(seconds), "--connect-timeout", "10000", *fine
        )
        self.began = time.monotonic()

    def finish(self) -> list[str]:
        """Wait for its end; what went wrong with it."""
        problems = []
        for process, index in ((self._client, 1), (self._server, 0)):
            try:
                code = process.wait(self._seconds + GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                problems.append(f"iperf3's {('server', 'client')[index]} does not end")
                continue
            said = self._result(index).get("error")
            if code or said:
                problems.append(f"iperf3's connection did not live on: {said or f'status {code}'}")
        return problems

    def received(self) -> list[int]:
        """Bytes that arrived in each tenth of a second."""
        found = self._result(0).get("intervals")
        return [int(each["sum"]["bytes"]) for each in found] if isinstance(found, list) else []

    def _result(self, index: int) -> dict[str, object]:
        text = self._log(index).read_text(errors="replace")
        try:
            found: dict[str, object] = json.loads(text)
        except ValueError:
            return {"error": last_words(text)[0] or "no result"}
        return found

    def _log(self, index: int) -> Path:
        return self._lab.folder / f"{self._labels[index]}.log"


def _goes_by(lab: Lab, by: str, sender: str) -> bool:
    for name, other in ((sender, MOVER), (MOVER, sender)):
        status = lab.status(name)
        peer = _peer(status, other)
        plane = status["DataPlane"]
        assert isinstance(plane, dict)
        if by == "relay" and (peer.get("CurAddr") or plane.get("relay_transport") != "quic"):
            return False
        if by == "quic" and (peer.get("Transport") != "quic" or not peer.get("CurAddr")):
            return False
    return True


def _peer(status: dict[str, object], name: str) -> dict[str, object]:
    peers = status["Peer"]
    assert isinstance(peers, dict)
    for peer in peers.values():
        if peer["HostName"] == name:
            found: dict[str, object] = peer
            return found
    raise NotFound(f"no such peer: `{name}`")


def _session(lab: Lab, sender: str) -> float:
    """When the WireGuard session with the mover was made, in Unix seconds as the sender has it; 0 for none."""
    from gw.localapi.status import PeerStatus

    peer = PeerStatus(last_handshake=str(_peer(lab.status(sender), MOVER)["LastHandshake"]))
    return peer.handshake_time() or 0.0


def _quic_connections(lab: Lab, by: str, sender: str) -> int:
    """How many QUIC connections have been made so far, of those that carry the flow."""
    if by == "relay":
        time.sleep(FRESH_S)
        page = lab.run(HUB, sys.executable, "-c", _METRICS)
        name = "gwrelay_quic_accepts_total "
        return int(next(line for line in page.splitlines() if line.startswith(name)).split()[1])
    return sum((lab.folder / f"gwd-{name}.log").read_text().count(QUIC_UP) for name in (sender, MOVER))
