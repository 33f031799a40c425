"""Proofs as files: one process asks the authority, every process of the service shows what it wants to see.

    FOLDER/TOKEN         the page of http-01
    FOLDER/NAME.alpn     key and certificate of tls-alpn-01 (0600)

A service looks here only when it is asked for a page of that kind, or at a handshake while tls-alpn-01 is in use.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal, final

from gw.acme.challenges import Kind, Proof, alpn_context, alpn_pem
from gw.state.files import make_folder, write_secret

MAX_PAGE_BYTES: Final = 1024
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{1,128}", re.ASCII)  # Ref: RFC 8555 §8.1: base64url
_NAME: Final = re.compile(r"(?!\.)[a-z0-9._-]{1,253}", re.ASCII)
_ALPN: Final = ".alpn"


@final
class ProofFolder:
    """A challenger. What a run before left behind is taken away."""

    def __init__(self, folder: Path, kind: Literal["http-01", "tls-alpn-01"]) -> None:
        self.kind: Kind = kind
        self._folder = folder
        make_folder(folder, 0o700)
        for path in folder.iterdir():
            path.unlink()

    async def show(self, proof: Proof) -> None:
        if self.kind == "http-01":
            write_secret(self._page(proof), proof.authorization.encode())
        else:
            write_secret(self._certificate(proof), alpn_pem(proof))

    async def hide(self, proof: Proof) -> None:
        for path in (self._page(proof), self._certificate(proof)):
            path.unlink(missing_ok=True)

    def _page(self, proof: Proof) -> Path:
        return self._folder / proof.token

    def _certificate(self, proof: Proof) -> Path:
        return self._folder / f"{proof.name.lower()}{_ALPN}"


def page(folder: Path, token: str) -> str:
    """What the authority wants to read for a token; empty where nothing is asked."""
    if not _TOKEN.fullmatch(token):
        return ""
    try:
        with (folder / token).open("rb") as file:
            return file.read(MAX_PAGE_BYTES).decode()
    except (OSError, UnicodeDecodeError):
        return ""


def chooser(folder: Path) -> Callable[[ssl.SSLObject | ssl.SSLSocket, str | None, ssl.SSLContext], None]:
    """For `SSLContext.sni_callback`: the authority's handshakes get the certificate that it looks for.

    Whoever else connects by this name in the second of the check is refused by its own checks, and tries again.
    """

    def choose(tls: ssl.SSLObject | ssl.SSLSocket, name: str | None, _: ssl.SSLContext) -> None:
        if name is None or not _NAME.fullmatch(name.lower()):
            return
        path = folder / f"{name.lower()}{_ALPN}"
        if path.exists():
            try:
                tls.context = alpn_context(path)
            except (OSError, ssl.SSLError):
                return  # it was taken away just now

    return choose
