"""Everything about the peer under the cursor."""

from __future__ import annotations

from rich.markup import escape
from textual.widgets import Static

from gw.tui.viewmodel import PeerRow, age_text, drops_text, rate_text, size_text, sparkline


class PeerDetail(Static):
    """A pane of lines `label value`; empty where no peer is chosen."""

    DEFAULT_CSS = """
    PeerDetail {
        height: auto; max-height: 13; border-top: solid $primary; padding: 0 1;
        text-wrap: nowrap; text-overflow: ellipsis;
    }
    """

    def show(self, row: PeerRow | None, wall: float, pinged: str, transport: str, *, ascii_only: bool = False) -> None:
        """Draw one peer. pinged: the last ping's result line, or empty; transport: how our packets are carried."""
        if row is None:
            self.update("No peer matches.")
            return
        raw = row.raw
        handshake = row.last_handshake
        full_name = str(raw.get("DNSName") or "").rstrip(".")
        received, sent = (size_text(int(raw.get(name) or 0)) for name in ("RxBytes", "TxBytes"))
        packets_in, packets_out = row.packets
        spark = sparkline(list(row.history), 40, ascii_only=ascii_only).strip()
        lines = [
            ("", f"[b]{escape(row.name)}[/b]  {escape(full_name)}  {raw.get('OS') or ''}"),
            ("addresses", ", ".join(row.addresses)),
            ("path", f"{row.path}   handshake {age_text(wall - handshake if handshake is not None else None)}"),
            *([("ping", pinged)] if pinged else []),
            ("endpoints", ", ".join(raw.get("Addrs") or []) or "—"),
            ("traffic", f"received {received} in {packets_in} packets, sent {sent} in {packets_out}"),
            ("dropped", drops_text(row.drops)),
            ("now", f"↓{rate_text(row.rx_rate)} ↑{rate_text(row.tx_rate)} b/s  {spark}"),
            ("transport", transport or "—"),
            *([("tags", ", ".join(raw["Tags"]))] if raw.get("Tags") else []),
            ("key", row.key),
        ]
        text = "\n".join(f"[dim]{label:<10}[/dim]{escape(value)}" if label else value for label, value in lines)
        self.update(text)
