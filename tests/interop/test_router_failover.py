"""Two stock subnet routers of one subnet: the one that falls silent is replaced, though its connection stands.

$TAILSCALED and $TAILSCALE name the binaries; they run without root, in userspace, on the loopback.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from .scripts import run, serving

NET = "10.77.0.0/24"
RELAY = """
schema = 1
revision = 0
region_id = 900
code = "none"
name = "None"
[[nodes]]
name = "900a"
host_name = "127.0.0.1"
stunport = -1
derpport = 9
"""
pytestmark = [
    pytest.mark.interop,
    pytest.mark.against("TAILSCALED", "TAILSCALE"),
    pytest.mark.timeout(180),
]


def eventually(wanted: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while True:
        result = wanted()
        if result:
            return result
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.2)


@contextmanager
def router(
    folder: Path, name: str, port: int, key: str, offer: str = f"--advertise-routes={NET}"
) -> Iterator[subprocess.Popen[bytes]]:
    """A tailscaled that is logged in and offers the subnet, or something else."""
    folder.mkdir()
    socket = f"--socket={folder}/ts.sock"
    words = [os.environ["TAILSCALED"], "--tun=userspace-networking", f"--statedir={folder}", socket, "--port=0",
             "--no-logs-no-support"]  # fmt: skip
    with (folder / "log").open("ab") as log, subprocess.Popen(words, stdout=log, stderr=log) as daemon:
        try:
            eventually((folder / "ts.sock").exists)
            up = [os.environ["TAILSCALE"], socket, "up", f"--login-server=http://127.0.0.1:{port}", f"--auth-key={key}",
                  f"--hostname={name}", offer, "--timeout=8s"]  # fmt: skip
            subprocess.run(up, capture_output=True, timeout=60)  # without a relay it may complain, and is in
            yield daemon
        finally:
            daemon.send_signal(signal.SIGCONT)
            daemon.kill()


def test_a_router_that_stops_answering_loses_the_subnet_and_takes_it_not_back(
    state: Path, port: int, tmp_path: Path
) -> None:
    def gwctl(*words: str) -> Any:
        result = run("gwctl", *words, "-o", "json", state=state)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    with (state / "config.toml").open("a") as config:
        config.write('\n[routes]\nprobe_interval = "2s"\nprobe_timeout = "1s"\n')

    (state / "relays" / "900.toml").write_text(RELAY)

    def serves() -> str:
        return next((each["node"] for each in gwctl("routes", "list") if each["primary"]), "")

    def healthy(name: str) -> bool:
        return any(each["node"] == name and each["healthy"] for each in gwctl("routes", "list"))

    with ExitStack() as stack:
        stack.enter_context(serving(state, port))
        key = gwctl("preauthkeys", "create", "-u", "ann", "--reusable", "-e", "1h")["key"]
        one = stack.enter_context(router(tmp_path / "one", "one", port, key))
        stack.enter_context(router(tmp_path / "two", "two", port, key))
        for name in ("one", "two"):
            eventually(lambda name=name: [e for e in gwctl("routes", "list") if e["node"] == name and e["advertised"]])
            gwctl("nodes", "approve-routes", "-i", name, "-r", NET)
        eventually(lambda: serves() == "one" and healthy("two"))
        time.sleep(5)  # two rounds: both have answered, and are known to
        assert serves() == "one"

        os.kill(one.pid, signal.SIGSTOP)
        eventually(lambda: serves() == "two", 20)
        states = {each["node"]: (each["online"], each["healthy"]) for each in gwctl("routes", "list")}
        assert states == {"one": (True, False), "two": (True, True)}

        os.kill(one.pid, signal.SIGCONT)
        eventually(lambda: healthy("one"), 40)
        assert serves() == "two"
        names = [each["event"] for each in gwctl("events", "-n", "100", "-e", "rout*")]
        assert names.count("router-unwell") == 1
        assert names[-1] == "router-well"


def test_an_exit_node_is_offered_when_it_was_approved_and_no_more_when_not(
    state: Path, port: int, tmp_path: Path
) -> None:
    (state / "relays" / "900.toml").write_text(RELAY)
    (state / "policy.hujson").write_text(
        """{"acls": [{"action": "accept", "src": ["ann@"], "dst": ["autogroup:self:*", "autogroup:internet:*"]}]}"""
    )

    def tailscale(name: str, *words: str) -> subprocess.CompletedProcess[str]:
        argv = [os.environ["TAILSCALE"], f"--socket={tmp_path / name}/ts.sock", *words]
        return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)

    def offers() -> bool:
        peers = json.loads(tailscale("laptop", "status", "--json").stdout).get("Peer") or {}
        return any(peer["HostName"] == "exit" and peer["ExitNodeOption"] for peer in peers.values())

    with ExitStack() as stack:
        stack.enter_context(serving(state, port))
        made = run("gwctl", "preauthkeys", "create", "-u", "ann", "--reusable", "-o", "json", state=state)
        key = json.loads(made.stdout)["key"]
        stack.enter_context(router(tmp_path / "exit", "exit", port, key, "--advertise-exit-node"))
        stack.enter_context(router(tmp_path / "laptop", "laptop", port, key, "--accept-routes"))
        eventually(lambda: "exit" in tailscale("laptop", "status").stdout)
        assert not offers()
        assert tailscale("laptop", "set", "--exit-node=exit").returncode != 0
        run("gwctl", "nodes", "approve-routes", "-i", "exit", "-r", "0.0.0.0/0", state=state)
        eventually(offers)
        assert tailscale("laptop", "set", "--exit-node=exit").returncode == 0
        run("gwctl", "undo", state=state)
        eventually(lambda: not offers())
