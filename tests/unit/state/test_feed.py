from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterator
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from gw.state.codec import encode
from gw.state.documents import NodeDoc
from gw.state.feed import FeedMessage, FeedNode, feed_node, follow
from gw.state.paths import StatePaths

pytestmark = pytest.mark.enable_socket  # a unix socket is what is tested

FULL = FeedMessage(full=True, domain="mesh.test", nodes=[FeedNode(id=1, name="a.mesh.test", node_key="n")])
CHANGE = FeedMessage(full=False, domain="mesh.test", removed=[1])


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="gw-") as short:  # socket paths end at 107 bytes
        monkeypatch.setenv("GW_RUNTIME_DIR", short)
        yield


def answer(*messages: FeedMessage) -> bytes:
    """A chunked response, cut at awkward places."""
    body = b"\n".join([*(msgspec.json.encode(message) for message in messages), b"\n"])
    chunks = [body[at : at + 7] for at in range(0, len(body), 7)]
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


async def serve(paths: StatePaths, *answers: bytes) -> asyncio.Server:
    left = list(answers)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        assert request.startswith(b"GET /feed HTTP/1.1\r\n")
        writer.write(left.pop(0))
        await writer.drain()
        writer.close()

    return await asyncio.start_unix_server(handle, str(paths.control_socket))


async def test_the_feed_of_a_server_comes_in_order_and_starts_anew_after_a_break(
    paths: StatePaths, runtime: None
) -> None:
    server = await serve(paths, answer(FULL, CHANGE), answer(FULL))
    async with server, asyncio.timeout(20), aclosing(follow(paths)) as feed:  # type: ignore[type-var]
        assert [await anext(feed) for _ in range(3)] == [FULL, CHANGE, FULL]


@pytest.mark.parametrize(
    "bad",
    [b"", b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", b"nonsense\r\n\r\n", answer(FULL)[:-40] + b"zz"],
)
async def test_a_server_that_answers_nonsense_is_asked_again(
    paths: StatePaths, runtime: None, node: Callable[..., NodeDoc], bad: bytes
) -> None:
    server = await serve(paths, bad, answer(FULL, CHANGE))
    async with server, asyncio.timeout(20), aclosing(follow(paths)) as feed:  # type: ignore[type-var]
        async for message in feed:
            if message == CHANGE:
                break


async def test_without_a_server_the_directory_is_read_and_the_socket_is_tried_on(
    paths: StatePaths, runtime: None, node: Callable[..., NodeDoc]
) -> None:
    (paths.nodes_dir / "1.toml").write_bytes(encode(node(1)))
    async with asyncio.timeout(20), aclosing(follow(paths)) as feed:  # type: ignore[type-var]
        first = await anext(feed)
        assert first.full and [found.name for found in first.nodes] == ["node-1.ghost.internal"]
        async with await serve(paths, answer(FULL)):
            assert await anext(feed) == FULL


async def test_without_a_server_and_a_directory_it_waits(tmp_path: Path, runtime: None) -> None:
    paths = StatePaths(tmp_path / "none")
    async with asyncio.timeout(20), aclosing(follow(paths)) as feed, asyncio.TaskGroup() as tasks:  # type: ignore[type-var]
        first = tasks.create_task(anext(feed))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        async with await serve(paths, answer(FULL)):
            assert await first == FULL


def test_a_node_expires_by_the_wall_clock(node: Callable[..., NodeDoc]) -> None:
    doc = node(1, expiry=datetime(2027, 1, 1, tzinfo=UTC), tags=["tag:a"])
    at = datetime(2027, 1, 1, tzinfo=UTC).timestamp()
    assert not feed_node(doc, "d", at - 1).expired and feed_node(doc, "d", at).expired
    assert feed_node(doc, "d", 0).name == "node-1.d" and feed_node(doc, "d", 0).tags == ["tag:a"]
