"""`gwctl serve` as nodes see it, over real sockets: logins, maps, deltas, and kills at random moments."""

from __future__ import annotations

import json
import random
import threading
import time
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gw.localapi import unixhttp
from gw.state.paths import StatePaths

from .controlclient import Node
from .scripts import key, nodes, run, serving

LOGOUT = datetime(1970, 1, 1, 0, 2, 3, tzinfo=UTC)


def test_own_devices_see_each_other_come_change_and_go(state: Path, port: int) -> None:
    with serving(state, port):
        auth = key(state, "--reusable")
        alice, phone, other = Node(port, "alice"), Node(port, "phone"), Node(port, "other")
        assert alice.register(auth)["MachineAuthorized"]
        first = alice.open_stream()
        assert first["Node"]["Name"] == "alice.ghost.internal."
        assert first["Peers"] == []
        assert other.register(key(state, user="bob"))["Error"] == ""
        assert other.open_stream()["Peers"] == []

        assert phone.register(auth)["Error"] == ""
        assert [peer["Name"] for peer in phone.open_stream()["Peers"]] == ["alice.ghost.internal."]
        seen = alice.until(lambda m: m.get("PeersChanged"))
        assert seen["PeersChanged"][0]["Key"] == str(phone.key)
        own_filter = alice.until(lambda m: m.get("PacketFilters")) if "PacketFilters" not in seen else seen
        sources = own_filter["PacketFilters"]["base"][0]["SrcIPs"]
        assert any("100.64.0.3" in source for source in sources)

        status, _ = phone.call("/machine/map", phone.request(omit_peers=True, endpoints=["192.0.2.7:41641"]))
        assert status == 200
        patch = alice.until(lambda m: any("Endpoints" in p for p in m.get("PeersChangedPatch") or []))
        assert patch["PeersChangedPatch"][0]["Endpoints"] == ["192.0.2.7:41641"]

        number = next(str(node["id"]) for node in nodes(state) if node["name"] == "phone")
        assert run("gwctl", "nodes", "delete", "-i", number, "--force", state=state).returncode == 0
        gone = alice.until(lambda m: m.get("PeersRemoved"))
        assert gone["PeersRemoved"] == [int(number)]
        assert phone.until(lambda m: "Node" in m)["Node"]["KeyExpiry"].startswith("2000")
        assert not [m for m in other.messages if m.get("PeersChanged")]


def test_keys_that_are_wrong_or_used_are_refused(state: Path, port: int) -> None:
    with serving(state, port):
        once = key(state)
        assert Node(port, "a").register(once)["Error"] == ""
        for bad in (once, once[:-1] + "x", "hskey-auth-000000000000-" + "0" * 64, "nonsense"):
            answer = Node(port, "b").register(bad)
            assert answer["Error"]
            assert not answer["MachineAuthorized"]
        assert len(nodes(state)) == 1


def test_one_shot_keys_admit_exactly_one_of_many(state: Path, port: int) -> None:
    with serving(state, port):
        once = key(state)
        answers: list[str] = []
        crowd = [Node(port, f"n{number}") for number in range(12)]
        threads = [threading.Thread(target=lambda n=node: answers.append(n.register(once)["Error"])) for node in crowd]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert answers.count("") == 1
        assert len(nodes(state)) == 1


def test_an_interactive_login_waits_for_its_approval(state: Path, port: int) -> None:
    with serving(state, port):
        node = Node(port, "tv")
        url = node.register()["AuthURL"]
        assert url.startswith(f"http://127.0.0.1:{port}/register/hskey-authreq-")
        answers: list[dict[str, object]] = []
        waiting = threading.Thread(target=lambda: answers.append(node.register(followup=url)))
        waiting.start()
        approved = run("gwctl", "auth", "approve", url.rpartition("/")[2], "--user", "ann", state=state)
        assert approved.returncode == 0, approved.stderr
        waiting.join(60)
        assert answers[0]["MachineAuthorized"]
        assert node.open_stream()["Node"]["Addresses"][0] == "100.64.0.1/32"


def test_logout_expires_the_key_and_a_new_login_keeps_the_address(state: Path, port: int) -> None:
    with serving(state, port):
        auth = key(state, "--reusable")
        node = Node(port, "laptop")
        node.register(auth)
        assert node.register(expiry=LOGOUT)["NodeKeyExpired"]
        assert node.register()["NodeKeyExpired"]
        assert node.register(auth)["MachineAuthorized"]
        assert [entry["ipAddresses"] for entry in nodes(state)] == [["100.64.0.1", "fd7a:115c:a1e0::1"]]


def test_a_node_key_of_another_machine_opens_nothing(state: Path, port: int) -> None:
    with serving(state, port):
        node, thief = Node(port, "a"), Node(port, "b")
        node.register(key(state))
        thief.key = node.key
        assert thief.register()["Error"]
        assert thief.call("/machine/map", thief.request(omit_peers=True))[0] == 404
        assert thief.call("/machine/map", b"{not json")[0] == 400
        assert thief.call("/machine/set-dns", b"{}")[0] == 404
        assert thief.call("/elsewhere", b"{}")[0] == 404


