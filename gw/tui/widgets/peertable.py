"""The table of peers: one row each, updated cell by cell."""

from __future__ import annotations

from typing import Final

from textual.widgets import DataTable

from gw.tui.viewmodel import MeshView, PeerRow, age_text, rate_text, sparkline

SPARK_WIDTH: Final = 12
COLUMNS: Final = (
    ("name", "Name", 14),
    ("address", "Address", 15),
    ("path", "Path", 28),
    ("latency", "Latency", 8),
    ("rx", "Rx b/s", 7),
    ("tx", "Tx b/s", 7),
    ("spark", "Traffic", SPARK_WIDTH),
    ("handshake", "Handshake", 9),
)


class PeerTable(DataTable[str]):
    """Peers of the mesh. Rows keep their place while values change, so that the cursor stays on its peer."""

    DEFAULT_CSS = """
    PeerTable { height: 1fr; }
    """

    def __init__(self, *, ascii_only: bool = False, id: str | None = None) -> None:
        super().__init__(cursor_type="row", zebra_stripes=True, id=id)
        self._ascii = ascii_only
        self._cells: dict[str, tuple[str, ...]] = {}
        self._order: list[str] = []

    def on_mount(self) -> None:
        for key, label, width in COLUMNS:
            self.add_column(label, key=key, width=width)

    def show(self, mesh: MeshView, wall: float) -> None:
        """Bring the table to the view model. wall: seconds since the epoch, for the age of handshakes."""
        rows = mesh.rows()
        order = [row.key for row in rows]
        if order != self._order:
            selected = self.selected_key
            self.clear()
            self._cells.clear()
            for row in rows:
                cells = self._row(row, wall)
                self.add_row(*cells, key=row.key)
                self._cells[row.key] = cells
            self._order = order
            if selected in self._cells:
                self.move_cursor(row=order.index(selected))
            return
        for row in rows:
            cells = self._row(row, wall)
            for (column, _, _), old, new in zip(COLUMNS, self._cells[row.key], cells, strict=True):
                if old != new:
                    self.update_cell(row.key, column, new)
            self._cells[row.key] = cells

    @property
    def selected_key(self) -> str:
        """The node key under the cursor; empty in an empty table."""
        return self._order[self.cursor_row] if 0 <= self.cursor_row < len(self._order) else ""

    def _row(self, row: PeerRow, wall: float) -> tuple[str, ...]:
        latency = row.latency_ms
        handshake = row.last_handshake
        return (
            row.name,
            row.addresses[0] if row.addresses else "",
            row.path,
            f"{latency:.1f} ms" if latency is not None else "—",
            rate_text(row.rx_rate),
            rate_text(row.tx_rate),
            sparkline(list(row.history), SPARK_WIDTH, ascii_only=self._ascii),
            age_text(wall - handshake if handshake is not None else None),
        )
