"""This relay's entry in `relays/<region>.toml`, where the control server finds it beside the region's other relays."""

from __future__ import annotations

import ipaddress

from gw.errors import GwError
from gw.relay.settings import Settings, own_name, speaks_quic
from gw.state.codec import decode, encode, rewrite
from gw.state.config import split_listen
from gw.state.documents import RelayNode, RelayRegionDoc
from gw.state.files import make_folder, write_atomic
from gw.state.migrations import MIGRATIONS
from gw.state.paths import StatePaths
from gw.state.relayentries import entered


def enter_map(paths: StatePaths, settings: Settings, certificate_pin: str, relay_key: bytes) -> None:
    """Write this relay's node into its region; other nodes of the region stay as they are."""
    quic = speaks_quic(settings)
    _, port = split_listen(settings.listen)
    port = settings.public_port or port
    version = _version(settings.hostname)
    node = RelayNode(
        name=own_name(settings),
        region_id=settings.region_id,
        host_name=settings.hostname,
        cert_name=certificate_pin,
        ipv4=settings.hostname if version == 4 else "none" if version == 6 else "",
        ipv6=settings.hostname if version == 6 else "none" if version == 4 else "",
        derpport=0 if port == 443 else port,
        stunport=-1 if settings.stun == "off" else split_listen(settings.stun)[1],
        quic_port=split_listen(settings.stun)[1] if quic else 0,
        relay_key=relay_key.hex() if quic else "",
        can_port80=settings.http != "off" and split_listen(settings.http)[1] == 80,
    )
    node = entered(node, settings.region_code, settings.region_name)
    before = read_region(paths, settings.region_id)
    others = [each for each in before.nodes if each.name != node.name] if before is not None else []
    region = RelayRegionDoc(
        region_id=settings.region_id,
        code=settings.region_code,
        name=settings.region_name,
        nodes=sorted([*others, node], key=lambda each: each.name),
    )
    if region != before:
        make_folder(paths.relays_dir, 0o755)
        path = paths.relays_dir / f"{settings.region_id}.toml"
        write_atomic(path, encode(region) if before is None else rewrite(path.read_bytes(), region))


def read_region(paths: StatePaths, region_id: int) -> RelayRegionDoc | None:
    """The region's document, None where there is none or it cannot be read."""
    path = paths.relays_dir / f"{region_id}.toml"
    try:
        document, _ = decode("relay", path.name, path.read_bytes(), str(path), MIGRATIONS)
    except (OSError, GwError):
        return None
    return document if isinstance(document, RelayRegionDoc) else None


def _version(hostname: str) -> int:
    """4 or 6 for a literal address, 0 for a name."""
    try:
        return int(ipaddress.ip_address(hostname).version)
    except ValueError:
        return 0
