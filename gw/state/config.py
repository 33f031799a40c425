"""`config.toml`: the settings a person edits.

    server_url = "https://mesh.example.org"     # the only key that must be there

Unknown keys are refused with file, line and key, so that a typing error never passes for a setting. Secrets are never
written here: keys ending in `_file` name files, relative to the folder of `config.toml`.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

import msgspec

from gw.errors import UsageError
from gw.state.durations import parse_duration
from gw.state.tomlpositions import KeyPath
from gw.state.tomltext import convert, fault, parse, read_bytes, refuse_newer

SCHEMA: Final = 1
RESERVED_PARAMS: Final = frozenset(
    [
        "client_id",
        "code_challenge",
        "code_challenge_method",
        "nonce",
        "redirect_uri",
        "request",
        "request_uri",
        "response_mode",
        "response_type",
        "scope",
        "state",
    ]
)
MAX_BASE_DOMAIN: Final = 253 - 64  # a node name and a dot go before it


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of every table of the file."""


class Prefixes(_Table, frozen=True, kw_only=True):
    """The ranges node addresses come from; "" turns a family off."""

    v4: str = "100.64.0.0/10"
    v6: str = "fd7a:115c:a1e0::/48"


class ExtraRecord(_Table, frozen=True, kw_only=True):
    """One A or AAAA record served by MagicDNS beside the nodes' own."""

    name: str
    type: str = "A"
    value: str


class DnsSettings(_Table, frozen=True, kw_only=True):
    magic: bool = True
    nameservers: list[str] = []
    routes: dict[str, list[str]] = {}
    override_local: bool = True  # false: `nameservers` are used only where a device has none of its own
    search: list[str] = []
    extra_records: list[ExtraRecord] = []
    extra_records_file: str = ""  # JSON, as Headscale's extra_records_path; noticed when it changes


class NodeSettings(_Table, frozen=True, kw_only=True):
    key_expiry: str = "0"
    ephemeral_timeout: str = "30m"
    require_approval: bool = False  # a new node reaches nobody until `gwctl nodes approve`

    @property
    def key_expiry_s(self) -> float:
        """Seconds until a node key expires; 0 = never."""
        return parse_duration(self.key_expiry)

    @property
    def ephemeral_timeout_s(self) -> float:
        return parse_duration(self.ephemeral_timeout)


class AcmeSettings(_Table, frozen=True, kw_only=True):
    """Certificates from an authority; off without `domains`."""

    domains: list[str] = []
    email: str = ""
    directory: str = "https://acme-v02.api.letsencrypt.org/directory"
    challenge: Literal["http-01", "tls-alpn-01", "dns-01"] = "http-01"
    dns_hook: str = ""  # program for dns-01; "" = the server's own DNS backend
    ca_file: str = ""  # CA certificates for the authority, instead of the well-known ones
    eab_kid: str = ""
    eab_key_file: str = ""


class PkceSettings(_Table, frozen=True, kw_only=True):
    enabled: bool = True
    method: str = "S256"


class OidcSettings(_Table, frozen=True, kw_only=True):
    """Logins by an OpenID Connect provider; off without `issuer`. The names are Headscale's."""

    issuer: str = ""
    client_id: str = ""
    client_secret_file: str = ""  # none for a public client
    ca_file: str = ""  # CA certificates for the provider, instead of the host's
    scope: list[str] = msgspec.field(default_factory=lambda: ["openid", "profile", "email"])
    extra_params: dict[str, str] = {}
    allowed_domains: list[str] = []
    allowed_users: list[str] = []
    allowed_groups: list[str] = []
    email_verified_required: bool = True
    groups_claim: str = "groups"
    policy_groups: bool = True  # whether the provider's groups add to those that the policy names
    expiry: str = ""  # "" = node.key_expiry
    use_expiry_from_token: bool = False
    only_start_if_oidc_is_available: bool = False
    pkce: PkceSettings = PkceSettings()

    @property
    def expiry_s(self) -> float | None:
        """Seconds that a login lasts; 0 = for ever, None = what `node.key_expiry` says."""
        return parse_duration(self.expiry) if self.expiry else None


class DerpSettings(_Table, frozen=True, kw_only=True):
    """Relay maps of others, beside the regions in `relays/`, which win."""

    urls: list[str] = []
    files: list[str] = []  # JSON, YAML or TOML; noticed when they change
    refresh: str = "3h"  # of the urls; 0 = only at the start

    @property
    def refresh_s(self) -> float:
        return parse_duration(self.refresh)


