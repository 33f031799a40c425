"""Relay maps and DNS records that others write: read strictly, followed live, the last good state kept."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gw.control.derpsources import read_map
from gw.control.records import ChangeKind
from gw.control.sources import Sources, read_records
from gw.errors import ConfigError, GwError
from gw.state.config import DerpSettings, DnsSettings
from gw.state.documents import RelayRegionDoc

JSON = (
    b'{"Regions": {"901": {"RegionID": 901, "RegionCode": "own", "Nodes": [{"Name": "901a", "HostName": "a.test"}]}}}'
)
YAML = b"""
regions:
  902:
    regionid: 902
    regioncode: yam
    nodes:
      - {name: 902a, regionid: 902, hostname: b.test, ipv4: 192.0.2.1, stunport: 0, derpport: 8443}
"""
TOML = b'[Regions.903]\nRegionID = 903\n[[Regions.903.Nodes]]\nName = "903a"\nHostName = "c.test"\n'


def configure(world: Any, **tables: Any) -> None:
    world.tailnet.commons.set_config(msgspec.structs.replace(world.tailnet.config, **tables))


@pytest.mark.parametrize(("raw", "name", "number"), [(JSON, "x", 901), (YAML, "x.yaml", 902), (TOML, "x.toml", 903)])
def test_a_map_is_read_in_three_formats(raw: bytes, name: str, number: int) -> None:
    (region,) = read_map(raw, name).values()
    assert (region.region_id, region.nodes[0].region_id) == (number, number)
    assert region.nodes[0].host_name.endswith(".test")


def test_headscale_s_yaml_keeps_every_field() -> None:
    node = read_map(YAML, "x.yml")[902].nodes[0]
    assert (node.ipv4, node.derpport, node.stunport) == ("192.0.2.1", 8443, 0)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "not a relay map"),
        (b"[]", "not a table"),
        (b"{}", "without regions"),
        (b'{"Regions": {"901": {"RegionID": 902}}}', "says of itself that it is 902"),
        (b'{"Regions": {"901": {"RegionID": 901, "Nodes": [{"Name": "a"}]}}}', "no host name"),
        (b'{"Regions": {"901": {"RegionID": 901, "Nodes": [{"Name": "a", "HostName": "b", "RegionID": 5}]}}}', "is of"),
        (b'{"Regions": {"x": {"RegionID": 901}}}', "not a relay map"),
        (b'{"Regions": {"901": {"RegionID": 901, "Nodes": [{"Name": 7}]}}}', "not a relay map"),
        (b"[" * 100_000, "not a relay map"),
    ],
)
def test_a_map_that_clients_could_not_use_is_refused(raw: bytes, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read_map(raw, "x.json")


async def test_files_and_urls_are_merged_below_our_own_relays_and_followed(world: Any, tmp_path: Path) -> None:
    answers: dict[str, Any] = {"https://maps.test/": read_map(JSON, "x")}

    def fetch(url: str) -> Any:
        if isinstance(answers[url], GwError):
            raise answers[url]
        return answers[url]

    file = tmp_path / "map.yaml"
    file.write_bytes(YAML)
    configure(world, derp=DerpSettings(urls=["https://maps.test/"], files=[str(file)], refresh="1h"))
    sources = Sources(world.tailnet, tmp_path / "kept", fetch)
    await sources.look(0.0)
    assert list(world.tailnet.commons.derp_map().regions) == [901, 902]
    world.tailnet.commons.set_relay(901, RelayRegionDoc(region_id=901, code="ours", name="Ours"))
    assert world.tailnet.commons.derp_map().regions[901].region_code == "ours"
    told = len(world.changes)
    await sources.look(1.0)
    assert len(world.changes) == told  # nothing new: nobody is told

    file.write_bytes(YAML.replace(b"902", b"905"))
    await sources.look(2.0)
    assert list(world.tailnet.commons.derp_map().regions) == [901, 905]
    file.write_bytes(b"nonsense: [")
    await sources.look(3.0)
    assert list(world.tailnet.commons.derp_map().regions) == [901, 905]
    assert world.events[-1].event == "source-refused"

    answers["https://maps.test/"] = read_map(JSON.replace(b"901", b"907"), "x")
    await sources.look(1800.0)
    assert 907 not in world.tailnet.commons.derp_map().regions
    await sources.look(3601.0)
    assert 907 in world.tailnet.commons.derp_map().regions
    configure(world, derp=DerpSettings())
    await sources.look(3602.0)
    assert list(world.tailnet.commons.derp_map().regions) == [901]


async def test_a_start_without_the_internet_uses_the_last_good_map(world: Any, make_world: Any, tmp_path: Path) -> None:
    derp = DerpSettings(urls=["https://maps.test/"])
    configure(world, derp=derp)
    await Sources(world.tailnet, tmp_path, lambda url: read_map(JSON, "x")).look(0.0)

    def offline(url: str) -> Any:
        raise GwError("no route")

    again = make_world(derp=derp)
    sources = Sources(again.tailnet, tmp_path, offline)
    await sources.look(0.0)
    assert list(again.tailnet.commons.derp_map().regions) == [901]
    await sources.look(1.0)
    assert [event.event for event in again.events] == ["source-refused"]  # told once


async def test_records_of_a_file_are_served_and_followed(world: Any, tmp_path: Path) -> None:
    file = tmp_path / "records.json"
    configure(world, dns=DnsSettings(extra_records_file=str(file)))
    sources = Sources(world.tailnet, tmp_path)
    await sources.look(0.0)
    assert world.tailnet.commons.dns_config().extra_records is None
    file.write_text(json.dumps([{"name": "Grafana.ghost.internal.", "type": "A", "value": "100.64.0.3"}]))
    await sources.look(1.0)
    (record,) = world.tailnet.commons.dns_config().extra_records
    assert (record.name, record.type, record.value) == ("grafana.ghost.internal", "A", "100.64.0.3")
    assert world.changes[-1].kind is ChangeKind.DNS
    file.write_text("[")
    await sources.look(2.0)
    assert world.tailnet.commons.dns_config().extra_records == [record]
    other = tmp_path / "new"
    other.write_text("[]")
    os.replace(other, file)
    await sources.look(3.0)
    assert world.tailnet.commons.dns_config().extra_records is None


@pytest.mark.parametrize(
    "item",
    [7, {}, {"name": "a", "value": "x"}, {"name": "a", "type": "AAAA", "value": "192.0.2.1"}, {"value": "192.0.2.1"},
     {"name": "a..b", "value": "192.0.2.1"}, {"name": "a", "type": "CNAME", "value": "192.0.2.1"}],
)  # fmt: skip
def test_a_record_that_clients_could_not_use_is_refused(item: Any, tmp_path: Path) -> None:
    (tmp_path / "r").write_text(json.dumps([item]))
    with pytest.raises(ConfigError, match="record 1: "):
        read_records(tmp_path / "r")


async def test_nameservers_may_leave_local_dns_alone(make_world: Any) -> None:
    world = make_world(dns=DnsSettings(nameservers=["1.1.1.1"], override_local=False))
    settings = world.tailnet.commons.dns_config()
    assert settings.resolvers is None
    assert [each.addr for each in settings.fallback_resolvers] == ["1.1.1.1"]
