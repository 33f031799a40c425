"""A card in the middle of the screen: what is wrong and what to type."""

from __future__ import annotations

from typing import Final

from rich.markup import escape
from textual.widgets import Static

from gw.tui.viewmodel import MeshView, Situation

CARDS: Final[dict[Situation, tuple[str, str, str]]] = {
    Situation.CONNECTING: ("Connecting", "Waiting for the daemon's first answer.", ""),
    Situation.DAEMON_DOWN: (
        "The daemon is not running",
        "Nothing answers on the local socket. Start it:",
        "sudo gw service install node\nsudo gwd run",
    ),
    Situation.NO_PERMISSION: (
        "No permission",
        "The daemon answers root and its operator. Run as root:",
        "sudo gw tui",
    ),
    Situation.NEEDS_LOGIN: (
        "Not logged in",
        "This node belongs to no tailnet yet. Log in:",
        "sudo gw up --login-server https://control.example --auth-key file:key.txt",
    ),
    Situation.NEEDS_APPROVAL: (
        "Waiting for approval",
        "An administrator has to let this device in. On the control server:",
        "gwctl auth list",
    ),
    Situation.STOPPED: ("Stopped", "The node is logged in but down. Bring it up:", "sudo gw up"),
}


class Card(Static):
    """Shown instead of the table while there are no peers to show."""

    DEFAULT_CSS = """
    Card { width: 78; height: auto; border: round $warning; padding: 1 2; }
    """

    def show(self, mesh: MeshView) -> None:
        """Draw the card of the view model's situation."""
        title, text, commands = CARDS.get(mesh.situation, ("", "", ""))
        parts = [f"[b]{title}[/b]", text]
        if mesh.situation is Situation.NEEDS_LOGIN and mesh.auth_url:
            parts = [f"[b]{title}[/b]", "Open this page to approve the login:", f"[b]{escape(mesh.auth_url)}[/b]"]
        elif commands:
            parts.append("\n".join(f"    [b]{escape(line)}[/b]" for line in commands.splitlines()))
        if mesh.detail:
            parts.append(f"[dim]{escape(mesh.detail)}[/dim]")
        self.update("\n\n".join(parts))