class RouteSettings(_Table, frozen=True, kw_only=True):
    """How routers of one subnet are watched. The names are Headscale's."""

    probe_interval: str = "10s"  # 0 = a router counts as alive while its connection stands
    probe_timeout: str = "5s"

    @property
    def probe_interval_s(self) -> float:
        return parse_duration(self.probe_interval)

    @property
    def probe_timeout_s(self) -> float:
        return parse_duration(self.probe_timeout)


class WebhookSettings(_Table, frozen=True, kw_only=True):
    """Where events are sent. Ref: docs/events.md"""

    name: str
    url: str
    secret_file: str
    events: list[str] = []  # globs, `node-*`; empty = everything
    give_up: str = "7d"  # events older than this are not tried any more

    @property
    def give_up_s(self) -> float:
        return parse_duration(self.give_up)


class RelaySettings(_Table, frozen=True, kw_only=True):
    listen: str = "0.0.0.0:443"
    stun: str = "0.0.0.0:3478"  # or `off`
    quic: bool = True  # clients may come over QUIC at the port of `stun`
    peer_relay: bool = True  # pairs of nodes without a direct path may have their UDP relayed there
    hostname: str = ""
    region_id: int = 900
    region_code: str = "gw"
    region_name: str = "GhostWire"
    tls_cert_file: str = ""
    tls_key_file: str = ""
    admit: str = "state"  # `state`, `all` or the URL of a /verify
    admit_fail_open: bool = False  # let in whom the URL could not be asked about
    workers: int = 1  # processes that forward
    http: str = "off"  # plain HTTP for captive-portal checks: `0.0.0.0:80`
    metrics: str = "off"  # Prometheus, for everybody who reaches it: `127.0.0.1:9092`
    home: str = ""  # HTML of `/`, or the URL it leads to
    public_port: int = 0  # where clients reach it, if not at the port of `listen`
    node_name: str = ""  # among the relays of its region; becomes `900a`
    mesh_key_file: str = ""  # 64 hex digits that all relays of the region share
    mesh_with: list[str] = []  # `host:port[#sha256-raw:…]`; becomes the region's other relays
    rate_bytes_per_second: int = 0  # what one client may send; 0 = as much as it likes
    rate_burst_bytes: int = 0
    accepts_per_second: float = 0.0  # new connections; 0 = no limit
    accepts_burst: int = 100
    max_clients: int = 0  # connections at once; 0 = as many as there are descriptors
    max_clients_per_address: int = 0
    bootstrap_dns: list[str] = []  # names looked up for clients without DNS; become the control server and this relay
    bootstrap_dns_unpublished: list[str] = []
    acme: AcmeSettings = AcmeSettings()  # the relay's own certificate; `dns_hook` is needed for dns-01


class DnsServerSettings(_Table, frozen=True, kw_only=True):
    listen: str = "0.0.0.0:53"
    upstreams: list[str] = []
    clients: list[str] = []  # networks to answer besides the mesh and private ones
    ttl: int = 60


class Config(_Table, frozen=True, kw_only=True):
    """The whole file. `load_config` checks the values too."""

    schema: int = SCHEMA
    server_url: str
    listen: str = ""  # becomes 0.0.0.0 and the port of server_url
    metrics_listen: str = ""  # host:port of /metrics; "" = nowhere
    domain: str = "ghost.internal"
    tls_cert_file: str = ""
    tls_key_file: str = ""
    prefixes: Prefixes = Prefixes()
    dns: DnsSettings = DnsSettings()
    node: NodeSettings = NodeSettings()
    oidc: OidcSettings = OidcSettings()
    acme: AcmeSettings = AcmeSettings()
    http_listen: str = ""  # host:port of plain HTTP: sends to https, proves names to an authority; "" = nowhere
    relay: RelaySettings = RelaySettings()
    dns_server: DnsServerSettings = DnsServerSettings()
    derp: DerpSettings = DerpSettings()
    routes: RouteSettings = RouteSettings()
    webhooks: list[WebhookSettings] = []

    def __post_init__(self) -> None:
        if not self.listen:
            msgspec.structs.force_setattr(self, "listen", f"0.0.0.0:{_port_of_url(self.server_url)}")


def load_config(path: Path) -> Config:
    """Read and check the file. Raises ConfigError (file, line, key), NotFound or PermissionNeeded."""
    return decode_config(read_bytes(path, what="configuration"), path)


