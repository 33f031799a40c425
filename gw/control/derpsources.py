"""Relay maps that come from elsewhere: files and URLs of `[derp]`, as Headscale's `derp.paths` and `derp.urls`.

    JSON  {"Regions": {"900": {"RegionID": 900, "RegionCode": "own", "Nodes": [{"Name": "900a", "HostName": "…"}]}}}
    YAML  regions: {900: {regionid: 900, regioncode: own, nodes: [{name: 900a, hostname: …}]}}
    TOML  the same tables

Letter case of keys does not count. A map that cannot be read changes nothing: the last good one stays.

Ref: control protocol §6.5
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final
from urllib.error import URLError
from urllib.request import Request, urlopen

import msgspec

from gw.errors import ConfigError, GwError
from gw.model.derpmap import DERPMap, DERPNode, DERPRegion
from gw.state.files import translate

MAX_BYTES: Final = 4 << 20
FETCH_TIMEOUT_S: Final = 15.0
YAML: Final = (".yaml", ".yml")

Regions = dict[int, DERPRegion]


def read_map(raw: bytes, where: str) -> Regions:
    """The regions of a map; where: names it in errors, and its ending tells the format. Raises ConfigError."""
    tables = _plain(raw, where)
    found = _wire(tables, DERPMap)
    try:
        decoded = msgspec.convert(found, DERPMap, strict=False)
    except (msgspec.ValidationError, ValueError) as error:
        raise ConfigError(f"not a relay map: {error}", path=where) from None
    regions: Regions = {}
    for number, region in (decoded.regions or {}).items():
        if region is not None:
            _check(number, region, where)
            regions[number] = region
    if not regions:
        raise ConfigError("a relay map without regions", path=where)
    return regions


def _plain(raw: bytes, where: str) -> dict[str, Any]:
    try:
        if where.endswith(YAML):
            import yaml

            try:
                tables = yaml.safe_load(raw)
            except yaml.YAMLError as error:
                raise ValueError(str(error).replace("\n", " ")) from None
        elif where.endswith(".toml"):
            import tomli

            tables = tomli.loads(raw.decode())
        else:
            tables = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not a relay map: {error}", path=where) from None
    if not isinstance(tables, dict):
        raise ConfigError("not a relay map: not a table", path=where)
    return tables


def _wire(value: Any, kind: type[msgspec.Struct]) -> Any:
    """The table with the field names of the wire, whatever their letter case was."""
    names = {field.encode_name.lower(): field.encode_name for field in msgspec.structs.fields(kind)}
    if not isinstance(value, dict):
        return value
    found = {names.get(str(key).lower(), str(key)): each for key, each in value.items()}
    if kind is DERPMap and isinstance(found.get("Regions"), dict):
        found["Regions"] = {str(key): _wire(each, DERPRegion) for key, each in found["Regions"].items() if each}
    if kind is DERPRegion and isinstance(found.get("Nodes"), list):
        found["Nodes"] = [_wire(each, DERPNode) for each in found["Nodes"]]
    return found


def _check(number: int, region: DERPRegion, where: str) -> None:
    if region.region_id != number or not 0 < number < 1 << 31:
        raise ConfigError(f"region {number} says of itself that it is {region.region_id}", path=where)
    for node in region.nodes or ():
        if not node.name or not node.host_name:
            raise ConfigError(f"a relay of region {number} has no name or no host name", path=where)
        if node.region_id not in (0, number):
            raise ConfigError(f"relay `{node.name}` of region {number} is of region {node.region_id}", path=where)
        node.region_id = number


def read_file(path: Path) -> Regions:
    """The map in a file. Raises GwError."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise translate(error, "read the relay map", path) from error
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"larger than {MAX_BYTES >> 20} MiB", path=str(path))
    return read_map(raw, str(path))


def fetch(url: str) -> Regions:
    """The map behind a URL, in JSON. Blocks for at most some 15 s. Raises GwError."""
    try:
        with urlopen(Request(url, headers={"Accept": "application/json"}), timeout=FETCH_TIMEOUT_S) as answer:  # noqa: S310  http(s) alone, see config
            raw = answer.read(MAX_BYTES + 1)
    except (OSError, URLError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise GwError(f"cannot fetch the relay map `{url}`: {reason}", hint="see [derp] in config.toml") from None
    if len(raw) > MAX_BYTES:
        raise GwError(f"the relay map `{url}` is larger than {MAX_BYTES >> 20} MiB")
    return read_map(raw, url.partition("?")[0] if url.endswith(YAML) else f"{url}")
