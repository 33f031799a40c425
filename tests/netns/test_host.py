"""Router, resolver and interfaces in namespaces of their own: what they make, what they leave, what they mend."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest
from pyroute2 import netns

from gw.errors import GwError
from gw.net.interfaces import Change, changes, fingerprint, interfaces
from gw.net.resolv import ABSENT, BACKUP_NAME, Direct, ResolvConfig
from gw.net.router import PROTOCOL, Network, Router, remove_leftovers
from gw.node.host import Host

from .namespaces import Namespaces, needs_namespaces

pytestmark = [pytest.mark.netns, needs_namespaces()]
T = TypeVar("T")
OWN = [ipaddress.ip_interface("100.64.0.1/32"), ipaddress.ip_interface("fd7a:115c:a1e0::1/128")]
ROUTES: list[Network] = [
    ipaddress.ip_network("100.64.0.2/32"),
    ipaddress.ip_network("10.0.0.0/8"),
    ipaddress.ip_network("fd7a:115c:a1e0::/48"),
]


class Box:
    """One namespace with two interfaces, `gw0` and `gw1`, and a thread that lives in it."""

    def __init__(self, spaces: Namespaces, name: str) -> None:
        self._spaces = spaces
        self._name = name
        for link in ("gw0", "gw1"):
            spaces.ip(name, f"link add {link} type veth peer name {link}-far")
            spaces.ip(name, f"link set {link}-far up")
        self._full = spaces.argv(name)[3]
        self.routers: list[Router] = []
        self._thread = ThreadPoolExecutor(1, initializer=lambda: netns.setns(self._full))

    def call(self, action: Callable[[], T]) -> T:
        return self._thread.submit(action).result(timeout=60)

    def ip(self, command: str) -> None:
        self._spaces.ip(self._name, command)

    def rules(self, family: int = 4) -> list[tuple[int, str]]:
        found = self._json(f"-{family} rule show")
        named = [(rule["priority"], str(rule.get("table", rule.get("action")))) for rule in found]
        return [rule for rule in named if 5000 < rule[0] < 6000]

    def routes(self) -> set[tuple[str, str]]:
        found = [*self._json("-4 route show table 52"), *self._json("-6 route show table 52")]
        return {(route["dst"], route["dev"]) for route in found}

    def addresses(self, link: str = "gw0") -> set[str]:
        (found,) = self._json(f"addr show dev {link}")
        return {each["local"] for each in found["addr_info"] if each["scope"] == "global"}

    def close(self) -> None:
        for router in self.routers:
            if router._netlink is not None:
                self.call(router._netlink.close)
        self._thread.shutdown()

    def _json(self, command: str) -> list[dict[str, Any]]:
        text = self._spaces.run(self._name, "ip", "-j", *command.split(), check=False)
        found: list[dict[str, Any]] = json.loads(text or "[]")
        return [each for each in found if each]


@pytest.fixture
def box() -> Iterator[Box]:
    with Namespaces("host", ["a"]) as spaces:
        box = Box(spaces, "a")
        yield box
        box.close()


def routed(box: Box, name: str = "gw0") -> Router:
    router = Router(name)
    box.routers.append(router)
    box.call(lambda: router.start(1280))
    box.call(lambda: router.set_addresses(OWN))
    box.call(lambda: router.change_routes(ROUTES, []))
    return router


ALL_RULES = [(5210, "main"), (5230, "default"), (5250, "unreachable"), (5270, "52")]
ALL_ROUTES = {("100.64.0.2", "gw0"), ("10.0.0.0/8", "gw0"), ("fd7a:115c:a1e0::/48", "gw0")}


def test_router_makes_what_it_is_asked_and_takes_all_of_it_away(box: Box) -> None:
    router = routed(box)
    assert box.rules(4) == box.rules(6) == ALL_RULES
    assert box.routes() == ALL_ROUTES
    assert box.addresses() == {"100.64.0.1", "fd7a:115c:a1e0::1"}
    assert router.complete
    box.call(router.stop)
    assert box.rules(4) == box.rules(6) == []
    assert box.routes() == set()
    assert box.addresses() == set()


def test_routes_stay_when_the_addresses_change(box: Box) -> None:
    """With its last IPv4 address a link loses its routes: the new address has to be there before."""
    router = routed(box)
    other = [ipaddress.ip_interface("100.64.88.88"), ipaddress.ip_interface("fd7a:115c:a1e0::88")]
    box.call(lambda: router.set_addresses(other))
    assert box.addresses() == {"100.64.88.88", "fd7a:115c:a1e0::88"}
    assert box.routes() == ALL_ROUTES


def test_router_takes_over_the_rules_of_a_killed_one_and_removes_strange_ones_of_ours(box: Box) -> None:
    routed(box)  # never stopped
    box.ip(f"rule add priority 5999 table 53 protocol {PROTOCOL}")
    box.ip("rule add priority 5998 table 53")  # not ours
    router = routed(box)
    assert box.rules(4) == [*ALL_RULES, (5998, "53")]
    box.call(router.stop)
    assert box.rules(4) == [(5998, "53")]


def test_leftovers_can_be_removed_without_a_router(box: Box) -> None:
    routed(box)
    box.call(remove_leftovers)
    assert box.rules(4) == box.rules(6) == []


def test_a_rule_of_another_program_does_not_stop_the_rest(box: Box) -> None:
    box.ip("rule add priority 5210 fwmark 0x80000/0xff0000 table main")
    router = routed(box)
    assert set(box.rules(4)) == set(ALL_RULES)
    box.call(router.stop)
    assert (5270, "52") not in box.rules(4)


def test_another_programs_route_is_left_alone_and_named(box: Box) -> None:
    box.ip("link set gw1 up")
    box.ip("route add 10.0.0.0/8 dev gw1 table 52")
    with pytest.raises(GwError, match=r"has a route to 10\.0\.0\.0/8 in table 52 already"):
        routed(box)
    assert ("10.0.0.0/8", "gw1") in box.routes()
    assert ("fd7a:115c:a1e0::/48", "gw0") in box.routes()


def test_the_rules_stay_while_another_gwd_routes(box: Box) -> None:
    first = routed(box)
    second = Router("gw1")
    box.call(lambda: second.start(1280))
    box.call(lambda: second.change_routes([ipaddress.ip_network("100.64.0.3/32")], []))
    box.call(first.stop)
    assert box.rules(4) == ALL_RULES
    box.call(second.stop)
    assert box.rules(4) == []


def test_heal_makes_again_what_a_link_that_was_down_and_a_foreign_hand_took_away(box: Box) -> None:
    router = routed(box)
    box.ip("link set gw0 down")
    box.ip("link set gw0 up")
    box.ip("rule del priority 5270")
    assert box.routes() != ALL_ROUTES
    box.call(router.heal)
    assert box.routes() == ALL_ROUTES
    assert box.addresses() == {"100.64.0.1", "fd7a:115c:a1e0::1"}
    assert box.rules(4) == ALL_RULES


def test_what_a_link_refuses_is_said_and_done_later(box: Box) -> None:
    router = routed(box)
    box.ip("link set gw0 down")
    more = [ipaddress.ip_network("100.64.0.8/32"), ipaddress.ip_network("100.64.0.9/32")]
    with pytest.raises(GwError, match="and 1 more"):
        box.call(lambda: router.change_routes(more, []))
    assert not router.complete
    box.ip("link set gw0 up")
    box.call(router.heal)
    assert router.complete
    assert ("100.64.0.9", "gw0") in box.routes()


def test_stopping_after_the_interface_went_leaves_no_rule(box: Box) -> None:
    router = routed(box)
    box.ip("link del gw0")
    box.call(router.stop)
    assert box.rules(4) == box.rules(6) == []


def test_interfaces_and_their_fingerprint_follow_addresses_and_default_routes(box: Box) -> None:
    box.ip("link set gw1 up")
    box.ip("addr add 192.0.2.1/24 dev gw1")

    def mark() -> frozenset[tuple[object, ...]]:
        return fingerprint(box.call(interfaces), without="gw0")

    first = mark()
    (found,) = [each for each in box.call(interfaces) if each.name == "gw1"]
    assert [str(each) for each in found.addresses if each.version == 4] == ["192.0.2.1/24"]
    box.ip("addr add 198.51.100.1/32 dev gw0")  # the tunnel's own
    assert mark() == first
    box.ip("route add default via 192.0.2.9")
    second = mark()
    assert second != first
    box.ip("route replace default via 192.0.2.10")
    assert mark() not in (first, second)


def test_changes_tell_which_links_changed_and_of_deleted_rules(box: Box) -> None:
    box.ip("rule add priority 5001 table 53")
    seen: list[Change] = []
    listening, enough = threading.Event(), threading.Event()

    async def listen() -> None:
        async for change in changes():
            seen.append(change)
            if enough.is_set():
                return

    async def follow() -> None:
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            group.create_task(listen())
            await asyncio.sleep(0.2)
            listening.set()

    done = box._thread.submit(lambda: asyncio.run(follow()))
    assert listening.wait(10)
    box.ip("link set gw1 up")
    while not seen:
        pass
    enough.set()
    box.ip("rule del priority 5001")
    done.result(30)
    (link,) = [each for each in box.call(interfaces) if each.name == "gw1"]
    assert link.index in set().union(*(change.links for change in seen))
    assert seen[-1].rules_deleted


def test_host_follows_wishes_and_heals_by_itself(box: Box, tmp_path: Path) -> None:
    async def live() -> None:
        host = Host("gw0", tmp_path)
        host._thread.submit(lambda: netns.setns(box._full)).result()
        async with host, asyncio.timeout(30), asyncio.TaskGroup() as group:
            running = group.create_task(host.run(lambda: None))
            host.set_addresses(OWN)
            host.add_routes(ROUTES)
            await host.followed()
            assert box.routes() == ALL_ROUTES
            await asyncio.sleep(0.6)  # its own changes are over
            box.ip("link set gw0 down")
            box.ip("link set gw0 up")
            while box.routes() != ALL_ROUTES:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
            assert host.problems == []
            running.cancel()

    box.call(lambda: asyncio.run(live()))
    assert box.rules(4) == []


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    return tmp_path / "etc" / "resolv.conf"


NAMES = ResolvConfig(("100.64.0.1",), ("mesh.example",))


def direct(etc: Path) -> Direct:
    return Direct(etc, etc.parent.parent / "node" / BACKUP_NAME)


def test_resolv_conf_comes_back_as_it_was(etc: Path) -> None:
    etc.write_text("nameserver 192.0.2.53\noptions edns0\n")
    names = direct(etc)
    names.apply(NAMES)
    text = etc.read_text()
    assert "nameserver 100.64.0.1\n" in text
    assert "192.0.2.53" not in text
    assert "options edns0\n" in text
    assert "search mesh.example\n" in text
    names.stop()
    assert etc.read_text() == "nameserver 192.0.2.53\noptions edns0\n"
    assert os.listdir(etc.parent.parent / "node") == []


@pytest.mark.parametrize("target", ["../run/stub.conf", "/nowhere/resolv.conf"])
def test_a_link_comes_back_as_a_link_and_its_target_is_never_written(etc: Path, target: str) -> None:
    run = etc.parent.parent / "run"
    run.mkdir()
    (run / "stub.conf").write_text("nameserver 192.0.2.53\n")
    etc.symlink_to(target)
    names = direct(etc)
    names.apply(ResolvConfig((), ("mesh.example",)))
    assert not etc.is_symlink()
    assert ("192.0.2.53" in etc.read_text()) == target.startswith("..")
    direct(etc).restore()  # after a kill
    assert os.readlink(etc) == target
    assert (run / "stub.conf").read_text() == "nameserver 192.0.2.53\n"


def test_where_there_was_no_file_there_is_none_again(etc: Path) -> None:
    names = direct(etc)
    names.apply(NAMES)
    assert (etc.parent.parent / "node" / BACKUP_NAME).read_bytes() == ABSENT
    names.stop()
    assert not etc.exists()


def test_what_a_dhcp_client_writes_over_ours_is_kept_and_comes_back(etc: Path) -> None:
    etc.write_text("nameserver 192.0.2.53\n")
    names = direct(etc)
    names.apply(NAMES)
    etc.write_text("nameserver 198.51.100.53\n")
    names.heal()
    assert "nameserver 100.64.0.1\n" in etc.read_text()
    names.stop()
    assert etc.read_text() == "nameserver 198.51.100.53\n"


def test_what_somebody_wrote_after_us_stays(etc: Path) -> None:
    etc.write_text("nameserver 192.0.2.53\n")
    names = direct(etc)
    names.apply(NAMES)
    etc.write_text("nameserver 203.0.113.53\n")
    names.stop()
    assert etc.read_text() == "nameserver 203.0.113.53\n"


def test_a_link_is_never_written_through_where_its_folder_is_read_only(
    etc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it points to is another program's file, which nobody would bring back."""
    (etc.parent / "stub.conf").write_text("nameserver 192.0.2.53\n")
    etc.symlink_to("stub.conf")
    real = os.replace

    def read_only(source: Path, target: Path) -> None:
        if Path(target) == etc:
            raise OSError(errno.EROFS, "Read-only file system")
        real(source, target)

    monkeypatch.setattr(os, "replace", read_only)
    with pytest.raises(GwError, match="Read-only"):
        direct(etc).apply(NAMES)
    assert (etc.parent / "stub.conf").read_text() == "nameserver 192.0.2.53\n"
