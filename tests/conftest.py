"""What every test shares: unit tests may open no socket; tests that need root say why they skip."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import settings

# a machine that has other work to do is no failed test
settings.register_profile("any-machine", deadline=None)
settings.load_profile("any-machine")

TESTS = Path(__file__).resolve().parent
NETNS_PROGRAMS = ("ip", "nft", "ping")


def _missing() -> str:
    if os.geteuid() != 0:
        return "needs root"
    if not os.path.exists("/dev/net/tun"):
        return "needs /dev/net/tun"
    absent = [name for name in NETNS_PROGRAMS if shutil.which(name) is None]
    return f"needs {', '.join(absent)}" if absent else ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = _missing()
    for item in items:
        part = Path(item.path).relative_to(TESTS).parts[0]
        if part == "unit":
            item.add_marker(pytest.mark.disable_socket)
        if part in ("netns",) or item.get_closest_marker("netns"):
            item.add_marker(pytest.mark.netns)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))
