"""Tailscale's API v2: settings, as far as they exist here. A change is written to `config.toml`, comments kept."""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import UNSET, UnsetType

from gw.control.api.calls import Answer, Call, Operation, reading
from gw.control.api.v2_devices import check_tailnet
from gw.control.configfile import change_settings
from gw.control.tailnet import Tailnet
from gw.errors import UsageError

SCOPE: Final = "feature_settings"
DAY_S: Final = 86400
LONGEST_DAYS: Final = 36500


class SettingsV2(msgspec.Struct, rename="camel"):
    """devicesKeyDurationDays: 0 = keys do not expire. What this server does not have is always off."""

    devices_approval_on: bool
    devices_auto_updates_on: bool
    devices_key_duration_days: int
    users_approval_on: bool
    users_role_allowed_to_join_external_tailnets: str
    network_flow_logging_on: bool
    regional_routing_on: bool
    posture_identity_collection_on: bool
    acls_externally_managed_on: bool
    acls_external_link: str
    https_enabled: bool


class SettingsChange(msgspec.Struct, rename="camel"):
    """Only what is to be changed."""

    devices_approval_on: bool | UnsetType = UNSET
    devices_auto_updates_on: bool | UnsetType = UNSET
    devices_key_duration_days: int | UnsetType = UNSET
    users_approval_on: bool | UnsetType = UNSET
    users_role_allowed_to_join_external_tailnets: str | UnsetType = UNSET
    network_flow_logging_on: bool | UnsetType = UNSET
    regional_routing_on: bool | UnsetType = UNSET
    posture_identity_collection_on: bool | UnsetType = UNSET
    acls_externally_managed_on: bool | UnsetType = UNSET
    acls_external_link: str | UnsetType = UNSET
    https_enabled: bool | UnsetType = UNSET


def settings_shape(tailnet: Tailnet) -> SettingsV2:
    node = tailnet.config.node
    return SettingsV2(
        devices_approval_on=node.require_approval,
        devices_auto_updates_on=False,
        devices_key_duration_days=round(node.key_expiry_s / DAY_S),
        users_approval_on=False,
        users_role_allowed_to_join_external_tailnets="none",
        network_flow_logging_on=False,
        regional_routing_on=False,
        posture_identity_collection_on=False,
        acls_externally_managed_on=False,
        acls_external_link="",
        https_enabled=False,
    )


async def get_settings(call: Call) -> Answer:
    check_tailnet(call)
    return settings_shape(call.tailnet)


async def patch_settings(call: Call) -> Answer:
    check_tailnet(call)
    wanted = call.read(SettingsChange)
    now = settings_shape(call.tailnet)
    changes: dict[str, object] = {}
    for name in SettingsChange.__struct_fields__:
        value = getattr(wanted, name)
        if value is UNSET or value == getattr(now, name):
            continue
        if name == "devices_approval_on":
            changes["node.require_approval"] = value
        elif name == "devices_key_duration_days":
            if not 0 <= value <= LONGEST_DAYS:
                raise UsageError(f"`devicesKeyDurationDays` is not between 0 and {LONGEST_DAYS}")
            changes["node.key_expiry"] = f"{value}d" if value else "0"
        else:
            field = dict(zip(SettingsChange.__struct_fields__, SettingsChange.__struct_encode_fields__, strict=True))
            raise UsageError(f"this server does not have `{field[name]}`")
    if changes:
        await change_settings(call.tailnet, changes)
    return settings_shape(call.tailnet)


_SETTINGS: Final = "/api/v2/tailnet/{tailnet}/settings"

OPERATIONS: Final = [
    Operation(
        method="GET", path=_SETTINGS, handler=get_settings, scope=reading(SCOPE), summary="The settings",
        answer=SettingsV2,
    ),
    Operation(
        method="PATCH", path=_SETTINGS, handler=patch_settings, scope=SCOPE, summary="Change settings",
        body=SettingsChange, answer=SettingsV2,
    ),
]  # fmt: skip
