"""Settings as administrators change them through the API: written to `config.toml`, then in force.

A hand edit of the file goes the other way: `gw.control.watching`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from gw.control.events import actor
from gw.control.tailnet import Tailnet
from gw.errors import Conflict
from gw.state.config import Config
from gw.state.editing import edit_config


async def change_settings(tailnet: Tailnet, changes: Mapping[str, object]) -> None:
    """Change settings by their dotted names. Raises Conflict where there is no file, ConfigError for a bad value."""
    if tailnet.folder is None:
        raise Conflict("this server's settings are not kept in a file")
    await tailnet.durably(_change(tailnet, changes))


async def _change(tailnet: Tailnet, changes: Mapping[str, object]) -> None:
    assert tailnet.folder is not None
    async with tailnet.holds.locked("config"):
        before, tailnet.commons.writer = tailnet.config, actor()
        try:
            after = await asyncio.to_thread(edit_config, tailnet.folder / "config.toml", changes)
            tailnet.commons.set_config(after)
        finally:
            tailnet.commons.writer = ""
        if tailnet.undo is not None:
            tailnet.undo.note_settings({name: (setting(before, name), value) for name, value in changes.items()})


def setting(config: Config, name: str) -> object:
    """The value of a setting by its dotted name."""
    found: object = config
    for part in name.split("."):
        found = getattr(found, part)
    return found
