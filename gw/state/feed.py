"""What relay and DNS need to know of the tailnet: a snapshot, then changes.

    GET /feed   on the control server's unix socket; the answer is endless, one JSON object a line
        first   {"full": true,  "domain": "…", "nodes": [all], "removed": [], "records": [all]}
        then    {"full": false, "domain": "…", "nodes": [changed], "removed": [ids], "records": null, or all of them}
    an empty line now and then says that the server lives

While no server answers, the directory itself is read once, and the socket is tried again and again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Final

import h11
import msgspec

from gw.errors import GwError
from gw.state.config import ExtraRecord, load_config
from gw.state.documents import NodeDoc
from gw.state.paths import StatePaths
from gw.state.store import DirectoryStore

FIRST_RETRY_S: Final = 0.25
LAST_RETRY_S: Final = 5.0
MAX_LINE_BYTES: Final = 256 << 20  # a full snapshot of 50,000 nodes takes about 20 MB
READ_BYTES: Final = 65536

log = logging.getLogger(__name__)


class FeedNode(msgspec.Struct, frozen=True, kw_only=True):
    """One node. name: fully qualified, without the trailing dot."""

    id: int
    name: str
    node_key: str
    addresses: list[str] = []
    user: str = ""
    tags: list[str] = []
    expired: bool = False


class FeedMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot (`full`: forget everything else) or a change to it.

    removed: ids. records: DNS records of the policy; None where they stay what they are.
    """

    full: bool
    domain: str
    nodes: list[FeedNode] = []
    removed: list[int] = []
    records: list[ExtraRecord] | None = None


_decode: Final = msgspec.json.Decoder(FeedMessage).decode


def feed_node(doc: NodeDoc, domain: str, wall: float) -> FeedNode:
    """A node as the feed tells it. wall: UTC seconds now, against which the expiry is held."""
    return FeedNode(
        id=doc.id,
        name=f"{doc.given_name}.{domain}",
        node_key=doc.node_key,
        addresses=doc.addresses,
        user=doc.user,
        tags=doc.tags,
        expired=doc.expiry is not None and doc.expiry.timestamp() <= wall,
    )


def read_snapshot(paths: StatePaths, wall: float) -> FeedMessage:
    """The feed's first message from the directory alone. Blocks. Raises GwError where it cannot be read."""
    domain = load_config(paths.config_file).domain
    with DirectoryStore(paths).open(lock=False) as store:
        nodes = [feed_node(doc, domain, wall) for doc in store.load("node").values() if doc.approved]
    return FeedMessage(full=True, domain=domain, nodes=nodes)


async def follow(paths: StatePaths, *, wall: Callable[[], float] = time.time) -> AsyncIterator[FeedMessage]:
    """Snapshots and changes, for ever; each connection begins with a full one. Never raises but for cancellation."""
    retry_s = FIRST_RETRY_S
    is_known = has_complained = False
    while True:
        try:
            async with aclosing(_stream(paths)) as messages:
                async for message in messages:
                    if has_complained:
                        log.info("feed: the control server answers again")
                    retry_s, is_known, has_complained = FIRST_RETRY_S, True, False
                    yield message
            reason = "the stream ended"
        except (OSError, EOFError, h11.RemoteProtocolError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            reason = str(error) or type(error).__name__
        if not is_known:
            try:
                snapshot = await asyncio.to_thread(read_snapshot, paths, wall())
                is_known = True
                yield snapshot
            except GwError as error:
                reason = f"{reason}; {error.message}"
        if not has_complained:
            log.warning("feed: no control server on `%s`: %s; trying again", paths.control_socket, reason)
            has_complained = True
        await asyncio.sleep(retry_s)
        retry_s = min(retry_s * 2, LAST_RETRY_S)


async def _stream(paths: StatePaths) -> AsyncGenerator[FeedMessage, None]:
    """The messages of one connection. Raises OSError, RemoteProtocolError or MsgspecError."""
    reader, writer = await asyncio.open_unix_connection(str(paths.control_socket))
    try:
        connection = h11.Connection(h11.CLIENT)
        request = h11.Request(method="GET", target="/feed", headers=[("Host", "gwctl.sock")])
        writer.write((connection.send(request) or b"") + (connection.send(h11.EndOfMessage()) or b""))
        parts: list[bytes] = []
        waiting_bytes = 0
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(READ_BYTES))
            elif isinstance(event, h11.Response) and event.status_code != 200:
                raise ConnectionError(f"the server answers {event.status_code}")
            elif isinstance(event, h11.Data):
                head, *rest = bytes(event.data).split(b"\n")
                parts.append(head)
                waiting_bytes += len(head)
                if waiting_bytes > MAX_LINE_BYTES:
                    raise ConnectionError("the server sends a line without end")
                for following in rest:
                    line = b"".join(parts)
                    parts, waiting_bytes = [following], len(following)
                    if line.strip():
                        yield _decode(line)
            elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
                return
    finally:
        writer.close()
