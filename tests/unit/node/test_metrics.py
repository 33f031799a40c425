"""What Prometheus reads, read back by Prometheus' own client library."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from gw.engine.pathtotals import Total
from gw.engine.tunnel import NodeStats
from gw.localapi.status import PeerStatus
from gw.native.counters import REASON_NAMES
from gw.node.metrics import NodeNumbers, text

STATS = NodeStats(
    sent={"direct_ipv4": Total(10, 1000), "direct_ipv6": Total(), "derp": Total(2, 200)},
    received={"direct_ipv4": Total(20, 2000), "direct_ipv6": Total(1, 1 << 60), "derp": Total(3, 300)},
    dropped_sending={"send": 2, "no-route": 9, "multicast": 4},
    dropped_receiving={"acl": 5, "not-local": 1, "malformed": 3, "replay": 7, "unknown-session": 50},
)
NODE = NodeNumbers(
    version="0.1.0", compiled=True, is_running=True, stats=STATS, warnings=1, home=901, routes_advertised=2,
    routes_approved=1, peers=3, active={"direct": 1, "relay": 0}, lanes=2, offloads={"udp_gso": True}, defects=6,
)  # fmt: skip


def read(page: str) -> dict[str, dict[tuple[str, ...], float]]:
    """Series by name and label values. Any line that Prometheus would refuse fails here."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(page):
        assert family.documentation
        assert family.type in ("counter", "gauge")
        for sample in family.samples:
            series = found.setdefault(sample.name, {})
            assert tuple(sample.labels.values()) not in series
            series[tuple(sample.labels.values())] = sample.value
    return found


def test_tailscales_names_with_tailscales_labels() -> None:
    found = read(text(NODE))
    assert found["tailscaled_inbound_bytes_total"][("direct_ipv6",)] == 1 << 60
    assert found["tailscaled_outbound_packets_total"] == {("direct_ipv4",): 10, ("direct_ipv6",): 0, ("derp",): 2}
    assert found["tailscaled_inbound_dropped_packets_total"] == {
        ("acl",): 6, ("multicast",): 0, ("link_local_unicast",): 0, ("too_short",): 3, ("fragment",): 0,
        ("unknown_protocol",): 0, ("error",): 7,
    }  # fmt: skip
    assert found["tailscaled_outbound_dropped_packets_total"][("multicast",)] == 4
    assert found["tailscaled_outbound_dropped_packets_total"][("error",)] == 2
    assert found["tailscaled_advertised_routes"] == {(): 2}
    assert found["tailscaled_approved_routes"] == {(): 1}
    assert found["tailscaled_health_messages"] == {("warning",): 1}
    assert found["tailscaled_home_derp_region_id"] == {(): 901}


def test_ours_tell_the_exact_reason_and_what_is_in_use() -> None:
    found = read(text(NODE))
    assert found["ghostwire_defects_total"] == {(): 6}
    dropped = found["ghostwire_dropped_packets_total"]
    assert dropped[("inbound", "unknown-session")] == 50
    assert dropped[("outbound", "no-route")] == 9
    assert found["ghostwire_dataplane_offload"][("udp_gso",)] == 1
    assert found["ghostwire_dataplane_offload"][("tcp_offload",)] == 0
    assert found["ghostwire_running"] == {(): 1}
    assert not any(name.startswith("ghostwire_peer_") for name in found)


def test_every_reason_is_some_word_of_tailscales() -> None:
    """A reason that is added to the core is counted as an error until it gets a better word."""
    for reason in REASON_NAMES:
        stats = replace(STATS, dropped_receiving={reason: 3})
        words = read(text(replace(NODE, stats=stats)))["tailscaled_inbound_dropped_packets_total"]
        assert sum(words.values()) == (0 if reason in ("unknown-session", "no-route") else 3)


def test_peers_one_by_one() -> None:
    bob = PeerStatus(
        dns_name="bob.ghost.internal.", online=True, cur_addr="192.0.2.1:5", rx_bytes=5, tx_bytes=6, rx_packets=7,
        tx_packets=8, drops={"acl": 9}, latency_seconds=0.25, last_handshake="2027-01-15T08:00:00Z",
    )  # fmt: skip
    found = read(text(NODE, [bob, PeerStatus(host_name="never-seen")]))
    name = ("bob.ghost.internal",)
    assert found["ghostwire_peer_received_bytes_total"] == {name: 5, ("never-seen",): 0}
    assert found["ghostwire_peer_sent_packets_total"][name] == 8
    assert found["ghostwire_peer_dropped_packets_total"] == {(*name, "acl"): 9}
    assert found["ghostwire_peer_direct"] == {name: 1, ("never-seen",): 0}
    assert found["ghostwire_peer_latency_seconds"] == {name: 0.25}
    assert found["ghostwire_peer_last_handshake_timestamp_seconds"] == {name: 1_800_000_000}


@given(st.text(min_size=1))
def test_a_name_that_a_peer_chose_stays_a_label(name: str) -> None:
    kept: dict[str, Any] = read(text(NODE, [PeerStatus(host_name=name)]))
    (found,) = kept["ghostwire_peer_online"]
    assert found == (name,)
