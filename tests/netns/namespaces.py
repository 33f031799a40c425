"""Network namespaces for tests: made with `ip`, removed at the end whatever happens.

with Namespaces("wg", ["a", "b"]) as spaces:
    spaces.link("a", "10.9.0.1/24", "b", "10.9.0.2/24")
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest


def needs_namespaces() -> pytest.MarkDecorator:
    """Skips, with the reason, where the machine does not allow what these tests do."""
    reason = ""
    if os.geteuid() != 0:
        reason = "needs root"
    elif shutil.which("ip") is None:
        reason = "needs iproute2"
    elif not Path("/dev/net/tun").exists():
        reason = "needs /dev/net/tun"
    elif subprocess.run(["ip", "netns", "list"], capture_output=True, check=False).returncode:
        reason = "needs network namespaces"
    return pytest.mark.skipif(bool(reason), reason=reason)


class Namespaces:
    """Names are `gwt-<prefix>-<pid>-<name>`, so that two runs do not meet."""

    def __init__(self, prefix: str, names: list[str]) -> None:
        self._full = {name: f"gwt-{prefix}-{os.getpid()}-{name}" for name in names}
        self._links = 0

    def __enter__(self) -> Self:
        for full in self._full.values():
            subprocess.run(["ip", "netns", "add", full], check=True)
            subprocess.run(["ip", "-n", full, "link", "set", "lo", "up"], check=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for full in self._full.values():
            pids = subprocess.run(["ip", "netns", "pids", full], capture_output=True, text=True, check=False).stdout
            for pid in pids.split():
                try:
                    os.kill(int(pid), 9)
                except ProcessLookupError:
                    pass
            subprocess.run(["ip", "netns", "del", full], check=False)

    def link(self, one: str, address: str, other: str, other_address: str) -> tuple[str, str]:
        """A veth pair between two; returns the names of its ends."""
        self._links += 1
        ends = (f"v{self._links}a", f"v{self._links}b")
        self.ip(one, f"link add {ends[0]} type veth peer name {ends[1]} netns {self._full[other]}")
        for name, end, value in ((one, ends[0], address), (other, ends[1], other_address)):
            self.ip(name, f"addr add {value} dev {end}")
            self.ip(name, f"link set {end} up")
        return ends

    def ip(self, name: str, command: str) -> None:
        subprocess.run(["ip", "-n", self._full[name], *command.split()], check=True)

    def argv(self, name: str, *argv: str) -> list[str]:
        """The command line that runs argv inside."""
        return ["ip", "netns", "exec", self._full[name], *argv]

    def run(self, name: str, *argv: str, timeout: float = 60, check: bool = True) -> str:
        done = subprocess.run(self.argv(name, *argv), capture_output=True, text=True, timeout=timeout, check=False)
        if check and done.returncode:
            raise AssertionError(f"{argv} ended with {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout
