"""Addresses and routes of the tunnel's interface, in a table of their own as Tailscale lays them out.

    5210, 5230   our own sockets (mark 0x80000/0xff0000) use main and default
    5250         and never the tunnel
    5270         everything else looks in table 52 first

Rules and routes carry our protocol number; only what has it is ever removed. The interface takes its addresses and
routes with it when it goes. The rules are the same for every gwd of a host: the last one to stop removes them, and the
next one to start takes over those of a killed one.

Ref: spec dataplane §3.6; rtnetlink(7); pyroute2
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, final

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from gw.errors import Conflict, GwError, PermissionNeeded

log: Final = logging.getLogger(__name__)

TABLE: Final = 52
MARK: Final = 0x80000
MASK: Final = 0xFF0000
PROTOCOL: Final = 0x57  # marks what is ours in `ip rule` and `ip route`
MAIN: Final = 254
DEFAULT: Final = 253
_LOOK_UP: Final = 1  # FR_ACT_TO_TBL
_UNREACHABLE: Final = 7
_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)
_GONE: Final = (errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.EADDRNOTAVAIL)
_NO_FAMILY: Final = (errno.EAFNOSUPPORT, errno.EOPNOTSUPP)

InterfaceAddress = ipaddress.IPv4Interface | ipaddress.IPv6Interface
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class _Rule:
    """One line of `ip rule`. table: 0 for an unreachable rule."""

    priority: int
    action: int
    table: int
    mark: int
    mask: int

    def request(self) -> dict[str, Any]:
        """As pyroute2 takes it."""
        request: dict[str, Any] = {"priority": self.priority, "protocol": PROTOCOL, "action": self.action}
        if self.table:
            request["table"] = self.table
        if self.mark:
            request |= {"fwmark": self.mark, "fwmask": self.mask}
        return request


RULES: Final = (
    _Rule(5210, _LOOK_UP, MAIN, MARK, MASK),
    _Rule(5230, _LOOK_UP, DEFAULT, MARK, MASK),
    _Rule(5250, _UNREACHABLE, 0, MARK, MASK),
    _Rule(5270, _LOOK_UP, TABLE, 0, 0),
)


def remove_leftovers() -> None:
    """Remove the rules of a router that was killed and does not start again. Raises GwError."""
    with IPRoute() as netlink:
        _remove_rules(netlink)


@final
class Router:
    """One interface. Methods block, and belong to one thread that runs no event loop: pyroute2 has its own.

    Whatever the kernel refuses, the rest is done; then the first refusal is raised.
    """

    def __init__(self, tun_name: str) -> None:
        self._name = tun_name
        self._mtu = 0
        self._wanted_addresses: frozenset[InterfaceAddress] = frozenset()
        self._wanted_routes: set[Network] = set()
        self._addresses: set[InterfaceAddress] = set()  # that we made
        self._routes: set[Network] = set()  # that we made
        self._families: tuple[int, ...] = ()
        self._netlink: Any = None

    @property
    def complete(self) -> bool:
        """Whether all that was asked for is there."""
        return self._wanted_addresses == self._addresses and self._wanted_routes == self._routes

    def start(self, mtu: int) -> None:
        """Bring the interface up and make the rules. mtu: bytes. Raises GwError."""
        self._netlink = IPRoute()
        found = self._netlink.link_lookup(ifname=self._name)
        if not found:
            raise GwError(f"no interface `{self._name}`")
        self._index: int = found[0]
        with _translated(f"bring `{self._name}` up"):
            self._netlink.link("set", index=self._index, state="up", mtu=mtu)
        self._families = tuple(family for family in _FAMILIES if self._settle_rules(family))

    def set_addresses(self, addresses: Iterable[InterfaceAddress]) -> None:
        """The node's own addresses, /32 and /128. Raises GwError.

        New ones come before old ones go: with the last IPv4 address of a link the kernel takes the link's routes away.
        """
        self._wanted_addresses = frozenset(each for each in addresses if _family(each) in self._families)
        refusals = _Refusals()
        for address in self._wanted_addresses - self._addresses:
            with refusals.noted(f"add address {address}"):
                self._address("replace", address)
                self._addresses.add(address)
        for address in self._addresses - self._wanted_addresses:
            with refusals.noted(f"remove address {address}", ignore=_GONE):
                self._address("del", address)
            self._addresses.discard(address)
        refusals.raise_first()

    def change_routes(self, add: Iterable[Network], remove: Iterable[Network]) -> None:
        """What goes into the tunnel from now on, and what no longer does; costs what it changes. Raises GwError."""
        add = [route for route in add if _family(route) in self._families]
        remove = list(remove)
        self._wanted_routes.difference_update(remove)
        self._wanted_routes.update(add)
        refusals = _Refusals()
        for route in add:
            if route not in self._routes:
                with refusals.noted(f"add route {route}"):
                    self._add_route(route)
                    self._routes.add(route)
        for route in remove:
            if route in self._routes:
                with refusals.noted(f"remove route {route}", ignore=_GONE):
                    self._route("del", route)
                self._routes.discard(route)
        refusals.raise_first()

    def heal(self) -> None:
        """Make again what somebody took away: rules deleted by another program, routes by a link that was down."""
        self._families = tuple(family for family in _FAMILIES if self._settle_rules(family))
        with _translated("list addresses and routes"):
            self._addresses &= self._present_addresses()
            self._routes &= self._present_routes()
        self.set_addresses(self._wanted_addresses)
        self.change_routes(self._wanted_routes - self._routes, [])

    def stop(self) -> None:
        """Remove all that was made. Safe to call twice, and when the interface is gone."""
        if self._netlink is None:
            return
        try:
            for action in (self._clear_routes, self._clear_addresses, self._clear_rules):
                try:
                    action()
                except GwError as error:
                    log.warning("%s", error.message)
        finally:
            self._netlink.close()
            self._netlink = None

    def _clear_routes(self) -> None:
        self.change_routes([], [*self._routes])

    def _clear_addresses(self) -> None:
        self.set_addresses([])

    def _clear_rules(self) -> None:
        if not self._has_company():
            _remove_rules(self._netlink)

    def _address(self, verb: str, address: InterfaceAddress) -> None:
        length = address.network.prefixlen
        self._netlink.addr(verb, index=self._index, address=str(address.ip), prefixlen=length, family=_family(address))

    def _add_route(self, route: Network) -> None:
        try:
            self._route("add", route)
        except NetlinkError as error:
            if error.code != errno.EEXIST:
                raise
            holder = self._holder_of(route)
            if holder == self._index:
                return
            raise Conflict(
                f"interface {holder} has a route to {route} in table {TABLE} already",
                hint="does another VPN (tailscaled?) run on this host?",
            ) from error

    def _route(self, verb: str, route: Network) -> None:
        self._netlink.route(verb, dst=str(route), oif=self._index, table=TABLE, family=_family(route), proto=PROTOCOL)

    def _holder_of(self, route: Network) -> int:
        """The index of the interface whose route it is, 0 if it has gone meanwhile."""
        for found in self._netlink.get_routes(table=TABLE, family=_family(route)):
            if _destination(found) == route:
                return int(found.get_attr("RTA_OIF") or 0)
        return 0

    def _settle_rules(self, family: int) -> bool:
        """Our rules, no more and no less. False where the host has no such family."""
        try:
            present = set(_our_rules(self._netlink, family))
            for rule in present.difference(RULES):  # of an earlier version
                _remove_rule(self._netlink, family, rule)
            for rule in RULES:
                if rule not in present:
                    self._make_rule(family, rule)
        except NetlinkError as error:
            if family == socket.AF_INET6 and error.code in _NO_FAMILY:
                return False
            raise _translate(error, "make routing rules") from error
        return family == socket.AF_INET or _has_v6(self._name)

    def _make_rule(self, family: int, rule: _Rule) -> None:
        try:
            self._netlink.rule("add", family=family, **rule.request())
        except NetlinkError as error:
            if error.code != errno.EEXIST:  # another program's rule of the same meaning does as well
                raise

    def _has_company(self) -> bool:
        """Whether another gwd routes on this host."""
        with _translated("list routes"):
            return any(
                found["proto"] == PROTOCOL and found.get_attr("RTA_OIF") != self._index
                for family in _FAMILIES
                for found in self._netlink.get_routes(table=TABLE, family=family)
            )

    def _present_addresses(self) -> set[InterfaceAddress]:
        return {_interface_address(found) for found in self._netlink.get_addr(index=self._index)}

    def _present_routes(self) -> set[Network]:
        return {
            _destination(found)
            for family in self._families
            for found in self._netlink.get_routes(table=TABLE, family=family)
            if found.get_attr("RTA_OIF") == self._index
        }


@final
class _Refusals:
    """What the kernel did not do, while the rest goes on."""

    def __init__(self) -> None:
        self._first: GwError | None = None
        self._count = 0

    @contextmanager
    def noted(self, what: str, *, ignore: tuple[int, ...] = ()) -> Iterator[None]:
        try:
            yield
        except GwError as error:
            self._note(error)
        except NetlinkError as error:
            if error.code not in ignore:
                self._note(_translate(error, what))

    def raise_first(self) -> None:
        first = self._first
        if first is not None:
            more = f", and {self._count - 1} more" if self._count > 1 else ""
            raise type(first)(first.message + more, hint=first.hint)

    def _note(self, error: GwError) -> None:
        self._first = self._first or error
        self._count += 1


def _our_rules(netlink: Any, family: int) -> Iterator[_Rule]:
    try:
        found = list(netlink.get_rules(family=family))
    except NetlinkError as error:
        if error.code in _NO_FAMILY:
            return
        raise
    for rule in found:
        if rule.get_attr("FRA_PROTOCOL") == PROTOCOL:
            yield _Rule(
                rule.get_attr("FRA_PRIORITY") or 0,
                rule["action"],
                (rule.get_attr("FRA_TABLE") or 0) if rule["action"] == _LOOK_UP else 0,
                rule.get_attr("FRA_FWMARK") or 0,
                rule.get_attr("FRA_FWMASK") or 0 if rule.get_attr("FRA_FWMARK") else 0,
            )


def _remove_rules(netlink: Any) -> None:
    with _translated("list routing rules"):
        found = [(family, rule) for family in _FAMILIES for rule in _our_rules(netlink, family)]
    for family, rule in found:
        _remove_rule(netlink, family, rule)


def _remove_rule(netlink: Any, family: int, rule: _Rule) -> None:
    try:
        netlink.rule("del", family=family, **rule.request())
    except NetlinkError as error:
        if error.code not in _GONE:
            raise _translate(error, "remove a routing rule") from error


def _destination(route: Any) -> Network:
    if not route["dst_len"]:
        return ipaddress.ip_network((0, 0)) if route["family"] == socket.AF_INET else ipaddress.IPv6Network("::/0")
    return ipaddress.ip_network(f"{route.get_attr('RTA_DST')}/{route['dst_len']}")


def _interface_address(found: Any) -> InterfaceAddress:
    return ipaddress.ip_interface((found.get_attr("IFA_LOCAL") or found.get_attr("IFA_ADDRESS"), found["prefixlen"]))


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
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
