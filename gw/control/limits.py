"""What the operating system lets a process hold."""

from __future__ import annotations

import resource
from typing import Final

SPARE_DESCRIPTORS: Final = 200  # for files, sockets between processes, web requests


def descriptor_limit() -> int:
    """Connections this process may hold: its descriptors, raised as far as allowed, less some for files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return max(64, soft - SPARE_DESCRIPTORS)
