"""The web side of the control server: the key, relay admission, health, and the page a person sees when logging in.

Ref: control protocol §1.3, §7.2
"""

from __future__ import annotations

import html
from typing import Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from gw import __version__
from gw.control.tailnet import Tailnet
from gw.errors import WireError
from gw.model.gojson import GoStruct, decoder, encode
from gw.model.keys import MachineKey

MAX_VERIFY_BYTES: Final = 4096
OLDEST_VERSION: Final = 39

PAGE: Final = """<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>body{{font:16px system-ui;max-width:44em;margin:4em auto;padding:0 1em}}
code{{background:#eee;padding:.2em .4em;border-radius:.2em;word-break:break-all}}</style><h1>{title}</h1>{body}"""


class VerifyRequest(GoStruct):
    node_public: str = ""
    source: str = ""


_read_verify = decoder(VerifyRequest)


def web(tailnet: Tailnet, key: MachineKey) -> Starlette:
    """The application for everything that is no upgrade."""

    async def control_key(request: Request) -> Response:
        version = request.query_params.get("v", "")
        if not version.isdigit():
            return PlainTextResponse("missing or bad `v`", 400)
        if int(version) < OLDEST_VERSION:
            return Response()
        return JSONResponse({"legacyPublicKey": str(MachineKey.zero()), "publicKey": str(key)})

    async def verify(request: Request) -> Response:
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_VERIFY_BYTES:
                return PlainTextResponse("too large", 413)
        asked = _read_verify(body).node_public.lower()
        node = tailnet.by_node_key.get(asked)
        return JSONResponse({"Allow": node is not None and node.doc.approved and not tailnet.is_expired(node)})

    async def relays(request: Request) -> Response:
        return Response(encode(tailnet.derp_map()), media_type="application/json")

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "pass"}, media_type="application/health+json")

    async def version(request: Request) -> Response:
        return JSONResponse({"version": __version__})

    async def register_page(request: Request) -> Response:
        auth_id = html.escape(request.path_params["auth_id"])
        body = (
            "<p>This device wants to join. Whoever runs the control server approves it by typing</p>"
            f"<p><code>gwctl auth approve {auth_id} --user NAME</code></p>"
            "<p>The device continues by itself within a second.</p>"
        )
        return HTMLResponse(PAGE.format(title="One more step", body=body))

    async def home(request: Request) -> Response:
        return HTMLResponse(PAGE.format(title="GhostWire", body="<p>A control server of a private mesh.</p>"))

    async def robots(request: Request) -> Response:
        return PlainTextResponse("User-agent: *\nDisallow: /\n")

    async def refused(request: Request, error: Exception) -> Response:
        return PlainTextResponse("bad request", 400)

    return Starlette(
        routes=[
            Route("/key", control_key),
            Route("/verify", verify, methods=["POST"]),
            Route("/derpmap", relays),
            Route("/health", health),
            Route("/version", version),
            Route("/register/{auth_id:str}", register_page),
            Route("/robots.txt", robots),
            Route("/", home),
        ],
        exception_handlers={WireError: refused},
    )
