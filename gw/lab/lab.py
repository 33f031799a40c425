"""A lab from start to end: the hub's servers, the nodes' daemons, and their logins."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self, final

from gw.errors import GwError, NotFound, TimedOut, UsageError
from gw.lab.ledger import Ledger, lab_folder
from gw.lab.topology import HUB, HUB_ADDRESS, MAX_NODES, NodeSpec, Topology, run

READY_S: Final = 20.0
UP_S: Final = 30
COMMAND_S: Final = 60.0
POLL_S: Final = 0.05
URL: Final = f"http://{HUB_ADDRESS}:8080"
READY_MARK: Final = " gw: "  # how a service's log line begins when it is ready
CONFIG: Final = f"""
[dns]
nameservers = ["{HUB_ADDRESS}"]

[dns_server]
listen = "{HUB_ADDRESS}:53"
"""


@final
class Lab:
    """Use as a context manager, or `up` and `down`. It drives the installed console scripts and nothing else.

    with Lab([NodeSpec("ann"), NodeSpec("bob", Nat.SYMMETRIC)]) as lab:
        print(lab.run("ann", "ping", "-c1", "bob"))
    """

    def __init__(
        self,
        nodes: Sequence[NodeSpec],
        *,
        folder: Path | None = None,
        say: Callable[[str], None] = lambda text: None,
        log_level: str = "info",
        peer_relay: bool = True,
    ) -> None:
        """folder: of this lab's files, else the machine's one. say: told each step as it begins. peer_relay: whether
        gwrelay relays UDP between nodes."""
        names = [node.name for node in nodes]
        if len(set(names)) != len(names) or len(names) > MAX_NODES:
            raise UsageError(f"a lab has up to {MAX_NODES} nodes of different names")
        for name in names:
            if not name.isascii() or not name.isalnum() or not name.islower() or len(name) > 8 or name in (HUB, "wan"):
                raise UsageError(f"not a node's name: `{name}`", hint="up to 8 small letters and digits")
        self.nodes: Final = list(nodes)
        self.folder: Final = folder or lab_folder()
        self.say: Final = say
        self._log_level = log_level
        self._config = CONFIG + ("" if peer_relay else "\n[relay]\npeer_relay = false\n")
        self._ledger: Ledger | None = None
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    @classmethod
    def standing(cls, folder: Path | None = None) -> Lab:
        """The lab that `gw lab up` left. Raises NotFound."""
        ledger = Ledger.open(folder or lab_folder())
        if ledger is None:
            raise NotFound("no lab is up", hint="gw lab up")
        lab = cls([NodeSpec(name) for name in ledger.entry.nodes], folder=ledger.folder)
        lab._ledger = ledger
        return lab

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down(keep_files=kind is not None and issubclass(kind, Exception))

    def up(self) -> None:
        """Build it, start everything, log every node in. On an error what was made is removed; the logs stay."""
        self._ledger = Ledger.begin(self.folder)
        self._ledger.entry.nodes = [node.name for node in self.nodes]
        try:
            self.say("building namespaces, cables and NAT")
            topology = Topology(self._ledger)
            topology.build_internet()
            for node in self.nodes:
                topology.add_node(node)
            self._start_hub()
            members = [node for node in self.nodes if node.daemon]
            for node in self.nodes:
                self.state(node.name).mkdir(exist_ok=True)
            for node in members:
                self.start(node.name, f"gwd-{node.name}", "gwd", "run", "--log-level", self._log_level)
            for node in members:
                self.await_ready(f"gwd-{node.name}")
            for node in members:
                self.say(f"{node.name}: gw up ({node.nat.value})")
                self.run(
                    node.name, "gw", "up", "--login-server", URL, "--auth-key", f"file:{self.key_file}",
                    "--hostname", node.name, "--timeout", str(UP_S),
                )  # fmt: skip
        except BaseException as error:
            self.down(keep_files=isinstance(error, Exception))
            raise

    def leave(self) -> None:
        """Let it stand after this process."""
        self._record().entry.standing = True
        self._record().save()

    def down(self, *, keep_files: bool = False) -> None:
        """Remove all that was made. keep_files: logs and state stay in the folder."""
        if self._ledger is not None:
            self._ledger.remove_all(keep_files=keep_files)
            self._ledger = None
            for process in self._running.values():
                process.poll()
            self._running.clear()

    # Inside a node

    def argv(self, name: str, *argv: str) -> list[str]:
        """The command line that runs `argv` in a node; console scripts are those of this installation."""
        program = shutil.which(argv[0], path=str(Path(sys.executable).parent)) or argv[0]
        return ["ip", "netns", "exec", self._record().namespace(name), program, *argv[1:]]

    def environment(self, name: str) -> dict[str, str]:
        """The environment of a node's programs: its own state directory, sockets and installation."""
        state = self.state(name)
        bin_dir = str(Path(sys.executable).parent)
        return {
            **os.environ,
            "GW_STATE_DIR": str(state),
            "GW_RUNTIME_DIR": str(state / "run"),
            "PATH": f"{bin_dir}:{os.environ.get('PATH', '/usr/sbin:/usr/bin:/sbin:/bin')}",
        }

    def state(self, name: str) -> Path:
        """A node's state directory."""
        return self.folder / name

    def run(self, name: str, *argv: str, timeout_s: float = COMMAND_S) -> str:
        """Run a command in a node and return what it printed. Raises GwError with the command's own words."""
        try:
            done = subprocess.run(
                self.argv(name, *argv),
                env=self.environment(name),
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise TimedOut(f"{name}: `{' '.join(argv)}` did not end in {timeout_s:.0f} s") from None
        if done.returncode:
            said, hint = last_words(done.stderr.strip() or done.stdout)
            raise GwError(f"{name}: `{' '.join(argv)}`: {said or f'status {done.returncode}'}", hint=hint)
        return done.stdout

    def pids(self, name: str) -> list[int]:
        """Every process that runs in a node."""
        return [int(pid) for pid in run(["ip", "netns", "pids", self._record().namespace(name)]).split()]

    def status(self, name: str) -> dict[str, object]:
        """`gw status --json` of a node."""
        found: dict[str, object] = json.loads(self.run(name, "gw", "status", "--json"))
        return found

    def start(self, name: str, label: str, *argv: str) -> subprocess.Popen[bytes]:
        """Start a program in a node that the lab ends with itself; its output goes to a log of this label."""
        log = (self.folder / f"{label}.log").open("ab")
        with log:
            process = subprocess.Popen(
                self.argv(name, *argv),
                env=self.environment(name),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._record().note_process(process.pid, label)
        self._running[label] = process
        return process

    # Inside

    @property
    def ledger(self) -> Ledger:
        """The record of what was made. Raises NotFound where nothing stands."""
        return self._record()

    @property
    def key_file(self) -> Path:
        """A reusable login key of the lab's user (0600)."""
        return self.folder / "auth.key"

    def _start_hub(self) -> None:
        self.say(f"control server {URL}, relay and DNS on {HUB_ADDRESS}")
        self.run(HUB, "gwctl", "init", "--server-url", URL)
        config = self.state(HUB) / "config.toml"
        config.write_text(config.read_text() + self._config)
        self.run(HUB, "gwctl", "users", "create", "lab")
        key = json.loads(self.run(HUB, "gwctl", "preauthkeys", "create", "-u", "lab", "--reusable", "-o", "json"))
        descriptor = os.open(self.key_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w") as file:
            file.write(key["key"] + "\n")
        self.start(HUB, "gwctl", "gwctl", "serve", "--log-level", self._log_level)
        self.await_ready("gwctl")
        self.start(
            HUB, "gwrelay", "gwrelay", "serve", "--hostname", HUB_ADDRESS, "--self-signed",
            "--log-level", self._log_level,
        )  # fmt: skip
        self.start(HUB, "gwdns", "gwdns", "serve", "--log-level", self._log_level)
        self.await_ready("gwrelay")
        self.await_ready("gwdns")

    def await_ready(self, label: str) -> None:
        """Until the service says that it is ready. Raises GwError with its last words where it ends instead."""
        log = self.folder / f"{label}.log"
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            text = log.read_text(errors="replace")
            if READY_MARK in text:
                return
            if self._running[label].poll() is not None:
                said, hint = last_words(text)
                raise GwError(
                    f"{label} ended: {said or 'without a word'}", hint=f"{hint}; log: {log}" if hint else f"log: {log}"
                )
            time.sleep(POLL_S)
        raise TimedOut(f"{label} is not ready after {READY_S:.0f} s", hint=f"log: {log}")

    def _record(self) -> Ledger:
        if self._ledger is None:
            raise NotFound("no lab is up", hint="gw lab up")
        return self._ledger


def last_words(text: str) -> tuple[str, str | None]:
    """What a program that failed said: (its error, else its last line; its hint)."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    hints = [line.removeprefix("hint: ") for line in lines if line.startswith("hint: ")]
    return (errors or lines or [""])[-1], hints[-1] if errors and hints else None