def decode_config(raw: bytes, path: Path) -> Config:
    """The checked settings of a file's content; `*_file` keys become absolute. Raises ConfigError."""
    where = str(path)
    tables = parse(raw, where)
    refuse_newer(tables, SCHEMA, raw, where)
    config = convert(tables, Config, raw, where)
    for key, message in _faults(config):
        raise fault(raw, where, key, message)
    folder = path.absolute().parent
    relay_acme = msgspec.structs.replace(config.relay.acme, **_absolute(config.relay.acme, folder))
    relay = msgspec.structs.replace(config.relay, acme=relay_acme, **_absolute(config.relay, folder))
    oidc = msgspec.structs.replace(config.oidc, **_absolute(config.oidc, folder))
    acme = msgspec.structs.replace(config.acme, **_absolute(config.acme, folder))
    dns = msgspec.structs.replace(config.dns, **_absolute(config.dns, folder))
    derp = msgspec.structs.replace(
        config.derp, files=[str(folder / Path(each).expanduser()) for each in config.derp.files]
    )
    hooks = [msgspec.structs.replace(each, **_absolute(each, folder)) for each in config.webhooks]
    return msgspec.structs.replace(
        config, relay=relay, oidc=oidc, acme=acme, dns=dns, derp=derp, webhooks=hooks, **_absolute(config, folder)
    )


def _absolute(
    table: Config | RelaySettings | OidcSettings | AcmeSettings | DnsSettings | WebhookSettings, folder: Path
) -> dict[str, str]:
    """The `*_file` keys that are set, as absolute paths."""
    named = {key: getattr(table, key) for key in table.__struct_fields__ if key.endswith("_file")}
    return {key: str(folder / Path(text).expanduser()) for key, text in named.items() if text}


def _faults(config: Config) -> Iterator[tuple[KeyPath, str]]:
    """What is wrong with the values, in the order of the file."""
    try:
        url = urlsplit(config.server_url)
        good = url.scheme in ("http", "https") and bool(url.hostname) and not url.query and url.port != 0
    except ValueError:
        good = False
    if not good:
        yield ("server_url",), f"not an http or https URL: `{config.server_url}`"
    yield from _listen(("listen",), config.listen)
    if config.metrics_listen:
        yield from _listen(("metrics_listen",), config.metrics_listen)
    yield from _domain(("domain",), config.domain)
    if len(config.domain) > MAX_BASE_DOMAIN:
        yield ("domain",), f"longer than {MAX_BASE_DOMAIN} characters: no room for the names of nodes"
    if bool(config.tls_cert_file) != bool(config.tls_key_file):
        yield ("tls_cert_file" if config.tls_cert_file else "tls_key_file",), "certificate and key come together"
    yield from _prefixes(config.prefixes)
    yield from _dns(config.dns)
    for name in ("key_expiry", "ephemeral_timeout"):
        try:
            parse_duration(getattr(config.node, name))
        except UsageError as error:
            yield ("node", name), error.message
    yield from _oidc(config.oidc)
    yield from _acme(config)
    yield from _relay(config.relay)
    yield from _derp(config.derp)
    yield from _routes(config.routes)
    yield from _webhooks(config.webhooks)
    yield from _listen(("dns_server", "listen"), config.dns_server.listen)
    for index, upstream in enumerate(config.dns_server.upstreams):
        yield from _resolver(("dns_server", "upstreams", index), upstream)
    for index, client in enumerate(config.dns_server.clients):
        try:
            ip_network(client)
        except ValueError as error:
            yield ("dns_server", "clients", index), f"not a network: {error}"
    if not 0 <= config.dns_server.ttl <= 604800:
        yield ("dns_server", "ttl"), f"not between 0 and 604800 seconds: `{config.dns_server.ttl}`"


def _prefixes(prefixes: Prefixes) -> Iterator[tuple[KeyPath, str]]:
    for name, kind in (("v4", IPv4Network), ("v6", IPv6Network)):
        text: str = getattr(prefixes, name)
        try:
            if text:
                kind(text)
        except ValueError as error:
            yield ("prefixes", name), f"not a network: {error}"
    if not prefixes.v4 and not prefixes.v6:
        yield ("prefixes", "v4"), "both families are off"


def _dns(dns: DnsSettings) -> Iterator[tuple[KeyPath, str]]:
    for index, server in enumerate(dns.nameservers):
        yield from _resolver(("dns", "nameservers", index), server)
    for suffix, servers in dns.routes.items():
        yield from _domain(("dns", "routes", suffix), suffix)
        for index, server in enumerate(servers):
            yield from _resolver(("dns", "routes", suffix, index), server)
    for index, domain in enumerate(dns.search):
        yield from _domain(("dns", "search", index), domain)
    for index, record in enumerate(dns.extra_records):
        at = ("dns", "extra_records", index)
        yield from _domain((*at, "name"), record.name)
        if record.type not in ("A", "AAAA"):
            yield (*at, "type"), f"neither A nor AAAA: `{record.type}`"
        try:
            good = ip_address(record.value).version == (4 if record.type == "A" else 6)
        except ValueError:
            good = False
        if not good:
            yield (*at, "value"), f"no address for {record.type}: `{record.value}`"


