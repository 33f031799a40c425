"""Requests that stop coming are cut off; those that take their time to be answered are not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from starlette.types import Receive, Scope, Send
from uvicorn import Config
from uvicorn.server import ServerState

from gw.control import webprotocol

WHOLE = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads the body, thinks longer than a request may take to come, and answers."""
    while (await receive()).get("more_body"):
        pass
    await asyncio.sleep(0.3)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
async def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Path]:
    monkeypatch.setattr(webprotocol, "REQUEST_TIMEOUT_S", 0.1)
    config = Config(app, http="h11", ws="none", lifespan="off", log_config=None, access_log=False)
    config.load()
    state = ServerState()
    server = await asyncio.get_running_loop().create_unix_server(
        lambda: webprotocol.WebProtocol(config=config, server_state=state, app_state={}), tmp_path / "s"
    )
    yield tmp_path / "s"
    server.close()
    for connection in list(state.connections):
        connection.transport.abort()
    await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    "half", [b"GET / HTTP/1.1\r\nHost: x\r\n", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc"]
)
@pytest.mark.parametrize("before", [b"", WHOLE])
async def test_half_a_request_ends_its_connection(path: Path, before: bytes, half: bytes) -> None:
    async with asyncio.timeout(20):
        reader, writer = await asyncio.open_unix_connection(path)
        if before:
            writer.write(before)
            assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        writer.write(half)
        try:
            assert await reader.read() == b""
        except ConnectionResetError:
            pass
        writer.close()


async def test_a_slow_answer_is_waited_for_and_the_connection_serves_again(path: Path) -> None:
    async with asyncio.timeout(20):
        reader, writer = await asyncio.open_unix_connection(path)
        for _ in range(2):
            writer.write(WHOLE)
            assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        writer.close()
