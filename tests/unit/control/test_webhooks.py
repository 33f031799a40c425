"""Webhooks and followers of the trail: in order, signed, at least once, over restarts."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from gw.control import eventstream, webhooks
from gw.control.api import v1_webhooks
from gw.control.eventstream import EventStream, fits, told
from gw.control.webhooks import Webhook, shape, sign
from gw.state import trailreading
from gw.state.config import WebhookSettings
from gw.state.files import write_secret
from gw.state.heads import Head
from gw.state.trail import Trail, day_files


class Receiver:
    """What a receiver got; statuses: what it answers, then 204."""

    def __init__(self, *statuses: int | OSError) -> None:
        self.statuses = list(statuses)
        self.taken: list[dict[str, Any]] = []
        self.requests: list[tuple[str, bytes, str]] = []

    def __call__(self, url: str, body: bytes, signature: str) -> int:
        self.requests.append((url, body, signature))
        status = self.statuses.pop(0) if self.statuses else 204
        if isinstance(status, OSError):
            raise status
        if status < 300:
            self.taken += json.loads(body)
        return status

    @property
    def numbers(self) -> list[int]:
        return [event["data"]["seq"] for event in self.taken]


@pytest.fixture
def trail(tmp_path: Path) -> Trail:
    return Trail(tmp_path / "events", tmp_path / "key")


@pytest.fixture
def settings(tmp_path: Path) -> WebhookSettings:
    write_secret(tmp_path / "secret", b"geheim\n")
    return WebhookSettings(name="x", url="https://hook.test/", secret_file=str(tmp_path / "secret"))


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "FIRST_RETRY_S", 0.001)


async def eventually(wanted: Callable[[], object]) -> None:
    while not wanted():  # noqa: ASYNC110  nobody tells
        await asyncio.sleep(0.01)


async def deliver(
    trail: Trail, settings: WebhookSettings, receiver: Receiver, state: Path, until: Callable[[], bool],
    work: Callable[[], object] = lambda: None,
) -> None:  # fmt: skip
    async with EventStream(trail).running() as stream, asyncio.TaskGroup() as tasks:
        hook = tasks.create_task(Webhook(settings, stream, state, "mesh.test", receiver).run())
        async with asyncio.timeout(20):
            await eventually(state.exists)
            work()
            await eventually(until)
        hook.cancel()


def add(trail: Trail, *names: str) -> None:
    for name in names:
        trail.append(time.time(), name, actor="root (uid 0)", subject="node:1")


async def test_events_from_now_on_are_sent_signed_as_tailscale_does(
    trail: Trail, settings: WebhookSettings, tmp_path: Path
) -> None:
    add(trail, "before")
    receiver = Receiver()
    await deliver(
        trail, settings, receiver, tmp_path / "w", lambda: len(receiver.taken) == 2,
        lambda: add(trail, "node-registered", "node-key-rotated"),
    )  # fmt: skip
    assert [(event["type"], event["data"]["event"]) for event in receiver.taken] == [
        ("nodeCreated", "node-registered"), ("nodeKeyRotated", "node-key-rotated"),
    ]  # fmt: skip
    url, body, signature = receiver.requests[0]
    assert url == "https://hook.test/"
    at, digest = (part.partition("=")[2] for part in signature.split(","))
    assert digest == hmac.new(b"geheim", f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    assert abs(time.time() - int(at)) < 60


async def test_a_receiver_that_fails_gets_them_again_in_order(
    trail: Trail, settings: WebhookSettings, tmp_path: Path
) -> None:
    receiver = Receiver(500, OSError("refused"), 302, 404)
    await deliver(
        trail, settings, receiver, tmp_path / "w", lambda: receiver.numbers == [1, 2, 3],
        lambda: add(trail, "a", "b", "c"),
    )  # fmt: skip
    assert len(receiver.requests) >= 5


async def test_what_was_not_taken_before_a_restart_comes_after_it(
    trail: Trail, settings: WebhookSettings, tmp_path: Path
) -> None:
    down = Receiver(*[503] * 1000)
    await deliver(trail, settings, down, tmp_path / "w", lambda: len(down.requests) > 2, lambda: add(trail, "a", "b"))
    trail.close(time.time())
    again = Trail(tmp_path / "events", tmp_path / "key")
    add(again, "c")
    receiver = Receiver()
    await deliver(again, settings, receiver, tmp_path / "w", lambda: receiver.numbers == [1, 2, 3])
    more = Receiver()
    await deliver(again, settings, more, tmp_path / "w", lambda: 4 in more.numbers, lambda: add(again, "d"))


async def test_only_wanted_events_are_sent_and_too_old_ones_given_up(
    trail: Trail, settings: WebhookSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import msgspec

    picky = msgspec.structs.replace(settings, events=["node-*"], give_up="1h")
    receiver = Receiver(500)

    def old() -> None:
        trail.append(time.time() - 7200, "node-old", subject="node:1")

    await deliver(trail, picky, receiver, tmp_path / "w", lambda: (tmp_path / "w").read_text() == "1\n", old)
    assert "were not taken in time" in caplog.text
    await deliver(
        trail, picky, receiver, tmp_path / "w", lambda: receiver.numbers == [3],
        lambda: add(trail, "user-created", "node-renamed"),
    )  # fmt: skip


async def test_a_secret_that_others_may_read_is_not_used(
    trail: Trail, settings: WebhookSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "secret").chmod(0o644)
    receiver = Receiver()
    await deliver(
        trail, settings, receiver, tmp_path / "w", lambda: "readable by others" in caplog.text, lambda: add(trail, "a")
    )
    assert receiver.requests == []


def test_the_signature_covers_time_and_body() -> None:
    assert sign(b"s", b"[]", 7) == "t=7,v1=" + hmac.new(b"s", b"7.[]", "sha256").hexdigest()


def test_a_line_that_is_no_event_is_told_all_the_same() -> None:
    assert shape(b"nonsense", "t")["data"] == {}


async def test_followers_get_what_came_after_their_number_then_news(trail: Trail) -> None:
    add(trail, "a", "node-b", "node-c")
    async with EventStream(trail).running() as stream, aclosing(stream.server_sent(1, ["node-*"])) as lines:
        assert (await anext(lines)).startswith(b":")
        text = (await anext(lines)).decode()
        assert [line for line in text.splitlines() if line.startswith("id")] == ["id: 2", "id: 3"]
        add(trail, "node-d")
        text = (await anext(lines)).decode()
        assert "event: node-d\ndata: {" in text


@pytest.mark.parametrize(
    ("globs", "actor", "subject", "wanted"),
    [([], "", "", True), (["user-*"], "", "", False), (["node-*"], "ROOT", "node:*", True), ([], "ann", "", False)],
)
def test_filters(globs: list[str], actor: str, subject: str, wanted: bool) -> None:
    event = told(b'{"seq":1,"event":"node-renamed","actor":"root (uid 0)","subject":"node:3"}')
    assert fits(event, globs, actor, subject) is wanted


async def test_heads_leave_the_box_where_they_are_asked_for(
    trail: Trail, settings: WebhookSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head as it arrived proves the trail, and one cut off behind it shows."""
    monkeypatch.setattr(webhooks, "HEAD_EVERY_S", 0.0)
    monkeypatch.setattr(eventstream, "KEEP_ALIVE_S", 0.05)
    settings = msgspec.structs.replace(settings, events=["trail-head"])
    receiver = Receiver(OSError("no route to host"))

    def work() -> None:
        for number in range(3):
            trail.append(time.time(), "node-renamed", actor="ann", subject=f"node:{number}")
        trail.seal(time.time())

    await deliver(trail, settings, receiver, tmp_path / "state", lambda: bool(receiver.taken), work)
    (told,) = receiver.taken
    assert (told["type"], told["data"]["seq"]) == ("trailHead", 3)
    head = msgspec.convert(told["data"], Head)
    assert head.is_genuine()
    assert trailreading.verify(trail.folder, head.key, [("elsewhere", head)]).is_whole
    (day,) = day_files(trail.folder)
    day.write_bytes(b"".join(day.read_bytes().splitlines(keepends=True)[:2]))
    assert not trailreading.verify(trail.folder, head.key, [("elsewhere", head)]).is_whole


