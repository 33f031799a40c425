"""A control server asks by its map stream whether we are alive: the answer is a HEAD inside Noise, to itself alone."""

from __future__ import annotations

from typing import Any

import pytest

from gw.errors import GwError
from gw.model.keys import MachineSecret
from gw.model.mapping import PingRequest
from gw.node.control import ControlClient
from gw.wire.x25519 import clamp


class Link:
    def __init__(self, *, broken: bool = False) -> None:
        self.calls: list[tuple[str, str]] = []
        self.broken = broken

    def request(self, path: str, body: bytes, authority: str, method: str = "POST") -> tuple[int, Any]:
        if self.broken:
            raise GwError("closed")
        self.calls.append((method, path))
        return 1, None


def answered(link: Link, **fields: Any) -> list[tuple[str, str]]:
    client = ControlClient("http://control.test:8080", MachineSecret(clamp(b"\x11" * 32)))
    client._answer_ping(link, PingRequest(**fields))  # type: ignore[arg-type]
    return link.calls


def test_a_ping_is_answered_with_its_id() -> None:
    url = "http://control.test:8080/machine/ping-response?id=00ff"
    assert answered(Link(), url=url, url_is_noise=True) == [("HEAD", "/machine/ping-response?id=00ff")]
    assert answered(Link(broken=True), url=url, url_is_noise=True) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"url": "http://control.test:8080/machine/ping-response?id=1", "url_is_noise": False},
        {"url": "http://control.test:8080/machine/ping-response?id=1", "url_is_noise": True, "types": "c2n"},
        {"url": "http://control.test:8080/admin", "url_is_noise": True},
        {"url": "", "url_is_noise": True},
    ],
)
def test_anything_else_is_not(fields: dict[str, Any]) -> None:
    assert answered(Link(), **fields) == []
