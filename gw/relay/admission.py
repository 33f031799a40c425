"""Who may use the relay: whom the control server knows, everyone, or whom a URL lets in.

Ref: control protocol §7.2 (/verify); tailscale derpserver -verify-client-url
"""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from enum import Enum
from typing import Final, final
from urllib.parse import urlsplit

from gw.errors import UsageError, WireError
from gw.model.keys import NodeKey
from gw.state.feed import follow
from gw.state.paths import StatePaths

logger = logging.getLogger(__name__)

VERIFY_TIMEOUT_S: Final = 5.0
MAX_VERIFY_BYTES: Final = 4096
ALLOWED_S: Final = 60.0
DENIED_S: Final = 5.0  # long enough for all that wait, short enough for a node that was just let in
ASKING: Final = 8  # questions under way at once
MAX_PENDING: Final = 1024
MAX_KNOWN: Final = 65536


class Admission(Enum):
    """Whether a node key may use the relay. UNKNOWN: it has to wait until somebody knows."""

    ALLOWED = "allowed"
    DENIED = "denied"
    UNKNOWN = "unknown"


def allow_all(node: bytes, source: str) -> Admission:
    return Admission.ALLOWED


@final
class StateAdmission:
    """Node keys of the control server's feed. Until the first snapshot nobody is known."""

    def __init__(self) -> None:
        self._keys: dict[bytes, int] = {}
        self._by_id: dict[int, bytes] = {}
        self._is_known = False

    def admit(self, node: bytes, source: str) -> Admission:
        if node in self._keys:
            return Admission.ALLOWED
        return Admission.DENIED if self._is_known else Admission.UNKNOWN

    async def follow(self, paths: StatePaths, learned: Callable[[], None], dropped: Callable[[bytes], None]) -> None:
        """Keep up with the feed until cancelled."""
        async for message in follow(paths):
            gone = [self._by_id[each] for each in message.removed if each in self._by_id]
            if message.full:
                listed = {node.id for node in message.nodes}
                gone += [key for number, key in self._by_id.items() if number not in listed]
                self._by_id = {number: key for number, key in self._by_id.items() if number in listed}
            for number in message.removed:
                self._by_id.pop(number, None)
            for node in message.nodes:
                try:
                    key = NodeKey.parse(node.node_key).raw
                except WireError:
                    continue
                old = self._by_id.get(node.id)
                if old is not None and old != key:
                    gone.append(old)
                if node.expired:
                    self._by_id.pop(node.id, None)
                    gone.append(key)
                else:
                    self._by_id[node.id] = key
                    self._keys[key] = node.id
            for key in gone:
                if self._by_id.get(self._keys.get(key, -1)) != key:
                    self._keys.pop(key, None)
                    dropped(key)
            self._is_known = True
            learned()


@final
class UrlAdmission:
    """Asks a /verify URL, a few keys side by side, each once for all connections of one address that wait for it.

    Answers are kept for a while: a node that reconnects is not asked for again, one that was just let in soon is.
    """

    def __init__(self, url: str, *, fail_open: bool = False) -> None:
        """fail_open: let in whom nobody could be asked about; a bad answer denies all the same."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"not an admission URL: `{url}`", hint="`state`, `all` or https://control.example/verify")
        self._url = parts
        self._fail_open = fail_open
        self._known: OrderedDict[tuple[bytes, str], tuple[Admission, float]] = OrderedDict()  # verdict, kept until
        self._pending: set[tuple[bytes, str]] = set()
        self._queue: asyncio.Queue[tuple[bytes, str]] = asyncio.Queue(MAX_PENDING)
        self._loop: asyncio.AbstractEventLoop | None = None

    def admit(self, node: bytes, source: str) -> Admission:
        """Called by the forwarding plane's thread."""
        verdict = self._verdict(node, source)
        if verdict is Admission.UNKNOWN and self._loop is not None:
            self._loop.call_soon_threadsafe(self._want, node, source)
        return verdict

    async def follow(self, learned: Callable[[bytes], None]) -> None:
        """Ask for what waits, until cancelled. learned: told of each node key that there is an answer about."""
        self._loop = asyncio.get_running_loop()
        learned(b"")  # nobody was asked about who came before
        async with asyncio.TaskGroup() as group:
            for _ in range(ASKING):
                group.create_task(self._ask_all(learned))

    def _verdict(self, node: bytes, source: str) -> Admission:
        verdict, until = self._known.get((node, source), (Admission.UNKNOWN, 0.0))
        return verdict if time.monotonic() < until else Admission.UNKNOWN

    def _want(self, node: bytes, source: str) -> None:
        if self._verdict(node, source) is not Admission.UNKNOWN:
            return  # answered since
        if (node, source) not in self._pending:
            if self._queue.full():  # who asked longest ago has been sent away by now
                self._pending.discard(self._queue.get_nowait())
            self._pending.add((node, source))
            self._queue.put_nowait((node, source))

    async def _ask_all(self, learned: Callable[[bytes], None]) -> None:
        while True:
            node, source = await self._queue.get()
            try:
                is_allowed = await asyncio.to_thread(self._ask, node, source)
            except OSError as error:
                logger.warning("admission could not be asked: %s", error)
                is_allowed = self._fail_open
            except (http.client.HTTPException, ValueError) as error:
                logger.warning("admission was not answered: %s", error)
                is_allowed = False
            verdict, kept_s = (Admission.ALLOWED, ALLOWED_S) if is_allowed else (Admission.DENIED, DENIED_S)
            self._known[node, source] = verdict, time.monotonic() + kept_s
            self._known.move_to_end((node, source))
            while len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)
            self._pending.discard((node, source))
            learned(node)

    def _ask(self, node: bytes, source: str) -> bool:
        make = http.client.HTTPSConnection if self._url.scheme == "https" else http.client.HTTPConnection
        connection = make(self._url.hostname or "", self._url.port, timeout=VERIFY_TIMEOUT_S)
        try:
            body = json.dumps({"NodePublic": str(NodeKey(node)), "Source": source})
            connection.request("POST", self._url.path or "/verify", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            raw = response.read(MAX_VERIFY_BYTES)
            if response.status != 200:
                return False
            answer = json.loads(raw)
            return isinstance(answer, dict) and answer.get("Allow") is True
        finally:
            connection.close()
