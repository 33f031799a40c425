"""Making a state directory: its folders, their modes, and what git must not see.

`init_state_dir` is what `gwctl init` runs; the other programs make only their own folders with `files.make_folder`.
"""

from __future__ import annotations

from typing import Final

from gw.errors import Conflict
from gw.state.files import make_folder, write_atomic
from gw.state.paths import StatePaths

CONFIG_MODE: Final = 0o640
GITIGNORE: Final = b"""\
# secrets and what changes by itself: never in a repository
/keys/
/node/
/relay/
/journal/
/run/
/snapshots/
/lock
/observed.jsonl
.tmp-*
*.conflict*
*.broken*
"""


def init_state_dir(paths: StatePaths, *, config: str | None = None, policy: str | None = None) -> None:
    """Lay out the directory of a control server. Folders that are there stay as they are.

    config, policy: texts of `config.toml` and `policy.hujson`, written only where there are none.
    Raises Conflict if a config was given and there is one already (then nothing was changed), or GwError.
    """
    if config is not None and paths.config_file.exists():
        raise Conflict(
            f"`{paths.root}` is set up already", hint=f"edit `{paths.config_file}`, or choose another `--state-dir`"
        )
    make_folder(paths.root, 0o755)
    for folder in (
        paths.control_dir,
        paths.users_dir,
        paths.nodes_dir,
        paths.preauthkeys_dir,
        paths.apikeys_dir,
        paths.events_dir,
    ):
        make_folder(folder, 0o750)
    for folder in (paths.relays_dir, paths.dns_dir):
        make_folder(folder, 0o755)
    for folder in (paths.keys_dir, paths.journal_dir):
        make_folder(folder, 0o700)
    ignore = paths.root / ".gitignore"
    if not ignore.exists():
        write_atomic(ignore, GITIGNORE)
    if policy is not None and not paths.policy_file.exists():
        write_atomic(paths.policy_file, policy.encode(), CONFIG_MODE)
    if config is not None:  # last: a directory without it is not set up yet, and `init` may be run again
        write_atomic(paths.config_file, config.encode(), CONFIG_MODE)
