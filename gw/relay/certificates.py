"""The relay's TLS: a certificate of its own making that clients pin, and the extra one that tells its DERP key.

The extra certificate's name is `derpkey` and 64 hex digits: longer than X.509 allows, which is why it is built with the
library's check off. It lets clients learn the key before the first byte (fast start) and carries no trust.

Ref: tailscale derp/derpserver (meta certificate), tailcfg DERPNode.CertName `sha256-raw:`
"""

from __future__ import annotations

import hashlib
import ipaddress
import ssl
import warnings
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from gw.errors import ConfigError
from gw.state.files import read_secret, write_secret

LIFETIME: Final = timedelta(days=397)
RENEW_BEFORE: Final = timedelta(days=30)
META_LIFETIME: Final = timedelta(days=30)
PROTOCOL_VERSION: Final = 2


def self_signed(path: Path, hostname: str, now: datetime) -> bytes:
    """PEM of certificate and key for `hostname`, kept at `path` (0600) and renewed before it ends."""
    if path.exists():
        pem = read_secret(path)
        leaf = x509.load_pem_x509_certificate(pem)
        names = leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        if names and names[0].value == hostname and leaf.not_valid_after_utc - now > RENEW_BEFORE:
            return pem
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hostname)])
    try:
        alternative: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(hostname))
    except ValueError:
        alternative = x509.DNSName(hostname)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(Encoding.PEM) + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_secret(path, pem)
    return pem


def pin(pem: bytes) -> str:
    """`sha256-raw:<hex>` of the leaf, for the relay map."""
    der = x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)
    return f"sha256-raw:{hashlib.sha256(der).hexdigest()}"


def meta_certificate(relay_key: bytes, now: datetime) -> bytes:
    """PEM of the certificate that names the relay's key."""
    key = ed25519.Ed25519PrivateKey.generate()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # 71 characters, on purpose
        label = x509.NameAttribute(NameOID.COMMON_NAME, f"derpkey{relay_key.hex()}", _validate=False)
    name = x509.Name([label])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(PROTOCOL_VERSION)
        .not_valid_before(now - META_LIFETIME)
        .not_valid_after(now + META_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, None)
        .public_bytes(Encoding.PEM)
    )


def context(folder: Path, certificate: bytes, private: bytes, relay_key: bytes, now: datetime) -> ssl.SSLContext:
    """The server's TLS. folder: where the chain with the extra certificate is kept (0600). Raises ConfigError."""
    chain = folder / "chain.pem"
    write_secret(chain, certificate.split(b"-----BEGIN PRIVATE", 1)[0] + meta_certificate(relay_key, now) + private)
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.num_tickets = 0
    made.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    try:
        made.load_cert_chain(chain)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"cannot use the certificate: {error}", path=str(chain)) from error
    return made
