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

SYSTEMCTL = r"""#!/bin/sh
# start, stop: by the ExecStart line of the unit; pid files in /run/units
mkdir -p /run/units
verb=$1; shift
for word; do
    case "$word" in --*) continue;; esac
    unit=$word; case "$unit" in *.service) ;; *) unit=$unit.service;; esac
    pid=/run/units/$unit.pid
    case "$verb" in
    stop|disable|restart) [ -f "$pid" ] && kill "$(cat "$pid")" 2>/dev/null; sleep 0.5; rm -f "$pid";;
    esac
    case "$verb" in
    enable|start|restart)
        command=$(sed -n 's/^ExecStart=//p' "/etc/systemd/system/$unit") || exit 1
        [ -n "$command" ] || { echo "no unit $unit" >&2; exit 1; }
        setsid sh -c "exec $command" >"/run/units/$unit.log" 2>&1 </dev/null &
        echo $! >"$pid"; sleep 1.5
        kill -0 "$(cat "$pid")" 2>/dev/null || { cat "/run/units/$unit.log" >&2; exit 1; };;
    esac
done
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
        for name, text in (("systemctl", SYSTEMCTL), ("sudo", SUDO)):
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