async def test_a_webhook_tells_how_it_is_doing(trail: Trail, settings: WebhookSettings, tmp_path: Path) -> None:
    receiver = Receiver(500, 500, 204)
    seen: list[tuple[int, str, bool]] = []

    def send(url: str, body: bytes, signature: str) -> int:
        seen.append((hook.waiting, hook.problem, hook.problem_since is not None))
        return receiver(url, body, signature)

    async with EventStream(trail).running() as stream, asyncio.TaskGroup() as tasks:
        hook = Webhook(settings, stream, tmp_path / "state", "mesh.test", send)
        task = tasks.create_task(hook.run())
        async with asyncio.timeout(20):
            await eventually((tmp_path / "state").exists)
            trail.append(time.time(), "node-renamed", actor="ann", subject="node:1")
            await eventually(lambda: hook.taken == 1)
        task.cancel()
    assert seen == [(1, "", False), (1, "the receiver answers 500", True), (1, "the receiver answers 500", True)]
    assert (hook.waiting, hook.problem, hook.problem_since) == (0, "", None)
    world = SimpleNamespace(tailnet=SimpleNamespace(webhooks={"x": hook}))
    listing = await v1_webhooks.list_webhooks(world)
    (shown,) = [listing.shape(each) for each in listing.items]
    assert (shown.name, shown.receiver, shown.taken, shown.problem) == ("x", "https://hook.test", 1, "")
