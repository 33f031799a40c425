"""What a node says about itself, cut down to what may be repeated to its peers.

One poisoned value would make every peer's client throw away the whole map message, so each is checked before it is
kept.

Ref: control protocol appendix B
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import Final

import msgspec

from gw.errors import WireError
from gw.model.addresses import AddrPort
from gw.model.hostinfo import Hostinfo, Service
from gw.model.keys import DiscoKey

MAX_ENDPOINTS: Final = 100
MAX_ENDPOINT_CHARS: Final = 64  # an IPv6 address in brackets and a port have 47
MAX_REGION: Final = (1 << 31) - 1
MAX_CAPABILITY_VERSION: Final = (1 << 16) - 1
MAX_SERVICES: Final = 300
MAX_ROUTES: Final = 1000
MAX_TEXT: Final = 256
MAX_HOST_KEYS: Final = 20
MAX_HOST_KEY_CHARS: Final = 4096


def clean_endpoints(endpoints: list[str]) -> list[str]:
    """The usable ones, in canonical form: no zones, no IPv6 link-local, no port 0, at most 100, none twice."""
    clean = [_endpoint(text) for text in endpoints[:MAX_ENDPOINTS] if len(text) <= MAX_ENDPOINT_CHARS]
    return list(dict.fromkeys(filter(None, clean)))


@lru_cache(maxsize=1 << 16)
def _endpoint(text: str) -> str:
    """In canonical form; "" for one that is of no use to peers. A client says the same ones many times."""
    try:
        endpoint = AddrPort.parse(text)
    except WireError:
        return ""
    address = ip_address(endpoint.host)
    if not endpoint.port or address.is_unspecified or (address.version == 6 and address.is_link_local):
        return ""
    return str(endpoint)


def clean_disco_key(text: str) -> str:
    """The key's canonical text; "" for the zero key or anything else that is none."""
    try:
        key = DiscoKey.parse(text)
    except WireError:
        return ""
    return str(key) if key else ""


def clean_routes(routes: list[str]) -> list[str]:
    """Valid prefixes in canonical form, host bits cleared, none twice."""
    found: dict[str, None] = {}
    for text in routes[:MAX_ROUTES]:
        try:
            found[str(ip_network(text, strict=False))] = None
        except ValueError:
            continue
    return list(found)


def clean_hostinfo(hostinfo: Hostinfo) -> Hostinfo:
    """A copy that is safe to repeat: strings cut and without NUL, lists bounded, routes and services valid."""
    changes: dict[str, object] = {}
    for name in Hostinfo.__struct_fields__:
        value = getattr(hostinfo, name)
        if isinstance(value, str) and (len(value) > MAX_TEXT or "\0" in value):
            changes[name] = value[:MAX_TEXT].replace("\0", "")
    if hostinfo.routable_ips:
        changes["routable_ips"] = clean_routes(hostinfo.routable_ips)
    if hostinfo.services:
        changes["services"] = [_clean(service) for service in hostinfo.services[:MAX_SERVICES] if _good(service)]
    if hostinfo.request_tags:
        changes["request_tags"] = [tag for tag in hostinfo.request_tags[:MAX_SERVICES] if len(tag) <= MAX_TEXT]
    if hostinfo.ssh_host_keys:
        keys = [key for key in hostinfo.ssh_host_keys[:MAX_HOST_KEYS] if len(key) <= MAX_HOST_KEY_CHARS]
        changes["ssh_host_keys"] = [key.replace("\0", "") for key in keys]
    return msgspec.structs.replace(hostinfo, **changes) if changes else hostinfo


def _good(service: Service) -> bool:
    return 0 <= service.port <= 0xFFFF and len(service.proto) <= MAX_TEXT


def _clean(service: Service) -> Service:
    proto, text = service.proto.replace("\0", ""), service.description[:MAX_TEXT].replace("\0", "")
    return msgspec.structs.replace(service, proto=proto, description=text)


def clean_region(number: int) -> int:
    """A relay region, 0 for what is none: clients on 32 bits cannot read a larger number, nor anything beside it."""
    return number if 0 < number <= MAX_REGION else 0


def same_for_peers(old: Hostinfo, new: Hostinfo) -> bool:
    """Whether peers would see no difference: the network report is not theirs."""
    return msgspec.structs.replace(old, net_info=None) == msgspec.structs.replace(new, net_info=None)
