"""Names of the mesh, forward and reverse, as nodes come and go."""

from __future__ import annotations

from gw.dns.server import host_servers
from gw.dns.zone import Zone
from gw.state.config import ExtraRecord
from gw.state.feed import FeedMessage, FeedNode
from gw.wire import dns

PREFIXES = ["100.64.0.0/10", "fd7a:115c:a1e0::/48"]


def node(number: int, name: str) -> FeedNode:
    return FeedNode(
        id=number, name=f"{name}.ghost.internal", node_key="nodekey:00",
        addresses=[f"100.64.0.{number}", f"fd7a:115c:a1e0::{number:x}"],
    )  # fmt: skip


def zone(*nodes: FeedNode, extra: list[ExtraRecord] | None = None) -> Zone:
    made = Zone(PREFIXES, 60, extra or [])
    made.apply(FeedMessage(full=True, domain="Ghost.Internal", nodes=list(nodes)))
    return made


def test_a_node_is_found_by_name_and_by_address() -> None:
    mesh = zone(node(1, "ann"))
    assert [r.data for r in mesh.lookup("ann.ghost.internal", dns.A).records] == ["100.64.0.1"]
    assert [r.data for r in mesh.lookup("ann.ghost.internal", dns.AAAA).records] == ["fd7a:115c:a1e0::1"]
    assert [r.data for r in mesh.lookup("1.0.64.100.in-addr.arpa", dns.PTR).records] == ["ann.ghost.internal"]
    pointer = "1." + "0." * 19 + "0.e.1.a.c.5.1.1.a.7.d.f.ip6.arpa"
    assert [r.data for r in mesh.lookup(pointer, dns.PTR).records] == ["ann.ghost.internal"]


def test_a_no_says_which() -> None:
    mesh = zone(node(1, "ann"))
    unknown = mesh.lookup("bob.ghost.internal", dns.A)
    assert (unknown.code, unknown.soa) == (dns.NXDOMAIN, "ghost.internal")
    other_type = mesh.lookup("ann.ghost.internal", dns.TXT)
    assert (other_type.code, other_type.records, other_type.soa) == (dns.NOERROR, [], "ghost.internal")
    assert mesh.lookup("9.0.64.100.in-addr.arpa", dns.PTR).code == dns.NXDOMAIN
    assert mesh.lookup("ghost.internal", dns.AXFR).code == dns.NOTIMP
    assert mesh.lookup("ghost.internal", dns.A).code == dns.NOERROR


def test_only_the_meshs_own_names_are_answered_here() -> None:
    mesh = zone(node(1, "ann"))
    for name in ("ann.ghost.internal", "ghost.internal", "1.0.64.100.in-addr.arpa", "127.100.in-addr.arpa"):
        assert mesh.is_ours(name), name
    for name in ("example.com", "notghost.internal", "1.0.0.10.in-addr.arpa", "1.0.128.100.in-addr.arpa", ""):
        assert not mesh.is_ours(name), name


def test_nodes_come_change_and_go() -> None:
    mesh = zone(node(1, "ann"))
    mesh.apply(FeedMessage(full=False, domain="ghost.internal", nodes=[node(2, "bob")]))
    assert mesh.lookup("bob.ghost.internal", dns.A).records
    mesh.apply(FeedMessage(full=False, domain="ghost.internal", nodes=[node(2, "rob")]))
    assert mesh.lookup("bob.ghost.internal", dns.A).code == dns.NXDOMAIN
    assert [r.data for r in mesh.lookup("2.0.64.100.in-addr.arpa", dns.PTR).records] == ["rob.ghost.internal"]
    mesh.apply(FeedMessage(full=False, domain="ghost.internal", removed=[2]))
    assert mesh.lookup("rob.ghost.internal", dns.A).code == dns.NXDOMAIN
    mesh.apply(FeedMessage(full=True, domain="other.internal", nodes=[]))
    assert len(mesh) == 0
    assert mesh.is_ours("x.other.internal")


def test_records_of_the_configuration_stand_beside_the_nodes() -> None:
    mesh = zone(extra=[ExtraRecord(name="nas.example.com", value="192.0.2.9")])
    assert mesh.is_ours("nas.example.com")
    assert [r.data for r in mesh.lookup("nas.example.com", dns.A).records] == ["192.0.2.9"]


def test_the_hosts_servers_are_upstreams_unless_they_lead_back(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "resolv.conf"
    path.write_text("search x\nnameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver fe80::1%eth0\n")
    assert host_servers(path, {"192.0.2.2"}) == ["192.0.2.1"]
    path.write_text("# written by gwd of GhostWire; …\nnameserver 192.0.2.1\n")
    assert host_servers(path, set()) == []
    assert host_servers(tmp_path / "none", set()) == []


def test_records_of_the_policy_stand_beside_those_of_the_configuration() -> None:
    mesh = zone(node(1, "ann"), extra=[ExtraRecord(name="a.home.test", value="10.0.0.1")])
    records = [
        ExtraRecord(name="b.home.test", type="", value="fd00::2"),
        ExtraRecord(name="a.home.test", value="10.0.0.2"),
    ]
    mesh.apply(FeedMessage(full=False, domain="ghost.internal", records=records))
    assert [r.data for r in mesh.lookup("b.home.test", dns.AAAA).records] == ["fd00::2"]
    assert [r.data for r in mesh.lookup("a.home.test", dns.A).records] == ["10.0.0.1", "10.0.0.2"]
    mesh.apply(FeedMessage(full=False, domain="ghost.internal", nodes=[node(2, "bob")]))  # says nothing about records
    mesh.set_extra([])
    assert [r.data for r in mesh.lookup("a.home.test", dns.A).records] == ["10.0.0.2"]
    mesh.apply(FeedMessage(full=False, domain="ghost.internal", records=[]))
    assert not mesh.is_ours("b.home.test")
