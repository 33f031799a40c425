"""Who gwdns answers."""

from __future__ import annotations

import pytest

from gw.dns.clients import Clients


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("192.168.1.9", True),
        ("::ffff:192.168.1.9", True),
        ("100.64.0.5", True),
        ("fd7a:115c:a1e0::5", True),
        ("fe80::1%eth0", True),
        ("5.6.7.8", False),
        ("::ffff:5.6.7.8", False),
        ("2a00:1450::1", False),
        ("9.9.9.5", True),
        ("2a01::1", True),
    ],
)
def test_private_and_named_networks_are_answered_strangers_are_not(host: str, expected: bool) -> None:
    assert Clients(["9.9.9.0/24", "", "2a01::/16"]).admits(host) is expected
