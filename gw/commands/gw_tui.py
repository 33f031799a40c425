"""`gw tui`: live peers, paths and throughput in the terminal."""

from __future__ import annotations

from gw.commands import shell


def command() -> None:
    """Show peers, paths, latency and throughput as they change.

    Keys: arrows choose a peer, p pings it, / filters, q leaves. `direct` paths go straight to the peer; `relay` ones
    pass a relay because no direct path was found (yet).
    """
    import os

    from gw.state.paths import StatePaths
    from gw.tui.app import Dashboard
    from gw.tui.feed import LocalFeed

    socket = StatePaths(shell.state_dir()).node_socket
    Dashboard(LocalFeed(socket), ascii_only=os.environ.get("TERM") in ("dumb", "linux")).run()
