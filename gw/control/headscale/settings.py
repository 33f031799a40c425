"""Headscale's `config.yaml` as our `config.toml`; what has no counterpart is named, with what to do instead.

Ref: headscale config-example.yaml, hscontrol/types/config.go
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from gw.errors import ConfigError
from gw.state.files import translate

MAX_BYTES: Final = 1 << 20
_DIRECT: Final = {
    "server_url": "server_url",
    "listen_addr": "listen",
    "metrics_listen_addr": "metrics_listen",
    "tls_cert_path": "tls_cert_file",
    "tls_key_path": "tls_key_file",
    "prefixes.v4": "prefixes.v4",
    "prefixes.v6": "prefixes.v6",
    "dns.base_domain": "domain",
    "dns.magic_dns": "dns.magic",
    "dns.override_local_dns": "dns.override_local",
    "dns.nameservers.global": "dns.nameservers",
    "dns.nameservers.split": "dns.routes",
    "dns.search_domains": "dns.search",
    "dns.extra_records": "dns.extra_records",
    "dns.extra_records_path": "dns.extra_records_file",
    "derp.urls": "derp.urls",
    "derp.paths": "derp.files",
    "derp.update_frequency": "derp.refresh",
    "derp.server.region_id": "relay.region_id",
    "derp.server.region_code": "relay.region_code",
    "derp.server.region_name": "relay.region_name",
    "derp.server.stun_listen_addr": "relay.stun",
    "node.expiry": "node.key_expiry",
    "node.ephemeral.inactivity_timeout": "node.ephemeral_timeout",
    "ephemeral_node_inactivity_timeout": "node.ephemeral_timeout",
    "node.routes.ha.probe_interval": "routes.probe_interval",
    "node.routes.ha.probe_timeout": "routes.probe_timeout",
    "oidc.issuer": "oidc.issuer",
    "oidc.client_id": "oidc.client_id",
    "oidc.client_secret_path": "oidc.client_secret_file",
    "oidc.scope": "oidc.scope",
    "oidc.extra_params": "oidc.extra_params",
    "oidc.allowed_domains": "oidc.allowed_domains",
    "oidc.allowed_users": "oidc.allowed_users",
    "oidc.allowed_groups": "oidc.allowed_groups",
    "oidc.email_verified_required": "oidc.email_verified_required",
    "oidc.expiry": "oidc.expiry",
    "oidc.use_expiry_from_token": "oidc.use_expiry_from_token",
    "oidc.only_start_if_oidc_is_available": "oidc.only_start_if_oidc_is_available",
    "oidc.pkce.enabled": "oidc.pkce.enabled",
    "oidc.pkce.method": "oidc.pkce.method",
}
_TAKEN_OTHERWISE: Final = frozenset(  # read by the import itself, or without a meaning here
    {"noise.private_key_path", "database.type", "database.sqlite.path", "policy.mode", "policy.path", "log.level",
     "log.format", "derp.server.enabled", "derp.auto_update_enabled", "disable_check_updates", "unix_socket",
     "unix_socket_permission"}
)  # fmt: skip
_WITHOUT_USE: Final = (
    "database.",
    "tuning.",
    "cli.",
    "preauth_keys.",
    "grpc_",
    "dns.use_username",
    "randomize_client_port_",
)
_INSTEAD: Final = {
    "oidc.client_secret": "write it into a file and name that: oidc.client_secret_file",
    "acme_url": "certificates by ACME are set up in their own section: see docs",
    "acme_email": "certificates by ACME are set up in their own section: see docs",
    "tls_letsencrypt": "certificates by ACME are set up in their own section: see docs",
    "prefixes.allocation": "addresses are given in order; choose one by `gwctl nodes set-ip`",
    "trusted_proxies": "headers of proxies are not read",
    "logtail": "clients are told not to send logs to Tailscale",
    "taildrop": "restrict it in the policy",
    "auto_update": 'add "nodeAttrs": [{"target": ["*"], "attr": ["default-auto-update"]}] to the policy',
    "randomize_client_port": 'add "nodeAttrs": [{"target": ["*"], "attr": ["randomize-client-port"]}] to the policy',
    "derp.server": "the relay is a program of its own: gwrelay serve",
}
_DEFAULTS: Final[dict[str, Any]] = {  # values at which a setting without counterpart asks for nothing
    "prefixes.allocation": "sequential", "trusted_proxies": [], "logtail.enabled": False, "taildrop.enabled": True,
    "auto_update.enabled": False, "randomize_client_port": False, "acme_email": "",
    "acme_url": "https://acme-v02.api.letsencrypt.org/directory", "tls_letsencrypt_hostname": "",
}  # fmt: skip
_LETSENCRYPT: Final = "tls_letsencrypt_hostname"


@dataclass(slots=True)
class Translated:
    """A `config.toml` to be, dotted key → value, and what could not be said in it.

    database, noise_key, policy: files that the settings name, if any.
    """

    values: dict[str, Any] = field(default_factory=dict)
    notes: list[tuple[str, str]] = field(default_factory=list)
    database: Path | None = None
    noise_key: Path | None = None
    policy: Path | None = None

    def toml(self) -> str:
        """The text of the file."""
        import tomlkit

        document = tomlkit.document()
        document.add(
            tomlkit.comment("Translated from Headscale's config.yaml. `gwctl config explain` lists every key.")
        )
        document["schema"] = 1
        for key in sorted(self.values, key=lambda key: key.count(".")):
            *folders, name = key.split(".")
            table: Any = document
            for folder in folders:
                if folder not in table:
                    table[folder] = tomlkit.table()
                table = table[folder]
            table[name] = self.values[key]
        return tomlkit.dumps(document)


def read_settings(path: Path) -> dict[str, Any]:
    """The tables of a `config.yaml`. Raises GwError."""
    import yaml

    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES)
    except OSError as error:
        raise translate(error, "read", path, "check the path") from error
    try:
        found = yaml.safe_load(raw)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        raise ConfigError(
            f"not YAML: {getattr(error, 'problem', None) or error}",
            path=str(path),
            line=mark.line + 1 if mark else None,
        ) from None
    if not isinstance(found, dict) or "server_url" not in found:
        raise ConfigError("not a configuration of Headscale: no `server_url`", path=str(path))
    return found


def translate_settings(tables: dict[str, Any], folder: Path) -> Translated:
    """What of Headscale's settings can be said in ours. folder: where relative paths begin."""
    found = Translated()
    relay_is_on = bool(_at(tables, "derp.server.enabled"))
    for key, value in _flat(tables):
        ours = _DIRECT.get(key)
        if key.startswith("derp.server.") and (ours is None or not relay_is_on):
            continue
        if ours is not None:
            if value not in (None, "", [], {}) or ours.startswith("prefixes."):
                found.values[ours] = _value(ours, value, folder)
        elif not _asks_nothing(key, value, tables):
            found.notes.append((key, _instead(key)))
    _name_files(tables, folder, found)
    if _at(tables, "derp.auto_update_enabled") is False and "derp.urls" in found.values:
        found.values["derp.refresh"] = "0"
    if relay_is_on:
        found.notes.append(("derp.server", "the relay is a program of its own: gwrelay serve"))
    if _at(tables, "database.type") not in (None, "", "sqlite", "sqlite3"):
        found.notes.append(("database.type", "only SQLite can be imported"))
    return found


