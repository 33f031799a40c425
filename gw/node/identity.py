"""Who this node is: its machine key for ever, its node key until the next login. On disk before they are used."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, Self, final

from gw.errors import ConfigError, NotFound, WireError
from gw.model.keys import MachineKey, MachineSecret, NodeKey, NodeSecret
from gw.state.files import read_secret, translate, write_secret
from gw.wire.x25519 import clamp, public_key

MACHINE_FILE: Final = "machine.key"
NODE_FILE: Final = "node.key"
PREVIOUS_FILE: Final = "node-previous.key"


@final
class Identity:
    """The keys of one state directory. `has_node_key` tells whether a server may know this node."""

    def __init__(
        self, folder: Path, machine: MachineSecret, node: NodeSecret | None, previous: NodeSecret | None
    ) -> None:
        self._folder = folder
        self.machine: Final = machine
        self.machine_key: Final = MachineKey(public_key(machine.raw))
        self._node = node
        self._previous = previous

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the keys of `node/`, making the machine key on first use. Raises ConfigError, PermissionNeeded."""
        machine = _read(folder / MACHINE_FILE)
        if machine is None:
            machine = clamp(os.urandom(32))
            _write(folder / MACHINE_FILE, MachineSecret(machine).text())
        node, previous = _read(folder / NODE_FILE), _read(folder / PREVIOUS_FILE)
        return cls(
            folder,
            MachineSecret(machine),
            NodeSecret(node) if node else None,
            NodeSecret(previous) if previous else None,
        )

    @property
    def has_node_key(self) -> bool:
        return self._node is not None

    @property
    def node(self) -> NodeSecret:
        """The node secret; made, and durable, on first use."""
        if self._node is None:
            self._node = NodeSecret(clamp(os.urandom(32)))
            _write(self._folder / NODE_FILE, self._node.text())
        return self._node

    @property
    def node_key(self) -> NodeKey:
        return NodeKey(public_key(self.node.raw))

    @property
    def previous_key(self) -> NodeKey:
        """The key before this one, for a server that has not seen the new one yet; zero if there is none."""
        return NodeKey(public_key(self._previous.raw)) if self._previous is not None else NodeKey.zero()

    def rotate(self) -> None:
        """Take a new node key and remember the last one that a server may know, until `settle`."""
        if self._node is not None and self._previous is None:
            _write(self._folder / PREVIOUS_FILE, self._node.text())
            self._previous = self._node
        self._node = NodeSecret(clamp(os.urandom(32)))
        _write(self._folder / NODE_FILE, self._node.text())

    def settle(self) -> None:
        """The server knows the new key: forget the one before."""
        if self._previous is not None:
            self._previous = None
            _remove(self._folder / PREVIOUS_FILE)

    def forget(self) -> None:
        """Logged out: the next login begins with a new node key. The machine stays the same one."""
        self._node = self._previous = None
        for name in (NODE_FILE, PREVIOUS_FILE):
            _remove(self._folder / name)


def _read(path: Path) -> bytes | None:
    try:
        raw = read_secret(path)
    except NotFound:
        return None
    try:
        return NodeSecret.parse(raw.decode().strip()).raw
    except (WireError, UnicodeDecodeError):
        raise ConfigError(
            "not a key", path=str(path), hint="restore it from a backup, or remove it to begin anew"
        ) from None


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise translate(error, "remove", path) from error


def _write(path: Path, text: str) -> None:
    write_secret(path, text.encode() + b"\n")
