"""What a relay is told: `[relay]` of config.toml under the flags of this run, read again at each SIGHUP."""

from __future__ import annotations

import msgspec

from gw.errors import ConfigError, NotFound, UsageError, WireError
from gw.relay.meshing import Target, parse_target
from gw.state.config import AcmeSettings, RelaySettings, load_config, split_listen
from gw.state.files import read_secret
from gw.state.paths import StatePaths
from gw.wire.derp.handshake import parse_mesh_key


class Overrides(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The flags of this run; empty and zero mean: as the file says."""

    listen: str = ""
    stun: str = ""
    http: str = ""
    metrics: str = ""
    hostname: str = ""
    public_port: int = 0
    node_name: str = ""
    region_id: int = 0
    region_code: str = ""
    admit: str = ""
    tls_cert_file: str = ""
    tls_key_file: str = ""
    self_signed: bool = False
    plain: bool = False
    mesh_key_file: str = ""
    mesh_with: list[str] = []
    workers: int = 0


class Settings(RelaySettings, frozen=True, kw_only=True):
    """`RelaySettings` with what follows from the flags. public_port: 0 = that of `listen`."""

    plain: bool = False
    server_url: str = ""


def load_settings(paths: StatePaths, flags: Overrides) -> Settings:
    """The settings now in force. Raises ConfigError, NotFound, UsageError."""
    from urllib.parse import urlsplit

    server_url = ""
    try:
        config = load_config(paths.config_file)
    except NotFound:
        if flags.admit in ("", "state"):
            raise
        kept = RelaySettings()
    else:
        kept, server_url = config.relay, config.server_url
    values = msgspec.structs.asdict(kept)
    for name, value in msgspec.structs.asdict(flags).items():
        if value and name in values:
            values[name] = value
    if flags.plain or flags.self_signed or flags.tls_cert_file:
        values["acme"] = AcmeSettings()
    if flags.plain or flags.self_signed:
        values["tls_cert_file"] = values["tls_key_file"] = ""
    elif flags.tls_cert_file:
        values["tls_cert_file"], values["tls_key_file"] = flags.tls_cert_file, flags.tls_key_file
    if flags.plain and not values["public_port"]:
        values["public_port"] = 443  # of the proxy that has the TLS
    values["hostname"] = values["hostname"] or urlsplit(server_url).hostname or ""
    settings = Settings(**values, plain=flags.plain, server_url=server_url)
    split_listen(settings.listen)
    for optional in (settings.stun, settings.http, settings.metrics):
        if optional != "off":
            split_listen(optional)
    for text in settings.mesh_with:
        parse_target(text)
    if not 1 <= settings.workers <= 64:
        raise UsageError(f"not between 1 and 64 workers: `{settings.workers}`")
    if not settings.hostname:
        raise UsageError("the relay has no name", hint="--hostname NAME, or server_url in config.toml")
    return settings


def mesh_key(settings: Settings) -> str:
    """The mesh key of the file that is named, empty for none. Raises ConfigError."""
    if not settings.mesh_key_file:
        return ""
    from pathlib import Path

    try:
        return parse_mesh_key(read_secret(Path(settings.mesh_key_file)).decode("ascii", "replace"))
    except OSError as error:
        raise ConfigError(f"cannot read the mesh key: {error.strerror}", path=settings.mesh_key_file) from error
    except WireError as error:
        raise ConfigError(str(error), path=settings.mesh_key_file) from error


def mesh_targets(paths: StatePaths, settings: Settings) -> list[Target]:
    """The relays to link with: those named, else the other nodes of this region in the relay map."""
    if not settings.mesh_key_file:
        return []
    if settings.mesh_with:
        return [parse_target(each) for each in settings.mesh_with]
    from gw.relay.relaymap import read_region

    region = read_region(paths, settings.region_id)
    if region is None:
        return []
    return [
        Target(
            host=node.host_name,
            port=node.derpport or 443,
            dial_host=node.ipv4 if node.ipv4 not in ("", "none") else "",
            pin=node.cert_name if node.cert_name.startswith("sha256-raw:") else "",
        )
        for node in region.nodes
        if node.name != own_name(settings) and not node.stunonly
    ]


def own_name(settings: Settings) -> str:
    """This relay's name among the nodes of its region."""
    return settings.node_name or f"{settings.region_id}a"


def relays_peers(settings: Settings) -> bool:
    """Whether nodes may have their UDP relayed. Of several workers QUIC's steering finds the one that has the pair."""
    return settings.peer_relay and settings.stun != "off" and (settings.workers == 1 or speaks_quic(settings))


def speaks_quic(settings: Settings) -> bool:
    """Whether clients may come over QUIC, at the port of STUN."""
    return settings.quic and settings.stun != "off" and not settings.plain
