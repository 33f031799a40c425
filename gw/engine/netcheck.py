"""How this node sees the internet: STUN to the relays tells our endpoints, how NAT maps them, which relay is near.

Sans-I/O: `poll` gives requests to send from the data plane's own UDP sockets, `feed` takes the answers.

Ref: spec relay-and-path §2; tailscale net/netcheck/netcheck.go
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, final

from gw.errors import WireError
from gw.model.addresses import AddrPort
from gw.model.derpmap import DERPMap, DERPNode, DERPRegion
from gw.model.hostinfo import NetInfo
from gw.wire import stun

DEFAULT_STUN_PORT: Final = 3478
STUN_PHASE_S: Final = 3.0
RETRY_FIRST_S: Final = 0.1
RETRY_UNKNOWN_S: Final = 0.2
TRIES: Final = 3
ENOUGH_REGIONS: Final = 3
INCREMENTAL_REGIONS: Final = 3
FULL_EVERY_S: Final = 300.0
HISTORY_S: Final = 305.0
RESOLVE_AGAIN_S: Final = 600.0  # a relay may move
RETRY_NAME_S: Final = 15.0  # a name that is not known may be soon, but each look-up costs seconds
SMALL_GAIN_S: Final = 0.010
LIVE_S: Final = 8.0
KEEP_S: Final = 120.0


@dataclass(slots=True)
class Report:
    """One look around. Latencies in seconds, by region; mapped: our endpoints as servers saw them, most seen first."""

    began: float
    full: bool
    v4: dict[int, float] = field(default_factory=dict)
    v6: dict[int, float] = field(default_factory=dict)
    https: dict[int, float] = field(default_factory=dict)
    mapped: dict[AddrPort, int] = field(default_factory=dict)
    first_seen: dict[str, AddrPort] = field(default_factory=dict)  # STUN server -> our IPv4 endpoint there
    varies: bool | None = None

    @property
    def has_udp(self) -> bool:
        return bool(self.v4 or self.v6)

    def latencies(self) -> dict[int, float]:
        """The best of each region."""
        best: dict[int, float] = {}
        for each in (self.v4, self.v6, self.https):
            for region, latency in each.items():
                best[region] = min(latency, best.get(region, latency))
        return best

    def netinfo(self, home: int, *, os_has_v6: bool) -> NetInfo:
        latency = {f"{region}-v4": seconds for region, seconds in {**self.https, **self.v4}.items()}
        latency |= {f"{region}-v6": seconds for region, seconds in self.v6.items()}
        return NetInfo(
            mapping_varies_by_dest_ip=self.varies,
            working_ipv6=bool(self.v6),
            os_has_ipv6=os_has_v6,
            working_udp=self.has_udp,
            preferred_derp=home,
            derp_latency=latency or None,
        )


@dataclass(slots=True)
class _Probe:
    at: float
    region: int
    server: AddrPort
    sent: float = 0.0


@final
class NetCheck:
    """One report after another. Times are monotonic seconds."""

    def __init__(self, random_bytes: Callable[[int], bytes]) -> None:
        self._random = random_bytes
        self._map = DERPMap(regions={})
        self._has_v6 = False
        self._resolved: dict[str, tuple[float, list[str]]] = {}  # host -> when it was asked for, its addresses
        self._planned: list[_Probe] = []
        self._sent: dict[bytes, _Probe] = {}
        self._report: Report | None = None
        self._regions: set[int] = set()
        self._finish_at = 0.0
        self._last: Report | None = None
        self._last_full = float("-inf")
        self._history: list[tuple[float, dict[int, float]]] = []

    @property
    def is_running(self) -> bool:
        return self._report is not None

    @property
    def last(self) -> Report | None:
        return self._last

    def needs(self, derp_map: DERPMap, now: float) -> list[str]:
        """Host names to look up before `start` can use them: new ones, and those last asked for a while ago."""
        names = {
            node.host_name
            for region in (derp_map.regions or {}).values()
            for node in region.nodes or ()
            if not node.ipv4 and not node.ipv6 and not node.stun_test_ip and not _literal(node.host_name)
        }
        self._resolved = {host: found for host, found in self._resolved.items() if host in names}
        return sorted(name for name in names if self._is_due(name, now))

    def resolved(self, host: str, addresses: list[str], now: float) -> None:
        """The outcome of a look-up. An empty list, for one that failed, leaves what was known."""
        _, known = self._resolved.get(host, (0.0, []))
        self._resolved[host] = (now, addresses or known)

    def _is_due(self, host: str, now: float) -> bool:
        if host not in self._resolved:
            return True
        at, addresses = self._resolved[host]
        return now - at >= (RESOLVE_AGAIN_S if addresses else RETRY_NAME_S)

    def start(self, derp_map: DERPMap, now: float, *, has_v6: bool, home: int = 0, full: bool = False) -> None:
        """Begin a report; one that is under way is given up."""
        self._map, self._has_v6 = derp_map, has_v6
        full = full or self._last is None or not self._last.has_udp or now - self._last_full > FULL_EVERY_S
        self._report = Report(now, full)
        self._sent.clear()
        self._planned = self._plan(now, home, full)
        self._regions = {probe.region for probe in self._planned}
        self._finish_at = now + STUN_PHASE_S if self._planned else now

    def poll(self, now: float) -> list[tuple[bytes, AddrPort]]:
        """Requests that are due."""
        report = self._report
        if report is None:
            return []
        out: list[tuple[bytes, AddrPort]] = []
        for probe in [each for each in self._planned if each.at <= now]:
            self._planned.remove(probe)
            answered = report.v6 if probe.server.is_v6 else report.v4
            if probe.region in answered:
                continue
            tx_id = self._random(stun.TX_ID_BYTES)
            probe.sent = now
            self._sent[tx_id] = probe
            out.append((stun.encode_request(tx_id), probe.server))
        return out

    def feed(self, datagram: bytes, now: float) -> bool:
        """Take a datagram of the UDP socket; False where it is no answer to a request of ours."""
        if not stun.is_stun(datagram):
            return False
        try:
            tx_id, mapped = stun.decode_answer(datagram)
        except WireError:
            return True
        probe, report = self._sent.pop(tx_id, None), self._report
        if probe is None or report is None:
            return True
        by_family = report.v6 if probe.server.is_v6 else report.v4
        latency = now - probe.sent
        by_family[probe.region] = min(latency, by_family.get(probe.region, latency))
        report.mapped[mapped] = report.mapped.get(mapped, 0) + 1
        if not mapped.is_v6:
            for server, seen in report.first_seen.items():
                if server != str(probe.server):
                    report.varies = bool(report.varies) or seen != mapped
            report.first_seen.setdefault(str(probe.server), mapped)
        answered = set(report.v4) | set(report.v6)
        if answered >= self._regions or len(answered) >= ENOUGH_REGIONS:
            grace = max(report.latencies().values()) * (2 if report.full else 1)
            self._finish_at = min(self._finish_at, now + max(grace, 0.02))
        return True

    def deadline(self) -> float | None:
        """When `poll` or `take` has something to do."""
        if self._report is None:
            return None
        return min([self._finish_at, *(probe.at for probe in self._planned)])

    def take(self, now: float) -> Report | None:
        """The report when it is finished; it counts for the choice of the home from then on."""
        report = self._report
        if report is None or now < self._finish_at:
            return None
        self._report = None
        self._last = report
        if report.full:
            self._last_full = now
        return report

    def settle(self, report: Report, now: float) -> None:
        """Remember a finished report's latencies (with those over HTTPS, if there were any)."""
        self._history = [entry for entry in self._history if now - entry[0] < HISTORY_S]
        self._history.append((now, report.latencies()))

    def choose_home(self, report: Report, current: int, last_heard: Callable[[int], float], now: float) -> int:
        """The region to be reached at: the nearest, but not another one for a small gain. 0 where there is none."""
        regions = self._map.regions or {}
        scores = self._scores(report, regions)
        is_live = last_heard(current) >= min(report.began, now - LIVE_S)
        if not scores:
            if current in regions and now - last_heard(current) < KEEP_S:
                return current
            return current if current in regions else min(regions, default=0)
        best = min(scores, key=lambda region: (scores[region], region))
        if current in regions and best != current and (current in report.latencies() or is_live):
            old = self._scaled(report.latencies().get(current, 0.0), current)
            if old - scores[best] < SMALL_GAIN_S or scores[best] > old / 3 * 2:
                return current
        return best

    def _scores(self, report: Report, regions: Mapping[int, DERPRegion]) -> dict[int, float]:
        present = {region: latency for region, latency in report.latencies().items() if region in regions}
        for _, latencies in self._history:
            for region in present:
                present[region] = min(present[region], latencies.get(region, present[region]))
        return {region: self._scaled(latency, region) for region, latency in present.items()}

    def _scaled(self, latency: float, region: int) -> float:
        factors = (self._map.home_params.region_score if self._map.home_params else None) or {}
        factor = factors.get(region, 1.0)
        return latency * factor if factor > 0 else latency

    def _plan(self, now: float, home: int, full: bool) -> list[_Probe]:
        regions = {id_: region for id_, region in (self._map.regions or {}).items() if not region.no_measure_no_home}
        known = self._last.latencies() if self._last is not None else {}
        if full:
            chosen = list(regions)
        else:
            allowed = [id_ for id_, region in regions.items() if not region.avoid or id_ == home]
            chosen = sorted(allowed, key=lambda id_: known.get(id_, 99.0))[:INCREMENTAL_REGIONS]
            chosen += [home] if home in regions and home not in chosen else []
        probes: list[_Probe] = []
        for id_ in chosen:
            gap = RETRY_FIRST_S if full else 1.2 * known.get(id_, RETRY_UNKNOWN_S / 1.2)
            nodes = [node for node in regions[id_].nodes or () if node.stunport >= 0]
            for family in (4, 6) if self._has_v6 else (4,):
                servers = [server for node in nodes for server in self._servers(node, family)]
                if not servers:
                    continue
                # each address once at least (two of them tell whether the mapping varies), then again
                rounds = max(TRIES, min(len(servers), TRIES))
                probes += [
                    _Probe(now + turn * max(gap, 0.05), id_, servers[turn % len(servers)]) for turn in range(rounds)
                ]
        return probes

    def _servers(self, node: DERPNode, family: int) -> list[AddrPort]:
        port = node.stunport or DEFAULT_STUN_PORT
        given = node.ipv4 if family == 4 else node.ipv6
        if given == "none":
            return []
        if node.stun_test_ip:
            texts = [node.stun_test_ip]
        elif given:
            texts = [given]
        elif _literal(node.host_name):
            texts = [node.host_name]
        else:
            texts = self._resolved.get(node.host_name, (0.0, []))[1]
        found: list[AddrPort] = []
        for text in texts:
            try:
                server = AddrPort.of(text, port)
            except WireError:
                continue
            if server.is_v6 == (family == 6):
                found.append(server)
        return found


def _literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
