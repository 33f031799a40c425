"""Proving to an authority that a name is ours: three ways, each shows something and takes it away again.

    http-01       a page below /.well-known/acme-challenge/ on port 80
    tls-alpn-01   a certificate of its own for hellos that ask for `acme-tls/1`
    dns-01        a TXT record, by whoever keeps the names (`Publisher`), or by a program

All are called from the loop; the authority is spoken to elsewhere. Ref: RFC 8555 §8, RFC 8737
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Literal, Protocol, final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from gw.errors import GwError, TimedOut
from gw.net.certificates import server_context

Kind = Literal["http-01", "tls-alpn-01", "dns-01"]
ACME_IDENTIFIER: Final = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31")
ALPN: Final = "acme-tls/1"
HOOK_S: Final = 300.0
LIFETIME: Final = timedelta(days=7)


@final
@dataclass(frozen=True, slots=True)
class Proof:
    """What the authority wants to see. name: without `*.`; authorization: the token and our key's thumbprint."""

    name: str
    token: str
    authorization: str

    @property
    def record(self) -> tuple[str, str]:
        """The TXT record: its name without trailing dot, and its value."""
        import base64

        digest = hashlib.sha256(self.authorization.encode()).digest()
        return f"_acme-challenge.{self.name}", base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


class Publisher(Protocol):
    """A DNS backend that can show a TXT record to the internet."""

    async def publish_txt(self, name: str, value: str) -> None:
        """Return when authoritative servers answer with it. name: without trailing dot. Raises GwError."""


class Shower(Protocol):
    """Gives handshakes for a name another certificate, from `show` to `hide`."""

    def show(self, name: str, context: ssl.SSLContext) -> None: ...

    def hide(self, name: str) -> None: ...


class Challenger(Protocol):
    """Shows proofs."""

    kind: Kind

    async def show(self, proof: Proof) -> None:
        """Return when the authority can see it. Raises GwError."""

    async def hide(self, proof: Proof) -> None:
        """Take it away; what cannot be taken away is no error."""


@final
class HttpChallenger:
    """Pages by token; the plain listener serves them."""

    kind: Kind = "http-01"

    def __init__(self) -> None:
        self.pages: dict[str, str] = {}

    async def show(self, proof: Proof) -> None:
        self.pages[proof.token] = proof.authorization

    async def hide(self, proof: Proof) -> None:
        self.pages.pop(proof.token, None)


@final
class AlpnChallenger:
    """A certificate that the holder gives to the authority's hello alone."""

    kind: Kind = "tls-alpn-01"

    def __init__(self, holder: Shower) -> None:
        self._holder = holder

    async def show(self, proof: Proof) -> None:
        with tempfile.TemporaryDirectory(prefix="gw-acme-") as folder:  # the ssl module reads files alone; 0700
            path = Path(folder) / "challenge.pem"
            path.write_bytes(alpn_pem(proof))
            self._holder.show(proof.name, alpn_context(path))

    async def hide(self, proof: Proof) -> None:
        self._holder.hide(proof.name)


@final
class DnsChallenger:
    """Records by a backend of ours."""

    kind: Kind = "dns-01"

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher

    async def show(self, proof: Proof) -> None:
        await self._publisher.publish_txt(*proof.record)

    async def hide(self, proof: Proof) -> None:
        withdraw = getattr(self._publisher, "withdraw_txt", None)
        if withdraw is not None:
            await withdraw(*proof.record)


@final
class HookPublisher:
    """A program that keeps the zone: `PROGRAM present|cleanup NAME VALUE`; it returns once the record is served."""

    def __init__(self, program: str, timeout_s: float = HOOK_S) -> None:
        self._program = program
        self._timeout_s = timeout_s

    async def publish_txt(self, name: str, value: str) -> None:
        await self._run("present", name, value)

    async def withdraw_txt(self, name: str, value: str) -> None:
        await self._run("cleanup", name, value)

    async def _run(self, *words: str) -> None:
        try:
            process = await asyncio.create_subprocess_exec(
                self._program, *words, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
        except OSError as error:
            raise GwError(f"cannot run the DNS hook `{self._program}`: {error.strerror}") from error
        try:
            async with asyncio.timeout(self._timeout_s):
                _, said = await process.communicate()
        except TimeoutError:
            raise TimedOut(f"the DNS hook `{self._program}` did not end in {self._timeout_s:g} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            last = said.decode(errors="replace").strip().splitlines()[-1:] or ["without a word"]
            raise GwError(f"the DNS hook `{self._program}` ended with {process.returncode}: {last[0][:200]}")


def alpn_pem(proof: Proof) -> bytes:
    """Key and certificate for the authority's own handshake. Ref: RFC 8737 §3"""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "acme challenge")])
    digest = hashlib.sha256(proof.authorization.encode()).digest()
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(proof.name)]), critical=False)
        .add_extension(x509.UnrecognizedExtension(ACME_IDENTIFIER, b"\x04\x20" + digest), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return private + certificate.public_bytes(Encoding.PEM)


def alpn_context(path: Path) -> ssl.SSLContext:
    """The settings for that handshake. path: of the key and certificate."""
    context = server_context()
    context.set_alpn_protocols([ALPN])
    context.load_cert_chain(path)
    return context
