"""What nodes say about themselves, before it is repeated to others: control protocol appendix B."""

from __future__ import annotations

from ipaddress import ip_network

from hypothesis import given
from hypothesis import strategies as st

from gw.control.claims import MAX_ENDPOINTS, clean_disco_key, clean_endpoints, clean_hostinfo, clean_routes
from gw.model.addresses import AddrPort
from gw.model.hostinfo import Hostinfo, Service


@given(st.lists(st.text(max_size=30) | st.sampled_from(["192.0.2.1:5", "[2001:db8::1]:6"]), max_size=150))
def test_only_valid_endpoints_pass(texts: list[str]) -> None:
    clean = clean_endpoints(texts)
    assert len(clean) == len(set(clean)) <= MAX_ENDPOINTS
    assert all(str(AddrPort.parse(text)) == text for text in clean)


def test_endpoints_that_nobody_can_use_are_dropped() -> None:
    texts = ["[fe80::1%eth0]:1", "[fe80::1]:1", "0.0.0.0:1", "192.0.2.1:0", "192.0.2.1:99999", "[::ffff:192.0.2.1]:7"]
    assert clean_endpoints(texts) == ["192.0.2.1:7"]


@given(st.lists(st.text(max_size=20)))
def test_only_valid_routes_pass(texts: list[str]) -> None:
    assert all(str(ip_network(route)) == route for route in clean_routes(texts))


def test_routes_become_canonical() -> None:
    assert clean_routes(["10.1.2.3/8", "10.0.0.0/8", "x", "::/0"]) == ["10.0.0.0/8", "::/0"]


def test_hostinfo_is_cut_down() -> None:
    said = Hostinfo(
        hostname="x" * 5000,
        os="li\0nux",
        routable_ips=["nonsense", "10.0.0.0/8"],
        services=[Service(proto="tcp", port=70000), Service(proto="peerapi4", port=1, description="a\0" * 500)],
        ssh_host_keys=["k" * 10_000, "ssh-ed25519 AAAA"],
    )
    clean = clean_hostinfo(said)
    assert (len(clean.hostname), clean.os, clean.routable_ips) == (256, "linux", ["10.0.0.0/8"])
    assert [service.port for service in clean.services or []] == [1]
    assert "\0" not in (clean.services or [])[0].description
    assert clean.ssh_host_keys == ["ssh-ed25519 AAAA"]
    assert said.os == "li\0nux"


def test_only_a_disco_key_is_one() -> None:
    assert clean_disco_key("discokey:" + "AB" * 32) == "discokey:" + "ab" * 32
    for text in ("", "discokey:" + "0" * 64, "nodekey:" + "ab" * 32, "discokey:zz"):
        assert clean_disco_key(text) == ""
