"""`gw status`: this node and its peers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gw.commands import shell

if TYPE_CHECKING:
    from gw.localapi.status import PeerStatus, Status


def command(
    peers: Annotated[bool, typer.Option("--peers/--no-peers", help="Show the peers too.")] = True,
    active: Annotated[bool, typer.Option("--active", help="Only peers with traffic now.")] = False,
) -> None:
    """Show this node, its peers, and how each is reached.

    The last column tells the path: `direct ADDRESS`, `relay CODE`, `idle` where nothing was sent lately, or `offline`.
    With --json the fields are those of `tailscale status --json`. Next: gw ping NAME, gw tui.
    """
    from gw.commands.nodeclient import daemon

    status = daemon().status()
    if shell.settings().json:
        shell.print_json(status)
        return
    if status.backend_state != "Running":
        shell.say(_not_running(status))
        raise typer.Exit(0 if status.backend_state == "Stopped" else 1)
    rows = [_row(status.self_, path="-")] if status.self_ else []
    if peers:
        shown = [peer for peer in (status.peer or {}).values() if peer.active or not active]
        rows += [_row(peer) for peer in sorted(shown, key=lambda peer: peer.dns_name)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)] if rows else []
    for row in rows:
        shell.say("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]))
    for line in status.health or []:
        shell.note(f"warning: {line}")


def _not_running(status: Status) -> str:
    if status.auth_url:
        return f"Waiting for approval: open {status.auth_url}"
    texts = {
        "NeedsLogin": "Logged out. Type: sudo gw up --login-server URL --auth-key file:PATH",
        "NeedsMachineAuth": "Waiting: an administrator has to approve this machine.",
        "Stopped": "Stopped. Type: sudo gw up",
        "Starting": "Starting: no map from the control server yet.",
    }
    return texts.get(status.backend_state, f"State: {status.backend_state}")


def _row(peer: PeerStatus, path: str = "") -> tuple[str, str, str, str]:
    address = (peer.tailscale_ips or [""])[0]
    name = peer.dns_name.split(".")[0] or peer.host_name
    return address, name, peer.os, path or peer.path_text()
