"""What `gw top` prints: one refresh as lines of text, or as one object. The view model is that of the dashboard."""

from __future__ import annotations

from typing import Any, Final

from gw.tui.viewmodel import MeshView, PeerRow, Situation, age_text, count_text, rate_text

HEADINGS: Final = ("NAME", "PATH", "RX b/s", "TX b/s", "RX pkts", "TX pkts", "DROPS", "LATENCY", "HANDSHAKE")
NUMBERS_FROM: Final = 2  # columns from here on are set to the right
MIN_WIDTH: Final = 40
BOLD: Final = "\x1b[1m"
DIM: Final = "\x1b[2m"
WARN: Final = "\x1b[33m"
PLAIN: Final = "\x1b[0m"


def lines(mesh: MeshView, wall: float, *, width: int = 0, height: int = 0, colour: bool = False) -> list[str]:
    """One screen. wall: Unix time now; width, height: of the terminal, 0 for no end."""
    shown = mesh.busiest() if mesh.situation is Situation.RUNNING else []
    out = [_head(mesh)]
    out += [f"! {text}" for text in mesh.health[:1]]
    out.append("")
    marks = [PLAIN, *[WARN] * len(mesh.health[:1]), PLAIN]
    room = max(height - len(out) - 2, 1) if height else len(shown)
    left_out = len(shown) - room
    if left_out > 0:
        shown = shown[:room]
    rows = [HEADINGS, *(_cells(row, wall) for row in shown)]
    out += _aligned(rows, width)
    marks += [BOLD, *(DIM if row.path == "offline" else WARN if "acl" in row.drops else PLAIN for row in shown)]
    if left_out > 0:
        out.append(f"… {left_out} more")
        marks.append(DIM)
    if width:
        out = [line[:width] for line in out]
    if not colour:
        return out
    return [f"{mark}{line}{PLAIN}" if mark != PLAIN else line for mark, line in zip(marks, out, strict=True)]


def as_object(mesh: MeshView, at: float) -> dict[str, Any]:
    """One refresh for programs. Rates in bytes a second; at: Unix time of the counters."""
    rx, tx = mesh.totals()
    return {
        "At": at,
        "State": mesh.situation.value,
        "Self": mesh.self_name,
        "RxRate": round(rx, 1),
        "TxRate": round(tx, 1),
        "Peers": [_peer_object(row) for row in mesh.busiest()],
    }


def _peer_object(row: PeerRow) -> dict[str, Any]:
    raw = row.raw
    return {
        "Name": str(raw.get("DNSName") or "").rstrip(".") or row.name,
        "PublicKey": row.key,
        "TailscaleIPs": row.addresses,
        "Path": row.path,
        "RxRate": round(row.rx_rate, 1),
        "TxRate": round(row.tx_rate, 1),
        "RxBytes": int(raw.get("RxBytes") or 0),
        "TxBytes": int(raw.get("TxBytes") or 0),
        "RxPackets": row.packets[0],
        "TxPackets": row.packets[1],
        "Drops": row.drops,
        "LatencySeconds": float(raw.get("LatencySeconds") or 0.0),
        "LastHandshake": raw.get("LastHandshake"),
    }


def _head(mesh: MeshView) -> str:
    if mesh.situation is not Situation.RUNNING:
        detail = f": {mesh.detail}" if mesh.detail else ""
        return f"{mesh.self_name or 'this node'}  {mesh.situation.value}{detail}  (gw status tells what to do)"
    rx, tx = mesh.totals()
    online = sum(1 for row in mesh.peers.values() if row.path != "offline")
    rates = f"rx {rate_text(rx)}  tx {rate_text(tx)} b/s"
    return "  ".join([mesh.self_name, f"{online}/{len(mesh.peers)} peers online", rates, mesh.transport]).rstrip()


def _cells(row: PeerRow, wall: float) -> tuple[str, ...]:
    latency, handshake = row.latency_ms, row.last_handshake
    received, sent = row.packets
    return (
        _printable(row.name),
        _printable(row.path),
        rate_text(row.rx_rate),
        rate_text(row.tx_rate),
        count_text(received),
        count_text(sent),
        count_text(sum(row.drops.values())),
        f"{latency:.1f} ms" if latency is not None else "-",
        age_text(wall - handshake) if handshake is not None else "-",
    )


def _aligned(rows: list[tuple[str, ...]], width: int) -> list[str]:
    """Columns two blanks apart; where they do not fit, path and then name give way."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    if width:
        for column, least in ((1, 8), (0, 8)):
            over = sum(widths) + 2 * (len(widths) - 1) - max(width, MIN_WIDTH)
            widths[column] = max(widths[column] - max(over, 0), min(least, widths[column]))
    return ["  ".join(_cell(text, widths, at) for at, text in enumerate(row)).rstrip() for row in rows]


def _cell(text: str, widths: list[int], column: int) -> str:
    size = widths[column]
    if len(text) > size:
        text = text[: size - 1] + "…"
    return text.rjust(size) if column >= NUMBERS_FROM else text.ljust(size)


def _printable(text: str) -> str:
    """A peer chooses its own name: nothing of it may steer the terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
