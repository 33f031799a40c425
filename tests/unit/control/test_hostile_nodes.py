"""Whatever a node calls itself and says of itself: the maps of the others stay whole, and every name in them is one."""

from __future__ import annotations

import asyncio
import json
import re
from ipaddress import ip_address, ip_network
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from gw.control import enrolment
from gw.control.mapper import Mapper
from gw.errors import GwError
from gw.model.addresses import AddrPort
from gw.model.gojson import decoder, encode
from gw.model.hostinfo import Hostinfo, NetInfo, Service
from gw.model.mapping import MapRequest
from gw.model.registration import RegisterRequest
from gw.policy.reader import read_policy
from gw.policy.starting import ALLOW_ALL_TEXT
from tests.unit.control.conftest import MemoryStore, World

FQDN = re.compile(r"(?=.{1,253}\.\Z)(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+", re.ASCII)
KEY = re.compile(r"(?:nodekey|discokey|mkey):[0-9a-f]{64}", re.ASCII)

said = st.text(max_size=300) | st.sampled_from(
    ["", "box", "BOX.local", "-", "..", "a" * 300, "xn--", "\0", "naïve", "\u202ebox", "box.", "1", "node-1"]
)
routes = said | st.sampled_from(["10.0.0.0/8", "10.0.0.1/8", "::/0", "0.0.0.0/0", "1/1", "fe80::1%eth0/64"])
reports = st.builds(
    Hostinfo,
    hostname=said,
    os=said,
    os_version=said,
    ipn_version=said,
    distro=said,
    routable_ips=st.none() | st.lists(routes, max_size=5),
    services=st.none()
    | st.lists(st.builds(Service, proto=said, port=st.integers(-1, 70000), description=said), max_size=3),
    ssh_host_keys=st.none() | st.lists(said, max_size=2),
    net_info=st.none() | st.builds(NetInfo, preferred_derp=st.integers(-1, 1 << 40)),
)
points = st.lists(said | st.sampled_from(["192.0.2.1:1", "[fe80::1]:1", "[::1%eth0]:1", "1.2.3.4:0"]), max_size=4)
versions = st.sampled_from([113, 1 << 15, 1 << 40, (1 << 63) - 1])
Claims = tuple[Hostinfo, list[str], str, int]
read_register, read_map = decoder(RegisterRequest), decoder(MapRequest)


@settings(max_examples=60)
@given(st.lists(st.tuples(reports, points, said, versions), min_size=1, max_size=6))
def test_a_peer_that_says_anything_harms_nobodys_map(crowd: list[Claims]) -> None:
    for told in asyncio.run(what_is_told(crowd)):
        assert b"\\u0000" not in told
        message = json.loads(told.decode())
        nodes = [message["Node"], *message["Peers"]]
        assert len({node["Name"] for node in nodes}) == len(nodes) == len(crowd) + 1
        for node in nodes:
            check_node(node)


async def what_is_told(crowd: list[Claims]) -> list[bytes]:
    """The whole maps that all get, after each has said what it says, at its login and in a map request."""
    world = World(MemoryStore(), read_policy(ALLOW_ALL_TEXT.encode()))
    key = await world.key(reusable=True)
    nodes = [await world.node()]
    for report, endpoints, disco, version in crowd:
        login = read_register(encode(replace(world.request(key), hostinfo=report)))
        node = await enrolment.register_preauth(world.tailnet, world.fresh("mkey:"), login)
        asked = read_map(
            encode(MapRequest(version=version, node_key=login.node_key, hostinfo=report, endpoints=endpoints))
        )
        world.tailnet.reports.observe(
            node, hostinfo=asked.hostinfo, endpoints=asked.endpoints, disco_key=disco, cap=asked.version
        )
        try:
            await world.tailnet.approve_routes(node, node.advertised_routes)
        except GwError as error:
            raise AssertionError("a route that was taken in is one") from error
        nodes.append(node)
    await world.tailnet.upkeep.maintain()
    mapper = Mapper(world.tailnet)
    return [mapper.whole(node, [each for each in nodes if each is not node], b"") for node in nodes]


def check_node(node: dict[str, Any]) -> None:
    """What Go's decoder and the client insist on. Control protocol §6.2, appendix B"""
    assert FQDN.fullmatch(node["Name"]), node["Name"]
    for field in ("Key", "DiscoKey", "Machine"):
        assert field not in node or KEY.fullmatch(node[field]), node[field]
    for prefix in (*node["Addresses"], *node["AllowedIPs"], *(node["Hostinfo"].get("RoutableIPs") or [])):
        ip_network(prefix)
        assert "%" not in prefix
    for point in node.get("Endpoints") or []:
        parsed = AddrPort.parse(point)
        assert parsed.port and "%" not in point and ip_address(parsed.host)
    for service in node["Hostinfo"].get("Services") or []:
        assert 0 <= service.get("Port", 0) <= 65535
    for field in ("HomeDERP", "Cap"):  # of Go's type `int`, which has 32 bits on some devices
        assert 0 <= node.get(field, 0) < 1 << 31
