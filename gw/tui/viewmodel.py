"""What the screen shows, without a screen: peers with rates and history, fed by the local API's events.

An event is one JSON object of `GET /localapi/v0/gw/events`:

    {"Status": {…}}                             the whole status in Tailscale's field names; the first event is one
    {"Peers": {"nodekey:…": {field: value}}}    changed fields of some peers
    {"Removed": ["nodekey:…"]}                  peers that left

Once a second there is one with `At`, the Unix time at which its counters were read, also where nothing moved.

Rates are differences of `RxBytes` and `TxBytes` between two ticks: of the caller's clock, or of `At`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Final

HISTORY_TICKS: Final = 60
BARS: Final = "▁▂▃▄▅▆▇█"
ASCII_BARS: Final = "_.-=+*#@"
OFFLOADS: Final = {"tcp_offload": "TSO", "udp_offload": "USO", "udp_gso": "GSO", "udp_gro": "GRO"}


class Situation(Enum):
    """Which card the screen shows instead of peers; RUNNING shows none."""

    CONNECTING = "connecting"
    DAEMON_DOWN = "daemon-down"
    NO_PERMISSION = "no-permission"
    NEEDS_LOGIN = "needs-login"
    NEEDS_APPROVAL = "needs-approval"
    STOPPED = "stopped"
    RUNNING = "running"


_SITUATIONS: Final = {
    "NeedsLogin": Situation.NEEDS_LOGIN,
    "NoState": Situation.NEEDS_LOGIN,
    "NeedsMachineAuth": Situation.NEEDS_APPROVAL,
    "Stopped": Situation.STOPPED,
    "Starting": Situation.CONNECTING,
    "Running": Situation.RUNNING,
}


@dataclass
class PeerRow:
    """One peer as drawn. Rates in bytes a second, latency in milliseconds, times in seconds since the epoch."""

    key: str
    raw: dict[str, Any] = field(default_factory=dict)
    rx_rate: float = 0.0
    tx_rate: float = 0.0
    history: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY_TICKS))
    last_counts: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        """The first label of the DNS name, else the host name."""
        return str(self.raw.get("DNSName") or "").split(".")[0] or str(self.raw.get("HostName") or "?")

    @property
    def addresses(self) -> list[str]:
        return list(self.raw.get("TailscaleIPs") or [])

    @property
    def path(self) -> str:
        """`direct 1.2.3.4:5`, `quic 1.2.3.4:5`, `peer-relay 1.2.3.4:5:vni:6`, `relay CODE`, `idle` or `offline`."""
        if self.raw.get("Online") is False:
            return "offline"
        if address := self.raw.get("CurAddr"):
            return f"{'quic' if self.raw.get('Transport') == 'quic' else 'direct'} {address}"
        if peer_relay := self.raw.get("PeerRelay"):
            return f"peer-relay {peer_relay}"
        if relay := self.raw.get("Relay"):
            return f"relay {relay}" if self.raw.get("Active") else "idle"
        return "idle"

    @property
    def latency_ms(self) -> float | None:
        value = self.raw.get("LatencySeconds")
        return float(value) * 1000 if value else None

    @property
    def last_handshake(self) -> float | None:
        """None where there was none: Go's zero time is year 1."""
        text = str(self.raw.get("LastHandshake") or "")
        if not text or text.startswith("0001"):
            return None
        return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(UTC).timestamp()

    @property
    def packets(self) -> tuple[int, int]:
        """Received and sent."""
        return int(self.raw.get("RxPackets") or 0), int(self.raw.get("TxPackets") or 0)

    @property
    def drops(self) -> dict[str, int]:
        """Dropped packets by reason, the most frequent first."""
        found: dict[str, int] = self.raw.get("Drops") or {}
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))

    def matches(self, words: str) -> bool:
        """True where every word of the filter is in the name, an address, the path, a tag or the system."""
        text = " ".join(
            [self.name, *self.addresses, self.path, str(self.raw.get("OS") or ""), *(self.raw.get("Tags") or [])]
        )
        return all(word in text.lower() for word in words.lower().split())

    def tick(self, seconds: float) -> None:
        """Take a sample; seconds: since the last one."""
        counts = (int(self.raw.get("RxBytes") or 0), int(self.raw.get("TxBytes") or 0))
        if self.last_counts is None or seconds <= 0:
            self.last_counts = counts
            return
        self.rx_rate = max(0, counts[0] - self.last_counts[0]) / seconds
        self.tx_rate = max(0, counts[1] - self.last_counts[1]) / seconds
        self.last_counts = counts
        self.history.append(self.rx_rate + self.tx_rate)


