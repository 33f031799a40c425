"""The plain listener on port 80: everything goes to https, except what an authority looks for.

`/ts2021` is served here as on the other listener (Noise authenticates it, and stock clients try port 80 first). Where
to send people is the server's own URL, never what a request calls it.

Ref: control protocol §2.1; RFC 8555 §8.3
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


def plain_web(server_url: str, proofs: Mapping[str, str]) -> Starlette:
    """proofs: by token, what an authority wants to read."""
    origin = "{0.scheme}://{0.netloc}".format(urlsplit(server_url))

    async def proof(request: Request) -> Response:
        text = proofs.get(request.path_params["token"])
        if text is None:
            return PlainTextResponse("not found", 404)
        return Response(text, media_type="application/octet-stream")

    async def elsewhere(request: Request) -> Response:
        query = request.url.query
        path = request.url.path.lstrip("/")
        return RedirectResponse(f"{origin}/{path}{'?' if query else ''}{query}", 308)

    return Starlette(
        routes=[
            Route("/.well-known/acme-challenge/{token:str}", proof),
            Route("/{path:path}", elsewhere, methods=METHODS),
        ]
    )
