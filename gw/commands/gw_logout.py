"""`gw logout`: give up this node's key."""

from __future__ import annotations

from gw.commands import shell


def command() -> None:
    """Log out: the control server expires this node's key at once; an ephemeral node is removed. Next: gw up."""
    from gw.commands.nodeclient import daemon

    daemon().logout()
    shell.note("logged out")
