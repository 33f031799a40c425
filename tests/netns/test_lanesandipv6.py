"""Over IPv6, and with two lanes of packet workers: QUIC between peers, the relay by QUIC, UDP through the relay.

internet ── hub (fd5c::1)            control, relay
   ├─ quinn (fd5c::11)               two lanes each
   └─ rosa  (fd5c::12)               nftables in a node's namespace are the box in the middle
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import pytest

from gw.lab import Lab, NodeSpec
from gw.lab.demo import measure, resolve
from gw.lab.topology import HUB, run

from .namespaces import needs_namespaces
from .test_mesh import eventually

pytestmark = [needs_namespaces(), pytest.mark.timeout(240)]

ADDRESSES = {HUB: "fd5c::1", "quinn": "fd5c::11", "rosa": "fd5c::12"}
RELAY = [
    "gwrelay", "serve", "--hostname", ADDRESSES[HUB], "--self-signed", "--listen", "[::]:443", "--stun", "[::]:3478",
]  # fmt: skip
V4 = {"quinn": "198.51.100.11", "rosa": "198.51.100.12"}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    nodes = [NodeSpec("quinn"), NodeSpec("rosa")]
    with Lab(nodes, folder=tmp_path_factory.mktemp("lanes") / "pair") as lab:
        for name, address in ADDRESSES.items():
            run(["ip", "-n", lab.ledger.namespace(name), "addr", "add", f"{address}/64", "dev", "eth0", "nodad"])
        restart(lab, HUB, "gwrelay", *RELAY)
        for name in ("quinn", "rosa"):
            restart(lab, name, f"gwd-{name}", "gwd", "run", "--workers", "2")
        resolve(lab, "quinn", "rosa")
        yield lab


@pytest.fixture
def lab(pair: Lab) -> Iterator[Lab]:
    yield pair
    for name in ("quinn", "rosa"):
        pair.run(name, "nft", "flush", "ruleset")
        pair.run(name, "gw", "set", "--transport", "auto")


def restart(lab: Lab, name: str, label: str, *argv: str) -> None:
    process = lab._running[label]
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=20)
    (lab.folder / f"{label}.log").write_text("")
    lab.start(name, label, *argv)
    lab.await_ready(label)


def drop(lab: Lab, *rules: str) -> None:
    """Drop what the rules say of what comes to the nodes; OTHER and OTHER6 are the other one's addresses."""
    for name, other in (("quinn", "rosa"), ("rosa", "quinn")):
        lines = "\n".join(
            f"{rule.replace('OTHER6', ADDRESSES[other]).replace('OTHER', V4[other])} drop" for rule in rules
        )
        text = f"table inet middle {{\nchain in {{\ntype filter hook input priority 0\n{lines}\n}}\n}}\n"
        run(lab.argv(name, "nft", "-f", "-"), text=text)


def peer(lab: Lab, name: str = "quinn") -> dict[str, Any]:
    """What the node tells of the other one, with traffic just sent."""
    lab.run("quinn", "ping", "-n", "-c", "1", "-W", "2", "rosa")
    peers: dict[str, dict[str, Any]] = lab.status(name)["Peer"]  # type: ignore[assignment]
    return next(iter(peers.values()))


def ways(lab: Lab) -> set[str]:
    return {peer(lab, name)["Transport"] for name in ("quinn", "rosa")}


@pytest.mark.parametrize("version", [4, 6])
def test_bulk_passes_inside_quic(lab: Lab, version: int) -> None:
    """Two lanes seal and open one connection's packets: each has numbers of its own."""
    if version == 6:
        drop(lab, "ip saddr OTHER udp dport 41641")
    else:
        drop(lab, "ip6 saddr OTHER6 udp dport 41641")
    wanted = f"[{ADDRESSES['rosa']}]:41641" if version == 6 else f"{V4['rosa']}:41641"
    for name in ("quinn", "rosa"):
        lab.run(name, "gw", "set", "--transport", "quic")
    eventually(lambda: ways(lab) == {"quic"} and peer(lab)["CurAddr"] == wanted, 60)
    plane: Any = lab.status("quinn")["DataPlane"]
    assert plane["lanes"] == 2
    eventually(lambda: peer(lab)["QUIC"]["PacketBytes"] == 1452)
    before = peer(lab)
    assert measure(lab, "quinn", "rosa") > 0.0
    assert measure(lab, "rosa", "quinn") > 0.0
    after, drops = peer(lab), lab.status("quinn")["DataPlane"]["drops"]
    assert after["QUIC"]["Sent"] > before["QUIC"]["Sent"] + 100
    assert after["Transport"] == "quic"
    new = {name: count - plane["drops"].get(name, 0) for name, count in drops.items()}
    assert not new.get("tag")
    assert not new.get("spoofed")
    # on a busy machine a lane may be so late that what it sends is older than the window
    assert new.get("replay", 0) <= (after["RxPackets"] - before["RxPackets"]) // 100


def test_a_worker_that_dies_takes_its_numbers_along_and_the_connection_lives(lab: Lab) -> None:
    """All workers begin anew, with keys and numbers of the same connection."""
    for name in ("quinn", "rosa"):
        lab.run(name, "gw", "set", "--transport", "quic")
    eventually(lambda: ways(lab) == {"quic"}, 60)
    assert measure(lab, "quinn", "rosa") > 0.0
    ups = (lab.folder / "gwd-quinn.log").read_text().count("QUIC connection is up")
    plane: Any = lab.status("quinn")["DataPlane"]
    for pid in set(plane["workers"].values()):
        lab.run("quinn", "kill", "-9", str(pid))
    eventually(lambda: peer(lab)["Transport"] == "quic", 20)
    assert measure(lab, "quinn", "rosa") > 0.0
    assert (lab.folder / "gwd-quinn.log").read_text().count("QUIC connection is up") == ups


def test_the_relay_is_reached_by_quic_over_ipv6(lab: Lab) -> None:
    drop(lab, "ip saddr OTHER udp dport 41641", "ip6 saddr OTHER6 udp dport 41641", "udp sport 3478 @th,64,8 0")
    eventually(lambda: all(transport(lab, name) == "quic" for name in ("quinn", "rosa")), 60)
    eventually(lambda: ways(lab) == {"relay"}, 60)
    before = peer(lab)["RxPackets"]
    assert measure(lab, "quinn", "rosa") > 0.0
    assert peer(lab)["RxPackets"] > before + 20


def test_udp_goes_through_the_relay_over_ipv6(lab: Lab) -> None:
    drop(lab, "ip saddr OTHER udp dport 41641", "ip6 saddr OTHER6 udp dport 41641")
    eventually(lambda: ways(lab) == {"peer-relay"}, 60)
    assert peer(lab)["PeerRelay"].startswith(f"[{ADDRESSES[HUB]}]:3478:vni:")
    assert measure(lab, "quinn", "rosa") > 0.0
    assert measure(lab, "rosa", "quinn") > 0.0
    page = lab.run("quinn", "gw", "metrics")
    series = 'tailscaled_outbound_packets_total{path="peer_relay_ipv6"}'
    assert float(next(line for line in page.splitlines() if line.startswith(series)).split()[-1]) > 100


def transport(lab: Lab, name: str) -> str:
    plane: Any = lab.status(name)["DataPlane"]
    return str(plane["relay_transport"])
