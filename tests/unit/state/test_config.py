from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gw.errors import ConfigError, NotFound, UsageError
from gw.state.config import Config, decode_config, load_config, split_listen

URL = 'server_url = "https://mesh.example.org:8443"\n'
OIDC = URL + "[oidc]\nissuer = 'https://id.test'\nclient_id = 'mesh'\n"
PATH = Path("/etc/mesh/config.toml")


def read(text: str) -> Config:
    return decode_config(text.encode(), PATH)


def test_one_line_is_a_working_file() -> None:
    config = read(URL)
    assert config.listen == "0.0.0.0:8443"
    assert (config.prefixes.v4, config.prefixes.v6) == ("100.64.0.0/10", "fd7a:115c:a1e0::/48")
    assert config.dns.magic and config.node.key_expiry_s == 0 and config.node.ephemeral_timeout_s == 1800
    assert config.domain == "ghost.internal" and config.relay.admit == "state" and config.dns_server.ttl == 60


@pytest.mark.parametrize(
    ("url", "port"), [("http://a", 80), ("https://a", 443), ("http://a:8080/base", 8080), ("https://[::1]:9", 9)]
)
def test_listen_takes_the_port_of_the_server_url(url: str, port: int) -> None:
    assert read(f'server_url = "{url}"').listen == f"0.0.0.0:{port}"


def test_files_are_relative_to_the_folder_of_the_config() -> None:
    config = read(
        URL
        + 'tls_cert_file = "tls/cert.pem"\ntls_key_file = "/k.pem"\n[relay]\ntls_cert_file = "r"\ntls_key_file = "s"'
    )
    assert (config.tls_cert_file, config.tls_key_file) == ("/etc/mesh/tls/cert.pem", "/k.pem")
    assert (config.relay.tls_cert_file, config.relay.tls_key_file) == ("/etc/mesh/r", "/etc/mesh/s")


@pytest.mark.parametrize(
    ("text", "line", "key", "says"),
    [
        ("listen = ':1'", None, "server_url", "missing"),
        ("server_url = 'ftp://x'", 1, "server_url", "not an http"),
        ("server_url = 'http://x:99999'", 1, "server_url", "not an http"),
        ("\nserver_url = 3", 2, "server_url", "expected `str`"),
        (URL + "serverurl = 1", 2, "serverurl", "unknown key"),
        (URL + "[dns]\n# so\nmagik = true", 4, "dns.magik", "unknown key"),
        (URL + "[dns]\nmagic = 1", 3, "dns.magic", "expected `bool`"),
        (URL + "dns.magic = 1", 2, "dns.magic", "expected `bool`"),
        (URL + "listen = 'nine'", 2, "listen", "not host:port"),
        (URL + "domain = 'a..b'", 2, "domain", "not a domain"),
        (URL + "domain = '-a.b'", 2, "domain", "not a domain"),
        (URL + "tls_cert_file = 'x'", 2, "tls_cert_file", "come together"),
        (URL + "[relay]\ntls_key_file = 'x'", 3, "relay.tls_key_file", "come together"),
        (URL + "[prefixes]\nv4 = '100.64.0.1/10'", 3, "prefixes.v4", "not a network"),
        (URL + "[prefixes]\nv6 = '10.0.0.0/8'", 3, "prefixes.v6", "not a network"),
        (URL + "[prefixes]\nv4 = ''\nv6 = ''", 3, "prefixes.v4", "both families"),
        (URL + "[node]\nkey_expiry = '1 month'", 3, "node.key_expiry", "not a duration"),
        (URL + "[dns]\nnameservers = [\n  '1.1.1.1',\n  'one',\n]", 5, "dns.nameservers.1", "not the address"),
        (URL + "[dns.routes]\n'corp.test' = ['x']", 3, "dns.routes.corp.test.0", "not the address"),
        (URL + "[[dns.extra_records]]\nname='a.b'\nvalue='::1'", 4, "dns.extra_records.0.value", "no address for A"),
        (URL + "[[dns.extra_records]]\nname='a'\nvalue='1.1.1.1'\n[[dns.extra_records]]\nname='c'\ntype='MX'\nvalue=''",
         7, "dns.extra_records.1.type", "neither A nor AAAA"),
        (URL + "[acme]\ndomains = ['a b']", 3, "acme.domains.0", "domain name"),
        (URL + "[acme]\ndomains = ['a.test']", 3, "acme.domains", "http_listen"),
        (URL + "http_listen = ':80'\n[acme]\ndomains = ['*.a.test']", 4, "acme.domains.0", "dns-01"),
        (URL + "http_listen = '80'", 2, "http_listen", "host:port"),
        (OIDC + "client_secret = 'x'", 5, "oidc.client_secret", "unknown"),
        (OIDC + "pkce.method = 'plain'", 5, "oidc.pkce.method", "S256"),
        (OIDC + "scope = ['email']", 5, "oidc.scope", "openid"),
        (OIDC + "allowed_domains = ['']", 5, "oidc.allowed_domains.0", "not one"),
        (OIDC + "allowed_domains = ['a@b.c']", 5, "oidc.allowed_domains.0", "not one"),
        (OIDC + "groups_claim = ''\nallowed_groups = ['a']", 6, "oidc.allowed_groups", "nobody"),
        (OIDC + "extra_params = {state = 'x'}", 5, "oidc.extra_params.state", "own to set"),
        (OIDC + "expiry = 'soon'", 5, "oidc.expiry", "soon"),
        (URL + "[oidc]\nissuer = 'http://id.test'\nclient_id = 'm'", 3, "oidc.issuer", "anybody"),
        (URL + "[oidc]\nissuer = 'https://id.test'", 2, "oidc.client_id", "missing"),
        (URL + "[relay]\nregion_id = 0", 3, "relay.region_id", "between"),
        (URL + "[relay]\nadmit = 'nobody'", 3, "relay.admit", "neither"),
        (URL + "[relay]\nstun = 'no'", 3, "relay.stun", "not host:port"),
        (URL + "[dns_server]\nttl = -1", 3, "dns_server.ttl", "between"),
        (URL + '[dns_server]\nclients = ["198.51.100.1/24"]', 3, "dns_server.clients.0", "not a network"),
        (URL + "listen", 2, None, "not TOML"),
        (URL + 'domain = "unclosed', 2, None, "not TOML"),
        (URL + "a = 1\na = 2", 3, None, "not TOML"),
        ("schema = 2\nfuture = 1\n" + URL, 1, "schema", "newer GhostWire"),
    ],
)  # fmt: skip
def test_a_broken_file_is_refused_with_file_line_and_key(
    text: str, line: int | None, key: str | None, says: str
) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        read(text)
    assert (caught.value.path, caught.value.line, caught.value.key) == (str(PATH), line, key)
    assert caught.value.message.startswith(str(PATH) + (f":{line}" if line else ""))


