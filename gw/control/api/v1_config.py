"""Settings of `config.toml`, for `gwctl config set`: ours, beside Headscale's REST v1."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from gw.control.api.calls import Answer, Call, Operation
from gw.control.apikeys import LOCAL
from gw.control.configfile import change_settings
from gw.errors import PermissionNeeded, UsageError


class SettingChanges(msgspec.Struct):
    """settings: by dotted name, as `dns.magic`."""

    settings: dict[str, Any] = {}


class SettingsChanged(msgspec.Struct):
    """settings: their values now. restart: those that a running server takes over when it starts again."""

    settings: dict[str, Any]
    restart: list[str]


async def change(call: Call) -> Answer:
    """Only for who is on the machine: a setting may name programs and files."""
    if call.caller is not LOCAL:
        raise PermissionNeeded("settings are changed on the server itself: gwctl config set KEY VALUE")
    wanted = call.read(SettingChanges).settings
    if not wanted:
        raise UsageError("which setting?", hint="see `gwctl config explain`")
    now, stuck = await change_settings(call.tailnet, wanted)
    return SettingsChanged(now, [name for name in stuck if call.tailnet.is_running])


OPERATIONS: Final = [
    Operation(
        method="PATCH", path="/api/v1/config", handler=change, scope="all",
        summary="Change settings of config.toml; only by the unix socket", body=SettingChanges, answer=SettingsChanged,
    ),
]  # fmt: skip
