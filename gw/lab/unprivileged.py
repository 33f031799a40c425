"""A lab without root: the same program again, root of a user namespace of its own.

There it has its own /run, /etc (a layer above the host's) and network: nothing of the host can be changed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from gw.errors import GwError, PermissionNeeded

TUN: Final = "/dev/net/tun"
INSIDE: Final = "GW_LAB_INSIDE"
SETUP: Final = """
set -e
mount -t tmpfs tmpfs /run
mkdir -p "$0/upper" "$0/work"
mount -t overlay overlay -o "lowerdir=/etc,upperdir=$0/upper,workdir=$0/work,userxattr" /etc
mkdir -p /etc/netns
mount -t tmpfs tmpfs /etc/netns
exec "$@"
"""


def ensure_root(arguments: list[str]) -> None:
    """Return as root; otherwise run `gw` with these arguments in a user namespace and end with its status.

    Raises PermissionNeeded where the kernel does not allow that, or the TUN device is not for this user.
    """
    ensure_tun()
    if os.geteuid() == 0:
        return
    unshare = shutil.which("unshare")
    base = [unshare or "unshare", "--user", "--map-root-user", "--mount", "--net", "--pid", "--fork", "--kill-child"]
    refused = PermissionNeeded("a lab needs root, or a kernel that allows user namespaces", hint="sudo gw lab demo")
    if unshare is None or os.environ.get(INSIDE):
        raise refused
    probe = subprocess.run([*base, "--mount-proc", "true"], capture_output=True, check=False)
    if probe.returncode:
        raise refused
    script = Path(sys.executable).parent / "gw"
    with tempfile.TemporaryDirectory(prefix="gwlab-") as folder:
        done = subprocess.run(
            [*base, "--mount-proc", "sh", "-c", SETUP, folder, str(script), *arguments],
            env={**os.environ, INSIDE: "1", "GW_LAB_DIR": f"{folder}/lab"},
            check=False,
        )
    raise SystemExit(done.returncode)


def ensure_tun() -> None:
    """See that this user may open the TUN device: being root of a namespace does not help there. Raises GwError."""
    try:
        os.close(os.open(TUN, os.O_RDWR | os.O_CLOEXEC))
    except PermissionError:
        raise PermissionNeeded(
            f"a lab needs `{TUN}`, and this user may not open it", hint=f"sudo gw lab demo, or: sudo chmod 666 {TUN}"
        ) from None
    except OSError as error:
        raise GwError(f"a lab needs `{TUN}`: {error.strerror}", hint="load the driver: modprobe tun") from None
