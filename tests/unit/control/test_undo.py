"""Taking the last administrative change back, and refusing where the world has moved on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gw.control import accounts, enrolment
from gw.control.events import acting_as
from gw.control.undo import Undo, describe
from gw.control.watching import take_over
from gw.errors import Conflict, NotFound
from gw.policy.starting import ALLOW_ALL_TEXT, OWN_DEVICES_TEXT
from gw.state.changes import ExternalChange
from gw.state.paths import StatePaths


class Admin:
    """A tailnet that an administrator works on."""

    def __init__(self, world: Any, folder: Path) -> None:
        self.world = world
        self.tailnet = world.tailnet
        self.path = folder / "undo.jsonl"
        self.undo = Undo(self.tailnet, self.path)

    async def does(self, work: Any) -> Any:
        self.world.forward(seconds=1)
        with acting_as("root (uid 0)"):
            return await work

    async def takes_back(self, **options: Any) -> list[str]:
        return describe(await self.does(self.undo.undo(**options)))

    @property
    def documents(self) -> dict[Any, Any]:
        """What is durable, apart from counters and revisions."""
        return {
            key: msgspec.structs.replace(doc, revision=0, **({"last_seen": None} if key[0] == "node" else {}))
            for key, doc in self.world.store.documents.items()
            if key[0] != "server"
        }


@pytest.fixture
def admin(world: Any, tmp_path: Path) -> Admin:
    return Admin(world, tmp_path)


CHANGES: dict[str, Callable[[Any, Any], Any]] = {
    "rename": lambda t, node: t.rename(node, "nas"),
    "expire": lambda t, node: t.expire(node, t.clock()),
    "tag": lambda t, node: t.set_tags(node, ["tag:web"]),
    "routes": lambda t, node: t.approve_routes(node, ["10.0.0.0/8"]),
    "delete": lambda t, node: t.delete(node),
    "create user": lambda t, node: accounts.create_user(t, "bob"),
    "rename user": lambda t, node: accounts.rename_user(t, t.people.of_name("ann"), "anna"),
    "create key": lambda t, node: accounts.create_preauth_key(t, user=t.people.of_name("ann")),
    "expire key": lambda t, node: accounts.expire_preauth_key(t, next(iter(t.preauth_keys.values()))),
    "delete key": lambda t, node: accounts.delete_preauth_key(t, next(iter(t.preauth_keys.values()))),
}


@pytest.mark.parametrize("name", CHANGES)
async def test_every_change_comes_back_as_it_was_also_after_a_restart(admin: Admin, name: str) -> None:
    node = await admin.world.node(reusable=True)
    before = admin.documents
    await admin.does(CHANGES[name](admin.tailnet, node))
    assert admin.documents != before
    again = admin.world.reloaded()
    later = Admin(again, admin.path.parent)
    assert await later.takes_back()
    assert later.documents == before
    assert again.events[-1].event == "change-undone"
    assert again.events[-1].actor == "root (uid 0)"
    third = again.reloaded()
    assert sorted(third.tailnet.nodes) == [1]  # what is durable is what is shown
    assert {n.given_name for n in (doc for key, doc in again.store.documents.items() if key[0] == "node")} == {"box"}


async def test_a_deleted_user_comes_back_with_keys(admin: Admin) -> None:
    await admin.world.key("bob", reusable=True)
    before = admin.documents
    await admin.does(accounts.destroy_user(admin.tailnet, admin.tailnet.people.of_name("bob")))
    assert not admin.documents
    await admin.takes_back()
    assert admin.documents == before
    assert admin.tailnet.people.of_name("bob")


async def test_again_takes_back_the_one_before_until_nothing_is_left(admin: Admin) -> None:
    node = await admin.world.node()
    for name in ("a", "b", "c"):
        await admin.does(admin.tailnet.rename(node, name))
    names = []
    for _ in range(3):
        await admin.takes_back()
        names.append(node.doc.given_name)
    assert names == ["b", "a", "box"]
    with pytest.raises(NotFound, match="no administrative change"):
        await admin.takes_back()


async def test_a_dry_run_says_it_and_changes_nothing(admin: Admin) -> None:
    node = await admin.world.node()
    await admin.does(admin.tailnet.rename(node, "nas"))
    before = admin.documents
    assert await admin.takes_back(dry_run=True) == ["node nas: given_name = 'box'"]
    assert admin.documents == before
    assert await admin.takes_back()


async def test_what_machines_do_is_no_step_and_does_not_stand_in_the_way(admin: Admin) -> None:
    node = await admin.world.node()
    await admin.does(admin.tailnet.approve_routes(node, ["10.0.0.0/8"]))
    key = await admin.world.key("ann")
    await enrolment.register_preauth(admin.tailnet, node.doc.machine_key, admin.world.request(key))
    other = await admin.world.node("bob", "other")
    await admin.takes_back()
    assert node.doc.approved_routes == []
    assert admin.tailnet.roster.has(other)


async def test_a_field_changed_since_is_left_alone(admin: Admin) -> None:
    node = await admin.world.node()
    await admin.does(admin.tailnet.rename(node, "nas"))
    await admin.tailnet.rename(node, "hand")  # not by an administrator
    with pytest.raises(Conflict, match="`given_name` of `node 1` was changed since"):
        await admin.takes_back()
    assert node.doc.given_name == "hand"


async def test_a_deleted_node_whose_name_or_address_went_to_another_stays_deleted(admin: Admin) -> None:
    node = await admin.world.node()
    await admin.does(admin.tailnet.delete(node))
    await admin.world.node("bob", "box")
    with pytest.raises(Conflict, match="name `box` belongs to node 2"):
        await admin.takes_back()
    assert sorted(admin.tailnet.nodes) == [2]


async def test_a_user_who_has_a_node_by_now_stays(admin: Admin) -> None:
    await admin.does(accounts.create_user(admin.tailnet, "bob"))
    await admin.world.node("bob")
    with pytest.raises(Conflict, match="user has nodes"):
        await admin.takes_back()


async def test_a_key_that_admitted_somebody_stays(admin: Admin) -> None:
    await admin.world.user("ann")
    _, text = await admin.does(accounts.create_preauth_key(admin.tailnet, user=admin.tailnet.people.of_name("ann")))
    await enrolment.register_preauth(admin.tailnet, "mkey:" + "5" * 64, admin.world.request(text))
    with pytest.raises(Conflict, match="`used` of"):
        await admin.takes_back()


async def test_a_hand_edit_is_taken_back_by_hand(admin: Admin) -> None:
    node = await admin.world.node()
    await admin.does(admin.tailnet.rename(node, "nas"))
    paths = StatePaths(Path("/state"))
    take_over(ExternalChange("node", 1, node.doc.edited(given_name="hand")), admin.tailnet, paths)
    with pytest.raises(Conflict, match="the last change was a hand edit: `node 1`"):
        await admin.takes_back()


async def test_a_relay_that_enters_itself_does_not_stand_in_the_way(admin: Admin) -> None:
    from gw.state.documents import RelayNode, RelayRegionDoc
    from gw.state.relayentries import entered

    node = await admin.world.node()
    await admin.does(admin.tailnet.rename(node, "nas"))
    own = entered(RelayNode(name="900a", host_name="a.test"), "gw", "GW")
    doc = RelayRegionDoc(region_id=900, code="gw", name="GW", nodes=[own])
    take_over(ExternalChange("relay", 900, doc), admin.tailnet, StatePaths(Path("/state")))
    told = admin.world.events[-1]
    assert (told.event, told.actor, told.subject) == ("relay-entered", "gwrelay 900a", "relay:900")
    assert admin.tailnet.commons.relays[900] == doc
    assert await admin.takes_back() == ["node nas: given_name = 'box'"]
    by_hand = doc.edited(nodes=[msgspec.structs.replace(own, host_name="b.test")])
    await admin.does(admin.tailnet.rename(node, "nas"))
    take_over(ExternalChange("relay", 900, by_hand), admin.tailnet, StatePaths(Path("/state")))
    assert admin.world.events[-1].event == "relay-changed"
    with pytest.raises(Conflict, match="hand edit: `relay 900`"):
        await admin.takes_back()


async def test_a_policy_comes_back_and_its_file_too(admin: Admin, tmp_path: Path) -> None:
    from gw.control.policyfile import policy_file

    admin.tailnet.folder = tmp_path
    file = tmp_path / "policy.hujson"
    file.write_text(OWN_DEVICES_TEXT)
    await admin.does(policy_file(admin.tailnet).replace(admin.tailnet, ALLOW_ALL_TEXT.encode()))
    assert file.read_text() == ALLOW_ALL_TEXT
    assert await admin.takes_back() == ["policy: the text before"]
    assert file.read_text() == OWN_DEVICES_TEXT
    assert admin.tailnet.policy.policy.text == OWN_DEVICES_TEXT.encode()


async def test_settings_come_back_unless_they_were_changed_since(admin: Admin, tmp_path: Path) -> None:
    from gw.control.configfile import change_settings

    admin.tailnet.folder = tmp_path
    (tmp_path / "config.toml").write_text('server_url = "http://mesh.test"  # kept\n')
    await admin.does(change_settings(admin.tailnet, {"dns.magic": False}))
    assert not admin.tailnet.config.dns.magic
    assert await admin.takes_back() == ["config: dns.magic = true"]
    assert admin.tailnet.config.dns.magic
    assert "# kept" in (tmp_path / "config.toml").read_text()


async def test_a_step_that_fails_on_the_disk_can_be_tried_again(admin: Admin) -> None:
    node = await admin.world.node()
    await admin.does(admin.tailnet.delete(node))
    admin.world.store.broken = True
    from gw.errors import GwError

    with pytest.raises(GwError, match="no space"):
        await admin.takes_back()
    admin.world.store.broken = False
    await admin.takes_back()
    assert sorted(admin.tailnet.nodes) == [1]


async def test_steps_hold_no_secret_text_and_only_the_owner_reads_them(admin: Admin) -> None:
    await admin.world.user("ann")
    _, text = await admin.does(accounts.create_preauth_key(admin.tailnet, user=admin.tailnet.people.of_name("ann")))
    assert text.rpartition("-")[2] not in admin.path.read_text()
    assert admin.path.stat().st_mode & 0o777 == 0o600


async def test_the_file_does_not_grow_without_end(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    from gw.control import undo

    monkeypatch.setattr(undo, "MAX_BYTES", 20_000)
    node = await admin.world.node()
    for number in range(200):
        await admin.does(admin.tailnet.rename(node, f"n{number}"))
    assert admin.path.stat().st_size < 200_000
    later = Admin(admin.world.reloaded(), admin.path.parent)
    assert await later.takes_back() == ["node n199: given_name = 'n198'"]
