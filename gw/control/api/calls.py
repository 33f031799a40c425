"""One administrative call, and the table that finds who answers it.

operation  method and path template, what it needs and returns, and the function that answers: also the source of
           the OpenAPI document
call       one request for it, whoever brought it: unix socket, HTTPS or `gwctl` on the directory
answer     a struct (JSON), a Listing (JSON, made while it is sent), a Stream without an end, or a Reply (all else)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, TypeAlias, TypeVar, final
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from gw.control.apikeys import LOCAL, Caller
from gw.control.scopes import READ, require_scope
from gw.control.tailnet import Tailnet
from gw.errors import NotFound, UsageError

T = TypeVar("T")
CHUNK: Final = 250  # objects of a listing that are made in one go
MAX_PAGE: Final = 100_000
ANY_KEY: Final = "any"  # a scope that every key holds: the handler looks closer


@final
@dataclass(frozen=True, slots=True)
class Listing:
    """`{"<name>": […]}`, made piece by piece, so that 50,000 objects hold up nobody else."""

    name: str
    items: Sequence[Any]
    shape: Callable[[Any], Any]

    def whole(self) -> dict[str, Any]:
        return {self.name: [self.shape(item) for item in self.items]}

    async def chunks(self) -> AsyncIterator[bytes]:
        """The JSON text. Between two pieces others have their turn."""
        encode = msgspec.json.encode
        parts = [b'{"' + self.name.encode() + b'":[']
        for start in range(0, len(self.items), CHUNK):
            if start:
                parts.append(b",")
                await asyncio.sleep(0)
            parts.append(b",".join([encode(self.shape(item)) for item in self.items[start : start + CHUNK]]))
            yield b"".join(parts)
            parts = []
        yield b"".join([*parts, b"]}"])


@final
@dataclass(frozen=True, slots=True)
class Reply:
    """An answer that is not plain JSON with status 200."""

    body: bytes = b""
    status: int = 200
    media_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


@final
@dataclass(frozen=True, slots=True)
class Stream:
    """An answer without an end, until the caller leaves."""

    chunks: AsyncGenerator[bytes, None]
    media_type: str


Answer: TypeAlias = Stream | Listing | Reply | msgspec.Struct | dict[str, Any]


@final
@dataclass(slots=True)
class Call:
    """One request. path: the values of the template's holes, unquoted; headers: names in lower case."""

    tailnet: Tailnet
    path: list[str]
    query: dict[str, str]
    body: bytes = b""
    caller: Caller = LOCAL
    headers: Mapping[str, str] = field(default_factory=dict)

    def read(self, kind: type[T]) -> T:
        """The body as this struct; an empty one is `{}`. Raises UsageError."""
        try:
            return msgspec.json.decode(self.body or b"{}", type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise UsageError(f"request body: {error}") from None

    def number(self, name: str, default: int) -> int:
        """A number of the query, from 0. Raises UsageError."""
        text = self.query.get(name, "")
        if not text:
            return default
        if not text.isascii() or not text.isdigit() or len(text) > 18:
            raise UsageError(f"`{name}` is not a number: `{text[:40]}`")
        return int(text)

    def page(self, items: Iterable[T], number: Callable[[T], int]) -> list[T]:
        """The part of a list, sorted by number, that `?after=ID&limit=N` ask for; all without them."""
        after, limit = self.number("after", 0), self.number("limit", 0) or MAX_PAGE
        found = [item for item in items if number(item) > after] if after else list(items)
        found.sort(key=number)
        return found[:limit]


Handler: TypeAlias = Callable[[Call], Awaitable[Answer]]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """path: with holes, `/api/v1/node/{nodeId}`. answer: struct of the response; listing: `name` of a list of them.

    scope: what a key must hold; "" = a key is not asked for. query: name → what it means.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    scope: str
    body: Any = None
    answer: Any = None
    listing: str = ""
    query: Mapping[str, str] = field(default_factory=dict)
    media_type: str = "application/json"
    body_type: str = "application/json"


class WrongMethod(NotFound):
    """The path exists, with other methods."""

    def __init__(self, method: str, path: str, allowed: Iterable[str]) -> None:
        self.allowed = sorted(allowed)
        super().__init__(f"no such call: `{method[:20]} {path[:200]}`, which takes {' or '.join(self.allowed)}")


@final
class Table:
    """Operations by path: one step a segment, a literal one before a hole."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        self.operations: Final = list(operations)
        self._root: dict[str, Any] = {}
        for operation in self.operations:
            place = self._root
            for part in operation.path.strip("/").split("/"):
                place = place.setdefault("{}" if part.startswith("{") else part, {})
            place.setdefault("", {})[operation.method] = operation

    def find(self, method: str, path: str) -> tuple[Operation, list[str]]:
        """The operation and the values of its holes. Raises NotFound, WrongMethod."""
        place: dict[str, Any] | None = self._root
        values: list[str] = []
        for part in path.strip("/").split("/"):
            if place is None:
                break
            if part in place and part:
                place = place[part]
            elif part and "{}" in place:
                values.append(unquote(part))
                place = place["{}"]
            else:
                place = None
        methods: dict[str, Operation] = place.get("", {}) if place else {}
        if not methods:
            raise NotFound(f"no such call: `{method[:20]} {path[:200]}`")
        if method not in methods:
            raise WrongMethod(method, path, methods)
        return methods[method], values

    async def run(
        self,
        tailnet: Tailnet,
        method: str,
        target: str,
        body: bytes = b"",
        caller: Caller = LOCAL,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> Answer:
        """Answer one request. target: path and query. Raises GwError, PermissionNeeded among them."""
        parts = urlsplit(target)
        operation, values = self.find(method, parts.path)
        if operation.scope not in ("", ANY_KEY):
            require_scope(caller.scopes, operation.scope)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        return await operation.handler(Call(tailnet, values, query, body, caller, headers))


def reading(scope: str) -> str:
    """The form of a scope that only reads."""
    return scope + READ
