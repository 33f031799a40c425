"""Settings as administrators change them through the API: written to `config.toml`, then in force.

A hand edit of the file goes the other way: `gw.control.watching`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from gw.control.events import actor
from gw.control.tailnet import Tailnet
from gw.errors import Conflict, NotFound
from gw.state.config import Config
from gw.state.editing import edit_config

ROUTES: Final = "dns.routes."  # what follows is a domain, dots and all


async def change_settings(tailnet: Tailnet, changes: Mapping[str, object]) -> tuple[dict[str, Any], list[str]]:
    """Change settings by their dotted names. Returns the values now in the file, and which of them wait for a restart.

    None takes a setting out of the file. Raises Conflict where there is no file, NotFound for an unknown name,
    ConfigError for a bad value.
    """
    if tailnet.folder is None:
        raise Conflict("this server's settings are not kept in a file")
    for name in changes:
        setting(tailnet.commons.written, name)
    return await tailnet.durably(_change(tailnet, changes))


async def _change(tailnet: Tailnet, changes: Mapping[str, object]) -> tuple[dict[str, Any], list[str]]:
    assert tailnet.folder is not None
    async with tailnet.holds.locked("config"):
        before, tailnet.commons.writer = tailnet.commons.written, actor()
        try:
            after = await asyncio.to_thread(edit_config, tailnet.folder / "config.toml", changes)
            stuck = tailnet.commons.set_config(after)
        finally:
            tailnet.commons.writer = ""
        altered = {name: (setting(before, name), setting(after, name)) for name in changes}
        if tailnet.undo is not None:
            tailnet.undo.note_settings({name: pair for name, pair in altered.items() if pair[0] != pair[1]})
    return {name: msgspec.to_builtins(new) for name, (_, new) in altered.items()}, [
        name for name in stuck if any(f"{each}.".startswith(f"{name}.") for each in changes)
    ]


def setting(config: Config, name: str) -> object:
    """The value of a setting by its dotted name; None for a domain that `dns.routes` does not have. Raises NotFound."""
    if name.startswith(ROUTES):
        return config.dns.routes.get(name.removeprefix(ROUTES))
    found: object = config
    for part in name.split("."):
        if not isinstance(found, msgspec.Struct) or part not in found.__struct_fields__:
            raise NotFound(f"no such setting: `{name[:80]}`", hint="see `gwctl config explain`")
        found = getattr(found, part)
    return found
