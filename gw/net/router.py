"""Addresses and routes of the tunnel's interface, in a table of their own as Tailscale lays them out.

    5210, 5230   our own sockets (mark 0x80000/0xff0000) use main and default
    5250         and never the tunnel
    5270         everything else looks in table 52 first

Only what this router made is ever removed. The interface takes its addresses and routes with it when it goes; rules
stay after a kill, so they are removed at the next start.

Ref: spec dataplane §3.6; pyroute2
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import socket
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, final

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from gw.errors import GwError, PermissionNeeded, StateError

log: Final = logging.getLogger(__name__)

TABLE: Final = 52
MARK: Final = 0x80000
MASK: Final = 0xFF0000
PROTOCOL: Final = 0x57  # marks what is ours in `ip rule` and `ip route`
MAIN: Final = 254
DEFAULT: Final = 253
PRIORITIES: Final = (5210, 5230, 5250, 5270)
_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)
_GONE: Final = (errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.EADDRNOTAVAIL)

InterfaceAddress = ipaddress.IPv4Interface | ipaddress.IPv6Interface
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """addresses: of this node, /32 and /128. routes: what goes into the tunnel. mtu: bytes."""

    addresses: frozenset[InterfaceAddress] = frozenset()
    routes: frozenset[Network] = frozenset()
    mtu: int = 1280


def remove_leftovers() -> None:
    """Remove the rules of a router that was killed and does not start again. Raises GwError."""
    router = Router("")
    router.remove_rules()


@final
class Router:
    """One interface. Methods are quick and block; call them on the loop."""

    def __init__(self, tun_name: str) -> None:
        self._name = tun_name
        self._mtu = 0
        self._addresses: set[InterfaceAddress] = set()
        self._routes: set[Network] = set()
        self._families: tuple[int, ...] = ()

        self._thread: ThreadPoolExecutor | None = None
        self._netlink: Any

    def start(self) -> None:
        """Bring the interface up and make the rules, after removing those of a killed run. Raises GwError."""
        self._thread = ThreadPoolExecutor(1, "router")
        self._there(self._start)

    def apply(self, config: RouterConfig) -> None:
        """Make the host as `config` says; only the difference is touched. Raises GwError at the first refusal."""
        self._there(lambda: self._apply(config))

    def change(self, add: Iterable[Network], remove: Iterable[Network]) -> None:
        """Routes of some peers came or went; costs what it changes. Raises GwError at the first refusal."""
        self._there(lambda: self._change(add, remove))

    def stop(self) -> None:
        """Remove all that was made. Safe to call twice, and when the interface is gone."""
        if self._thread is None:
            return
        try:
            self._there(self._stop)
        except GwError as error:
            log.warning("%s", error.message)
        finally:
            self._thread.shutdown()
            self._thread = None

    def remove_rules(self) -> None:
        """Without having been started: only the rules, by their marks."""
        with ThreadPoolExecutor(1, "router") as thread:
            thread.submit(self._remove_rules_alone).result()

    def _remove_rules_alone(self) -> None:
        self._netlink = IPRoute()
        try:
            self._remove_rules()
        finally:
            self._netlink.close()
            del self._netlink

    def _there(self, action: Callable[[], None]) -> None:
        """In a thread of its own: pyroute2 runs an event loop, which the caller's thread has already."""
        if self._thread is None:
            raise StateError("the router is not started")
        self._thread.submit(action).result()

    def _start(self) -> None:
        self._netlink = IPRoute()
        found = self._netlink.link_lookup(ifname=self._name)
        if not found:
            raise GwError(f"no interface `{self._name}`")
        self._index: int = found[0]
        self._remove_rules()
        _call(lambda: self._netlink.link("set", index=self._index, state="up"), f"bring `{self._name}` up")
        self._families = tuple(family for family in _FAMILIES if self._make_rules(family))

    def _apply(self, config: RouterConfig) -> None:
        if config.mtu != self._mtu:
            _call(lambda: self._netlink.link("set", index=self._index, mtu=config.mtu), "set the MTU")
            self._mtu = config.mtu
        for address in self._addresses - config.addresses:
            self._address("del", address)
        for address in config.addresses - self._addresses:
            self._address("replace", address)
        self._change(config.routes - self._routes, self._routes - config.routes)

    def _change(self, add: Iterable[Network], remove: Iterable[Network]) -> None:
        for route in remove:
            if route in self._routes:
                self._route("del", route)
                self._routes.discard(route)
        for route in add:
            if route not in self._routes:
                self._route("replace", route)
                self._routes.add(route)

    def _stop(self) -> None:
        if not hasattr(self, "_netlink"):
            return
        try:
            self._apply(RouterConfig(mtu=self._mtu))
            self._remove_rules()
        finally:
            self._netlink.close()
            del self._netlink

    def _address(self, verb: str, address: InterfaceAddress) -> None:
        if _family(address) not in self._families:
            return
        _call(
            lambda: self._netlink.addr(
                verb,
                index=self._index,
                address=str(address.ip),
                prefixlen=address.network.prefixlen,
                family=_family(address),
            ),
            f"{verb} address {address}",
            ignore=_GONE if verb == "del" else (errno.EEXIST,),
        )
        (self._addresses.discard if verb == "del" else self._addresses.add)(address)

    def _route(self, verb: str, route: Network) -> None:
        if _family(route) not in self._families:
            return
        _call(
            lambda: self._netlink.route(
                verb, dst=str(route), oif=self._index, table=TABLE, family=_family(route), proto=PROTOCOL
            ),
            f"{verb} route {route}",
            ignore=_GONE if verb == "del" else (),
        )

    def _make_rules(self, family: int) -> bool:
        """False where the host has no such family."""
        marked = {"fwmark": MARK, "fwmask": MASK}
        rules: list[dict[str, Any]] = [
            {"priority": 5210, "table": MAIN, **marked},
            {"priority": 5230, "table": DEFAULT, **marked},
            {"priority": 5250, "action": "FR_ACT_UNREACHABLE", **marked},
            {"priority": 5270, "table": TABLE},
        ]
        try:
            for rule in rules:
                self._netlink.rule("add", family=family, protocol=PROTOCOL, **rule)
        except NetlinkError as error:
            if error.code == errno.EEXIST:
                return True
            if family == socket.AF_INET6 and error.code in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
                return False
            raise _translate(error, "make routing rules") from error
        if family == socket.AF_INET6:
            return _has_v6(self._name)
        return True

    def _remove_rules(self) -> None:
        for family in _FAMILIES:
            try:
                found = list(self._netlink.get_rules(family=family))
            except NetlinkError:
                continue
            for rule in found:
                attributes = dict(rule["attrs"])
                if attributes.get("FRA_PRIORITY") not in PRIORITIES or attributes.get("FRA_PROTOCOL") != PROTOCOL:
                    continue
                request: dict[str, Any] = {"priority": attributes["FRA_PRIORITY"], "protocol": PROTOCOL}
                if rule["action"] != 1:
                    request["action"] = rule["action"]
                elif "FRA_TABLE" in attributes:
                    request["table"] = attributes["FRA_TABLE"]
                if "FRA_FWMARK" in attributes:
                    request |= {"fwmark": attributes["FRA_FWMARK"], "fwmask": attributes.get("FRA_FWMASK", MASK)}
                _call(
                    lambda request=request, family=family: self._netlink.rule("del", family=family, **request),  # type: ignore[misc]
                    "remove a routing rule",
                    ignore=_GONE,
                )


def _call(action: Callable[[], Any], what: str, *, ignore: tuple[int, ...] = ()) -> None:
    try:
        action()
    except NetlinkError as error:
        if error.code not in ignore:
            raise _translate(error, what) from error


def _translate(error: NetlinkError, what: str) -> GwError:
    if error.code in (errno.EPERM, errno.EACCES):
        return PermissionNeeded(f"may not {what}", hint="run `gwd` as root")
    return GwError(f"cannot {what}: {error.args[-1]}")


def _family(value: InterfaceAddress | Network) -> int:
    return socket.AF_INET if value.version == 4 else socket.AF_INET6


def _has_v6(name: str) -> bool:
    try:
        with open(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6") as file:
            return file.read().strip() == "0"
    except OSError:
        return False
