"""What every test shares: unit tests open no socket; tests that need root say why they skip; rivals are named."""

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
RIVALS = ("DERPER", "HEADSCALE", "TAILSCALED", "TAILSCALE")
NETNS_PROGRAMS = ("ip", "nft", "ping")

# By the time that they take, longest first: begun last, one would keep one worker busy when the others are done.
LONGEST = (
    "netns/test_lab.py",
    "netns/test_quicpeers.py",
    "interop/test_packaging.py",
    "interop/test_tls.py",
    "interop/test_bad_input.py",
    "interop/test_api.py",
    "interop/test_stock_lifecycle.py",
    "netns/test_roaming.py",
    "interop/test_wireguard.py",
    "netns/test_offloads.py",
    "netns/test_mesh.py",
    "netns/test_documentation.py",
    "netns/test_peerrelay.py",
    "interop/test_oidc.py",
    "interop/test_relay_mesh.py",
    "interop/test_control_server.py",
    "netns/test_kills.py",
)


def _missing() -> str:
    if os.geteuid() != 0:
        return "needs root"
    if not os.path.exists("/dev/net/tun"):
        return "needs /dev/net/tun"
    absent = [name for name in NETNS_PROGRAMS if shutil.which(name) is None]
    return f"needs {', '.join(absent)}" if absent else ""


def _is_left_out(item: pytest.Item) -> bool:
    mark = item.get_closest_marker("against")
    return mark is not None and not all(os.environ.get(name) for name in mark.args)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    unset = [name for name in RIVALS if not os.environ.get(name)]
    if unset:
        terminalreporter.write_line(f"Not run: tests against binaries that may be named in {', '.join(unset)}.")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [item for item in items if _is_left_out(item)]
    items[:] = [item for item in items if not _is_left_out(item)]
    config.hook.pytest_deselected(items=left_out)
    rank = {TESTS / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path, len(LONGEST)))
    reason = _missing()
    for item in items:
        part = Path(item.path).relative_to(TESTS).parts[0]
        if part == "unit":
            item.add_marker(pytest.mark.disable_socket)
        if part in ("netns",) or item.get_closest_marker("netns"):
            item.add_marker(pytest.mark.netns)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))
