"""`gw service`: let the host's service manager run the daemons."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from gw.commands import shell
from gw.errors import PermissionNeeded, UsageError

app = shell.group("service", "Let systemd run the daemons: gw service install control relay dns node.")
Roles = Annotated[list[str] | None, typer.Argument(metavar="[control|relay|dns|node]…", help="Default: node.")]
Root = Annotated[Path, typer.Option("--root", help="Write below this directory and start nothing.")]


def _check(roles: list[str] | None, root: Path) -> list[str]:
    from gw.commands.services import ROLES

    for role in roles or []:
        if role not in ROLES:
            raise UsageError(f"unknown role: `{role}`", hint=f"one of {', '.join(ROLES)}")
    if root == Path("/") and os.geteuid() != 0:
        raise PermissionNeeded("installing services needs root", hint="sudo gw service install …")
    return roles or ["node"]


@app.command("install")
def install(roles: Roles = None, root: Root = Path("/")) -> None:
    """Install, enable and start the units of these roles.

    The control server, the relay and the DNS server each get a user of their own in the group `ghostwire`.
    Run `gwctl init` first where the control server is among them. Next: gwctl health, or gw up.
    """
    from gw.commands import services

    chosen = _check(roles, root)
    hidden = services.hidden_in_home(Path(sys.prefix), Path(sys.executable).resolve())
    if hidden is not None:
        shell.note(f"warning: `{hidden}` lies in a home, where services cannot look: they will not start")
        shell.note(
            "hint: install for the whole machine: "
            "sudo PIPX_HOME=/opt/pipx PIPX_BIN_DIR=/usr/local/bin pipx install ghostwire-mesh"
        )
    for path in services.install(root, chosen):
        shell.note(f"wrote {path}")
    if root != Path("/"):
        return
    services.manager("systemd-sysusers")
    services.manager("systemd-tmpfiles", "--create", "ghostwire.conf")
    services.adopt_state(Path("/var/lib/ghostwire"))
    services.manager("systemctl", "daemon-reload")
    for role in chosen:
        services.manager("systemctl", "enable", "--now", f"{services.ROLES[role]}.service")
        shell.note(f"started {services.ROLES[role]}")


@app.command("remove")
def remove(root: Root = Path("/")) -> None:
    """Stop the daemons and remove their units; keys and settings stay. See also `gw uninstall`."""
    from gw.commands import services

    _check(None, root)
    for path in services.remove(root):
        shell.note(f"removed {path}")
