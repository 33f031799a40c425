"""The web side of the control server: the key, relay admission, health, the API, and pages for people.

Ref: control protocol §1.3, §7.2
"""

from __future__ import annotations

from functools import cache
from typing import Final

from starlette.applications import Starlette
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from gw import __version__
from gw.control import pages
from gw.control.admin import TABLE
from gw.control.api.http import Api, Observe
from gw.control.api.openapi import page as api_page
from gw.control.api.openapi import text as api_text
from gw.control.oidc.routes import BrowserLogins
from gw.control.tailnet import Tailnet
from gw.errors import WireError
from gw.model.gojson import GoStruct, decoder, encode
from gw.model.keys import MachineKey

MAX_VERIFY_BYTES: Final = 4096
OLDEST_VERSION: Final = 39


class _Anything(Convertor[str]):
    """The rest of a path, line feeds in it too: whatever it is, the API answers in its own shapes."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("anything", _Anything())


class VerifyRequest(GoStruct):
    node_public: str = ""
    source: str = ""


_read_verify = decoder(VerifyRequest)


@cache
def api_document() -> bytes:
    """The OpenAPI document: also kept as `docs/openapi.json`."""
    return api_text(TABLE.operations)


def web(
    tailnet: Tailnet, key: MachineKey, observe: Observe = lambda *_: None, logins: BrowserLogins | None = None
) -> Starlette:
    """The application for everything that is no upgrade. observe: told of every call of the API."""

    async def control_key(request: Request) -> Response:
        version = request.query_params.get("v", "")
        if not version.isascii() or not version.isdigit() or len(version) > 9:
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
        return Response(encode(tailnet.commons.derp_map()), media_type="application/json")

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "pass"}, media_type="application/health+json")

    async def version(request: Request) -> Response:
        return JSONResponse({"version": __version__})

    async def home(request: Request) -> Response:
        return HTMLResponse(pages.home(tailnet.domain))

    async def waiting(request: Request) -> Response:
        return HTMLResponse(pages.waiting())

    async def apple(request: Request) -> Response:
        return HTMLResponse(pages.apple(tailnet.config.server_url))

    async def apple_profile(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in pages.PROFILES:
            return PlainTextResponse("not found", 404)
        headers = {"Content-Disposition": f'attachment; filename="ghostwire-{name}.mobileconfig"'}
        return Response(pages.apple_profile(tailnet.config.server_url, name), 200, headers, pages.PROFILE_TYPE)

    async def windows(request: Request) -> Response:
        return HTMLResponse(pages.windows(tailnet.config.server_url))

    async def openapi(request: Request) -> Response:
        return Response(api_document(), media_type="application/json")

    async def api_docs(request: Request) -> Response:
        return HTMLResponse(api_page(TABLE.operations))

    async def elsewhere(request: Request) -> Response:
        return RedirectResponse("/openapi.json", 308)

    async def nothing(request: Request) -> Response:
        return Response(status_code=204)

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
            Route("/derpmap/default", relays),
            *(logins or BrowserLogins(tailnet)).routes(),
            Route("/admin", waiting),
            Route("/apple", apple),
            Route("/apple/{name:str}", apple_profile),
            Route("/windows", windows),
            Route("/openapi.json", openapi),
            Route("/api/v1/openapi.json", openapi),
            Route("/api/v1/docs", api_docs),
            Route("/swagger", api_docs),
            Route("/swagger/v1/openapiv2.json", elsewhere),
            Route("/favicon.ico", nothing),
            Route("/api/{rest:anything}", Api(tailnet, TABLE, observe)),
            Route("/robots.txt", robots),
            Route("/", home),
        ],
        exception_handlers={WireError: refused},
    )
