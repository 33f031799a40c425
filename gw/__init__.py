"""GhostWire: a self-hosted mesh VPN. Start reading at ARCHITECTURE.md."""

from typing import Final

__version__: Final = "0.1.0"
