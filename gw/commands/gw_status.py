"""`gw status`: this node and its peers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

from gw.commands import shell

if TYPE_CHECKING:
    from gw.localapi.status import PeerStatus, Status

NAMED: Final = 3  # peers in the line on drops


def command(
    peers: Annotated[bool, typer.Option("--peers/--no-peers", help="Show the peers too.")] = True,
    active: Annotated[bool, typer.Option("--active", help="Only peers with traffic now.")] = False,
) -> None:
    """Show this node, its peers, and how each is reached.

    The last column tells the path: `direct ADDRESS`, `relay CODE`, `idle` where nothing was sent lately, or `offline`;
    in this node's own row the relay at which it is reached, over QUIC or TLS.
    Packets that the policy dropped are told of below the table. With --json the fields are those of
    `tailscale status --json`; ours are RxPackets, TxPackets, Drops and LatencySeconds. Next: gw ping NAME, gw top.
    """
    from gw.commands.nodeclient import daemon

    status = daemon().status()
    if shell.settings().json:
        shell.print_json(status)
        return
    if status.backend_state != "Running":
        shell.say(_not_running(status))
        raise typer.Exit(0 if status.backend_state == "Stopped" else 1)
    rows = [_row(status.self_, path=_home(status))] if status.self_ else []
    if peers:
        shown = [peer for peer in (status.peer or {}).values() if peer.active or not active]
        rows += [_row(peer) for peer in sorted(shown, key=lambda peer: peer.dns_name)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)] if rows else []
    for row in rows:
        shell.say("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]))
    if dropped := _dropped([peer for peer in (status.peer or {}).values() if peers and (peer.active or not active)]):
        shell.note(shell.printable(dropped))
    for line in _unrouted(list((status.peer or {}).values())) if peers else ():
        shell.note(shell.printable(line))
    for line in status.health or []:
        shell.note(f"warning: {shell.printable(line)}")


def _dropped(peers: list[PeerStatus]) -> str:
    """One line on packets from peers that the policy did not let in; empty where there were none."""
    from gw.commands.gw import VERBS

    counts = sorted(((peer.drops or {}).get("acl", 0), peer.dns_name.split(".")[0] or peer.host_name) for peer in peers)
    worst = [f"{name} {count}" for count, name in reversed(counts) if count]
    if not worst:
        return ""
    named = ", ".join(worst[:NAMED]) + (f" and {len(worst) - NAMED} more peers" if len(worst) > NAMED else "")
    tell = "  (gw why PEER tells the rule)" if "why" in VERBS else ""
    return f"dropped by the policy since gwd began, packets: {named}{tell}"


def _unrouted(peers: list[PeerStatus]) -> list[str]:
    """A line for each peer that offers routes to us which the control server did not approve: nothing goes there."""
    lines = []
    for peer in sorted(peers, key=lambda peer: peer.dns_name):
        offered = (peer.quic.unrouted if peer.quic is not None else None) or []
        if offered:
            name = peer.dns_name.split(".")[0] or peer.host_name
            named = ", ".join(offered[:NAMED]) + (f" and {len(offered) - NAMED} more" if len(offered) > NAMED else "")
            lines.append(f"{name} offers {named}, which the control server does not route there  (gwctl routes list)")
    return lines


def _home(status: Status) -> str:
    """This node's own row: the relay at which it is reached, and how; `-` where there is none."""
    transport = {"quic": "QUIC", "derp": "TLS"}.get(str((status.data_plane or {}).get("relay_transport")))
    if status.self_ is None or not status.self_.relay or transport is None:
        return "-"
    return f"home relay {status.self_.relay} over {transport}"


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
    return address, shell.printable(name), shell.printable(peer.os), shell.printable(path or peer.path_text())
