"""One source, many listeners: what a slow one may cost, and what it hears in the end."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from gw.localapi.broadcast import QUEUE_ITEMS, Broadcast


def nothing() -> list[str]:
    return []


async def test_listener_hears_first_items_and_then_what_is_published() -> None:
    source: Broadcast[str] = Broadcast()
    async with aclosing(source.listen(lambda: ["whole"], nothing)) as heard:
        assert await anext(heard) == "whole"
        source.publish("one")
        source.publish("two")
        assert [await anext(heard), await anext(heard)] == ["one", "two"]


async def test_listener_that_falls_behind_gets_the_whole_state_instead() -> None:
    """A screen that was stopped must neither grow the daemon nor show what is long gone."""
    source: Broadcast[str] = Broadcast()
    async with aclosing(source.listen(lambda: ["first"], lambda: ["caught up"])) as heard:
        await anext(heard)
        for number in range(QUEUE_ITEMS + 1):
            source.publish(str(number))
        assert await anext(heard) == "caught up"
        source.publish("news")
        assert await anext(heard) == "news"


async def test_whole_item_takes_the_place_of_all_that_waits() -> None:
    """256 statuses of thousands of peers in a queue would be gigabytes."""
    source: Broadcast[str] = Broadcast()
    async with aclosing(source.listen(lambda: ["first"], lambda: ["caught up"])) as heard:
        await anext(heard)
        for number in range(3 * QUEUE_ITEMS):
            source.publish(f"status {number}", whole=True)
        source.publish("change")
        assert [await anext(heard), await anext(heard)] == [f"status {3 * QUEUE_ITEMS - 1}", "change"]


async def test_slow_listener_does_not_hold_up_the_others() -> None:
    source: Broadcast[int] = Broadcast()
    async with (
        aclosing(source.listen(lambda: [-1], lambda: [-2])) as slow,
        aclosing(source.listen(lambda: [-1], lambda: [-2])) as quick,
    ):
        await anext(slow)
        await anext(quick)
        for number in range(2 * QUEUE_ITEMS):
            source.publish(number)
            assert await anext(quick) == number


async def test_nobody_listens_once_the_last_one_left() -> None:
    """While nobody listens the daemon computes nothing for them."""
    source: Broadcast[str] = Broadcast()
    assert not source
    async with aclosing(source.listen(lambda: ["first"], nothing)) as heard:
        await anext(heard)
        assert source
    assert not source


async def test_cancelled_listener_is_forgotten() -> None:
    source: Broadcast[str] = Broadcast()
    listening = asyncio.Event()

    def first() -> list[str]:
        listening.set()
        return []

    async def listen() -> None:
        async with aclosing(source.listen(first, nothing)) as heard:
            async for _ in heard:
                pass

    async with asyncio.TaskGroup() as group:
        task = group.create_task(listen())
        await listening.wait()
        assert source
        task.cancel()
    assert not source
