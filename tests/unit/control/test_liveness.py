"""Routers of a shared subnet: elected once, replaced when they fall silent, and nothing flaps."""

from __future__ import annotations

from typing import Any

import pytest

from gw.control.liveness import WELL_AFTER, Liveness
from gw.control.records import ChangeKind, NodeRecord
from gw.model.hostinfo import Hostinfo

NET = "10.0.0.0/24"


class Streams:
    """What would go to clients: who answers, and on which stream."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, str]] = []
        self.number: dict[int, int] = {}

    def __call__(self, node: NodeRecord, url: str) -> int:
        self.sent.append((node.id, url))
        return self.number.get(node.id, node.id)


class Mesh:
    def __init__(self, world: Any) -> None:
        self.world = world
        self.tailnet = world.tailnet
        self.streams = Streams()
        self.liveness = Liveness(self.tailnet, self.streams)

    async def router(self, name: str) -> NodeRecord:
        node: NodeRecord = await self.world.node(hostname=name)
        self.tailnet.reports.observe(node, hostinfo=Hostinfo(hostname=name, routable_ips=[NET]))
        await self.tailnet.approve_routes(node, [NET])
        self.tailnet.reports.set_online(node, True)
        return node

    def round(self, *answering: NodeRecord, late: bool = False) -> None:
        """One probe of everyone; late: they answer only the second ping."""
        ids = {node.id for node in answering}
        self.liveness.begin(self.tailnet.routes.contenders())
        if not late:
            self._answer(ids)
        self.liveness.remind()
        self._answer(ids)
        self.liveness.judge()

    def _answer(self, ids: set[int]) -> None:
        for node_id, url in self.streams.sent:
            if node_id in ids:
                self.liveness.answered(url.partition("?id=")[2])
        self.streams.sent.clear()

    @property
    def primary(self) -> int | None:
        return self.tailnet.routes.primary(NET)


@pytest.fixture
def mesh(world: Any) -> Mesh:
    return Mesh(world)


async def test_a_single_router_is_never_probed(mesh: Mesh) -> None:
    node = await mesh.router("a")
    assert mesh.tailnet.routes.contenders() == []
    assert mesh.primary == node.id


async def test_a_silent_primary_is_replaced_and_takes_nothing_back(mesh: Mesh) -> None:
    one, two = await mesh.router("a"), await mesh.router("b")
    mesh.round(one, two)
    assert mesh.primary == one.id
    told = len(mesh.world.changes)
    mesh.round(two)
    assert (mesh.primary, one.is_unwell, one.online) == (two.id, True, True)
    changed = [change.node for change in mesh.world.changes[told:] if change.kind is ChangeKind.CHANGED]
    assert changed == [one, two] or changed == [two, one]
    names = [event.event for event in mesh.world.events]
    assert names[-2:] == ["router-unwell", "route-taken-over"]
    assert mesh.world.events[-1].after == {"router": two.id}
    for _ in range(WELL_AFTER):
        assert one.is_unwell
        mesh.round(one, two)
    assert (mesh.primary, one.is_unwell) == (two.id, False)


async def test_one_lost_ping_is_no_silence(mesh: Mesh) -> None:
    one, two = await mesh.router("a"), await mesh.router("b")
    mesh.round(one, two)
    mesh.round(one, two, late=True)
    assert mesh.primary == one.id


async def test_a_router_that_comes_and_goes_moves_a_subnet_once(mesh: Mesh) -> None:
    one, two = await mesh.router("a"), await mesh.router("b")
    mesh.round(one, two)
    moves = 0
    for number in range(20):
        before = mesh.primary
        mesh.round(*([one, two] if number % 2 else [two]))
        moves += mesh.primary != before
    assert (moves, mesh.primary) == (1, two.id)


async def test_where_all_are_silent_nothing_moves(mesh: Mesh) -> None:
    one, two = await mesh.router("a"), await mesh.router("b")
    mesh.round(one, two)
    mesh.round(two)
    mesh.round()
    assert (mesh.primary, one.is_unwell, two.is_unwell) == (two.id, True, True)
    mesh.tailnet.reports.set_online(two, False)
    assert mesh.primary == one.id


async def test_a_client_that_never_answers_is_as_alive_as_its_stream(mesh: Mesh) -> None:
    one, two = await mesh.router("a"), await mesh.router("b")
    for _ in range(5):
        mesh.round(two)
    assert (mesh.primary, one.is_unwell) == (one.id, False)
    mesh.tailnet.reports.set_online(one, False)
    assert mesh.primary == two.id
    mesh.tailnet.reports.set_online(one, True)
    assert mesh.primary == two.id


async def test_a_new_stream_begins_with_a_clean_record(mesh: Mesh) -> None:
    one, two = await mesh.router("a"), await mesh.router("b")
    mesh.round(one, two)
    mesh.streams.number[one.id] = 77
    mesh.round(two)
    assert (mesh.primary, one.is_unwell) == (one.id, False)


async def test_an_answer_that_nobody_asked_for_proves_nothing(mesh: Mesh) -> None:
    one, two = await mesh.router("a"), await mesh.router("b")
    mesh.round(one, two)
    assert not mesh.liveness.answered("0" * 16)
    mesh.liveness.begin(mesh.tailnet.routes.contenders())
    ping = next(url for node_id, url in mesh.streams.sent if node_id == one.id).partition("?id=")[2]
    mesh.liveness.judge()
    assert not mesh.liveness.answered(ping)  # too late


async def test_a_subnet_that_is_shared_no_more_makes_its_routers_well(mesh: Mesh) -> None:
    one, two = await mesh.router("a"), await mesh.router("b")
    mesh.round(one, two)
    mesh.round(two)
    assert one.is_unwell
    await mesh.tailnet.approve_routes(two, [])
    mesh.liveness.begin(mesh.tailnet.routes.contenders())
    assert (one.is_unwell, mesh.primary) == (False, one.id)


async def test_the_url_leads_to_this_server(mesh: Mesh) -> None:
    await mesh.router("a")
    await mesh.router("b")
    mesh.liveness.begin(mesh.tailnet.routes.contenders())
    urls = [url for _, url in mesh.streams.sent]
    assert len(set(urls)) == 2
    assert all(url.startswith("http://mesh.test/machine/ping-response?id=") for url in urls)


async def test_the_list_of_routes_names_who_serves_and_who_stands_by(mesh: Mesh) -> None:
    from gw.control.admin import answer

    one, two = await mesh.router("a"), await mesh.router("b")
    mesh.round(one, two)
    mesh.round(two)
    routes = (await answer(mesh.tailnet, "GET", "/api/v1/routes"))["routes"]
    assert [(each["node"], each["primary"], each["healthy"]) for each in routes] == [
        ("a", False, False), ("b", True, True),
    ]  # fmt: skip
    mesh.tailnet.reports.observe(two, hostinfo=Hostinfo(hostname="b", routable_ips=[NET, "0.0.0.0/0"]))
    routes = (await answer(mesh.tailnet, "GET", "/api/v1/routes?node=b"))["routes"]
    assert [(each["prefix"], each["approved"], each["exit"]) for each in routes] == [
        ("0.0.0.0/0", False, True), (NET, True, False),
    ]  # fmt: skip
