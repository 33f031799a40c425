"""Namespaces, cables and NAT: the little internet that a lab's mesh lives in.

198.51.100.0/24, the "internet": a bridge in gwlab-wan
  ├── gwlab-hub        198.51.100.1     control, relay, DNS
  ├── gwlab-ann        198.51.100.11    a node without NAT
  └── gwlab-bob-nat    198.51.100.102 ─ 10.202.0.1 ── 10.202.0.2  gwlab-bob, a node behind its router
"""

from __future__ import annotations

import ipaddress
import json
import subprocess
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final, final

from gw.errors import GwError, NotFound, PermissionNeeded
from gw.lab.ledger import Ledger

HUB: Final = "hub"
WAN: Final = "wan"
HUB_ADDRESS: Final = "198.51.100.1"
MAX_NODES: Final = 80
FIRST_MOVED: Final = 182  # above those that nodes begin with
NETNS_ETC: Final = Path("/etc/netns")


class Nat(Enum):
    """What stands between a node and the internet. Mapping is what STUN measures; all of them filter by endpoint."""

    NONE = "none"
    ENDPOINT_INDEPENDENT = "endpoint-independent"  # one outer port for all destinations
    SYMMETRIC = "symmetric"  # another random port for each destination
    UDP_BLOCKED = "udp-blocked"  # TCP and DNS only


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """A node of the lab. daemon: False for a bare host, without gwd and login."""

    name: str
    nat: Nat = Nat.NONE
    daemon: bool = True


_NAT_RULES: Final = {
    Nat.ENDPOINT_INDEPENDENT: ("masquerade", ""),
    Nat.SYMMETRIC: ("masquerade fully-random", ""),
    Nat.UDP_BLOCKED: ("masquerade", "udp dport != 53 drop"),
}


def ruleset(nat: Nat) -> str:
    """The nftables rules of a router. In from outside passes only what answers."""
    mapping, extra = _NAT_RULES[nat]
    return f"""
table inet lab {{
  chain out {{ type nat hook postrouting priority srcnat; oifname "wan" {mapping}; }}
  chain pass {{
    type filter hook forward priority filter; policy drop;
    ct state established,related accept
    {extra}
    iifname "lan" oifname "wan" accept
  }}
}}
"""


