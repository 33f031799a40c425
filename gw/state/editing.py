"""Changing single settings of `config.toml`; comments, order and blank lines stay."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gw.state.config import Config, decode_config
from gw.state.files import write_atomic
from gw.state.tomltext import read_bytes, text_of


def edit_config(path: Path, changes: Mapping[str, Any]) -> Config:
    """Write these values by their dotted names (`node.key_expiry`) and return the settings now in the file. Blocks.

    None takes a setting out. A link is followed, not replaced. Nothing is written where the result would not be a good
    file. Raises ConfigError, NotFound, GwError.
    """
    import tomlkit

    raw = read_bytes(path, what="configuration")
    document = tomlkit.parse(text_of(raw, str(path)))
    for name, value in changes.items():
        place: Any = document
        *folders, last = name.split(".", 2) if name.startswith("dns.routes.") else name.split(".")
        for folder in folders:
            if folder not in place:
                place[folder] = tomlkit.table()
            place = place[folder]
        if value is None:
            place.pop(last, None)
        else:
            place[last] = value
    text = tomlkit.dumps(document).rstrip("\n").encode() + b"\n"
    config = decode_config(text, path)
    write_atomic(path.resolve(), text, path.stat().st_mode & 0o777)
    return config
