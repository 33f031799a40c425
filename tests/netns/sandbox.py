"""A host of its own to try documentation on: own network and mounts, private /etc, /var, /run, /root and /usr/local.

`systemctl` cannot run in it (no service manager is process 1), so a stand-in starts what an ExecStart names, stops
it again, and nothing else; `sudo` just runs the command. All other programs are the real ones.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

PRIVATE = ("/etc", "/var", "/run", "/usr/local", "/root")

SYSTEMCTL = r"""#!%PYTHON% -P
# start, stop: by the ExecStart line of the unit, until it says that it is ready (Type=notify); pid files in /run/units
import os, signal, socket, subprocess, sys, time
from pathlib import Path

UNITS = Path("/run/units")

def stop(pid):
    try:
        os.kill(pid, signal.SIGTERM)
        for _ in range(300):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                break
            time.sleep(0.05)
    except OSError:
        pass

def start(unit):
    try:
        lines = Path("/etc/systemd/system", unit).read_text().splitlines()
    except OSError:
        sys.exit(f"no unit {unit}")
    command = next(line.removeprefix("ExecStart=") for line in lines if line.startswith("ExecStart="))
    address, log = UNITS / f"{unit}.notify", UNITS / f"{unit}.log"
    address.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready, log.open("w") as out:
        ready.bind(str(address))
        ready.settimeout(0.2)
        process = subprocess.Popen(
            ["sh", "-c", f"exec {command}"], stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            env={**os.environ, "NOTIFY_SOCKET": str(address)},
        )
        (UNITS / f"{unit}.pid").write_text(str(process.pid))
        give_up = time.monotonic() + 50
        while time.monotonic() < give_up and process.poll() is None:
            try:
                if b"READY=1" in ready.recv(4096).split(b"\n"):
                    return
            except TimeoutError:
                pass
    sys.exit(log.read_text() or f"{unit} is not ready")

UNITS.mkdir(parents=True, exist_ok=True)
verb, *words = [word for word in sys.argv[1:] if not word.startswith("--")]
for word in words:
    unit = word if word.endswith(".service") else f"{word}.service"
    pid = UNITS / f"{unit}.pid"
    if verb in ("stop", "disable", "restart") and pid.exists():
        stop(int(pid.read_text()))
        pid.unlink()
    if verb in ("enable", "start", "restart"):
        start(unit)
"""
SUDO = '#!/bin/sh\nexec "$@"\n'


class Sandbox:
    """Enter with `with`; `run` executes a shell text inside. Leaving ends every process that was started in it."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder = folder
        self.address = address
        self.keeper: subprocess.Popen[str] | None = None

    def __enter__(self) -> Sandbox:
        tools = self.folder / "tools"
        tools.mkdir(parents=True)
        for name, text in (("systemctl", SYSTEMCTL.replace("%PYTHON%", sys.executable)), ("sudo", SUDO)):
            (tools / name).write_text(text)
            (tools / name).chmod(0o755)
        (self.folder / "upper").mkdir()
        setup = "; ".join(
            [
                "set -e",
                f"mount -t tmpfs tmpfs {self.folder}/upper",
                *(f"mkdir -p {self.folder}/upper/{n}/u {self.folder}/upper/{n}/w" for n in range(len(PRIVATE))),
                *(
                    f"mount -t overlay overlay -o lowerdir={path},upperdir={self.folder}/upper/{n}/u,"
                    f"workdir={self.folder}/upper/{n}/w {path}"
                    for n, path in enumerate(PRIVATE)
                ),
                "mkdir -p /run/units",
                "ip link set lo up",
                f"ip addr add {self.address}/32 dev lo",
                "echo ready",
                "exec cat",
            ]
        )
        self.keeper = subprocess.Popen(
            ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", setup],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.keeper.stdout is not None
        assert self.keeper.stdout.readline().strip() == "ready"
        return self

    def __exit__(self, *_: object) -> None:
        assert self.keeper is not None
        assert self.keeper.stdin is not None
        self.keeper.stdin.close()
        try:
            self.keeper.wait(10)
        except subprocess.TimeoutExpired:
            self.keeper.kill()
            self.keeper.wait()
        if self.keeper.stdout is not None:
            self.keeper.stdout.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, text: str, *, check: bool = True, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run shell text as root of the sandbox, with the scripts of this environment first on PATH."""
        assert self.keeper is not None
        child = Path(f"/proc/{self.keeper.pid}/task/{self.keeper.pid}/children").read_text().split()[0]
        path = f"{self.folder}/tools:{Path(sys.executable).parent}:{os.environ['PATH']}"
        result = subprocess.run(
            ["nsenter", "-t", child, "--mount", "--net", "--pid", "sh", "-c", f"cd /root; {text}"],
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
            env={"PATH": path, "HOME": "/root", "LANG": "C.UTF-8", "TERM": "dumb"},
        )
        if check and result.returncode != 0:
            logs = subprocess.run(
                ["nsenter", "-t", child, "--mount", "sh", "-c", "tail -n 20 /run/units/*.log"],
                capture_output=True, text=True, check=False,
            ).stdout  # fmt: skip
            raise AssertionError(f"{text}\n{result.stdout}\n{result.stderr}\n{logs}")
        return result
