"""Webhooks: events are sent to URLs, signed, in order, until they are taken.

    POST <url>
    Tailscale-Webhook-Signature: t=<unix seconds>,v1=<hex HMAC-SHA256 of "<t>.<body>" with the secret>
    [{"timestamp": …, "version": 1, "type": "nodeCreated", "tailnet": …, "message": …, "data": {…}}, …]

The form is Tailscale's, so that receivers written for it work; `data` holds our event as it stands in the trail. The
trail is the queue: each webhook remembers the number of the last event that was taken (`events/webhooks/<name>`), tries
again with growing pauses while the receiver does not answer 2xx, and goes on after a restart where it stopped. An event
comes at least once: `data.seq` tells a receiver whether it has it already.

A webhook whose `events` name `trail-head` also gets the newest signed head of the trail (`gw.state.heads`) whenever it
is another one, at most once a minute: what the receiver keeps proves later that nobody rewrote the trail on this box.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final, final
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, Request, build_opener

import msgspec

from gw.control.eventstream import EventStream, decoded, fits, told
from gw.control.tailnet import Tailnet
from gw.errors import GwError
from gw.state.config import WebhookSettings
from gw.state.files import make_folder, read_secret, write_atomic
from gw.state.heads import Head

logger = logging.getLogger(__name__)

SIGNATURE: Final = "Tailscale-Webhook-Signature"
POST_TIMEOUT_S: Final = 10.0
MAX_EVENTS: Final = 100  # in one request
FIRST_RETRY_S: Final = 1.0
LAST_RETRY_S: Final = 600.0
HEAD: Final = "trail-head"
HEAD_EVERY_S: Final = 60.0
LOOK_S: Final = 1.0  # how soon changed settings are noticed
TYPES: Final = {
    "node-registered": "nodeCreated", "node-added": "nodeCreated", "node-deleted": "nodeDeleted",
    "node-approved": "nodeApproved", "node-expired": "nodeKeyExpired", "policy-changed": "policyUpdate",
    "user-created": "userCreated", "user-deleted": "userDeleted",
}  # fmt: skip

Post = Callable[[str, bytes, str], int]  # URL, body, signature → HTTP status; raises OSError


class _NoRedirects(HTTPRedirectHandler):
    """What is signed for one place goes to no other."""

    def redirect_request(self, *_: Any) -> None:
        return None


def post(url: str, body: bytes, signature: str) -> int:
    """The status that the receiver answers. Blocks for some 10 s at most. Raises OSError."""
    request = Request(  # noqa: S310  http(s) alone, see config
        url, body, {"Content-Type": "application/json", SIGNATURE: signature, "User-Agent": "GhostWire"}
    )
    try:
        with build_opener(_NoRedirects).open(request, timeout=POST_TIMEOUT_S) as answer:
            return int(answer.status)
    except HTTPError as error:
        error.close()
        return error.code
    except (HTTPException, ValueError) as error:
        raise OSError(str(error)) from error


def sign(secret: bytes, body: bytes, at: int) -> str:
    """The header's value. at: unix seconds."""
    digest = hmac.new(secret, b"%d." % at + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={digest}"


def shape(line: bytes, tailnet: str) -> dict[str, Any]:
    """One event as Tailscale's webhooks tell it."""
    event = decoded(line)
    name = str(event.get("event", ""))
    words = name.split("-")
    return {
        "timestamp": event.get("time"),
        "version": 1,
        "type": TYPES.get(name) or words[0] + "".join(word.capitalize() for word in words[1:]),
        "tailnet": tailnet,
        "message": f"{name.replace('-', ' ')}: {event.get('subject', '')}, by {event.get('actor', '')}",
        "data": event,
    }


def head_shape(head: Head, tailnet: str) -> dict[str, Any]:
    """A signed head in the same form; `data`, kept in a file, is what `gwctl events verify --head` reads."""
    return {
        "timestamp": head.time,
        "version": 1,
        "type": "trailHead",
        "tailnet": tailnet,
        "message": f"event trail: {head.seq} events, signed",
        "data": head,
    }


@final
class Webhook:
    """One receiver. state: where the number of the last event that it took is kept."""

    def __init__(
        self, settings: WebhookSettings, stream: EventStream, state: Path, tailnet: str, send: Post = post
    ) -> None:
        self._settings = settings
        self._stream = stream
        self._state = state
        self._tailnet = tailnet
        self._send = send
        self.problem = ""  # of the last try; "" = it was taken
        self.problem_since: datetime | None = None
        self.taken = 0  # number of the last event that was taken
        self.head = 0  # number of the event that the last head taken is about
        self._wants_heads = HEAD in settings.events
        self._head_due = 0.0

    @property
    def settings(self) -> WebhookSettings:
        return self._settings

    @property
    def waiting(self) -> int:
        """Events of the trail that it has not been through yet."""
        return max(0, self._stream.last - self.taken)

    async def run(self) -> None:
        """Deliver until cancelled. A new webhook begins with what happens from now on."""
        cursor = self.taken = await asyncio.to_thread(self._read_cursor)
        async with contextlib.aclosing(self._stream.batches(cursor)) as batches:
            async for batch in batches:
                for start in range(0, len(batch), MAX_EVENTS):
                    await self._take(batch[start : start + MAX_EVENTS])
                if self._wants_heads:
                    await self._send_head()

    async def _take(self, part: list[tuple[int, bytes]]) -> None:
        wanted = [line for _, line in part if fits(told(line), self._settings.events)]
        if wanted:
            await self._deliver(wanted)
        self.taken = part[-1][0]
        await asyncio.to_thread(self._write_cursor, self.taken)

    async def _send_head(self) -> None:
        """Once; where it is not taken, a newer one is sent the next time."""
        head, now = self._stream.head, time.monotonic()
        if head is None or head.seq <= self.head or now < self._head_due:
            return
        self._head_due = now + HEAD_EVERY_S
        body = msgspec.json.encode([head_shape(head, self._tailnet)])
        self._note(await asyncio.to_thread(self._try, body))
        if not self.problem:
            self.head = head.seq

    def _note(self, problem: str) -> None:
        """How the last try went."""
        if problem and not self.problem:
            logger.warning("webhook %s: %s; trying again", self._settings.name, problem)
            self.problem_since = datetime.now(UTC)
        elif self.problem and not problem:
            logger.info("webhook %s: taken again", self._settings.name)
            self.problem_since = None
        self.problem = problem

    async def _deliver(self, lines: list[bytes]) -> None:
        """Try until they are taken, or older than the settings allow."""
        body = msgspec.json.encode([shape(line, self._tailnet) for line in lines])
        pause_s = FIRST_RETRY_S
        while True:
            problem = await asyncio.to_thread(self._try, body)
            self._note(problem)
            if not problem:
                return
            if self._are_old(lines):
                logger.error("webhook %s: %d events were not taken in time", self._settings.name, len(lines))
                return
            await asyncio.sleep(pause_s * random.uniform(0.8, 1.2))
            pause_s = min(pause_s * 2, LAST_RETRY_S)

    def _try(self, body: bytes) -> str:
        """Why it was not taken; "" if it was."""
        try:
            secret = read_secret(Path(self._settings.secret_file)).strip()
            status = self._send(self._settings.url, body, sign(secret, body, int(time.time())))
        except GwError as error:
            return error.message
        except OSError as error:
            return str(getattr(error, "reason", None) or error)
        return "" if 200 <= status < 300 else f"the receiver answers {status}"

    def _are_old(self, lines: list[bytes]) -> bool:
        try:
            newest = datetime.fromisoformat(str(decoded(lines[-1]).get("time")))
        except ValueError:
            return True
        return datetime.now(UTC) - newest > timedelta(seconds=self._settings.give_up_s)

    def _read_cursor(self) -> int:
        try:
            return int(self._state.read_text())
        except (OSError, ValueError):
            cursor = self._stream.last
            self._write_cursor(cursor)
            return cursor

    def _write_cursor(self, cursor: int) -> None:
        try:
            make_folder(self._state.parent, 0o750)
            write_atomic(self._state, b"%d\n" % cursor, 0o640)
        except GwError as error:
            logger.warning("webhook %s: events may come twice: %s", self._settings.name, error.message)


async def run_webhooks(tailnet: Tailnet, stream: EventStream, folder: Path, send: Post = post) -> None:
    """Run the webhooks that the settings in force name, until cancelled."""
    running: dict[str, tuple[WebhookSettings, asyncio.Task[None]]] = {}
    async with asyncio.TaskGroup() as tasks:
        while True:
            wanted = {each.name: each for each in tailnet.config.webhooks}
            for name, (settings, task) in list(running.items()):
                if wanted.get(name) != settings:
                    task.cancel()
                    del running[name], tailnet.webhooks[name]
            for name, settings in wanted.items():
                if name not in running:
                    hook = Webhook(settings, stream, folder / name, tailnet.domain, send)
                    running[name] = settings, tasks.create_task(_guarded(hook, name))
                    tailnet.webhooks[name] = hook
            await asyncio.sleep(LOOK_S)


async def _guarded(hook: Webhook, name: str) -> None:
    """One webhook's trouble ends neither the others nor the server."""
    while True:
        try:
            await hook.run()
        except Exception:
            logger.exception("webhook %s failed", name)
        await asyncio.sleep(FIRST_RETRY_S)
