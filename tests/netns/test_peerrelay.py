"""UDP between two nodes through gwrelay: found where there is no direct path, shown, counted, kept over changes.

internet ── hub                      control, relay
   ├─ ann
   ├─ router ── bob                  (endpoint-independent)
   └─ router ── cat                  (symmetric)
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator

import pytest

from gw.lab import Lab, Nat, NodeSpec
from gw.lab.demo import measure, resolve
from gw.lab.topology import HUB, HUB_ADDRESS, move, run
from gw.relay.presence import DUPLICATE

from .namespaces import needs_namespaces
from .test_mesh import eventually

pytestmark = [needs_namespaces(), pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    nodes = [NodeSpec("ann"), NodeSpec("bob", Nat.ENDPOINT_INDEPENDENT), NodeSpec("cat", Nat.SYMMETRIC)]
    with Lab(nodes, folder=tmp_path_factory.mktemp("peerrelay") / "lab") as lab:
        resolve(lab, "bob", "cat")
        yield lab


def way(lab: Lab, one: str, other: str) -> str:
    """`peer-relay`, `udp` or `relay`, with traffic just sent."""
    lab.run(one, "ping", "-n", "-c", "1", "-W", "5", other)
    peers = lab.status(one)["Peer"]
    assert isinstance(peers, dict)
    peer = next(each for each in peers.values() if each["HostName"] == other)
    if peer["Transport"] == "peer-relay":
        assert peer["PeerRelay"].startswith(f"{HUB_ADDRESS}:3478:vni:")
        assert not peer["CurAddr"]
    return str(peer["Transport"])


def counted(lab: Lab, name: str) -> int:
    """A counter of the relay."""
    page = lab.run(
        HUB, sys.executable, "-c",
        "import ssl,urllib.request as u;"
        "print(u.urlopen('https://127.0.0.1/metrics',context=ssl._create_unverified_context()).read().decode())",
    )  # fmt: skip
    return int(next(line.split()[1] for line in page.splitlines() if line.startswith(f"gwrelay_peer_relay_{name} ")))


def both(lab: Lab) -> bool:
    return way(lab, "bob", "cat") == way(lab, "cat", "bob") == "peer-relay"


def test_nodes_without_a_direct_path_go_through_the_relay_by_udp_and_say_so(lab: Lab) -> None:
    eventually(lambda: both(lab), 60)
    assert f"peer-relay {HUB_ADDRESS}:3478:vni:" in lab.run("bob", "gw", "status")
    result = json.loads(lab.run("bob", "gw", "ping", "--json", "-c", "1", "cat"))
    assert result["PeerRelay"].startswith(f"{HUB_ADDRESS}:3478:vni:")
    assert not result.get("Endpoint")
    assert "via peer-relay " in lab.run("cat", "gw", "ping", "-c", "1", "bob")
    eventually(lambda: way(lab, "ann", "bob") == way(lab, "ann", "cat") == "udp", 60)
    for log in lab.folder.glob("gwd-*.log"):  # each has had QUIC and TLS with the relay at once
        assert DUPLICATE not in log.read_text()


def test_bulk_is_carried_and_counted(lab: Lab) -> None:
    eventually(lambda: both(lab), 60)
    assert measure(lab, "bob", "cat") > 0.0
    eventually(lambda: counted(lab, "packets_total") > 100)
    assert counted(lab, "pairs") >= 1
    for name, series in (
        ("bob", 'tailscaled_outbound_packets_total{path="peer_relay_ipv4"}'),
        ("cat", 'tailscaled_inbound_packets_total{path="peer_relay_ipv4"}'),
    ):
        page = lab.run(name, "gw", "metrics")
        assert float(next(line for line in page.splitlines() if line.startswith(series)).split()[-1]) > 100
    assert 'ghostwire_active_peers{path="peer_relay"} 1' in lab.run("bob", "gw", "metrics")


def test_a_node_that_moves_binds_again(lab: Lab) -> None:
    eventually(lambda: both(lab), 60)
    binds, made = counted(lab, "binds_total"), counted(lab, "allocations_total")
    move(lab.ledger, "cat")
    eventually(lambda: both(lab) and counted(lab, "binds_total") > binds, 60)
    assert counted(lab, "allocations_total") == made


def test_who_may_not_use_it_leaves_at_once_and_comes_back_when_it_may(lab: Lab) -> None:
    eventually(lambda: both(lab), 60)
    path = lab.state(HUB) / "policy.hujson"
    before = path.read_text()
    forbid = '"nodeAttrs": [{"target": ["*"], "attr": ["disable-relay-client"]}],'
    path.write_text(before.replace("{", "{" + forbid, 1))
    eventually(lambda: way(lab, "bob", "cat") == way(lab, "cat", "bob") == "relay", 30)
    path.write_text(before)
    eventually(lambda: both(lab), 60)


def test_it_comes_back_after_a_restart_of_the_relay(lab: Lab) -> None:
    eventually(lambda: both(lab), 60)
    process = lab._running["gwrelay"]
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=20)
    (lab.folder / "gwrelay.log").write_text("")
    lab.start(HUB, "gwrelay", "gwrelay", "serve", "--hostname", HUB_ADDRESS, "--self-signed")
    lab.await_ready("gwrelay")
    eventually(lambda: both(lab) and counted(lab, "binds_total") >= 2, 90)


def test_a_direct_path_is_taken_as_soon_as_there_is_one(lab: Lab) -> None:
    """cat's router keeps one outer port from now on, and lets everybody in there."""
    eventually(lambda: both(lab), 60)
    router = lab.ledger.namespace("cat-nat")
    inside = move(lab.ledger, "cat")[1].split()[0]
    rules = f"""
delete table inet lab
table inet lab {{
  chain in {{ type nat hook prerouting priority dstnat; iifname "wan" udp dport 41641 dnat ip to {inside}:41641; }}
  chain out {{ type nat hook postrouting priority srcnat; oifname "wan" masquerade; }}
}}
"""
    run(["ip", "netns", "exec", router, "nft", "-f", "-"], text=rules)
    lab.run("cat", "ip", "addr", "add", "10.99.0.1/32", "dev", "eth0")  # so that it asks where it is now
    eventually(lambda: way(lab, "bob", "cat") == way(lab, "cat", "bob") == "udp", 90)
