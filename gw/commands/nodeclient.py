"""The daemon that `gw` talks to, and its errors in words that say what to type."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gw.commands import shell
from gw.errors import NotRunning

if TYPE_CHECKING:
    from gw.localapi.client import Client


def daemon() -> Client:
    """The local API of this state directory's `gwd`. Raises NotRunning where there is no socket."""
    from gw.localapi.client import Client
    from gw.state.paths import StatePaths

    socket = StatePaths(shell.state_dir()).node_socket
    if not socket.exists():
        raise NotRunning(
            f"gwd is not running: no socket at `{socket}`", hint="sudo gwd run, or: sudo gw service install node"
        )
    return Client(socket)
