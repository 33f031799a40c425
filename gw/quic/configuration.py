"""TLS and transport settings of our QUIC connections.

Ref: spec quic §1, §2
"""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from typing import Final

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.packet import QuicProtocolVersion
from aioquic.tls import CipherSuite, load_pem_private_key
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gw.errors import ConfigError
from gw.quic import congestion
from gw.wire.quic.demux import CID_BYTES

QuicSettings = QuicConfiguration

START_BYTES: Final = 1200  # of a UDP payload; every path has to carry it
MAX_FRAME_BYTES: Final = 65536
IDLE_S: Final = 60.0
MAX_STREAM_BYTES: Final = 256 << 10
MAX_DATA_BYTES: Final = 1 << 20
SUITES: Final = [CipherSuite.AES_128_GCM_SHA256, CipherSuite.CHACHA20_POLY1305_SHA256]


def _settings(alpn: str, *, is_client: bool) -> QuicConfiguration:
    return QuicConfiguration(
        alpn_protocols=[alpn],
        is_client=is_client,
        congestion_control_algorithm=congestion.NAME,
        connection_id_length=CID_BYTES,
        idle_timeout=IDLE_S,
        max_datagram_frame_size=MAX_FRAME_BYTES,
        max_datagram_size=START_BYTES,
        max_data=MAX_DATA_BYTES,
        max_stream_data=MAX_STREAM_BYTES,
        cipher_suites=list(SUITES),
        supported_versions=[QuicProtocolVersion.VERSION_1],
    )


def client_settings(alpn: str, server_name: str, *, verify: bool) -> QuicConfiguration:
    """verify: by the host's authorities; without, the caller compares `Connection.peer_certificate` itself."""
    made = _settings(alpn, is_client=True)
    made.server_name = server_name
    if verify:
        made.verify_mode = ssl.CERT_REQUIRED
        places = ssl.get_default_verify_paths()
        made.cafile, made.capath = places.cafile, places.capath  # else aioquic takes those of certifi
    else:
        made.verify_mode = ssl.CERT_NONE
    return made


def server_settings(alpn: str, certificate: bytes, private: bytes) -> QuicConfiguration:
    """certificate, private: PEM; further certificates are the chain. Raises ConfigError."""
    made = _settings(alpn, is_client=False)
    try:
        chain = x509.load_pem_x509_certificates(certificate)
        made.certificate, made.certificate_chain = chain[0], chain[1:]
        made.private_key = load_pem_private_key(private)
    except (ValueError, TypeError, IndexError) as error:
        raise ConfigError(f"cannot use the certificate for QUIC: {error}") from error
    return made


def ephemeral_certificate(now: datetime | None = None) -> tuple[bytes, bytes]:
    """PEM of a certificate and its key for connections whose ends are known by node keys alone."""
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    now = now or datetime.now(UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ghostwire")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=3650))
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return made.public_bytes(Encoding.PEM), private
