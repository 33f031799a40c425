"""The server's own certificate: a context made of two files, which follows them when they are renewed."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from typing import Final

from gw.errors import ConfigError

logger = logging.getLogger(__name__)

LOOK_S: Final = 30.0


def context_of(cert_file: str, key_file: str) -> ssl.SSLContext:
    """A server's TLS context, 1.2 and newer. key_file: "" where the certificate's file holds the key too.

    Raises ConfigError for files that cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(cert_file, key_file or None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"cannot use the certificate: {error}", path=cert_file) from error
    return context


async def follow(context: ssl.SSLContext, cert_file: str, key_file: str) -> None:
    """Take renewed files over for connections to come, until cancelled. Broken ones leave the last good pair."""
    seen = _stamp(cert_file, key_file)
    while True:
        await asyncio.sleep(LOOK_S)
        now = _stamp(cert_file, key_file)
        if now == seen:
            continue
        seen = now
        try:
            context_of(cert_file, key_file)  # the pair has to fit before it replaces the one in use
            context.load_cert_chain(cert_file, key_file or None)
        except (ConfigError, OSError, ssl.SSLError) as error:
            logger.error("the renewed certificate is not used: %s", error)
        else:
            logger.info("the certificate was renewed: %s", cert_file)


def _stamp(*paths: str) -> tuple[tuple[int, int], ...]:
    found = []
    for path in paths:
        try:
            status = os.stat(path) if path else None
        except OSError:
            status = None
        found.append((status.st_mtime_ns, status.st_ino) if status is not None else (0, 0))
    return tuple(found)