_MISSING: Final = object()


def _asks_nothing(key: str, value: Any, tables: dict[str, Any]) -> bool:
    """Whether a setting without a counterpart may be left out in silence."""
    return (
        value is None
        or key in _TAKEN_OTHERWISE
        or key.startswith(_WITHOUT_USE)
        or value == _DEFAULTS.get(key, _MISSING)
        or (key.startswith("tls_letsencrypt") and not tables.get(_LETSENCRYPT))
    )


def _name_files(tables: dict[str, Any], folder: Path, found: Translated) -> None:
    for key, name in (("database.sqlite.path", "database"), ("noise.private_key_path", "noise_key")):
        text = _at(tables, key)
        if text:
            setattr(found, name, folder / Path(str(text)).expanduser())
    text = _at(tables, "policy.path")
    if text and _at(tables, "policy.mode") in (None, "", "file"):
        found.policy = folder / Path(str(text)).expanduser()


def _value(ours: str, value: Any, folder: Path) -> Any:
    if ours.endswith("_file"):
        return str(folder / Path(str(value)).expanduser())
    if ours == "derp.files":
        return [str(folder / Path(str(each)).expanduser()) for each in value]
    if ours in ("node.key_expiry", "node.ephemeral_timeout", "oidc.expiry", "derp.refresh", "routes.probe_interval",
                "routes.probe_timeout"):  # fmt: skip
        return "0" if str(value) in ("0", "0s") else str(value)
    if ours == "dns.extra_records" and isinstance(value, list):
        return [{"name": each.get("name", ""), "type": each.get("type", "A"), "value": each.get("value", "")}
                for each in value if isinstance(each, dict)]  # fmt: skip
    return value


def _instead(key: str) -> str:
    for prefix in sorted(_INSTEAD, key=len, reverse=True):
        if key == prefix or key.startswith((f"{prefix}.", f"{prefix}_")):
            return _INSTEAD[prefix]
    return "there is no such setting here"


def _at(tables: dict[str, Any], key: str) -> Any:
    value: Any = tables
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _flat(tables: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tables.items():
        key = f"{prefix}{name}"
        whole = key in _DIRECT or (key in _INSTEAD and not isinstance(value, dict))
        if isinstance(value, dict) and not whole:
            yield from _flat(value, f"{key}.")
        else:
            yield key, value
