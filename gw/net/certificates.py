"""A certificate and its key in PEM files: read, checked, and made into TLS settings; each fault one clear line.

wrong       missing, unreadable, no PEM, key of another certificate, key with a password     ConfigError
doubtful    expired, not valid yet, soon to end, not for this name, key open to others       a warning each
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Final, final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from gw.errors import ConfigError

SOON: Final = timedelta(days=14)


@final
@dataclass(frozen=True, slots=True)
class Certificate:
    """context: a server's TLS settings. leaf: what clients check."""

    context: ssl.SSLContext
    leaf: x509.Certificate

    @property
    def names(self) -> list[str]:
        """The DNS names and addresses that it is for."""
        try:
            found = self.leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            return []
        return [*found.get_values_for_type(x509.DNSName), *map(str, found.get_values_for_type(x509.IPAddress))]

    def doubts(self, hostname: str, now: datetime) -> list[str]:
        """What clients will not like, one sentence each."""
        found = []
        ends, begins = self.leaf.not_valid_after_utc, self.leaf.not_valid_before_utc
        if ends <= now:
            found.append(f"it expired on {ends:%Y-%m-%d}: clients refuse it")
        elif ends - now < SOON:
            found.append(f"it expires on {ends:%Y-%m-%d}")
        if begins > now:
            found.append(f"it is valid from {begins:%Y-%m-%d %H:%M} UTC on: compare the clock")
        if hostname and not covers(self.names, hostname):
            found.append(f"it is for {', '.join(self.names[:5]) or 'no name'}, not for `{hostname}`")
        return found


def covers(names: list[str], hostname: str) -> bool:
    """Whether one of the names is this one. A wildcard stands for one label. Ref: RFC 9525 §6.3"""
    wanted = hostname.lower().rstrip(".")
    try:
        wanted = str(ip_address(wanted))
    except ValueError:
        pass
    rest = wanted.partition(".")[2]
    return any(name.lower() == wanted or (name.startswith("*.") and name[2:].lower() == rest) for name in names)


def read(cert_file: str, key_file: str) -> Certificate:
    """The certificate of these files; key_file: "" where the key is in the same file. Raises ConfigError."""
    certificates = _pem(cert_file)
    try:
        leaf = x509.load_pem_x509_certificates(certificates)[0]
    except ValueError:
        raise ConfigError("no certificate in PEM form", path=cert_file) from None
    try:
        key = load_pem_private_key(_pem(key_file or cert_file), None)
    except TypeError:
        raise ConfigError(
            "the key has a password", path=key_file, hint=f"openssl pkey -in {key_file} -out a key without one"
        ) from None
    except ValueError:
        raise ConfigError("no private key in PEM form", path=key_file or cert_file) from None
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*form) != leaf.public_key().public_bytes(*form):
        raise ConfigError(f"the key does not belong to the certificate `{cert_file}`", path=key_file or cert_file)
    context = server_context()
    try:
        context.load_cert_chain(cert_file, key_file or None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"cannot use the certificate: {error}", path=cert_file) from error
    return Certificate(context, leaf)


def server_context() -> ssl.SSLContext:
    """TLS 1.2 and newer for servers of many idle clients: no session tickets, no renegotiation."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.num_tickets = 0
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    return context


def is_open_to_others(path: str) -> bool:
    """Whether users beside owner and group may read the file."""
    try:
        return bool(Path(path).stat().st_mode & 0o007)
    except OSError:
        return False


def _pem(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise ConfigError("no such file", path=path) from None
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", path=path) from error
