"""What the mesh asks of the host: addresses, routes and names, followed in a thread of its own.

    wishes ──> thread: Router, Resolver          changes of the host's network ──> heal, word to the engine

A wish is noted at once and costs nothing; the thread follows the newest ones, so that neither thousands of routes nor
a slow `resolvectl` hold up the packets' control.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Self, final

from gw.errors import GwError
from gw.model.addresses import TAILNET_MTU
from gw.net import interfaces, resolv
from gw.net.router import InterfaceAddress, Network, Router
from gw.node.routes import TunnelRoutes

log: Final = logging.getLogger(__name__)

NAMES_CHECK_S: Final = 60.0  # a DHCP client writes resolv.conf without a word


@final
class Host:
    """Enter before use; `run` follows wishes until cancelled; leaving restores the host."""

    def __init__(self, tun_name: str, keep: Path) -> None:
        self._routes = TunnelRoutes()
        self._tun = tun_name
        self._keep = keep
        self._router = Router(tun_name)
        self._resolver: resolv.Resolver | None = None
        self._thread = ThreadPoolExecutor(1, "host")
        self._wish = asyncio.Event()
        self._addresses: frozenset[InterfaceAddress] = frozenset()
        self._names = resolv.ResolvConfig()
        self._heal_link = False
        self._waiting: list[Callable[[], None]] = []
        self._problems: dict[str, str] = {}

    async def __aenter__(self) -> Self:
        try:
            await self._there(self._begin)
        except BaseException:
            await self._there(self._router.stop)
            self._thread.shutdown()
            raise
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._there(self._end)
        self._thread.shutdown()

    @property
    def problems(self) -> list[str]:
        """What the host refused, and still refuses."""
        return list(self._problems.values())

    def set_addresses(self, addresses: Iterable[InterfaceAddress]) -> None:
        """The node's own."""
        self._addresses = frozenset(addresses)
        self._wish.set()

    def add_routes(self, allowed: Iterable[Network]) -> None:
        """Allowed IPs that a peer has from now on."""
        self._routes.add(allowed)
        self._wish.set()

    def remove_routes(self, allowed: Iterable[Network]) -> None:
        """Allowed IPs that a peer no longer has; the same ones that were added for it."""
        self._routes.remove(allowed)
        self._wish.set()

    def set_names(self, config: resolv.ResolvConfig) -> None:
        self._names = config
        self._wish.set()

    def when_followed(self, then: Callable[[], None]) -> None:
        """Call `then` once all that is wished for now has been done, or refused."""
        self._waiting.append(then)
        self._wish.set()

    async def followed(self) -> None:
        """Wait until then."""
        done = asyncio.Event()
        self.when_followed(done.set)
        await done.wait()

    async def run(self, network_changed: Callable[[], None]) -> None:
        """Follow wishes; tell when the host's own network has changed. Raises GwError."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_network(network_changed))
            group.create_task(self._check_names())
            while True:
                await self._wish.wait()
                self._wish.clear()
                await self._follow()

    async def _follow(self) -> None:
        waiting, self._waiting = self._waiting, []
        heal, self._heal_link = self._heal_link, False
        addresses, names = self._addresses, self._names
        add, remove = self._routes.take()
        if heal:
            await self._try("routes", self._router.heal)
        await self._try("addresses", lambda: self._router.set_addresses(addresses))
        if add or remove:
            await self._try("routes", lambda: self._router.change_routes(add, remove))
        if self._router.complete:
            self._problems.pop("routes", None)
        await self._try("names", lambda: self._set_names(names))
        for then in waiting:
            then()

    async def _follow_network(self, network_changed: Callable[[], None]) -> None:
        found = interfaces.interfaces()
        before = interfaces.fingerprint(found, without=self._tun)
        own = {each.index for each in found if each.name == self._tun}
        async for change in interfaces.changes():
            if change.rules_deleted or change.links & own:
                self._heal_link = True
            self._wish.set()
            now = interfaces.fingerprint(interfaces.interfaces(), without=self._tun)
            if now != before:
                before = now
                log.info("the network changed")
                network_changed()

    async def _check_names(self) -> None:
        while True:
            await asyncio.sleep(NAMES_CHECK_S)
            self._wish.set()

    async def _try(self, what: str, action: Callable[[], None]) -> None:
        """Where the host refuses, go on and say so in the status."""
        try:
            await self._there(action)
        except (GwError, OSError) as error:
            text = f"{what}: {error.message if isinstance(error, GwError) else error}"
            if self._problems.get(what) != text:
                log.error("%s", text)
            self._problems[what] = text
        else:
            if what != "routes":
                self._problems.pop(what, None)

    async def _there(self, action: Callable[[], Any]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, action)

    def _begin(self) -> None:
        self._resolver = resolv.choose(self._tun, self._keep)
        self._router.start(TAILNET_MTU)

    def _end(self) -> None:
        if self._resolver is not None:
            self._resolver.stop()
        self._router.stop()

    def _set_names(self, config: resolv.ResolvConfig) -> None:
        if self._resolver is not None:
            self._resolver.apply(config)
            self._resolver.heal()
