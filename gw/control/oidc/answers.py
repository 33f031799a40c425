"""Answers of a login: pages without scripts, every value escaped, nothing that a frame could hide or a cache keep."""

from __future__ import annotations

import html
from typing import Final

from starlette.responses import HTMLResponse

from gw.control.pages import PAGE

HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self';"
    " base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def page(title: str, body: str, status: int = 200) -> HTMLResponse:
    """title: plain text. body: HTML, its values escaped by `shown`."""
    return HTMLResponse(PAGE.format(title=html.escape(title), body=body), status, HEADERS)


def shown(text: str, limit: int = 200) -> str:
    """A value as text of a page."""
    printable = "".join(char if char.isprintable() else "�" for char in text)
    return html.escape(printable if len(printable) <= limit else f"{printable[:limit]}…")


def failure(title: str, message: str, hint: str | None = None, status: int = 400) -> HTMLResponse:
    """What went wrong and what to do, both plain text."""
    advice = f"<p>{shown(hint[:1].upper() + hint[1:], 500)}</p>" if hint else ""
    return page(title, f"<p>{shown(message[:1].upper() + message[1:], 500)}.</p>{advice}", status)
