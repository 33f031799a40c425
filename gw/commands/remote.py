"""A control server elsewhere: `gwctl` over HTTPS with an API key, as Headscale's command line does by its own address.

export GWCTL_ADDRESS=https://mesh.example.org      or --address
export GWCTL_API_KEY_FILE=~/.config/gwctl.key      or --api-key-file; the key alone, mode 0600
gwctl nodes list
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gw.errors import AuthRequired, GwError, NotRunning, PermissionNeeded, TimedOut, UsageError, from_code

if TYPE_CHECKING:
    from http.client import HTTPConnection

ADDRESS: Final = "GWCTL_ADDRESS"
KEY_FILE: Final = "GWCTL_API_KEY_FILE"
KEY: Final = "GWCTL_API_KEY"
FLAGS: Final = {"--address": ADDRESS, "--api-key-file": KEY_FILE}
TIMEOUT_S: Final = 60.0
MAX_KEY_BYTES: Final = 4096


def take_flags(words: list[str]) -> list[str]:
    """The command line without the flags that name a server; they are put where `address` finds them."""
    rest: list[str] = []
    index = 0
    while index < len(words) and words[index] != "--":
        flag, equals, value = words[index].partition("=")
        index += 1
        if flag not in FLAGS:
            rest.append(words[index - 1])
            continue
        if not equals:
            value = words[index] if index < len(words) else ""
            index += 1
        os.environ[FLAGS[flag]] = value
    return rest + words[index:]


def address() -> str:
    """The URL of the server to ask; "" = the one of the state directory."""
    return os.environ.get(ADDRESS, "").rstrip("/")


def request(method: str, target: str, body: object = None) -> Any:
    """The answer of the server at `address()`. target: path and query. Raises GwError."""
    import http.client
    import ssl

    import msgspec

    key = _key()
    connection, prefix = _connection()
    raw = None if body is None else msgspec.json.encode(body)
    try:
        connection.request(
            method, prefix + target, raw, {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        )
        response = connection.getresponse()
        status, text = response.status, response.read()
    except ssl.SSLCertVerificationError as error:
        raise GwError(
            f"the certificate of `{address()}` is not trusted: {error.verify_message}",
            hint="SSL_CERT_FILE names the authority of a private certificate",
        ) from None
    except TimeoutError:
        raise TimedOut(f"no answer from `{address()}`") from None
    except (OSError, http.client.HTTPException) as error:
        raise NotRunning(f"cannot reach `{address()}`: {error}", hint=f"check {ADDRESS}") from None
    finally:
        connection.close()
    if status >= 400:
        raise _error(status, text)
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        raise GwError(f"`{address()}` does not answer as a control server does", hint=f"check {ADDRESS}") from None


def _connection() -> tuple[HTTPConnection, str]:
    """And what goes before every path. Raises UsageError."""
    import http.client
    from ipaddress import ip_address
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(address())
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise UsageError(f"not a URL: `{address()}`", hint="write https://mesh.example.org") from None
    if parts.scheme == "https" and host:
        return http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S), parts.path
    if parts.scheme != "http" or not host:
        raise UsageError(f"not a URL: `{address()}`", hint="write https://mesh.example.org")
    try:
        is_here = ip_address(host).is_loopback
    except ValueError:
        is_here = host == "localhost"
    if not is_here:
        raise UsageError(f"the key would cross the network in clear: `{address()}`", hint="use https")
    return http.client.HTTPConnection(host, port, timeout=TIMEOUT_S), parts.path


def _key() -> str:
    """Raises AuthRequired, PermissionNeeded."""
    path = os.environ.get(KEY_FILE, "")
    if not path:
        key = os.environ.get(KEY, "").strip()
        if not key:
            raise AuthRequired("which key?", hint=f"{KEY_FILE} names a file with it; gwctl apikeys create makes one")
        return key
    file = Path(path).expanduser()
    try:
        if file.stat().st_mode & 0o077 and file.is_file():
            raise PermissionNeeded(f"others may read the key: `{file}`", hint=f"chmod 600 {file}")
        with file.open("rb") as stream:
            return stream.read(MAX_KEY_BYTES).decode("latin-1").strip()
    except OSError as error:
        raise AuthRequired(f"cannot read the key: `{file}`: {error.strerror}", hint=f"check {KEY_FILE}") from None


def _error(status: int, text: bytes) -> GwError:
    import msgspec

    try:
        carried = msgspec.json.decode(text)
        message, detail = str(carried["message"]), (carried.get("details") or [{}])[0]
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError):
        return GwError(f"`{address()}` answered {status}", hint=f"check {ADDRESS}")
    if status == 401:
        return AuthRequired(message, hint="gwctl apikeys create, on the server's machine, makes another one")
    return from_code(str(detail.get("code", "failed")), message, detail.get("hint"))
