"""`gw uninstall`: take everything of GhostWire off this host, but the package itself."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gw.commands import shell
from gw.errors import GwError, PermissionNeeded, UsageError

if TYPE_CHECKING:
    from gw.state.paths import StatePaths


def command(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    keep_state: Annotated[bool, typer.Option("--keep-state", help="Leave keys, settings and users' data.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed, remove nothing.")] = False,
    root: Annotated[Path, typer.Option("--root", help="Work below this directory; stops nothing.")] = Path("/"),
) -> None:
    """Remove services, users, routes, DNS settings, sockets and the state directory from this host.

    sudo gw uninstall --dry-run

    A node is logged out first. Nothing stays on the host but the package, which your installer removes.
    """
    from gw.commands import services
    from gw.state.paths import StatePaths

    is_host = root == Path("/")
    if is_host and os.geteuid() != 0:
        raise PermissionNeeded("uninstalling needs root", hint="sudo gw uninstall")
    paths = StatePaths(shell.state_dir() if is_host else root / "var/lib/ghostwire")
    present = [*services.installed(root)]
    if not keep_state and paths.root.is_dir():
        present.append(paths.root)
    if is_host and paths.runtime_dir.is_dir():
        present.append(paths.runtime_dir)
    for path in present:
        shell.say(f"{'would remove' if dry_run else 'removes'} {path}")
    if dry_run:
        return
    if not keep_state and not yes:
        _ask(paths.root)
    if is_host:
        _log_out(paths)
    for path in services.remove(root):
        shell.note(f"removed {path}")
    if is_host:
        _restore_host(paths)
        for name in services.remove_users():
            shell.note(f"removed user or group {name}")
        shutil.rmtree(paths.runtime_dir, ignore_errors=True)
    if not keep_state:
        shutil.rmtree(paths.root, ignore_errors=True)
    shell.note(f"now remove the package: {_package_command()}")


def _ask(state: Path) -> None:
    if not sys.stdin.isatty():
        raise UsageError(f"removing `{state}` needs a yes", hint="--yes, or --keep-state")
    answer = input(f"Remove `{state}` with all keys and settings? [y/N] ")
    if answer.strip().lower() not in ("y", "yes"):
        raise UsageError("nothing removed")


def _log_out(paths: StatePaths) -> None:
    """The control server should not keep a node that is no more; where it cannot be told, go on."""
    from gw.localapi.client import Client

    if not paths.node_socket.exists():
        return
    try:
        client = Client(paths.node_socket)
        if client.status().have_node_key:
            client.logout()
            shell.note("logged out")
    except GwError as error:
        shell.note(f"not logged out: {error.message}")


def _restore_host(paths: StatePaths) -> None:
    """What a node that was killed may have left: routing rules and resolv.conf."""
    from gw.net import resolv, router

    for what, action in (
        ("routing rules", router.remove_leftovers),
        ("resolv.conf", lambda: resolv.remove_leftovers(paths.node_dir / resolv.BACKUP_NAME)),
    ):
        try:
            action()
        except GwError as error:
            shell.note(f"{what}: {error.message}")


def _package_command() -> str:
    prefix = sys.prefix
    if "pipx" in prefix:
        return "pipx uninstall ghostwire-mesh"
    if f"{os.sep}uv{os.sep}tools" in prefix:
        return "uv tool uninstall ghostwire-mesh"
    return f"{prefix}/bin/pip uninstall ghostwire-mesh"
