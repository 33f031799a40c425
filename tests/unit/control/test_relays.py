"""The relay map as administrators change it: checked, durable, visible at once, told, and taken back."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gw.control import admin, relays
from gw.control.events import acting_as
from gw.control.records import ChangeKind
from gw.control.undo import Undo, describe
from gw.errors import Conflict, GwError, NotFound, PermissionNeeded, UsageError
from gw.policy.reader import read_policy
from gw.state.documents import RelayRegionDoc
from gw.state.settling import document_path


@pytest.fixture
def undo(world: Any) -> Undo:
    return Undo(world.tailnet)


async def call(world: Any, method: str, path: str, **body: Any) -> Any:
    with acting_as("root (uid 0)"):
        return await admin.answer(world.tailnet, method, f"/api/v1/relays{path}", msgspec.json.encode(body))


def in_map(world: Any) -> dict[int, list[str]]:
    regions = world.tailnet.commons.derp_map().regions
    return {number: [node.name for node in region.nodes] for number, region in regions.items()}


async def test_a_relay_is_durable_visible_and_told(world: Any) -> None:
    made = await call(world, "POST", "", regionId=901, regionCode="fra", hostName="r.example.org", stunPort=-1)
    assert made["region"]["nodes"][0]["name"] == "901a"
    assert world.store.documents["relay", 901].nodes[0].host_name == "r.example.org"
    assert in_map(world) == {901: ["901a"]}
    assert world.changes[-1].kind is ChangeKind.RELAYS
    event = world.events[-1]
    assert (event.event, event.actor, event.subject) == ("relay-added", "root (uid 0)", "relay:901")
    await call(world, "POST", "", regionId=901, hostName="192.0.2.9")
    await call(world, "PATCH", "/fra/nodes/901b", derpPort=8443)
    event = world.events[-1]
    assert event.event == "relay-changed"
    assert event.before is not None and event.after is not None
    assert [each.derpport for each in (*event.before["nodes"], *event.after["nodes"])] == [0, 0, 0, 8443]
    await call(world, "PATCH", "/901", name="Frankfurt")
    assert [(each["regionId"], each["name"], each["source"]) for each in (await call(world, "GET", ""))["regions"]] == [
        (901, "Frankfurt", "relays")
    ]
    await call(world, "DELETE", "/901/nodes/901a")
    assert in_map(world) == {901: ["901b"]}
    await call(world, "DELETE", "/901/nodes/901b")
    assert in_map(world) == {} and ("relay", 901) not in world.store.documents


async def test_every_change_of_the_map_is_taken_back(world: Any, undo: Undo) -> None:
    steps = (
        ("POST", "", {"regionId": 910, "hostName": "a.example.org"}, "removed"),
        ("POST", "", {"regionId": 910, "hostName": "b.example.org"}, "910b removed"),
        ("PATCH", "/910/nodes/910b", {"derpPort": 8443}, "910b.derpport = 0"),
        ("PATCH", "/910", {"code": "here"}, "code = 'r910'"),
        ("DELETE", "/910/nodes/910a", {}, "910a brought back"),
        ("DELETE", "/910", {}, "brought back"),
    )
    seen: list[Any] = []
    for method, path, body, _ in steps:
        seen.append(world.tailnet.commons.relays.get(910))
        await call(world, method, path, **body)
    for *_, said in reversed(steps):
        with acting_as("root (uid 0)"):
            (line,) = describe(await undo.undo())
        assert line.endswith(said)
        before, now = seen.pop(), world.tailnet.commons.relays.get(910)
        if before is None:
            assert now is None and ("relay", 910) not in world.store.documents
        else:
            assert msgspec.structs.replace(now, revision=before.revision) == before
            assert world.store.documents["relay", 910] == now
    assert [each.event for each in world.events][-2:] == ["relay-removed", "change-undone"]


async def test_a_change_that_something_was_built_on_is_not_taken_back(world: Any, undo: Undo) -> None:
    await call(world, "POST", "", regionId=910, name="one", hostName="a.example.org")
    await call(world, "DELETE", "/910")
    world.tailnet.commons.set_relay(
        901, RelayRegionDoc(region_id=901, code="x", name="x", nodes=[relays.RelayNode(name="one", host_name="c.d")])
    )
    with acting_as("root (uid 0)"), pytest.raises(Conflict, match="`one` is in another region"):
        await undo.undo()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"regionId": 0, "hostName": "a.b"}, "not a region"),
        ({"regionId": 1 << 31, "hostName": "a.b"}, "not a region"),
        ({"regionId": 910}, "not a host"),
        ({"regionId": 910, "hostName": "a..b"}, "not a host"),
        ({"regionId": 910, "hostName": "a b"}, "not a host"),
        ({"regionId": 910, "hostName": "300.1.1.1"}, "not a host"),
        ({"regionId": 910, "hostName": "x" * 64}, "not a host"),
        ({"regionId": 910, "hostName": "a.b", "name": "é"}, "not a relay's name"),
        ({"regionId": 910, "hostName": "a.b", "ipv4": "::1"}, "not an ipv4 address"),
        ({"regionId": 910, "hostName": "a.b", "ipv6": "x"}, "not an ipv6 address"),
        ({"regionId": 910, "hostName": "a.b", "derpPort": 65536}, "not a port"),
        ({"regionId": 910, "hostName": "a.b", "stunPort": -2}, "not a STUN port"),
        ({"regionId": 910, "hostName": "a.b", "certName": "sha256-raw:00"}, "not the name of a certificate"),
        ({"regionId": 910, "hostName": "a.b", "quicPort": 3478}, "QUIC needs"),
        ({"regionId": 910, "hostName": "a.b", "relayKey": "00", "quicPort": 1}, "not the key"),
        ({"regionId": 910, "hostName": "a.b", "regionCode": "1"}, "not a region's code"),
        ({"regionId": 910, "hostName": "a.b", "regionName": "a\nb"}, "not a region's name"),
    ],
)
async def test_what_a_client_could_not_read_never_gets_in(world: Any, body: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        await call(world, "POST", "", **body)
    assert in_map(world) == {} and not world.store.documents


async def test_names_and_codes_are_of_one_relay_and_one_region(world: Any) -> None:
    await call(world, "POST", "", regionId=910, regionCode="a", name="one", hostName="a.example.org")
    for body in (
        {"regionId": 901, "name": "one", "hostName": "b.example.org"},
        {"regionId": 901, "regionCode": "a", "hostName": "b.example.org"},
        {"regionId": 910, "regionCode": "b", "hostName": "b.example.org"},
    ):
        with pytest.raises(Conflict):
            await call(world, "POST", "", **body)
    for method, path in (("PATCH", "/7"), ("DELETE", "/7"), ("DELETE", "/910/nodes/x"), ("PATCH", "/910/nodes/x")):
        with pytest.raises(NotFound):
            await call(world, method, path)
    assert in_map(world) == {910: ["one"]}


async def test_the_place_of_a_relay_beside_the_server_stays_free(world: Any) -> None:
    """gwrelay enters itself as `900a`; a relay elsewhere by that name would be overwritten."""
    made = (await call(world, "POST", "", regionId=900, hostName="a.example.org"))["region"]
    assert (made["code"], made["name"], made["nodes"][0]["name"]) == ("gw", "GhostWire", "900b")


async def test_changing_nothing_is_no_event(world: Any) -> None:
    await call(world, "POST", "", regionId=910, hostName="a.example.org")
    told = len(world.events)
    await call(world, "PATCH", "/910/nodes/910a", hostName="a.example.org")
    await call(world, "PATCH", "/910", code="r910")
    assert len(world.events) == told


async def test_the_list_tells_where_a_region_comes_from(make_world: Any) -> None:
    text = b'{"derpMap": {"Regions": {"912": {"RegionID": 912, "RegionCode": "p", "Nodes": []}}}}'
    world = make_world(read_policy(text))
    await call(world, "POST", "", regionId=910, hostName="a.example.org")
    listed = (await call(world, "GET", ""))["regions"]
    assert [(each["regionId"], each["source"]) for each in listed] == [(910, "relays"), (912, "policy")]
    with pytest.raises(NotFound) as raised:
        await call(world, "DELETE", "/912")
    assert "policy" in str(raised.value.hint)


async def test_a_failed_disk_changes_nothing(world: Any) -> None:
    world.store.broken = True
    with pytest.raises(GwError, match="no space"):
        await call(world, "POST", "", regionId=910, hostName="a.example.org")
    assert in_map(world) == {}


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A state directory that belongs to somebody else."""
    with tempfile.TemporaryDirectory(prefix="gw-test-") as name:
        root = Path(name)
        folder = document_path(root, "relay", 910).parent
        folder.mkdir(mode=0o555)
        root.chmod(0o755)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            yield root
        finally:
            os.seteuid(user)
            folder.chmod(0o755)


async def test_a_folder_that_is_not_the_servers_is_said_before_anything_is_promised(
    world: Any, elsewhere: Path
) -> None:
    """A document that can never reach its file would hold up the settling of all that follow."""
    world.tailnet.folder = elsewhere
    with pytest.raises(PermissionNeeded, match="may not write"):
        await call(world, "POST", "", regionId=910, hostName="a.example.org")
    assert not world.store.documents
