"""The host's service manager: which files belong to GhostWire there, how they are written and removed again.

The unit files travel in the wheel under `share/ghostwire/systemd`; installing writes them with the path of the scripts
that run now. Every path is below `root`, so that packagers and tests can write into another tree.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from gw.errors import GwError, NotFound

ROLES: Final = {"control": "gwctl", "relay": "gwrelay", "dns": "gwdns", "node": "gwd"}
USERS: Final = ("gwctl", "gwrelay", "gwdns")
GROUP: Final = "ghostwire"
UNIT_DIR: Final = "etc/systemd/system"
SYSUSERS_FILE: Final = "etc/sysusers.d/ghostwire.conf"
TMPFILES_FILE: Final = "etc/tmpfiles.d/ghostwire.conf"
HOMES: Final = ("/home", "/root", "/run/user")  # what ProtectHome= takes away
SHIPPED_SCRIPT_DIR: Final = "/usr/local/bin/"


def shipped() -> Path:
    """The folder of the shipped unit files. Raises NotFound where the installation lacks them."""
    folder = Path(sys.prefix) / "share/ghostwire/systemd"
    if not folder.is_dir():
        raise NotFound(f"no unit files in `{folder}`", hint="install the package: pipx install ghostwire-mesh")
    return folder


def hidden_in_home(prefix: Path, interpreter: Path) -> Path | None:
    """The part of the installation that lies in somebody's home, where a service cannot look; None if all is well."""
    for path in (prefix, interpreter):
        if any(path.is_relative_to(home) for home in HOMES):
            return path
    return None


def script(name: str) -> Path:
    """The console script `name` of the installation that runs now."""
    return Path(sys.prefix) / "bin" / name


def install(root: Path, roles: Iterable[str]) -> list[Path]:
    """Write units for `roles` and the users' and folders' tables; returns the files whose content changed."""
    source = shipped()
    changed = []
    wanted = {Path(UNIT_DIR) / f"{ROLES[role]}.service": f"{ROLES[role]}.service" for role in roles}
    wanted |= {Path(SYSUSERS_FILE): "ghostwire.sysusers", Path(TMPFILES_FILE): "ghostwire.tmpfiles"}
    for target, name in wanted.items():
        text = (source / name).read_text()
        text = text.replace(f"ExecStart={SHIPPED_SCRIPT_DIR}", f"ExecStart={Path(sys.prefix) / 'bin'}/")
        path = root / target
        if path.exists() and path.read_text() == text:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        changed.append(path)
    return changed


def installed(root: Path) -> list[Path]:
    """The files of ours that the service manager has."""
    paths = [root / UNIT_DIR / f"{name}.service" for name in ROLES.values()]
    paths += [root / SYSUSERS_FILE, root / TMPFILES_FILE]
    return [path for path in paths if path.exists()]


def manager(*words: str) -> None:
    """Run one command of the service manager. Raises GwError with what it said."""
    program = shutil.which(words[0])
    if program is None:
        raise NotFound(f"`{words[0]}` is not on this host", hint="start the daemons by your own init: gwd run, …")
    result = subprocess.run([program, *words[1:]], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        last = (result.stderr or result.stdout).strip().splitlines()[-1:] or [f"exit {result.returncode}"]
        raise GwError(f"`{' '.join(words)}` failed: {last[0]}")


def adopt_state(state: Path) -> None:
    """Hand files that `gwctl init` wrote as root to the users that will run the servers."""
    for folder, user in ((state, "gwctl"), (state / "relays", "gwrelay"), (state / "relay", "gwrelay")):
        if not folder.is_dir():
            continue
        shutil.chown(folder, user, GROUP)
        if folder.name == "relays":
            folder.chmod(0o775)  # `gwctl relays` writes there too
        own = {"relays", "relay", "node"} if folder == state else set()
        for base, folders, files in os.walk(folder):
            if base == str(folder):
                folders[:] = [name for name in folders if name not in own]
            for name in [*folders, *files]:
                shutil.chown(Path(base) / name, user, GROUP)


def remove(root: Path) -> list[Path]:
    """Stop and disable what is installed below `root`, and remove the files; returns them."""
    present = installed(root)
    units = [path.name for path in present if path.suffix == ".service"]
    if root == Path("/") and units:
        manager("systemctl", "disable", "--now", *units)
    for path in present:
        path.unlink()
    if root == Path("/") and units:
        manager("systemctl", "daemon-reload")
    return present


def remove_users() -> list[str]:
    """Remove the system users and the group that `install` made; returns those that were there."""
    gone = []
    for name in USERS:
        if _exists("passwd", name):
            manager("userdel", name)
            gone.append(name)
    if _exists("group", GROUP):
        manager("groupdel", GROUP)
        gone.append(GROUP)
    return gone


def _exists(table: str, name: str) -> bool:
    import grp
    import pwd

    try:
        _ = pwd.getpwnam(name) if table == "passwd" else grp.getgrnam(name)
    except KeyError:
        return False
    return True
