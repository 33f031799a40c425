"""Names that the relay looks up for clients whose own DNS fails: `/bootstrap-dns`.

Ref: tailscale cmd/derper/bootstrap_dns.go, net/dnsfallback
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Callable, Iterable
from typing import Final

from gw.wire.derp.http import Pages

logger = logging.getLogger(__name__)

REFRESH_S: Final = 600.0
LOOKUP_S: Final = 60.0


async def keep_names(pages: Pages, names: Callable[[], tuple[list[str], list[str]]], changed: asyncio.Event) -> None:
    """Look the names up again and again until cancelled. names: published, unpublished. changed: look now."""
    while True:
        changed.clear()
        published, unpublished = names()
        pages.published = await _look_up(published, pages.published)
        pages.unpublished = await _look_up(unpublished, pages.unpublished)
        try:
            async with asyncio.timeout(REFRESH_S):
                await changed.wait()
        except TimeoutError:
            pass


async def _look_up(names: Iterable[str], before: dict[str, list[str]]) -> dict[str, list[str]]:
    """Addresses by name; one that cannot be looked up now keeps those it had."""
    found: dict[str, list[str]] = {}
    for name in names:
        addresses = await _addresses(name)
        if addresses or name in before:
            found[name] = addresses or before[name]
    return found


async def _addresses(name: str) -> list[str]:
    try:
        return [str(ipaddress.ip_address(name))]
    except ValueError:
        pass
    try:
        async with asyncio.timeout(LOOKUP_S):
            entries = await asyncio.get_running_loop().getaddrinfo(name, 443, type=socket.SOCK_STREAM)
    except (TimeoutError, OSError, UnicodeError) as error:
        logger.warning("no addresses of `%s` for /bootstrap-dns: %s", name, error)
        return []
    return sorted({str(entry[4][0]) for entry in entries})
