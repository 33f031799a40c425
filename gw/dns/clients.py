"""Who is answered: the mesh, the host itself, private networks, and those the configuration names.

A name server that answers the whole internet helps attackers to flood others and shows strangers the names of the mesh.
"""

from __future__ import annotations

import ipaddress
import logging
import time
from collections.abc import Iterable
from functools import lru_cache
from typing import Final, final

log: Final = logging.getLogger(__name__)

WARN_S: Final = 60.0


@final
class Clients:
    """networks: answered whatever they are (the tailnet's prefixes, `clients` of `[dns_server]`)."""

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = [ipaddress.ip_network(text) for text in networks if text]
        self._next_warning = 0.0
        self._known = lru_cache(4096)(self._decide)

    def admits(self, host: str) -> bool:
        """host: a client's address as the socket tells it."""
        if self._known(host):
            return True
        now = time.monotonic()
        if now >= self._next_warning:
            self._next_warning = now + WARN_S
            log.warning(
                "refused to answer %s: add its network to `clients` of `[dns_server]` if it is one of yours", host
            )
        return False

    def _decide(self, host: str) -> bool:
        address = ipaddress.ip_address(host.partition("%")[0])
        if address.version == 6 and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return not address.is_global or any(
            address.version == network.version and address in network for network in self._networks
        )
