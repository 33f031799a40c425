"""`set-dns`: a node proves its own name and no other."""

from __future__ import annotations

from typing import Any

import pytest

from gw.control.certificates import NoBackend, SetDns, set_dns
from gw.control.mapper import Mapper
from gw.errors import GwError, NotFound, PermissionNeeded, UsageError

VALUE = "x" * 43


class Backend:
    def __init__(self) -> None:
        self.shown: list[tuple[str, str]] = []

    async def publish_txt(self, name: str, value: str) -> None:
        self.shown.append((name, value))


def asked(node: Any, **fields: Any) -> SetDns:
    given = {"name": f"_acme-challenge.{node.fqdn}", "type": "TXT", "value": VALUE, "node_key": node.doc.node_key}
    return SetDns(**(given | fields))


async def test_the_record_reaches_the_backend_and_the_node_learns_that_it_may_ask(world: Any) -> None:
    node = await world.node()
    assert b"CertDomains" not in Mapper(world.tailnet).dns(node)
    backend = world.tailnet.publisher = Backend()
    await set_dns(world.tailnet, node.doc.machine_key, asked(node))
    assert backend.shown == [("_acme-challenge.box.ghost.internal", VALUE)]
    assert world.events[-1].event == "certificate-challenge"
    assert b'"CertDomains":["box.ghost.internal"]' in Mapper(world.tailnet).dns(node)


async def test_without_a_backend_the_answer_is_that_there_is_none(world: Any) -> None:
    node = await world.node()
    with pytest.raises(NoBackend):
        await set_dns(world.tailnet, node.doc.machine_key, asked(node))


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"name": "_acme-challenge.other.ghost.internal"}, PermissionNeeded),
        ({"name": "_acme-challenge.ghost.internal"}, PermissionNeeded),
        ({"name": "box.ghost.internal"}, UsageError),
        ({"type": "A"}, UsageError),
        ({"value": 'x" "y'}, UsageError),
        ({"value": ""}, UsageError),
        ({"node_key": "nodekey:" + "9" * 64}, NotFound),
    ],
)
async def test_anything_else_is_refused(world: Any, fields: dict[str, Any], kind: type[GwError]) -> None:
    node = await world.node()
    backend = world.tailnet.publisher = Backend()
    with pytest.raises(kind):
        await set_dns(world.tailnet, node.doc.machine_key, asked(node, **fields))
    assert backend.shown == []


async def test_a_node_cannot_ask_with_another_machine_s_key(world: Any) -> None:
    node, other = await world.node(), await world.node(hostname="other")
    world.tailnet.publisher = Backend()
    with pytest.raises(NotFound):
        await set_dns(world.tailnet, other.doc.machine_key, asked(node))