@final
class Topology:
    """Makes namespaces and records each before it is there."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._count = 0

    def build_internet(self) -> None:
        """The bridge and the hub. Raises GwError."""
        self._namespace(WAN)
        self._ip(WAN, "link add br0 type bridge")
        self._ip(WAN, "link set br0 up")
        self._namespace(HUB)
        self._plug(HUB, "eth0", f"{HUB_ADDRESS}/24")

    def add_node(self, spec: NodeSpec) -> None:
        """A node's namespace, and its router's where there is NAT. Raises GwError."""
        self._count += 1
        number = self._count
        self._namespace(spec.name)
        if spec.nat is Nat.NONE:
            self._plug(spec.name, "eth0", f"198.51.100.{10 + number}/24")
            return
        router = f"{spec.name}-nat"
        self._namespace(router)
        self._plug(router, "wan", f"198.51.100.{100 + number}/24")
        net = f"10.{200 + number % 50}.{number // 50}"
        self._ip(router, f"link add lan type veth peer name eth0 netns {self._ledger.namespace(spec.name)}")
        self._ip(router, f"addr add {net}.1/24 dev lan")
        self._ip(router, "link set lan up")
        self._ip(spec.name, f"addr add {net}.2/24 dev eth0")
        self._ip(spec.name, "link set eth0 up")
        self._ip(spec.name, f"route add default via {net}.1")
        self._write(router, "/proc/sys/net/ipv4/ip_forward", "1")
        run(["ip", "netns", "exec", self._ledger.namespace(router), "nft", "-f", "-"], text=ruleset(spec.nat))

    def _namespace(self, name: str) -> None:
        full = self._ledger.namespace(name)
        folder = NETNS_ETC / full
        self._ledger.note_folder(folder)
        self._ledger.note_namespace(full)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "resolv.conf").write_text("nameserver 127.0.0.1\n")
        except OSError as error:
            raise GwError(f"cannot make `{folder}`: {error.strerror}") from error
        self._ledger.remove_stale(full)
        run(["ip", "netns", "add", full])
        self._ip(name, "link set lo up")

    def _plug(self, name: str, interface: str, address: str) -> None:
        """A cable from the bridge."""
        port = f"p-{name}"[:15]
        self._ip(WAN, f"link add {port} type veth peer name {interface} netns {self._ledger.namespace(name)}")
        self._ip(WAN, f"link set {port} master br0 up")
        self._ip(name, f"addr add {address} dev {interface}")
        self._ip(name, f"link set {interface} up")

    def _ip(self, name: str, command: str) -> None:
        run(["ip", "-n", self._ledger.namespace(name), *command.split()])

    def _write(self, name: str, path: str, value: str) -> None:
        run(["ip", "netns", "exec", self._ledger.namespace(name), "sh", "-c", f"echo {value} > {path}"])


def move(ledger: Ledger, name: str) -> tuple[str, str]:
    """Put a node into another network: a new address of its own, and behind NAT a new inner network and outer address.

    Returns its address before and after, with the outer one where it is another. Raises GwError.
    """
    node, router = ledger.namespace(name), ledger.namespace(f"{name}-nat")
    outer = _free(ledger)
    if router not in ledger.entry.namespaces:
        before = _address(node, "eth0")
        _readdress(node, "eth0", f"{outer}/24")
        return before, outer
    inner, was = _address(node, "eth0"), _address(router, "wan")
    _, first, second, _ = inner.split(".")
    net = f"10.{first}.{(int(second) + 1) % 256}"
    _readdress(router, "lan", f"{net}.1/24")
    _readdress(router, "wan", f"{outer}/24")
    _readdress(node, "eth0", f"{net}.2/24")
    run(["ip", "-n", node, "route", "replace", "default", "via", f"{net}.1"])
    return f"{inner} behind {was}", f"{net}.2 behind {outer}"


def _free(ledger: Ledger) -> str:
    """An address of the internet that nobody has."""
    taken = set()
    for namespace in ledger.entry.namespaces:
        for link in json.loads(run(["ip", "-n", namespace, "-j", "-4", "addr"]) or "[]"):
            taken |= {each.get("local") for each in link.get("addr_info", ())}
    network = ipaddress.ip_network(f"{HUB_ADDRESS}/24", strict=False)
    for number in range(FIRST_MOVED, 255):
        address = str(network.network_address + number)
        if address not in taken:
            return address
    raise GwError("no address is free in the lab's internet")


def _address(namespace: str, interface: str) -> str:
    for link in json.loads(run(["ip", "-n", namespace, "-j", "-4", "addr", "show", "dev", interface]) or "[]"):
        for each in link.get("addr_info", ()):
            return str(each["local"])
    raise NotFound(f"`{interface}` of {namespace} has no address")


def _readdress(namespace: str, interface: str, address: str) -> None:
    run(["ip", "-n", namespace, "-4", "addr", "flush", "dev", interface])
    run(["ip", "-n", namespace, "addr", "add", address, "dev", interface])


def run(argv: list[str], *, text: str = "") -> str:
    """A command of the host. Raises NotFound, PermissionNeeded, GwError."""
    try:
        done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        package = {"ip": "iproute2", "nft": "nftables"}.get(argv[0], argv[0])
        raise NotFound(f"no program `{argv[0]}`", hint=f"apt install {package}") from None
    if done.returncode:
        problem = (done.stderr or done.stdout).strip().splitlines()
        line = problem[0][:200] if problem else f"status {done.returncode}"
        if "Operation not permitted" in line or "Permission denied" in line:
            raise PermissionNeeded(f"`{' '.join(argv[:4])}`: {line}", hint="run as root: sudo gw lab demo")
        raise GwError(f"`{' '.join(argv)[:120]}`: {line}")
    return done.stdout
