"""Headscale's databases and settings, read into ours."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import bcrypt
import pytest

from gw.control import authkeys, enrolment
from gw.control.apikeys import identify
from gw.control.headscale.conversion import Converted, advertised, convert
from gw.control.headscale.database import read_database, time_of
from gw.control.headscale.settings import read_settings, translate_settings
from gw.control.tailnet import Tailnet
from gw.errors import AuthRequired, ConfigError, NotFound
from gw.state.config import Config, decode_config

VECTORS = Path(__file__).resolve().parents[2] / "vectors" / "headscale"
NOW = datetime(2026, 6, 1, tzinfo=UTC)
SECRET = "a" * 64


def database(version: str, folder: Path) -> Path:
    path = folder / "db.sqlite"
    text = (VECTORS / f"{version}.sql").read_text()
    hashed = bcrypt.hashpw(SECRET.encode(), bcrypt.gensalt(4)).decode().replace("$2b$", "$2a$")
    connection = sqlite3.connect(path)
    connection.executescript(text.replace("@BCRYPT@", hashed))
    connection.close()
    return path


def converted(version: str, folder: Path) -> Converted:
    return convert(read_database(database(version, folder)), NOW)


def test_users_keep_ids_and_identities_and_get_names_that_can_stand(tmp_path: Path) -> None:
    found = converted("0.26", tmp_path)
    assert [(user.id, user.name) for user in found.users] == [(1, "ann"), (2, "bob"), (3, "Ann-2"), (5, "u7-dwarfs")]
    bob = found.users[1]
    assert (bob.email, bob.provider, bob.provider_id) == ("bob@example.org", "oidc", "https://id.test/42")
    assert bob.created == datetime(2025, 5, 1, 10, tzinfo=UTC)
    assert [note.subject for note in found.notes if note.subject.startswith("user")] == ["user Ann", "user 7 dwarfs"]


def test_nodes_keep_ids_keys_addresses_names_and_approvals(tmp_path: Path) -> None:
    found = {node.id: node for node in converted("0.26", tmp_path).nodes}
    assert list(found) == [1, 2, 3, 9]
    nas = found[1]
    assert (nas.given_name, nas.hostname, nas.user) == ("nas", "Nas", "ann")
    assert nas.addresses == ["100.64.0.1", "fd7a:115c:a1e0::1"]
    assert nas.approved_routes == ["0.0.0.0/0", "10.0.0.0/8", "::/0"]
    assert nas.expiry is None
    assert (nas.machine_key[:7], nas.node_key[-2:]) == ("mkey:11", "01")
    assert (found[2].user, found[2].tags, found[2].ephemeral) == ("", ["tag:forced", "tag:web"], True)
    assert (found[3].given_name, found[3].expiry) == ("ann-s-mac", datetime(2031, 1, 1, tzinfo=UTC))
    assert found[9].given_name == "nas-1"


def test_nothing_is_left_out_in_silence(tmp_path: Path) -> None:
    notes = {(note.level, note.subject): note.text for note in converted("0.26", tmp_path).notes}
    assert notes["left", "node 4 (twin)"] == "another node has the same node key"
    assert "cannot be read" in notes["left", "node 5 (x)"]
    assert "neither a hash" in notes["left", "pre-auth key 3"]
    assert ("changed", "node 2 (web)") in notes
    assert ("changed", "node 9 (NAS)") in notes


def test_an_oauth_client_is_named_with_what_makes_it_anew(tmp_path: Path) -> None:
    path = database("0.29", tmp_path)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            """CREATE TABLE oauth_clients (id integer PRIMARY KEY AUTOINCREMENT, client_id text, secret_hash blob,
                   scopes text, tags text, description text, user_id integer, created_at datetime, revoked datetime);
               INSERT INTO oauth_clients VALUES
                   (1, 'abc', '$argon2id$', '["auth_keys"]', '["tag:ci"]', '', 1, '2026-05-01 10:00:00+00:00', NULL),
                   (2, 'old', '$argon2id$', '["all"]', '[]', '', 1, '2026-05-01', '2026-05-02 10:00:00+00:00');"""
        )
    notes = [note for note in convert(read_database(path), NOW).notes if note.subject.startswith("OAuth")]
    assert [(note.level, note.subject) for note in notes] == [("left", "OAuth client abc")]
    assert notes[0].text.endswith("gwctl oauth-clients create -s auth_keys -t tag:ci")


def test_plain_keys_are_kept_as_hashes_and_still_admit(tmp_path: Path) -> None:
    text = "0123456789abcdef" * 3
    keys = converted("0.26", tmp_path).preauth_keys
    assert [(key.id, key.user, key.used, key.reusable) for key in keys] == [
        (1, "ann", True, True), (2, "bob", True, False),
    ]  # fmt: skip
    assert text not in repr(keys)
    prefix, secret = authkeys.split(text)
    assert prefix == keys[0].prefix
    assert authkeys.matches(keys[0], secret)


def test_hashed_keys_tags_and_revocations_of_newer_versions(tmp_path: Path) -> None:
    found = converted("0.29", tmp_path)
    seven, eight = found.preauth_keys
    assert (seven.prefix, seven.description, seven.revoked) == ("0a0b0c0d0e0f", "for the lab", False)
    assert (eight.tags, eight.revoked, eight.user) == (["tag:web"], True, "")
    (node,) = found.nodes
    assert (node.id, node.tags, node.preauth_key) == (3, ["tag:web"], "0a0b0c0d0e10")
    assert found.notes == []


def test_counters_go_on_where_headscale_stopped(tmp_path: Path) -> None:
    server = list(converted("0.26", tmp_path).documents())[-1]
    assert (server.next_user_id, server.next_node_id, server.next_preauthkey_id) == (6, 10, 3)


def loaded(world: Any, found: Converted) -> Tailnet:
    for document in found.documents():
        world.store.documents[document.kind, document.key] = document
    return Tailnet.load(world.store, Config(server_url="http://mesh.test"), world.tailnet.policy.policy)


async def test_a_tailnet_starts_from_it_whole(world: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tailnet = loaded(world, converted("0.26", tmp_path))
    assert sorted(tailnet.nodes) == [1, 2, 3, 9]
    assert caplog.text == ""
    assert tailnet.roster.find("nas").id == 1
    again = await enrolment.register_preauth(tailnet, "mkey:" + "5" * 64, world.request("0123456789abcdef" * 3, "new"))
    assert (again.id, again.addresses[0]) == (10, "100.64.0.4")


async def test_a_hashed_key_admits_and_has_a_fast_hash_from_then_on(world: Any, tmp_path: Path) -> None:
    tailnet = loaded(world, converted("0.29", tmp_path))
    key = f"hskey-auth-0a0b0c0d0e0f-{SECRET}"
    with pytest.raises(AuthRequired, match="wrong secret"):
        await enrolment.register_preauth(tailnet, "mkey:" + "5" * 64, world.request(key[:-1] + "b"))
    assert authkeys.is_slow(tailnet.preauth_keys["0a0b0c0d0e0f"])
    for number in range(2):
        await enrolment.register_preauth(tailnet, f"mkey:{number:064x}", world.request(key))
    assert not authkeys.is_slow(world.store.documents["preauthkey", "0a0b0c0d0e0f"])
    with pytest.raises(AuthRequired, match="revoked"):
        await enrolment.register_preauth(
            tailnet, "mkey:" + "6" * 64, world.request(f"hskey-auth-0a0b0c0d0e10-{SECRET}")
        )


async def test_an_api_key_of_headscale_opens_and_has_a_fast_hash_from_then_on(world: Any, tmp_path: Path) -> None:
    tailnet = loaded(world, converted("0.29", tmp_path))
    for _ in range(2):
        caller = await identify(tailnet, f"hskey-api-0a0b0c0d0e1f-{SECRET}", b"")
        assert caller.name == "API key 0a0b0c0d0e1f"
        assert not authkeys.is_slow(world.store.documents["apikey", "0a0b0c0d0e1f"])
    with pytest.raises(AuthRequired):
        await identify(tailnet, f"hskey-api-0a0b0c0d0e20-{SECRET[:-1]}b", b"")
    assert authkeys.is_slow(world.store.documents["apikey", "0a0b0c0d0e20"])


def test_what_is_no_database_of_headscale_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with pytest.raises(NotFound):
        read_database(path)
    path.write_text("text")
    with pytest.raises(ConfigError, match="not an SQLite"):
        read_database(path)
    path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("CREATE TABLE x (a)")
    with pytest.raises(ConfigError, match="no table `users`"):
        read_database(path)
    old = database("0.26", tmp_path)
    with closing(sqlite3.connect(old)) as connection:
        connection.executescript("CREATE TABLE routes (id integer)")
    with pytest.raises(NotFound, match=r"0\.25 or older"):
        read_database(old)


def test_the_database_is_only_read(tmp_path: Path) -> None:
    path = database("0.29", tmp_path)
    before = path.read_bytes()
    read_database(path)
    assert path.read_bytes() == before


def test_the_last_policy_of_the_database_is_in_force(tmp_path: Path) -> None:
    assert "ann@" in read_database(database("0.26", tmp_path)).policy


def test_what_a_node_advertised_is_known() -> None:
    assert advertised({"host_info": '{"RoutableIPs":["10.0.0.0/8"]}'}) == ["10.0.0.0/8"]
    assert advertised({"host_info": None}) == advertised({"host_info": "["}) == []


@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("2025-05-01 10:00:00.123456789+00:00", datetime(2025, 5, 1, 10, 0, 0, 123456, tzinfo=UTC)),
        ("2025-05-01T10:00:00Z", datetime(2025, 5, 1, 10, tzinfo=UTC)),
        ("2025-05-01 10:00:00.5 -0330 NST m=+0.1", datetime(2025, 5, 1, 13, 30, 0, 500000, tzinfo=UTC)),
        ("0001-01-01 00:00:00+00:00", None), ("", None), (None, None), ("soon", None), ("2025-13-01 10:00:00Z", None),
    ],
)  # fmt: skip
def test_times_as_go_writes_them(text: str | None, when: datetime | None) -> None:
    assert time_of(text) == when


SETTINGS = """
server_url: https://hs.example.org
listen_addr: 0.0.0.0:8080
metrics_listen_addr: 127.0.0.1:9090
noise: {private_key_path: noise.key}
prefixes: {v4: 100.64.0.0/16, v6: "", allocation: random}
derp:
  server: {enabled: false, region_id: 999}
  urls: [https://controlplane.tailscale.com/derpmap/default]
  paths: [derp.yaml]
  auto_update_enabled: false
  update_frequency: 24h
database: {type: sqlite, sqlite: {path: /var/lib/headscale/db.sqlite}}
dns:
  base_domain: tail.example.org
  override_local_dns: true
  nameservers: {global: [1.1.1.1], split: {corp.example.org: [10.0.0.53]}}
  search_domains: [corp.example.org]
  extra_records: [{name: grafana.tail.example.org, type: A, value: 100.64.0.3}]
node: {expiry: 180d, ephemeral: {inactivity_timeout: 1h}}
oidc: {issuer: "https://id.test", client_id: hs, client_secret: geheim, pkce: {enabled: true}}
policy: {mode: file, path: policy.hujson}
tls_letsencrypt_hostname: hs.example.org
logtail: {enabled: true}
taildrop: {enabled: true}
strange: 7
"""


def test_settings_are_translated_and_the_rest_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(SETTINGS)
    found = translate_settings(read_settings(tmp_path / "config.yaml"), tmp_path)
    config = decode_config(found.toml().encode(), tmp_path / "config.toml")
    assert (config.server_url, config.listen, config.domain) == (
        "https://hs.example.org", "0.0.0.0:8080", "tail.example.org",
    )  # fmt: skip
    assert (config.prefixes.v4, config.prefixes.v6) == ("100.64.0.0/16", "")
    assert (config.dns.nameservers, config.dns.routes) == (["1.1.1.1"], {"corp.example.org": ["10.0.0.53"]})
    assert config.dns.extra_records[0].value == "100.64.0.3"
    assert (config.node.key_expiry_s, config.node.ephemeral_timeout_s) == (180 * 86400, 3600)
    assert (config.derp.refresh, config.derp.files) == ("0", [str(tmp_path / "derp.yaml")])
    assert (config.oidc.issuer, config.oidc.pkce.enabled) == ("https://id.test", True)
    assert config.relay.region_id == 900  # its relay was off
    assert (found.noise_key, found.policy) == (tmp_path / "noise.key", tmp_path / "policy.hujson")
    assert found.database == Path("/var/lib/headscale/db.sqlite")
    assert sorted(key for key, _ in found.notes) == [
        "logtail.enabled", "oidc.client_secret", "prefixes.allocation", "strange", "tls_letsencrypt_hostname",
    ]  # fmt: skip
    assert "geheim" not in found.toml()


@pytest.mark.parametrize(
    ("text", "says"), [("a: [", "not YAML"), ("[]", "not a configuration"), ("a: 1", "no `server_url`")]
)
def test_what_is_no_configuration_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "c").write_text(text)
    with pytest.raises(ConfigError, match=says):
        read_settings(tmp_path / "c")
