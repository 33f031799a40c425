"""The administration over HTTPS: keys, limits, and errors in the shapes that clients of each version know.

    /api/v1/…   Headscale's: `Authorization: Bearer KEY`; errors {"code": gRPC's number, "message", "details"}
    /api/v2/…   Tailscale's: Bearer, or Basic with the key as user name; errors {"message", "status"}

Every request ends: bodies are bounded in size and time, and what goes wrong has a status below 500 unless it is ours.
A wrong key costs its sender: after ten of them in a row the answer is 429 for a while. A right one always opens.

Ref: control protocol §7.4, §7.5
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final, final

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from gw.control.api.calls import Answer, Listing, Operation, Reply, Stream, Table, WrongMethod
from gw.control.api.limits import Offenders
from gw.control.apikeys import LOCAL, Caller, identify
from gw.control.events import acting_as
from gw.control.policyfile import Changed, TestsFailed
from gw.control.tailnet import Tailnet
from gw.errors import AuthRequired, Conflict, GwError, NotFound, PermissionNeeded, TimedOut, UsageError

logger = logging.getLogger(__name__)

MAX_BODY_BYTES: Final = 4 << 20
MAX_FORM_BYTES: Final = 16 << 10  # of somebody without a key
BODY_TIMEOUT_S: Final = 30.0
ERROR_TYPE: Final = "ghostwire.dev/error"
Observe = Callable[[str, str, int, float], None]  # method, path template, status, seconds

# kind of error → HTTP status, gRPC code; the first that fits
_STATUS: Final[tuple[tuple[type[GwError], int, int], ...]] = (
    (WrongMethod, 405, 12),
    (Changed, 412, 9),
    (UsageError, 400, 3),
    (NotFound, 404, 5),
    (PermissionNeeded, 403, 7),
    (Conflict, 409, 6),
    (AuthRequired, 400, 9),  # a login that cannot be let in; a wrong key is `_Refused`
    (TimedOut, 504, 4),
)


class _Refused(GwError):
    """The request ends before anybody looks at what it asks."""

    def __init__(self, status: int, grpc: int, message: str, *, retry_after_s: int = 0) -> None:
        super().__init__(message)
        self.status, self.grpc, self.retry_after_s = status, grpc, retry_after_s


class ErrorShape(msgspec.Struct):
    """An error of version 1, for clients of Headscale up to 0.29 and, in its last three fields, from 0.30 on.

    code: gRPC's number; details: our own id of the kind, and what to try. Ref: RFC 9457
    """

    code: int
    message: str
    details: list[dict[str, str]]
    title: str
    status: int
    detail: str


class ErrorShapeV2(msgspec.Struct, omit_defaults=True):
    """An error of version 2. data: what tests said."""

    message: str
    status: int
    data: list[dict[str, Any]] = []


@final
class Api:
    """The ASGI application below `/api/`. observe: told of every request."""

    def __init__(self, tailnet: Tailnet, table: Table, observe: Observe = lambda *_: None) -> None:
        self._tailnet = tailnet
        self._table = table
        self._observe = observe
        self._offenders = Offenders(time.monotonic)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        started = time.perf_counter()
        template, response = await self._respond(request)
        self._observe(request.method, template, response.status_code, time.perf_counter() - started)
        await response(scope, receive, send)

    async def _respond(self, request: Request) -> tuple[str, Response]:
        path = request.scope.get("raw_path", b"").decode("latin-1") or request.url.path
        is_v2 = path.startswith("/api/v2")
        template = "unknown"
        try:
            operation, _ = self._table.find(request.method, path)
            template = operation.path
            caller = await self._caller(request, operation)
            body = await self._body(request, MAX_BODY_BYTES if operation.scope else MAX_FORM_BYTES)
            address = request.client.host if request.client else "?"
            with acting_as(f"{caller.name} from {address}" if caller is not LOCAL else f"anybody from {address}"):
                target = f"{path}?{request.scope['query_string'].decode('latin-1')}"
                headers = dict(request.headers.items())
                answer = await self._table.run(self._tailnet, request.method, target, body, caller, headers)
            if isinstance(answer, Reply) and answer.status == 401:
                self._note_wrong(address)
            return template, _response(answer)
        except GwError as error:
            return template, _error(error, is_v2)
        except ClientDisconnect:
            return template, Response(status_code=499)
        except Exception:
            logger.exception("%s %s failed", request.method, template)
            return template, _error(GwError("internal error"), is_v2)

    async def _body(self, request: Request, limit: int) -> bytes:
        parts, size = [], 0
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                async for chunk in request.stream():
                    parts.append(chunk)
                    size += len(chunk)
                    if size > limit:
                        raise _Refused(413, 3, f"the body is larger than {limit} bytes")
        except TimeoutError:
            raise _Refused(408, 4, "the body did not come in time") from None
        return b"".join(parts)

    async def _caller(self, request: Request, operation: Operation) -> Caller:
        """Whose key it is. Raises _Refused."""
        if not operation.scope:
            return LOCAL
        address = request.client.host if request.client else ""
        try:
            return await identify(self._tailnet, key_of(request.headers.get("authorization", "")), self._tailnet.seal)
        except AuthRequired as error:
            self._note_wrong(address)
            raise _Refused(401, 16, error.message) from None

    def _note_wrong(self, address: str) -> None:
        """Raises _Refused where it was one too many."""
        wait_s = self._offenders.note(address)
        if wait_s:
            raise _Refused(429, 8, "too many wrong keys", retry_after_s=wait_s)


def key_of(authorization: str) -> str:
    """The key in an Authorization header: a bearer's, or the user name of Basic. "" where there is none."""
    kind, _, value = authorization.strip().partition(" ")
    if kind.lower() == "bearer":
        return value.strip()
    if kind.lower() != "basic":
        return ""
    try:
        return base64.b64decode(value.strip(), validate=True).decode("latin-1").partition(":")[0]
    except (binascii.Error, ValueError):
        return ""


def _response(answer: Answer) -> Response:
    if isinstance(answer, Stream):
        return StreamingResponse(answer.chunks, media_type=answer.media_type, headers={"Cache-Control": "no-store"})
    if isinstance(answer, Listing):
        return StreamingResponse(answer.chunks(), media_type="application/json")
    if isinstance(answer, Reply):
        return Response(answer.body, answer.status, dict(answer.headers), answer.media_type)
    return Response(msgspec.json.encode(answer), media_type="application/json")


def _error(error: GwError, is_v2: bool) -> Response:
    headers: dict[str, str] = {}
    if isinstance(error, _Refused):
        status, code = error.status, error.grpc
        if status == 401:
            headers["WWW-Authenticate"] = 'Basic realm="GhostWire"' if is_v2 else 'Bearer realm="GhostWire"'
        if error.retry_after_s:
            headers["Retry-After"] = str(error.retry_after_s)
        if status in (408, 413):
            headers["Connection"] = "close"
    else:
        status, code = next(((s, c) for kind, s, c in _STATUS if isinstance(error, kind)), (500, 13))
    if isinstance(error, WrongMethod):
        headers["Allow"] = ", ".join(error.allowed)
    if is_v2:
        data: list[dict[str, Any]] = []
        if isinstance(error, TestsFailed):
            data = [{"user": "", "errors": error.failures}]
        shape: msgspec.Struct = ErrorShapeV2(error.message, status, data)
    else:
        detail = {"@type": ERROR_TYPE, "code": error.code, **({"hint": error.hint} if error.hint else {})}
        shape = ErrorShape(code, error.message, [detail], HTTPStatus(status).phrase, status, error.message)
    return Response(msgspec.json.encode(shape), status, headers, "application/json")