def _acme(config: Config) -> Iterator[tuple[KeyPath, str]]:
    if config.http_listen:
        yield from _listen(("http_listen",), config.http_listen)
    relay = config.relay
    yield from _authority((), config.acme, config.tls_cert_file, "http_listen", bool(config.http_listen))
    yield from _authority(("relay",), relay.acme, relay.tls_cert_file, "http", relay.http != "off")
    if relay.acme.domains and relay.acme.challenge == "dns-01" and not relay.acme.dns_hook:
        yield ("relay", "acme", "challenge"), "dns-01 of a relay needs `dns_hook`"


def _authority(
    table: KeyPath, acme: AcmeSettings, tls_cert_file: str, http: str, has_http: bool
) -> Iterator[tuple[KeyPath, str]]:
    """table: where `acme` stands. http: the key of the plain listener there."""
    for index, domain in enumerate(acme.domains):
        yield from _domain((*table, "acme", "domains", index), domain.removeprefix("*."))
        if domain.startswith("*.") and acme.challenge != "dns-01":
            yield (*table, "acme", "domains", index), 'a wildcard needs `challenge = "dns-01"`'
    if not acme.domains:
        return
    if tls_cert_file:
        yield (*table, "tls_cert_file"), "either a certificate of your own, or one from an authority (`acme.domains`)"
    if acme.challenge == "http-01" and not has_http:
        yield (*table, "acme", "domains"), f"http-01 needs `{http}`, on port 80 for the internet"
    if urlsplit(acme.directory).scheme != "https":
        yield (*table, "acme", "directory"), f"not an https URL: `{acme.directory}`"
    if bool(acme.eab_kid) != bool(acme.eab_key_file):
        key = "eab_kid" if acme.eab_kid else "eab_key_file"
        yield (*table, "acme", key), "`eab_kid` and `eab_key_file` come together"


def _oidc(oidc: OidcSettings) -> Iterator[tuple[KeyPath, str]]:
    if not oidc.issuer:
        return
    try:
        url = urlsplit(oidc.issuer)
        good = bool(url.hostname) and not url.query and not url.fragment and url.port != 0
        local = url.hostname in ("localhost", "::1") or (url.hostname or "").startswith("127.")
    except ValueError:
        good, local, url = False, False, urlsplit("")
    if not good or url.scheme not in ("http", "https"):
        yield ("oidc", "issuer"), f"not an https URL: `{oidc.issuer}`"
    elif url.scheme == "http" and not local:
        yield ("oidc", "issuer"), f"over http anybody could log in as anybody: `{oidc.issuer}`; use https"
    if not oidc.client_id:
        yield ("oidc", "client_id"), "missing: the name that the provider gave this server"
    if "openid" not in oidc.scope:
        yield ("oidc", "scope"), "`openid` has to be among them"
    for name in ("allowed_domains", "allowed_users", "allowed_groups", "scope"):
        for index, entry in enumerate(getattr(oidc, name)):
            if not entry.strip() or (name == "allowed_domains" and "@" in entry):
                yield ("oidc", name, index), f"not one of those: `{entry}`"
    if not oidc.groups_claim and oidc.allowed_groups:
        yield ("oidc", "allowed_groups"), "nobody could log in: `groups_claim` is empty"
    if oidc.pkce.method != "S256":
        yield ("oidc", "pkce", "method"), f"not supported: `{oidc.pkce.method}`; S256 is"
    for name in sorted(RESERVED_PARAMS & set(oidc.extra_params)):
        yield ("oidc", "extra_params", name), f"`{name}` is the server's own to set"
    try:
        _ = oidc.expiry_s
    except UsageError as error:
        yield ("oidc", "expiry"), error.message


def _derp(derp: DerpSettings) -> Iterator[tuple[KeyPath, str]]:
    for index, url in enumerate(derp.urls):
        if not url.startswith(("http://", "https://")):
            yield ("derp", "urls", index), f"not an http or https URL: `{url}`"
    yield from _duration(("derp", "refresh"), derp.refresh)


def _routes(routes: RouteSettings) -> Iterator[tuple[KeyPath, str]]:
    faults = [
        *_duration(("routes", "probe_interval"), routes.probe_interval),
        *_duration(("routes", "probe_timeout"), routes.probe_timeout),
    ]
    yield from faults
    if faults or not routes.probe_interval_s:
        return
    if routes.probe_interval_s < 2:
        yield ("routes", "probe_interval"), f"shorter than 2s: `{routes.probe_interval}`; 0 turns probing off"
    if not 1 <= routes.probe_timeout_s < routes.probe_interval_s:
        yield ("routes", "probe_timeout"), f"not between 1s and the interval: `{routes.probe_timeout}`"


