"""The OpenAPI 3.1 document, made of the table of operations and their structs."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from gw import __version__
from gw.control.api.calls import Operation
from gw.control.api.http import ErrorShape, ErrorShapeV2
from gw.control.pages import PAGE
from gw.control.scopes import SCOPES

_REF: Final = "#/components/schemas/{name}"
_HOLE: Final = re.compile(r"{(\w+)}")
TITLE: Final = "GhostWire control server"
DESCRIPTION: Final = (
    "Version 1 is Headscale's REST API, version 2 a part of Tailscale's. Keys are made by `gwctl apikeys create`; "
    "each operation names the scope that a key needs. Fields that are unknown are ignored."
)

STREAM: Final = "text/event-stream"  # has no end, so no schema says what it is: docs/events.md does
_TEXT: Final = {"type": "string"}


def document(operations: Iterable[Operation]) -> dict[str, Any]:
    """The whole document."""
    listed = list(operations)
    kinds = [kind for each in listed for kind in (each.body, each.answer) if kind is not None]
    unique = list({kind.__name__: kind for kind in [*kinds, ErrorShape, ErrorShapeV2]}.values())
    schemas, components = msgspec.json.schema_components(unique, ref_template=_REF)
    refs = {kind.__name__: schema for kind, schema in zip(unique, schemas, strict=True)}
    paths: dict[str, dict[str, Any]] = {}
    for each in listed:
        paths.setdefault(each.path, {})[each.method.lower()] = _operation(each, refs)
    return {
        "openapi": "3.1.0",
        "info": {"title": TITLE, "version": __version__, "description": DESCRIPTION},
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": {name: _plain(schema) for name, schema in sorted(components.items())},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "An API key or OAuth token."},
                "basic": {"type": "http", "scheme": "basic", "description": "The key as user name, no password."},
                "oauth": {
                    "type": "oauth2",
                    "flows": {
                        "clientCredentials": {
                            "tokenUrl": "/api/v2/oauth/token",
                            "scopes": {scope: scope for scope in SCOPES},
                        }
                    },
                },
            },
        },
    }


def text(operations: Iterable[Operation]) -> bytes:
    """The document as it is served and kept in `docs/`."""
    return msgspec.json.format(msgspec.json.encode(document(operations)), indent=2) + b"\n"


def page(operations: Iterable[Operation]) -> str:
    """The operations as a page: what there is, what a key needs, and how to try it."""
    rows = "".join(
        f"<tr><td><code>{each.method} {html.escape(each.path)}</code></td><td>{html.escape(each.summary)}</td>"
        f"<td><code>{html.escape(each.scope or '-')}</code></td></tr>"
        for each in sorted(operations, key=lambda each: (each.path, each.method))
    )
    body = (
        f"<p>{html.escape(DESCRIPTION).replace('`', '')}</p>"
        '<pre>curl -H "Authorization: Bearer $(cat api.key)" https://SERVER/api/v1/node</pre>'
        '<p>For programs: <a href="/openapi.json">openapi.json</a></p>'
        f"<table><tr><th>Call<th>Does<th>Scope</tr>{rows}</table>"
    )
    return PAGE.format(title=TITLE, body=body)


def _operation(each: Operation, refs: dict[str, Any]) -> dict[str, Any]:
    is_v2 = each.path.startswith("/api/v2")
    words = re.sub(r"[^A-Za-z0-9]+", " ", _HOLE.sub("", each.path.removeprefix("/api/"))).split()
    holes = _HOLE.findall(each.path)
    found: dict[str, Any] = {
        "operationId": "_".join([each.method.lower(), *words, *(f"by_{hole}" for hole in holes[-1:])]),
        "summary": each.summary,
        "tags": [" ".join(words[:2]) if not is_v2 else "v2"],
        "parameters": [
            *({"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
              for name in holes),
            *({"name": name, "in": "query", "required": False, "schema": {"type": "string"}, "description": meaning}
              for name, meaning in each.query.items()),
        ],
    }  # fmt: skip
    if each.body is not None:
        found["requestBody"] = {"required": False, "content": {each.body_type: {"schema": refs[each.body.__name__]}}}
    schema: dict[str, Any] = {"type": "object"}
    if each.answer is not None:
        schema = refs[each.answer.__name__]
    if each.media_type == STREAM:
        schema = _TEXT
    if each.listing:
        schema = {
            "type": "object", "required": [each.listing],
            "properties": {each.listing: {"type": "array", "items": schema}},
        }  # fmt: skip
    error = {"application/json": {"schema": refs[(ErrorShapeV2 if is_v2 else ErrorShape).__name__]}}
    found["responses"] = {
        "200": {"description": "Done, and durable.", "content": {each.media_type: {"schema": schema}}},
        "4XX": {"description": "Refused; the message says why.", "content": error},
        "5XX": {"description": "The server's own failure.", "content": error},
    }
    if each.scope:
        scopes = [each.scope] if each.scope in SCOPES else []
        found["security"] = [{"bearer": []}, {"basic": []}, {"oauth": scopes}]
        found["description"] = f"Scope: `{each.scope}`." if scopes else "Scope: that of the kind of key."
    return found


def _plain(schema: Any) -> Any:
    """A component's schema, its name in the code left out."""
    if isinstance(schema, dict):
        return {key: value for key, value in schema.items() if key != "title"}
    return schema
