"""One administrative call: through the server's socket where a server runs, else on the state directory itself.

Both ways run the same functions (`gw.control.admin`); the lock on the directory decides who may write without a server.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

from gw.commands import remote, shell
from gw.errors import NotFound, NotRunning, UsageError

if TYPE_CHECKING:
    from gw.state.paths import StatePaths

PREFIX: Final = "/api/v1"
LOCK_WAIT_S: Final = 5.0  # another gwctl at work on the directory is soon done


def state_paths() -> StatePaths:
    """The paths of this run's state directory. Raises NotFound if there is no control server's state in it."""
    from gw.state.paths import StatePaths

    if remote.address():
        raise UsageError(
            f"this works on the server's own machine, not at `{remote.address()}`", hint=f"unset {remote.ADDRESS}"
        )
    paths = StatePaths(shell.state_dir())
    if not paths.root.is_dir():
        raise NotFound(
            f"no state directory: `{paths.root}`", hint="gwctl init --server-url URL, or name another by --state-dir"
        )
    if os.access(paths.root, os.X_OK) and not paths.config_file.exists():
        raise NotFound(
            f"no control server in `{paths.root}`: there is no config.toml",
            hint="gwctl init --server-url URL, or name another directory by --state-dir",
        )
    return paths


def ask(method: str, *path: str, body: object = None, query: dict[str, str] | None = None) -> Any:
    """The answer of `METHOD /api/v1/<path>`. path: segments, quoted here. Raises GwError."""
    from gw.localapi import unixhttp

    target = "/".join([PREFIX, *(quote(part, safe="") for part in path)])
    if query:
        target += f"?{urlencode(query)}"
    if remote.address():
        return remote.request(method, target, body)
    paths = state_paths()
    try:
        return unixhttp.request(paths.control_socket, method, target, body, timeout_s=60.0).json()
    except NotRunning:
        if path[0] == "auth" or path[:2] == ("node", "register"):
            raise NotRunning(
                "the control server is not running, and only it knows the logins that wait", hint="gwctl serve"
            ) from None
    return _offline(paths, method, target, body)


def _offline(paths: StatePaths, method: str, target: str, body: object) -> Any:
    import asyncio

    import msgspec

    from gw.control import events
    from gw.control.admin import answer, changes_state
    from gw.control.observed import read_observed
    from gw.control.tailnet import Tailnet
    from gw.control.undo import FILE as UNDO_FILE
    from gw.control.undo import Undo
    from gw.policy.starting import DENY_ALL
    from gw.state.config import load_config
    from gw.state.store import DirectoryStore

    config = load_config(paths.config_file)
    raw = b"" if body is None else msgspec.json.encode(body)
    with DirectoryStore(paths).open(lock=changes_state(method), wait_s=LOCK_WAIT_S) as store:
        known = read_observed(paths.observed_file)
        tailnet = Tailnet.load(store, config, DENY_ALL, events.recorder(store.trail), observed=known)
        tailnet.folder = paths.root
        Undo(tailnet, paths.control_dir / UNDO_FILE)
        with events.acting_as(f"uid {os.getuid()}, offline"):
            return asyncio.run(answer(tailnet, method, target, raw))