def _webhooks(hooks: list[WebhookSettings]) -> Iterator[tuple[KeyPath, str]]:
    names: set[str] = set()
    for index, hook in enumerate(hooks):
        if not hook.name.replace("-", "").isalnum() or not hook.name.isascii() or len(hook.name) > 63:
            yield ("webhooks", index, "name"), f"not a name of letters, digits and hyphens: `{hook.name}`"
        if hook.name in names:
            yield ("webhooks", index, "name"), f"there are two of that name: `{hook.name}`"
        names.add(hook.name)
        if not hook.url.startswith(("http://", "https://")):
            yield ("webhooks", index, "url"), f"not an http or https URL: `{hook.url}`"
        yield from _duration(("webhooks", index, "give_up"), hook.give_up)


def _duration(key: KeyPath, text: str) -> Iterator[tuple[KeyPath, str]]:
    try:
        parse_duration(text)
    except UsageError as error:
        yield key, error.message


def _relay(relay: RelaySettings) -> Iterator[tuple[KeyPath, str]]:
    yield from _listen(("relay", "listen"), relay.listen)
    for name in ("stun", "http", "metrics"):
        if getattr(relay, name) != "off":
            yield from _listen(("relay", name), getattr(relay, name))
    if not 1 <= relay.workers <= 64:
        yield ("relay", "workers"), f"not between 1 and 64: `{relay.workers}`"
    if not 0 <= relay.public_port <= 65535:
        yield ("relay", "public_port"), f"not a port: `{relay.public_port}`"
    for name in (
        "rate_bytes_per_second", "rate_burst_bytes", "accepts_per_second", "accepts_burst", "max_clients",
        "max_clients_per_address",
    ):  # fmt: skip
        if getattr(relay, name) < 0:
            yield ("relay", name), f"below zero: `{getattr(relay, name)}`"
    for name in ("bootstrap_dns", "bootstrap_dns_unpublished"):
        for index, host in enumerate(getattr(relay, name)):
            yield from _domain(("relay", name, index), host)
    if not 1 <= relay.region_id <= 65535:
        yield ("relay", "region_id"), f"not between 1 and 65535: `{relay.region_id}`"
    if bool(relay.tls_cert_file) != bool(relay.tls_key_file):
        key = "tls_cert_file" if relay.tls_cert_file else "tls_key_file"
        yield ("relay", key), "certificate and key come together"
    if relay.admit not in ("state", "all") and not relay.admit.startswith(("http://", "https://")):
        yield ("relay", "admit"), f"neither `state`, `all` nor a URL: `{relay.admit}`"


def split_listen(text: str) -> tuple[str, int]:
    """Host and port of `0.0.0.0:8080`, `[::]:8080` or `:8080` (all addresses). Raises UsageError."""
    host, colon, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 0xFFFF or (":" in bare and bare == host):
        raise UsageError(f"not host:port: `{text}`", hint="write `0.0.0.0:8080` or `[::]:8080`")
    return bare or "0.0.0.0", int(port)  # noqa: S104  what the person wrote


def _listen(key: KeyPath, text: str) -> Iterator[tuple[KeyPath, str]]:
    try:
        split_listen(text)
    except UsageError as error:
        yield key, error.message


def _domain(key: KeyPath, text: str) -> Iterator[tuple[KeyPath, str]]:
    labels = text.removesuffix(".").split(".")
    if len(text) > 253 or not all(
        0 < len(label) <= 63 and label.replace("-", "").replace("_", "").isalnum() and label.isascii()
        and not label.startswith("-") and not label.endswith("-")
        for label in labels
    ):  # fmt: skip
        yield key, f"not a domain name: `{text}`"


def _resolver(key: KeyPath, text: str) -> Iterator[tuple[KeyPath, str]]:
    """`1.1.1.1`, `1.1.1.1:53`, `[::1]:53` or `https://…`."""
    if text.startswith(("https://", "http://")):
        return
    try:
        ip_address(text)
    except ValueError:
        try:
            ip_address(split_listen(text)[0])
        except (UsageError, ValueError):
            yield key, f"not the address of a DNS server: `{text}`"


def _port_of_url(url: str) -> int:
    try:
        parts = urlsplit(url)
        return parts.port or (80 if parts.scheme == "http" else 443)
    except ValueError:
        return 443
