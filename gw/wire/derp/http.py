"""The relay's HTTP: the request that becomes DERP, and the few pages that clients and people ask for.

    GET /derp               Upgrade: DERP or websocket       GET /derp/probe, /derp/latency-check    timed by clients
    GET /generate_204       captive-portal challenge          GET /bootstrap-dns?q=NAME               names as JSON
    GET /, /robots.txt              GET /.well-known/acme-challenge/TOKEN   for an authority

Ref: tailscale derp/derpserver/handler.go, cmd/derper/derper.go, cmd/derper/bootstrap_dns.go
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qs

from gw.errors import WireError
from gw.wire.websocket import accept_key

MAX_HEAD_BYTES: Final = 16 << 10
MAX_CHALLENGE_CHARS: Final = 64
PROOF_PATH: Final = "/.well-known/acme-challenge/"
_CHALLENGE_CHARS: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:-")
_NO_CACHE: Final = "Cache-Control: no-cache, no-store, must-revalidate, no-transform, max-age=0\r\n"
HOME: Final = """\
<!doctype html>
<meta name="viewport" content="width=device-width">
<title>GhostWire relay</title>
<h1>A relay of a private mesh</h1>
<p>It forwards encrypted packets between nodes that find no direct path. It cannot read them.
"""


@dataclass(frozen=True, slots=True)
class Request:
    """A request head. fields: names in lower case."""

    method: str
    path: str
    query: str
    fields: Mapping[str, str]

    @property
    def wants_derp(self) -> bool:
        return self.path == "/derp" and self.fields.get("upgrade", "").lower() in ("derp", "websocket")

    @property
    def is_websocket(self) -> bool:
        """WebSocket with the subprotocol `derp`; without it the upgrade is a raw one."""
        offered = self.fields.get("sec-websocket-protocol", "").split(",")
        return self.fields.get("upgrade", "").lower() == "websocket" and "derp" in (each.strip() for each in offered)

    @property
    def is_fast_start(self) -> bool:
        return self.fields.get("derp-fast-start") == "1"

    @property
    def has_body(self) -> bool:
        return self.fields.get("content-length", "0") != "0" or "transfer-encoding" in self.fields


def parse_request(head: bytes) -> Request:
    """The head of a request without its last blank line. Raises WireError."""
    lines = head.decode("latin-1").split("\r\n")
    words = lines[0].split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise WireError("not HTTP")
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    path, _, query = words[1].partition("?")
    return Request(words[0], path, query, fields)


def switching(request: Request, relay_key: bytes) -> bytes:
    """The answer to an upgrade; empty for a client that started already. Raises WireError."""
    if request.is_websocket:
        key = request.fields.get("sec-websocket-key", "")
        if not key or request.fields.get("sec-websocket-version") != "13":
            raise WireError("not a WebSocket request")
        return (
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {accept_key(key)}\r\nSec-WebSocket-Protocol: derp\r\n\r\n"
        ).encode()
    if request.is_fast_start:
        return b""
    return (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n"
        f"Derp-Version: 2\r\nDerp-Public-Key: {relay_key.hex()}\r\n\r\n"
    ).encode()


@dataclass(slots=True)
class Pages:
    """What a relay answers to anything but an upgrade. home: HTML, or the URL that `/` leads to.

    proof: token -> the page that a certificate authority wants to read, empty for none.
    published: names anybody gets from /bootstrap-dns; unpublished: names that one has to ask for.
    """

    home: str = HOME
    proof: Callable[[str], str] = lambda _: ""
    published: dict[str, list[str]] = field(default_factory=dict)
    unpublished: dict[str, list[str]] = field(default_factory=dict)

    def answer(self, request: Request) -> bytes:
        """The whole response."""
        method, path = request.method, request.path
        if path in ("/derp/probe", "/derp/latency-check"):
            if method not in ("GET", "HEAD"):
                return response("405 Method Not Allowed", "bogus probe method\n")
            return response("200 OK", "", "Access-Control-Allow-Origin: *\r\n")
        if path == "/derp":
            return response("426 Upgrade Required", "DERP requires connection upgrade\n", "Upgrade: DERP\r\n")
        if method not in ("GET", "HEAD"):
            return response("405 Method Not Allowed", "only GET and HEAD\n", "Allow: GET, HEAD\r\n")
        body, kind, extra = "", "text/plain; charset=utf-8", ""
        status = "200 OK"
        if path == "/generate_204":
            challenge = request.fields.get("x-tailscale-challenge", "")
            if 0 < len(challenge) <= MAX_CHALLENGE_CHARS and _CHALLENGE_CHARS.issuperset(challenge):
                extra = f"X-Tailscale-Response: response {challenge}\r\n"
            return f"HTTP/1.1 204 No Content\r\n{_NO_CACHE}{extra}\r\n".encode()
        if path == "/bootstrap-dns":
            body, kind, extra = self._names(request.query), "application/json", "Connection: close\r\n"
        elif path.startswith(PROOF_PATH) and (found := self.proof(path.removeprefix(PROOF_PATH))):
            body, kind = found, "application/octet-stream"
        elif path == "/robots.txt":
            body = "User-agent: *\nDisallow: /\n"
        elif path == "/" and self.home.startswith(("http://", "https://")):
            status, extra = "302 Found", f"Location: {self.home}\r\n"
        elif path == "/":
            body, kind = self.home, "text/html; charset=utf-8"
        else:
            status, body = "404 Not Found", "not found\n"
        return response(status, body, extra, kind=kind, is_head=method == "HEAD")

    def _names(self, query: str) -> str:
        asked = parse_qs(query).get("q", [""])[0]
        for names in (self.unpublished, self.published):
            if asked in names:
                return json.dumps({asked: names[asked]})
        return json.dumps(self.published)


def response(
    status: str, body: str, extra: str = "", *, kind: str = "text/plain; charset=utf-8", is_head: bool = False
) -> bytes:
    """An HTTP/1.1 response with its body. extra: further header lines, each ended by CRLF."""
    raw = body.encode()
    content = f"Content-Type: {kind}\r\n" if raw else ""
    head = f"HTTP/1.1 {status}\r\n{extra}{content}Content-Length: {len(raw)}\r\n\r\n"
    return head.encode() + (b"" if is_head else raw)