def test_an_ssh_connection_goes_on_when_it_is_confirmed(state: Path, port: int) -> None:
    """The conversation of a client whose SSH rule says `check`: hold, ask again, wait for the verdict."""
    (state / "policy.hujson").write_text(
        '{"ssh": [{"action": "check", "src": ["autogroup:member"], "dst": ["autogroup:self"], "users": ["root"]}]}'
    )
    with serving(state, port):
        auth = key(state, "--reusable")
        laptop, box = Node(port, "laptop"), Node(port, "box")
        assert laptop.register(auth)["MachineAuthorized"]
        assert box.register(auth)["MachineAuthorized"]
        place = "/machine/ssh/action/1/to/2?local_user=root"
        assert laptop.call(place, b"", "GET")[0] == 403
        status, body = box.call(place, b"", "GET")
        first = json.loads(body)
        assert (status, set(first)) == (200, {"message", "holdAndDelegate"})
        auth_id = first["holdAndDelegate"].rpartition("=")[2]
        assert auth_id in urllib.request.urlopen(f"http://127.0.0.1:{port}/auth/{auth_id}", timeout=10).read().decode()
        (waiting,) = json.loads(run("gwctl", "auth", "list", "-o", "json", state=state).stdout)
        assert (waiting["authId"], waiting["hostname"]) == (auth_id, "laptop: ssh root@box")
        approving = threading.Timer(0.5, run, ("gwctl", "auth", "approve", auth_id), {"state": state})
        approving.start()
        status, body = box.call(f"{place}&auth_id={auth_id}", b"", "GET")
        approving.join()
        assert (status, json.loads(body)["accept"]) == (200, True)
        assert json.loads(box.call(place, b"", "GET")[1])["accept"]


def test_without_a_policy_nobody_is_seen(state: Path, port: int) -> None:
    (state / "policy.hujson").unlink()
    with serving(state, port):
        auth = key(state, "--reusable")
        for name in ("a", "b"):
            node = Node(port, name)
            node.register(auth)
            first = node.open_stream()
            assert first["Peers"] == []
            assert first["PacketFilters"] == {"base": []}


def register_until_killed(port: int, name: str, keys: list[str], acknowledged: dict[str, str]) -> None:
    """Log machines in, by the reusable key (the first) and by one-shot ones; note whom the server let in."""
    try:
        for count in range(1000):
            node = Node(port, f"{name}-{count}")
            auth = keys.pop() if count % 3 == 2 and len(keys) > 1 else keys[0]
            answer = node.register(auth)
            assert not answer["Error"], answer["Error"]
            acknowledged[str(node.key)] = auth
            node.close()
    except (OSError, ConnectionError):
        pass


def one_shot_keys(state: Path, count: int) -> list[str]:
    """Through the socket of a server that runs: a process each would take longer than the kills."""
    paths = StatePaths(state)
    body = {"user": "ann"}
    answers = [unixhttp.request(paths.control_socket, "POST", "/api/v1/preauthkey", body) for _ in range(count)]
    return [str(answer.json()["preAuthKey"]["key"]) for answer in answers]


def kill_and_count(state: Path, port: int, rounds: int, seed: int) -> None:
    """Kill the server while nodes register, three at a time; what was acknowledged has to be there, and whole."""
    print(f"seed {seed}")
    chance = random.Random(seed)
    with serving(state, port):
        reusable = key(state, "--reusable", "-e", "24h")
    acknowledged: dict[str, str] = {}
    interrupted = 0
    for number in range(rounds):
        with serving(state, port) as server:
            keys = [reusable, *one_shot_keys(state, 3)]
            crowd = [
                threading.Thread(target=register_until_killed, args=(port, f"r{number}-{name}", keys, acknowledged))
                for name in "abc"
            ]
            before = len(acknowledged)
            enough = before + chance.randrange(1, 6)
            deadline = time.monotonic() + 30
            for thread in crowd:
                thread.start()
            while len(acknowledged) < enough and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(chance.uniform(0.0, 0.05))
            server.kill()
            for thread in crowd:
                thread.join(60)
            interrupted += len(acknowledged) > before
    assert interrupted > rounds / 2, "most kills came before anybody was let in"
    with serving(state, port) as server:
        kept = {str(node["nodeKey"]): node for node in nodes(state)}
        assert set(acknowledged) <= set(kept)
        for field in ("id", "givenName", "machineKey"):
            assert len({node[field] for node in kept.values()}) == len(kept), f"{field}: two nodes share one"
        addresses = [address for node in kept.values() for address in node["ipAddresses"]]  # type: ignore[attr-defined]
        assert len(set(addresses)) == len(addresses) == 2 * len(kept)
        for auth in {*acknowledged.values()} - {reusable}:
            assert Node(port, "late").register(auth)["Error"] == "authkey already used"
        fresh = Node(port, "fresh")
        assert fresh.register(reusable)["MachineAuthorized"]
        assert fresh.open_stream()["Node"]["Addresses"][0] not in [f"{address}/32" for address in addresses]
        server.terminate()
        _, log = server.communicate(timeout=20)
        assert "left out" not in log and "quarantin" not in log, log
    assert not [path for path in state.rglob("*") if ".broken" in path.name or ".conflict" in path.name]
    verified = run("gwctl", "events", "verify", state=state)
    assert verified.returncode == 0, verified.stdout + verified.stderr


@pytest.mark.timeout(200)
def test_a_killed_server_keeps_every_registration_it_acknowledged(state: Path, port: int) -> None:
    kill_and_count(state, port, rounds=5, seed=5)


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_two_hundred_kills_lose_no_acknowledged_registration(state: Path, port: int) -> None:
    kill_and_count(state, port, rounds=200, seed=200)
