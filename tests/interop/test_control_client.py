"""What stands at the other end is not always a control server: each case is one clear line."""

from __future__ import annotations

import asyncio
import os
import ssl

import pytest
import trustme

from gw.errors import GwError, NotFound, UsageError
from gw.model.keys import MachineKey, MachineSecret
from gw.model.registration import RegisterRequest
from gw.net.tcp import connect
from gw.node.control import ControlClient
from gw.wire.x25519 import clamp, public_key

KEY = f'{{"publicKey":"{MachineKey(public_key(clamp(b"s" * 32)))}"}}'.encode()
REFUSAL = b"HTTP/1.1 101 Switching Protocols\r\n\r\n\x03\x00\x09too young"


async def ask(answers: dict[bytes, bytes], *, tls: ssl.SSLContext | None = None) -> GwError:
    """The error of a login at a server that answers each path (by its first word) with these bytes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        path = head.split(b" ")[1].split(b"?")[0]
        writer.write(answers.get(path, b"HTTP/1.1 404 Not Found\r\n\r\nno"))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    async with server:
        scheme, port = "https" if tls else "http", server.sockets[0].getsockname()[1]
        return await fail(f"{scheme}://localhost:{port}")


async def fail(url: str) -> GwError:
    async with ControlClient(url, MachineSecret(clamp(os.urandom(32)))) as client:
        try:
            await client.register(RegisterRequest())
        except GwError as error:
            assert "\n" not in error.message
            return error
    raise AssertionError("it was let in")


@pytest.mark.parametrize(
    ("page", "words"),
    [
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "is not a control server: HTTP/1.1 404"),
        (b"HTTP/1.1 200 OK\r\n\r\n<html>", "is not a control server"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "does not speak version"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak version"),
        (b"HTTP/1.1 502 Bad\x1b[2J Gateway\r\n\r\n", "is out of order: HTTP/1.1 502 Bad?[2J"),
        (b"HTTP/1.1 301 Moved\r\nLocation: https://new.example/key\r\n\r\n", "sends us on to `https://new.example`"),
        (b"", "is not a control server: nothing"),
    ],
)
async def test_a_key_page_that_is_none_says_what_it_is(page: bytes, words: str) -> None:
    assert words in (await ask({b"/key": page})).message


async def test_a_server_that_refuses_the_handshake_is_quoted() -> None:
    """A refusal is shorter than a response: it must not be waited for."""
    error = await ask({b"/key": b"HTTP/1.1 200 OK\r\n\r\n" + KEY, b"/ts2021": REFUSAL})
    assert "too young" in error.message


async def test_an_untrusted_certificate_is_named() -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("localhost").configure_cert(tls)
    assert "is not trusted" in (await ask({}, tls=tls)).message


async def test_an_unknown_host_is_named() -> None:
    error = await fail("http://no-such-host.invalid")
    assert isinstance(error, NotFound)
    assert "no such host: `no-such-host.invalid`" in error.message


@pytest.mark.parametrize(
    "url", ["", "x", "ftp://a", "http://", "http://a:99999", "http://a:x", "http://[::1", "http://a:0", "http://a\nb"]
)
def test_an_address_that_is_none_is_one_clear_error(url: str) -> None:
    with pytest.raises(UsageError, match="not a control server address") as caught:
        ControlClient(url, MachineSecret(clamp(os.urandom(32))))
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("host", [".x", "a..b", "\0", "x" * 300, "ä" * 70])
async def test_a_host_name_that_can_be_none_is_one_clear_error(host: str) -> None:
    """They come from relay maps, too: nothing else but GwError may come out."""
    tls = ssl.create_default_context()
    with pytest.raises(GwError):
        await connect(host, 443)
    listener = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        with pytest.raises(GwError):
            await connect("127.0.0.1", port, tls=tls, server_name=host)
    for number in (0, -1, 65536, 1 << 40):
        with pytest.raises(GwError, match="not a port"):
            await connect("127.0.0.1", number)


async def test_a_refusal_cannot_steer_the_terminal() -> None:
    refusal = b"HTTP/1.1 101 Switching Protocols\r\n\r\n\x03\x00\x05\x1b[2Jx"
    error = await ask({b"/key": b"HTTP/1.1 200 OK\r\n\r\n" + KEY, b"/ts2021": refusal})
    assert "\x1b" not in error.message