def test_stun_may_be_off_and_a_family_too() -> None:
    config = read(URL + "[relay]\nstun = 'off'\n[prefixes]\nv6 = ''")
    assert config.relay.stun == "off" and config.prefixes.v6 == ""


def test_text_that_is_no_utf8_names_its_line() -> None:
    with pytest.raises(ConfigError, match="not UTF-8") as caught:
        decode_config(URL.encode() + b"domain = '\xff'", PATH)
    assert caught.value.line == 2


@pytest.mark.parametrize("text", ["x = " + "9" * 5000, "x = " + "[" * 5000, "a" + ".a" * 3000 + " = 1"])
def test_absurd_toml_is_a_config_error_too(text: str) -> None:
    with pytest.raises(ConfigError):
        read(text)


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(NotFound) as caught:
        load_config(tmp_path / "config.toml")
    assert "gwctl init" in (caught.value.hint or "")


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ConfigError, match="larger than 4 MiB"):
        load_config(path)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("1.2.3.4:5", "1.2.3.4", 5), ("[::1]:5", "::1", 5), (":5", "0.0.0.0", 5), ("a.b:0", "a.b", 0)],
)
def test_listen_addresses_split(text: str, host: str, port: int) -> None:
    assert split_listen(text) == (host, port)


@pytest.mark.parametrize("text", ["", "5", "a:", "::1:5", "a:b", "a:65536", "a:-1", "a:٥"])
def test_other_listen_addresses_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        split_listen(text)


@given(
    st.binary(max_size=300)
    | st.text(alphabet="abserv_url=\"'[]{}.,#\n 0123:/\\-", max_size=120).map(lambda t: URL.encode() + t.encode())
)
def test_any_bytes_are_settings_or_a_config_error_that_names_the_file(raw: bytes) -> None:
    try:
        assert isinstance(decode_config(raw, PATH), Config)
    except ConfigError as error:
        assert error.path == str(PATH)
        assert error.line is None or 1 <= error.line <= raw.count(b"\n") + 2
