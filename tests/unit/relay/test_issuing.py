"""What an authority asks the relay for, and what it does not get."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from gw.acme import proofs
from gw.acme.challenges import Proof
from gw.acme.proofs import ProofFolder
from gw.wire.derp.http import Pages, parse_request

PROOF = Proof("relay.test", "token_1-x", "token_1-x.thumb")


def get(pages: Pages, path: str) -> bytes:
    return pages.answer(parse_request(f"GET {path} HTTP/1.1\r\nHost: x".encode()))


async def test_a_page_is_there_while_it_is_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / "proofs"
    shown = ProofFolder(folder, "http-01")
    pages = Pages(proof=lambda token: proofs.page(folder, token))
    place = f"/.well-known/acme-challenge/{PROOF.token}"
    assert b" 404 " in get(pages, place)
    await shown.show(PROOF)
    assert get(pages, place).endswith(b"\r\n\r\n" + PROOF.authorization.encode())
    assert (folder / PROOF.token).stat().st_mode & 0o777 == 0o600
    await shown.hide(PROOF)
    assert b" 404 " in get(pages, place)


@pytest.mark.parametrize("token", ["", ".", "..", "../certificate.pem", "a/b", "x" * 129, "a%2fb", "relay.test.alpn"])
async def test_nothing_else_is_read(tmp_path: Path, token: str) -> None:
    folder = tmp_path / "proofs"
    await ProofFolder(folder, "tls-alpn-01").show(PROOF)
    (tmp_path / "certificate.pem").write_text("secret")
    assert proofs.page(folder, token) == ""


async def test_handshakes_for_the_name_find_the_certificate_for_a_while(tmp_path: Path) -> None:
    folder = tmp_path / "proofs"
    shown = ProofFolder(folder, "tls-alpn-01")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    choose = proofs.chooser(folder)

    def chosen(name: str | None) -> ssl.SSLContext:
        end = context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True)
        choose(end, name, context)
        return end.context

    assert chosen("relay.test") is context
    await shown.show(PROOF)
    assert chosen("RELAY.test") is not context
    for other in (None, "else.test", "../relay.test", "/etc/passwd", ".", ""):
        assert chosen(other) is context
    await shown.hide(PROOF)
    assert chosen("relay.test") is context
    await shown.show(PROOF)
    ProofFolder(folder, "tls-alpn-01")  # a run that was killed leaves it behind
    assert chosen("relay.test") is context
