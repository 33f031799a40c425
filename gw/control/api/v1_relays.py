"""The relay map: ours, beside Headscale's REST v1. A change reaches every node at once."""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import UNSET, UnsetType

from gw.control import relays
from gw.control.api.calls import Answer, Call, Listing, Operation, reading
from gw.control.settings import derp_map_of
from gw.control.shapes import Nothing
from gw.control.watching import load_policy
from gw.model.derpmap import DERPMap, DERPNode, DERPRegion
from gw.policy.model import Policy
from gw.state.documents import RelayRegionDoc
from gw.state.paths import StatePaths

SCOPE: Final = "feature_settings"


class RelayShape(msgspec.Struct, rename="camel"):
    """One relay. derpPort: of TLS; stunPort: -1 = no STUN; ipv4, ipv6: "" = by DNS, `none` = not reached by it."""

    name: str
    host_name: str
    ipv4: str
    ipv6: str
    derp_port: int
    stun_port: int
    stun_only: bool
    can_port80: bool
    cert_name: str
    insecure_for_tests: bool
    quic_port: int
    relay_key: str


class RegionShape(msgspec.Struct, rename="camel"):
    """One region of the map in force. source: `relays` (its document), `derp` (files and URLs) or `policy`."""

    region_id: int
    code: str
    name: str
    source: str
    nodes: list[RelayShape]


class RegionAnswer(msgspec.Struct):
    region: RegionShape


class RelayFields(msgspec.Struct, rename="camel"):
    """Of one relay, only what is to be changed."""

    host_name: str | UnsetType = UNSET
    ipv4: str | UnsetType = UNSET
    ipv6: str | UnsetType = UNSET
    derp_port: int | UnsetType = UNSET
    stun_port: int | UnsetType = UNSET
    stun_only: bool | UnsetType = UNSET
    can_port80: bool | UnsetType = UNSET
    cert_name: str | UnsetType = UNSET
    insecure_for_tests: bool | UnsetType = UNSET
    quic_port: int | UnsetType = UNSET
    relay_key: str | UnsetType = UNSET


class NewRelay(RelayFields, rename="camel"):
    """regionCode, regionName: of a region that is new; name: of the relay, the first free one without it."""

    region_id: int = 0
    region_code: str = ""
    region_name: str = ""
    name: str = ""


class RegionFields(msgspec.Struct):
    """Only what is to be changed."""

    code: str = ""
    name: str = ""


_DOCUMENT_NAMES: Final = {"derp_port": "derpport", "stun_port": "stunport", "stun_only": "stunonly"}
STUN_PORT: Final = 3478
DERP_PORT: Final = 443


def _fields(body: RelayFields) -> dict[str, object]:
    """What was said, by the names of the document."""
    found = {}
    for name in RelayFields.__struct_fields__:
        value = getattr(body, name)
        if value is not UNSET:
            found[_DOCUMENT_NAMES.get(name, name)] = value
    return found


def _shape(region: DERPRegion, source: str) -> RegionShape:
    return RegionShape(
        region_id=region.region_id,
        code=region.region_code,
        name=region.region_name,
        source=source,
        nodes=[_relay(node) for node in region.nodes or ()],
    )


def _answer(region: RelayRegionDoc) -> RegionAnswer:
    return RegionAnswer(_shape(region.derp_region(), "relays"))


def _relay(node: DERPNode) -> RelayShape:
    return RelayShape(
        name=node.name,
        host_name=node.host_name,
        ipv4=node.ipv4,
        ipv6=node.ipv6,
        derp_port=node.derpport or DERP_PORT,
        stun_port=node.stunport or STUN_PORT,
        stun_only=node.stunonly,
        can_port80=node.can_port80,
        cert_name=node.cert_name,
        insecure_for_tests=node.insecure_for_tests,
        quic_port=node.quic_port,
        relay_key=node.relay_key,
    )


async def list_relays(call: Call) -> Answer:
    policy, mapped = _in_force(call)
    documents = call.tailnet.commons.relays

    def shape(region: DERPRegion) -> RegionShape:
        number = region.region_id
        return _shape(
            region, "policy" if number in policy.derp_regions else "relays" if number in documents else "derp"
        )

    return Listing("regions", list((mapped.regions or {}).values()), shape)


def _in_force(call: Call) -> tuple[Policy, DERPMap]:
    """The policy and the relay map: the server's, or what it would begin with."""
    tailnet = call.tailnet
    if tailnet.is_running or tailnet.folder is None:
        return tailnet.policy.policy, tailnet.commons.derp_map()
    from gw.control.sources import kept_maps

    paths = StatePaths(tailnet.folder)
    policy = load_policy(paths.policy_file)
    others = kept_maps(tailnet.config.derp, paths.control_dir / "derpmaps")
    return policy, derp_map_of(tailnet.commons.relays.values(), policy.derp_regions, others)


async def add_relay(call: Call) -> Answer:
    new = call.read(NewRelay)
    fields = _fields(new)
    fields.setdefault("host_name", "")
    region = await relays.add_relay(
        call.tailnet, new.region_id, new.name, fields, code=new.region_code, region_name=new.region_name
    )
    return _answer(region)


async def change_region(call: Call) -> Answer:
    wanted = call.read(RegionFields)
    region = relays.find_region(call.tailnet, call.path[0])
    changed = await relays.change_region(call.tailnet, region.region_id, code=wanted.code, name=wanted.name)
    return _answer(changed)


async def change_relay(call: Call) -> Answer:
    wanted = _fields(call.read(RelayFields))
    region = relays.find_region(call.tailnet, call.path[0])
    changed = await relays.change_relay(call.tailnet, region.region_id, call.path[1], wanted)
    return _answer(changed)


async def remove_region(call: Call) -> Answer:
    await relays.remove_region(call.tailnet, relays.find_region(call.tailnet, call.path[0]).region_id)
    return Nothing()


async def remove_relay(call: Call) -> Answer:
    region = relays.find_region(call.tailnet, call.path[0])
    await relays.remove_relay(call.tailnet, region.region_id, call.path[1])
    return Nothing()


_REGION: Final = "/api/v1/relays/{region}"

OPERATIONS: Final = [
    Operation(
        method="GET", path="/api/v1/relays", handler=list_relays, scope=reading(SCOPE),
        summary="List the regions of the relay map and where each comes from", answer=RegionShape, listing="regions",
    ),
    Operation(
        method="POST", path="/api/v1/relays", handler=add_relay, scope=SCOPE,
        summary="Enter a relay, and its region where there is none", body=NewRelay, answer=RegionAnswer,
    ),
    Operation(
        method="PATCH", path=_REGION, handler=change_region, scope=SCOPE,
        summary="Change a region's code or name; region: number or code", body=RegionFields, answer=RegionAnswer,
    ),
    Operation(
        method="DELETE", path=_REGION, handler=remove_region, scope=SCOPE,
        summary="Take a region out, with all its relays", answer=Nothing,
    ),
    Operation(
        method="PATCH", path=_REGION + "/nodes/{name}", handler=change_relay, scope=SCOPE,
        summary="Change a relay", body=RelayFields, answer=RegionAnswer,
    ),
    Operation(
        method="DELETE", path=_REGION + "/nodes/{name}", handler=remove_relay, scope=SCOPE,
        summary="Take a relay out; its region goes with the last one", answer=Nothing,
    ),
]  # fmt: skip
