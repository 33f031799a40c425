"""Where things lie: the state directory, its parts, and the sockets.

    config.toml  policy.hujson      what a person edits
    control/                        gwctl's documents        keys/     gwctl's secrets (0700)
    relays/  dns/                   relay map, DNS records   node/     gwd's keys and preferences (0700)
    journal/  events/  lock         crash safety, the trail  relay/    gwrelay's secrets (0700)

Each program runs as its own user and writes only its own parts.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SYSTEM_STATE_DIR: Final = Path("/var/lib/ghostwire")
SYSTEM_RUNTIME_DIR: Final = Path("/run/ghostwire")


def resolve_state_dir(flag: str | None) -> Path:
    """The state directory of this run: the flag, else `$GW_STATE_DIR`, else the platform's place for it."""
    chosen = flag or os.environ.get("GW_STATE_DIR")
    if chosen:
        return Path(chosen).expanduser().absolute()
    if os.geteuid() == 0:
        return SYSTEM_STATE_DIR
    from platformdirs import user_state_dir

    return Path(user_state_dir("ghostwire", appauthor=False))


@dataclass(frozen=True, slots=True)
class StatePaths:
    """Every path below one state directory. Nothing here touches the disk."""

    root: Path

    @property
    def config_file(self) -> Path:
        return self.root / "config.toml"

    @property
    def policy_file(self) -> Path:
        """`policy.hujson`, or `policy.toml` where only that is there."""
        written, toml = self.root / "policy.hujson", self.root / "policy.toml"
        return toml if toml.exists() and not written.exists() else written

    @property
    def control_dir(self) -> Path:
        return self.root / "control"

    @property
    def users_dir(self) -> Path:
        return self.control_dir / "users"

    @property
    def nodes_dir(self) -> Path:
        return self.control_dir / "nodes"

    @property
    def preauthkeys_dir(self) -> Path:
        return self.control_dir / "preauthkeys"

    @property
    def apikeys_dir(self) -> Path:
        return self.control_dir / "apikeys"

    @property
    def relays_dir(self) -> Path:
        return self.root / "relays"

    @property
    def dns_dir(self) -> Path:
        return self.root / "dns"

    @property
    def keys_dir(self) -> Path:
        return self.root / "keys"

    @property
    def node_dir(self) -> Path:
        return self.root / "node"

    @property
    def relay_dir(self) -> Path:
        return self.root / "relay"

    @property
    def journal_dir(self) -> Path:
        return self.root / "journal"

    @property
    def events_dir(self) -> Path:
        return self.root / "events"

    @property
    def observed_file(self) -> Path:
        """What nodes said of themselves, for the next start; may be missing, old or torn."""
        return self.root / "observed.jsonl"

    @property
    def snapshots_dir(self) -> Path:
        return self.root / "snapshots"

    @property
    def lock_file(self) -> Path:
        return self.root / "lock"

    @property
    def runtime_dir(self) -> Path:
        chosen = os.environ.get("GW_RUNTIME_DIR")
        if chosen:
            return Path(chosen)
        return SYSTEM_RUNTIME_DIR if self.root == SYSTEM_STATE_DIR else self.root / "run"

    @property
    def control_socket(self) -> Path:
        return self.runtime_dir / "gwctl.sock"

    @property
    def node_socket(self) -> Path:
        return self.runtime_dir / "gwd.sock"
