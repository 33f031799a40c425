"""`gw tui` in a real terminal against a real mesh."""

from __future__ import annotations

import os
import shutil
import subprocess
import time

import pytest

from gw.lab import Lab

from .namespaces import needs_namespaces

pytestmark = [
    needs_namespaces(),
    pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux"),
    pytest.mark.timeout(120),
]


def test_the_dashboard_shows_live_peers_and_pings_one(mesh: Lab) -> None:
    socket = f"gwt-{os.getpid()}"
    tmux = ["tmux", "-L", socket]

    def screen() -> str:
        return subprocess.run([*tmux, "capture-pane", "-p"], capture_output=True, text=True, check=True).stdout

    def frame() -> str:
        """The filter line's upper edge with its colours."""
        command = [*tmux, "capture-pane", "-p", "-e"]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return next(line for line in text.splitlines() if "▔▔" in line)

    def until(*words: str, without: str = "\0", within_s: float = 20) -> str:
        deadline = time.monotonic() + within_s
        while True:
            text = screen()
            if all(word in text for word in words) and without not in text:
                return text
            assert time.monotonic() < deadline, text
            time.sleep(0.2)

    argv = mesh.argv("ann", "gw", "tui")
    environment = {k: v for k, v in mesh.environment("ann").items() if k not in ("COLUMNS", "LINES")}
    subprocess.run(
        [*tmux, "-f", "/dev/null", "new-session", "-d", "-x", "80", "-y", "24", *argv],  # the smallest in use
        env={**environment, "TERM": "xterm-256color"},
        check=True,
    )
    try:
        until("bob", "cat", "dan")
        ping = subprocess.Popen(
            mesh.argv("ann", "ping", "-n", "-i", "0.2", "-c", "25", "bob"), stdout=subprocess.DEVNULL
        )
        until("bob", "direct")
        ping.wait(timeout=20)
        subprocess.run([*tmux, "send-keys", "/bob"], check=True)
        until("bob", without="cat")
        colour = frame()
        subprocess.run([*tmux, "send-keys", "Enter"], check=True)
        deadline = time.monotonic() + 20
        while frame() == colour:  # a key that comes before the filter line has lost the focus is a letter of it
            assert time.monotonic() < deadline, screen()
            time.sleep(0.1)
        subprocess.run([*tmux, "send-keys", "p"], check=True)
        until("pong from bob")
        subprocess.run([*tmux, "send-keys", "q"], check=True)
    finally:
        subprocess.run([*tmux, "kill-server"], capture_output=True, check=False)
