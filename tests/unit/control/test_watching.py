"""Hand edits on a running server: taken over, or refused with the last good state kept."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gw.control.configfile import change_settings
from gw.control.events import acting_as
from gw.control.records import ChangeKind
from gw.control.watching import load_policy, take_over
from gw.errors import ConfigError
from gw.model.hostinfo import Hostinfo
from gw.policy.starting import ALLOW_ALL_TEXT, DENY_ALL, OWN_DEVICES_TEXT
from gw.state.changes import ExternalChange
from gw.state.config import Config, DnsSettings, WebhookSettings, load_config
from gw.state.documents import RelayNode, RelayRegionDoc
from gw.state.paths import StatePaths

PATHS = StatePaths(Path("/state"))


def edit(world: Any, kind: Any, key: Any, doc: Any = None) -> None:
    take_over(ExternalChange(kind, key, doc), world.tailnet, PATHS)


def test_a_missing_policy_allows_nothing_and_the_log_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert load_policy(tmp_path / "policy.hujson") is DENY_ALL
    assert "nothing is allowed" in caplog.text


def test_a_broken_policy_at_start_denies_all_loudly(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "policy.hujson"
    path.write_text(ALLOW_ALL_TEXT.replace("]", ""))
    assert load_policy(path) is DENY_ALL
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert f"{path}:6:42: " in caplog.text


def test_a_good_policy_is_in_force_from_the_start(tmp_path: Path) -> None:
    path = tmp_path / "policy.hujson"
    path.write_text(OWN_DEVICES_TEXT)
    assert load_policy(path).text == OWN_DEVICES_TEXT.encode()


async def test_an_edited_policy_is_in_force_at_once(world: Any) -> None:
    edit(world, "policy", "policy.hujson", ALLOW_ALL_TEXT)
    assert world.tailnet.policy.policy.text == ALLOW_ALL_TEXT.encode()
    assert [change.kind for change in world.changes] == [ChangeKind.POLICY]
    edit(world, "policy", "policy.hujson", ALLOW_ALL_TEXT)
    assert len(world.changes) == 1


async def test_a_broken_edit_of_the_policy_keeps_the_last_good_one(
    world: Any, caplog: pytest.LogCaptureFixture
) -> None:
    edit(world, "policy", "policy.hujson", '{"acls": [{}]}')
    assert world.tailnet.policy.policy.text == OWN_DEVICES_TEXT.encode()
    assert '/state/policy.hujson:1:11: action="" is not supported: the last good policy stays' in caplog.text
    assert world.events[-1].event == "policy-refused"


async def test_a_removed_policy_allows_nothing(world: Any, caplog: pytest.LogCaptureFixture) -> None:
    edit(world, "policy", "policy.hujson")
    assert world.tailnet.policy.policy is DENY_ALL
    assert "nothing is allowed" in caplog.text


async def test_a_relay_appears_and_goes(world: Any) -> None:
    doc = RelayRegionDoc(region_id=900, code="gw", name="GW", nodes=[RelayNode(name="900a", host_name="r.test")])
    edit(world, "relay", 900, doc)
    regions = world.tailnet.commons.derp_map().regions
    assert regions[900].nodes[0].host_name == "r.test"
    assert regions[900].nodes[0].region_id == 900
    edit(world, "relay", 900, doc)
    edit(world, "relay", 900)
    assert world.tailnet.commons.derp_map().regions == {}
    assert [change.kind for change in world.changes] == [ChangeKind.RELAYS] * 2


async def test_changed_settings_are_taken_over_or_wait_for_a_restart(
    world: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    config = Config(server_url="http://mesh.test", domain="other.test", dns=DnsSettings(nameservers=["1.1.1.1"]))
    edit(world, "config", "config.toml", config)
    assert [resolver.addr for resolver in world.tailnet.commons.dns_config().resolvers] == ["1.1.1.1"]
    assert world.tailnet.domain == "ghost.internal"
    assert "restart for: domain" in caplog.text
    assert [change.kind for change in world.changes] == [ChangeKind.DNS]


async def test_an_edited_node_is_shown_to_its_peers(world: Any) -> None:
    node = await world.node()
    edit(world, "node", 1, node.doc.edited(given_name="nas"))
    assert world.tailnet.roster.find("nas") is node
    assert world.changes[-1].kind is ChangeKind.CHANGED
    edit(world, "node", 1)
    assert not world.tailnet.nodes


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"given_name": "other"}, "name `other` belongs to node 2"),
        ({"addresses": ["100.64.0.2"]}, "address `100.64.0.2` belongs to another node"),
        ({"user": "nobody"}, "no such user: `nobody`"),
        ({"machine_key": "mkey:x"}, "`machine_key` cannot be changed"),
        ({"id": 5}, "`id` is 5"),
    ],
)
async def test_an_edit_that_clashes_is_refused_and_nothing_changes(
    world: Any, caplog: pytest.LogCaptureFixture, changes: dict[str, Any], fault: str
) -> None:
    node, other = await world.node(), await world.node(hostname="other")
    before = node.doc
    edit(world, "node", 1, msgspec.structs.replace(before, **changes))
    assert fault in caplog.text
    assert node.doc is before
    assert world.tailnet.by_name == {"box": node, "other": other}
    assert (await world.node()).addresses[0] == "100.64.0.3"


async def test_a_written_node_file_makes_a_node(world: Any) -> None:
    node = await world.node()
    doc = node.doc.edited(id=9, node_key="nodekey:" + "9" * 64, given_name="hand", addresses=["100.64.0.9"])
    edit(world, "node", 9, doc)
    assert world.changes[-1].kind is ChangeKind.ADDED
    assert (await world.node()).id == 10


async def test_users_are_edited_and_one_with_nodes_is_kept(world: Any, caplog: pytest.LogCaptureFixture) -> None:
    await world.node()
    user = world.tailnet.people.of_name("ann")
    edit(world, "user", "ann")
    assert "the user still has nodes" in caplog.text
    edit(world, "user", "ann", user.edited(display_name="Ann"))
    assert world.tailnet.people.of_name("ann").display_name == "Ann"


async def test_a_file_that_the_store_refused_is_in_the_trail(world: Any) -> None:
    take_over(ExternalChange("node", 1, error=ConfigError("broken")), world.tailnet, PATHS)
    assert (world.events[-1].event, world.events[-1].subject) == ("edit-refused", "node:1")


async def test_a_policy_whose_own_tests_fail_is_refused_with_each_failure(
    world: Any, caplog: pytest.LogCaptureFixture
) -> None:
    await world.node()
    text = """{
        "acls": [{"action": "accept", "src": ["ann@"], "dst": ["10.0.0.0/8:22"]}],
        "tests": [{"src": "ann@", "accept": ["10.0.0.1:22", "10.0.0.1:80"], "deny": ["10.0.0.2:22"]}],
    }"""
    edit(world, "policy", "policy.hujson", text)
    assert world.tailnet.policy.policy.text == OWN_DEVICES_TEXT.encode()
    assert "test(s) failed: the last good policy stays" in caplog.text
    assert "ann@ -> 10.0.0.1:80: expected ALLOWED, got DENIED" in caplog.text
    assert "ann@ -> 10.0.0.2:22: expected DENIED, got ALLOWED" in caplog.text
    edit(
        world, "policy", "policy.hujson", text.replace(', "10.0.0.1:80"', "").replace('"10.0.0.2:22"', '"192.0.2.1:22"')
    )
    assert b"10.0.0.0/8" in world.tailnet.policy.policy.text


async def test_routes_that_the_policy_approves_need_nobody(world: Any) -> None:
    text = (
        """{"acls": [], "tagOwners": {"tag:r": []}, "autoApprovers": {"routes": {"10.0.0.0/8": ["tag:r", "ann@"]}}}"""
    )
    node = await world.node()
    world.tailnet.reports.observe(node, hostinfo=Hostinfo(hostname="box", routable_ips=["10.1.0.0/16", "0.0.0.0/0"]))
    await world.tailnet.upkeep.maintain()
    assert node.doc.approved_routes == []
    edit(world, "policy", "policy.hujson", text)
    await world.tailnet.upkeep.maintain()
    assert node.doc.approved_routes == ["10.1.0.0/16"]
    edit(world, "policy", "policy.hujson", OWN_DEVICES_TEXT)
    await world.tailnet.upkeep.maintain()
    assert node.doc.approved_routes == ["10.1.0.0/16"]  # approvals stay


async def test_relays_and_names_of_the_policy_reach_the_map(world: Any) -> None:
    edit(world, "relay", 900, RelayRegionDoc(region_id=900, code="gw", name="GW", nodes=[]))
    text = """{
        "acls": [],
        "derpMap": {"Regions": {"900": null, "901": {"RegionID": 901, "RegionCode": "own", "Nodes": []}}},
        "extraDNSRecords": [{"Name": "Printer.ghost.internal.", "Value": "192.0.2.9"}],
    }"""
    edit(world, "policy", "policy.hujson", text)
    assert list(world.tailnet.commons.derp_map().regions) == [901]
    (record,) = world.tailnet.commons.dns_config().extra_records
    assert (record.name, record.value) == ("printer.ghost.internal", "192.0.2.9")
    edit(world, "policy", "policy.hujson", OWN_DEVICES_TEXT)
    assert list(world.tailnet.commons.derp_map().regions) == [900]


async def test_a_removed_api_key_opens_nothing_and_an_edited_one_what_it_says(world: Any) -> None:
    from gw.control import apikeys
    from gw.errors import AuthRequired

    doc, text = await apikeys.create_api_key(world.tailnet)
    edit(world, "apikey", doc.prefix, doc.edited(scopes=["users:read"]))
    assert (await apikeys.identify(world.tailnet, text, b"")).scopes == ("users:read",)
    edit(world, "apikey", doc.prefix)
    with pytest.raises(AuthRequired, match="invalid API key"):
        await apikeys.identify(world.tailnet, text, b"")
    assert world.events[-1].event == "apikey-deleted"


async def test_a_removed_preauth_key_lets_its_addresses_go(world: Any) -> None:
    await world.key(addresses=["100.64.0.9"])
    (doc,) = world.tailnet.preauth_keys.values()
    edit(world, "preauthkey", doc.prefix, doc.edited(addresses=["100.64.0.8"]))
    await world.key(addresses=["100.64.0.9"])
    edit(world, "preauthkey", doc.prefix)
    await world.key(addresses=["100.64.0.8"])


async def test_every_hand_edit_is_an_event_with_before_and_after(world: Any) -> None:
    user = await world.user()
    await world.key()
    key = next(iter(world.tailnet.preauth_keys.values()))
    doc = RelayRegionDoc(region_id=900, code="gw", name="GW", nodes=[RelayNode(name="900a", host_name="r.test")])
    world.events.clear()
    edit(world, "user", "ann", user.edited(display_name="Ann"))
    edit(world, "user", "ann", world.tailnet.users["ann"])
    edit(world, "user", "ben", user.edited(name="ben", id=7))
    edit(world, "user", "ben")
    edit(world, "preauthkey", key.prefix, key.edited(description="for the lab"))
    edit(world, "relay", 900, doc)
    edit(world, "relay", 900, msgspec.structs.replace(doc, name="Office"))
    edit(world, "relay", 900)
    told = [(each.event, each.subject, each.before, each.after) for each in world.events]
    assert told[0] == ("user-edited", "user:ann", {"display_name": ""}, {"display_name": "Ann"})
    assert [each[:2] for each in told[1:3]] == [("user-created", "user:ben"), ("user-deleted", "user:ben")]
    assert told[2][2]["name"] == "ben"
    assert told[3][:2] == ("preauthkey-edited", f"preauthkey:{key.prefix}")
    assert told[3][3] == {"description": "for the lab"}
    assert [each[0] for each in told[4:]] == ["relay-added", "relay-changed", "relay-removed"]
    assert told[5][2:] == ({"name": "GW"}, {"name": "Office"})


async def test_edited_settings_are_told_one_by_one_and_once(world: Any) -> None:
    webhook = WebhookSettings(name="chat", url="https://chat.test/secret-token", secret_file="/s")
    fields = {"server_url": "http://mesh.test", "domain": "other.test", "webhooks": [webhook]}
    for dns in (DnsSettings(magic=False), DnsSettings(magic=False), DnsSettings()):
        edit(world, "config", "config.toml", Config(**fields, dns=dns))
    told = {each.subject: (each.before, each.after) for each in world.events[:3]}
    assert told["config:dns.magic"] == ({"value": True}, {"value": False})
    assert told["config:domain"] == ({"value": "ghost.internal"}, {"value": "other.test"})
    assert "secret-token" not in str(told["config:webhooks"])
    assert [each.subject for each in world.events[3:]] == ["config:dns.magic"]


async def test_a_change_through_the_server_is_no_hand_edit(world: Any, tmp_path: Path) -> None:
    """The file's own event may come before the change is in force here."""
    path = tmp_path / "config.toml"
    path.write_text('server_url = "http://mesh.test"\n')
    world.tailnet.folder = tmp_path
    with acting_as("root (uid 0)"):
        changing = asyncio.get_running_loop().create_task(change_settings(world.tailnet, {"dns.magic": False}))
    while "magic" not in path.read_text():  # noqa: ASYNC110  written by a thread
        await asyncio.sleep(0.001)
    with acting_as("hand edit"):
        edit(world, "config", "config.toml", load_config(path))
    await changing
    assert [(each.subject, each.actor) for each in world.events] == [("config:dns.magic", "root (uid 0)")]