@dataclass
class MeshView:
    """The whole screen's data."""

    situation: Situation = Situation.CONNECTING
    detail: str = ""
    auth_url: str = ""
    self_name: str = ""
    self_addresses: list[str] = field(default_factory=list)
    domain: str = ""
    health: list[str] = field(default_factory=list)
    data_plane: dict[str, Any] = field(default_factory=dict)
    peers: dict[str, PeerRow] = field(default_factory=dict)
    words: str = ""

    def apply(self, event: dict[str, Any]) -> None:
        """Take one event. Unknown fields are kept for the detail pane, unknown events ignored."""
        if status := event.get("Status"):
            self._apply_status(status)
        for key, fields in (event.get("Peers") or {}).items():
            self.peers.setdefault(key, PeerRow(key)).raw.update(fields)
        for key in event.get("Removed") or ():
            self.peers.pop(key, None)

    def _apply_status(self, status: dict[str, Any]) -> None:
        self.situation = _SITUATIONS.get(str(status.get("BackendState")), Situation.CONNECTING)
        self.auth_url = str(status.get("AuthURL") or "")
        self.health = list(status.get("Health") or [])
        mine = status.get("Self") or {}
        self.self_name = str(mine.get("DNSName") or "").rstrip(".") or str(mine.get("HostName") or "")
        self.self_addresses = list(status.get("TailscaleIPs") or mine.get("TailscaleIPs") or [])
        self.domain = str(status.get("MagicDNSSuffix") or "")
        self.data_plane = dict(status.get("DataPlane") or {})
        peers = status.get("Peer") or {}
        for key in [key for key in self.peers if key not in peers]:
            del self.peers[key]
        for key, fields in peers.items():
            self.peers.setdefault(key, PeerRow(key)).raw = dict(fields)

    def fail(self, situation: Situation, detail: str) -> None:
        """The feed broke: show a card; the peers stay for when it comes back."""
        self.situation, self.detail = situation, detail

    def tick(self, seconds: float) -> None:
        """Take a sample of every peer; seconds: since the last call."""
        for row in self.peers.values():
            row.tick(seconds)

    def rows(self) -> list[PeerRow]:
        """The peers that the filter lets through: online first, then by name."""
        shown = [row for row in self.peers.values() if row.matches(self.words)]
        return sorted(shown, key=lambda row: (row.path == "offline", row.name, row.key))

    def busiest(self) -> list[PeerRow]:
        """The same, by what they move now; then by what they have moved, then by name."""

        def rank(row: PeerRow) -> tuple[bool, float, int, str, str]:
            counts = int(row.raw.get("RxBytes") or 0) + int(row.raw.get("TxBytes") or 0)
            return row.path == "offline", -(row.rx_rate + row.tx_rate), -counts, row.name, row.key

        return sorted(self.rows(), key=rank)

    @property
    def transport(self) -> str:
        """How this node's packets are carried: core, workers of each direction, offloads in use."""
        if not self.data_plane:
            return ""
        used = [label for name, label in OFFLOADS.items() if self.data_plane.get(name)]
        lanes = self.data_plane.get("lanes")
        core = "compiled" if self.data_plane.get("compiled") else "interpreted, slow"
        return f"{core}, {lanes}+{lanes} workers, offloads {' '.join(used) or 'none'}"

    def totals(self) -> tuple[float, float]:
        """Bytes a second received and sent, over all peers."""
        return sum(row.rx_rate for row in self.peers.values()), sum(row.tx_rate for row in self.peers.values())


def drops_text(drops: dict[str, int]) -> str:
    """`acl 12, replay 1`; `none` where nothing was dropped."""
    return ", ".join(f"{reason} {count}" for reason, count in drops.items()) or "none"


def count_text(count: int) -> str:
    """A number in at most four letters: `999`, `1.2k`, `34M`."""
    return rate_text(count / 8)


def rate_text(rate: float) -> str:
    """Bits a second in three digits: `0`, `1.2k`, `34M`, `2.5G`."""
    bits = rate * 8
    for unit in ("", "k", "M", "G", "T"):
        if bits < 999.5 or unit == "T":
            return f"{bits:.1f}{unit}" if unit and bits < 9.95 else f"{bits:.0f}{unit}"
        bits /= 1000
    return "0"


def size_text(count: int) -> str:
    """Bytes for people: `512 B`, `1.5 MiB`."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return ""


def age_text(seconds: float | None) -> str:
    """`now`, `12s`, `3m`, `2h`, `5d`; a dash where there is none."""
    if seconds is None:
        return "—"
    if seconds < 2:
        return "now"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"


def sparkline(values: list[float], width: int, *, ascii_only: bool = False) -> str:
    """The last `width` values as bars, scaled to their own maximum."""
    bars = ASCII_BARS if ascii_only else BARS
    shown = values[-width:]
    top = max(shown, default=0.0)
    if top <= 0:
        return (bars[0] * len(shown)).rjust(width)
    return "".join(bars[min(len(bars) - 1, int(value / top * (len(bars) - 1) + 0.5))] for value in shown).rjust(width)
