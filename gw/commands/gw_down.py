"""`gw down`: leave the mesh without logging out."""

from __future__ import annotations

from gw.commands import shell


def command() -> None:
    """Take the tunnel down; the node stays logged in. Next: gw up."""
    from gw.commands.nodeclient import daemon

    client = daemon()
    if not client.prefs().want_running:
        shell.note("already down")
        return
    client.edit_prefs(want_running=False)
    shell.note("down: still logged in, `gw up` brings it back")
