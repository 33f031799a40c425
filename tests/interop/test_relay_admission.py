"""Who may use a relay: the feed's node keys, or what a /verify URL says."""

from __future__ import annotations

import asyncio
import http.server
import json
import threading
from collections.abc import Iterator

import pytest

from gw.errors import UsageError
from gw.model.keys import NodeKey
from gw.relay.admission import Admission, UrlAdmission

ALICE, MALLORY = b"\x01" * 32, b"\x02" * 32


class Verifier(http.server.ThreadingHTTPServer):
    """A /verify that knows Alice and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict[str, str]] = []
        self.status = 200
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/verify"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Verifier

    def do_POST(self) -> None:
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(question)
        body = json.dumps({"Allow": question["NodePublic"] == str(NodeKey(ALICE))}).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def verifier() -> Iterator[Verifier]:
    server = Verifier()
    yield server
    server.shutdown()
    server.server_close()


async def settle(admission: UrlAdmission, nodes: list[bytes], rounds: int = 200) -> list[Admission]:
    """Ask again and again, as connections that wait do, until all are known."""
    async with asyncio.TaskGroup() as group:
        following = group.create_task(admission.follow(lambda node: None))
        await asyncio.sleep(0)
        for _ in range(rounds):
            verdicts = [admission.admit(node, "192.0.2.7") for node in nodes]
            if Admission.UNKNOWN not in verdicts:
                break
            await asyncio.sleep(0.01)
        following.cancel()
    return verdicts


async def test_each_key_is_asked_for_once_however_often_it_waits(verifier: Verifier) -> None:
    keys = [bytes([n]) * 32 for n in range(1, 51)]
    admission = UrlAdmission(verifier.url)
    verdicts = await settle(admission, keys)
    assert verdicts == [Admission.ALLOWED] + [Admission.DENIED] * 49
    assert len(verifier.asked) == 50
    assert {question["Source"] for question in verifier.asked} == {"192.0.2.7"}
    assert await settle(admission, keys) == verdicts  # kept for a while
    assert len(verifier.asked) == 50


async def test_a_denied_key_is_asked_for_again_soon(verifier: Verifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gw.relay.admission.DENIED_S", 0.05)
    admission = UrlAdmission(verifier.url)
    await settle(admission, [MALLORY])
    await asyncio.sleep(0.1)
    await settle(admission, [MALLORY])
    assert len(verifier.asked) == 2


async def test_the_address_is_part_of_the_question(verifier: Verifier) -> None:
    admission = UrlAdmission(verifier.url)
    await settle(admission, [ALICE])
    assert admission.admit(ALICE, "198.51.100.9") is Admission.UNKNOWN


@pytest.mark.parametrize("broken", ["status", "closed"])
async def test_who_cannot_be_asked_for_is_denied(verifier: Verifier, broken: str) -> None:
    url = verifier.url
    if broken == "status":
        verifier.status = 500
    else:
        url = "http://127.0.0.1:1/verify"
    assert await settle(UrlAdmission(url), [ALICE]) == [Admission.DENIED]
    open_verdict = Admission.DENIED if broken == "status" else Admission.ALLOWED  # only where nobody could be asked
    assert await settle(UrlAdmission(url, fail_open=True), [ALICE]) == [open_verdict]


@pytest.mark.parametrize("url", ["ftp://host/verify", "https://", "verify"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(UsageError):
        UrlAdmission(url)
