"""When a certificate is renewed, and what happens when it cannot be."""

from __future__ import annotations

import ssl
import stat
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from cryptography import x509

from gw.acme.challenges import HookPublisher, HttpChallenger, Proof, alpn_context, alpn_pem
from gw.acme.renewal import FIRST_RETRY_S, MAX_RETRY_S, Renewal, renew_at
from gw.control.tls.holder import CertificateHolder
from gw.errors import GwError, TimedOut

START = datetime(2031, 1, 1, tzinfo=UTC)


class FakeAuthority:
    """Issues certificates for 90 days, or fails. now: moved by the test."""

    def __init__(self) -> None:
        self.now = START
        self.names = ["mesh.test"]
        self.is_down = False
        self.issued = 0

    async def issue(self, challenger: object) -> bytes:
        if self.is_down:
            raise GwError("away")
        self.issued += 1
        made = trustme.CA().issue_cert(
            *self.names, not_before=self.now, not_after=self.now + timedelta(days=90)
        )  # fmt: skip
        return made.private_key_pem.bytes() + made.cert_chain_pems[0].bytes()


@pytest.fixture
def authority() -> FakeAuthority:
    return FakeAuthority()


@pytest.fixture
def renewal(tmp_path: Path, authority: FakeAuthority) -> Renewal:
    file = str(tmp_path / "acme/certificate.pem")
    holder = CertificateHolder(file, file, "mesh.test", lambda: authority.now)
    return Renewal(holder, authority, HttpChallenger(), ["mesh.test"], lambda: 0.5)


async def test_it_is_asked_for_once_and_renewed_in_time(
    renewal: Renewal, authority: FakeAuthority, tmp_path: Path
) -> None:
    wait_s = await renewal.step()
    assert authority.issued == 1
    assert timedelta(days=51) <= timedelta(seconds=wait_s) <= timedelta(days=60)
    assert stat.S_IMODE((tmp_path / "acme/certificate.pem").stat().st_mode) == 0o600
    assert await renewal.step() == wait_s
    authority.now += timedelta(seconds=wait_s)
    await renewal.step()
    assert authority.issued == 2


async def test_failures_are_tried_again_ever_more_rarely(renewal: Renewal, authority: FakeAuthority) -> None:
    await renewal.step()
    kept = renewal._holder.current
    authority.now += timedelta(days=61)
    authority.is_down = True
    waits = [await renewal.step() for _ in range(12)]
    assert waits[:3] == [FIRST_RETRY_S * 1.5, FIRST_RETRY_S * 3, FIRST_RETRY_S * 6]
    assert waits[-1] == MAX_RETRY_S * 1.5
    assert renewal._holder.current is kept, "what there is stays"
    authority.is_down = False
    await renewal.step()
    assert renewal._holder.current is not kept


async def test_other_names_need_another_certificate(renewal: Renewal, authority: FakeAuthority) -> None:
    await renewal.step()
    renewal._domains = ["mesh.test", "more.test"]
    assert renewal.due_in_s() == 0


def test_renewals_of_many_servers_are_spread() -> None:
    made = trustme.CA().issue_cert("a", not_before=START, not_after=START + timedelta(days=90))
    leaf = x509.load_pem_x509_certificate(made.cert_chain_pems[0].bytes())
    life = leaf.not_valid_after_utc - leaf.not_valid_before_utc
    assert renew_at(leaf, 0.0) - renew_at(leaf, 1.0) == pytest.approx(life / 10, abs=timedelta(seconds=2))


def test_a_name_under_proof_has_another_certificate_for_a_while(tmp_path: Path) -> None:
    holder = CertificateHolder("", "", "mesh.test", lambda: START)
    challenge = tmp_path / "challenge.pem"
    challenge.write_bytes(alpn_pem(Proof("mesh.test", "t", "t.k")))
    other = alpn_context(challenge)
    holder.show("mesh.test", other)
    assert handshake_context(holder, "MESH.test") is other
    assert handshake_context(holder, "else.test") is holder.context
    holder.hide("mesh.test")
    assert handshake_context(holder, "mesh.test") is holder.context


def handshake_context(holder: CertificateHolder, name: str) -> ssl.SSLContext:
    """The settings that answer a hello for this name."""
    outer = ssl.create_default_context()
    hello, answer = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = outer.wrap_bio(ssl.MemoryBIO(), hello, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    server = holder.context.wrap_bio(hello, answer, server_side=True)
    with pytest.raises(ssl.SSLError):  # no certificate, or more to come
        server.do_handshake()
    return server.context


def test_the_record_of_a_proof() -> None:
    """RFC 8555 §8.4: base64url of the SHA-256, without padding."""
    assert Proof("a.test", "x", "abc").record == (
        "_acme-challenge.a.test", "ungWv48Bz-pBQUDeXa4iI7ADYaOWF3qctBD_YfIAFa0",
    )  # fmt: skip


async def test_a_hook_that_fails_says_its_last_words(tmp_path: Path) -> None:
    hook = tmp_path / "hook"
    hook.write_text(f"#!{sys.executable}\nimport sys; sys.exit('no such zone')\n")
    hook.chmod(0o755)
    with pytest.raises(GwError, match="no such zone"):
        await HookPublisher(str(hook)).publish_txt("n", "v")
    with pytest.raises(GwError, match="cannot run"):
        await HookPublisher(str(tmp_path / "none")).publish_txt("n", "v")
    hook.write_text("#!/bin/sh\nsleep 60\n")
    with pytest.raises(TimedOut):
        await HookPublisher(str(hook), 0.2).publish_txt("n", "v")
