from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager

import pytest

from gw.state.codec import encode
from gw.state.config import Config
from gw.state.documents import NodeDoc, RelayRegionDoc
from gw.state.paths import StatePaths
from gw.state.store import Delete, DirectoryStore, ExternalChange, Put

pytestmark = pytest.mark.enable_socket  # an event loop is a pair of sockets

MakeNode = Callable[..., NodeDoc]
WATCH_TIMEOUT_S = 20.0


class Seen:
    """The changes a watch told, in order."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[ExternalChange] = asyncio.Queue()

    async def next(self) -> ExternalChange:
        async with asyncio.timeout(WATCH_TIMEOUT_S):
            return await self.queue.get()


@asynccontextmanager
async def watching(store: DirectoryStore) -> AsyncIterator[Seen]:
    seen = Seen()

    async def run() -> None:
        async with aclosing(store.watch()) as changes:  # type: ignore[type-var]
            async for change in changes:
                seen.queue.put_nowait(change)

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(run())
        try:
            yield seen
        finally:
            task.cancel()


async def test_a_hand_edit_is_told_and_own_writes_are_not(paths: StatePaths, node: MakeNode) -> None:
    path = paths.nodes_dir / "1.toml"
    with DirectoryStore(paths, settle_delay_s=0.01).open() as store:
        store.load("node")
        async with watching(store) as seen:
            for number in range(1, 20):
                await store.commit([Put(node(number))])
            await store.commit([Delete("node", 5)])
            store.settle()
            path.write_bytes(b"# mine\n" + encode(node(1, hostname="hand")))
            assert await seen.next() == ExternalChange("node", 1, node(1, hostname="hand"))
            await store.commit([Put(node(1, hostname="ours", revision=1))])
            store.settle()
            (paths.nodes_dir / "2.toml").unlink()
            assert await seen.next() == ExternalChange("node", 2)
            (paths.nodes_dir / "77.toml").write_bytes(encode(node(77)))
            assert await seen.next() == ExternalChange("node", 77, node(77))
    assert path.read_bytes() == b"# mine\n" + encode(node(1, hostname="ours", revision=1))
    assert not list(paths.nodes_dir.glob("*.conflict*")), "a hand edit that was seen is no conflict"


async def test_a_broken_edit_is_refused_with_line_and_key_and_told_again_when_repaired(
    paths: StatePaths, node: MakeNode
) -> None:
    path = paths.nodes_dir / "1.toml"
    good = encode(node(1))
    path.write_bytes(good)
    with DirectoryStore(paths, settle_delay_s=0.01).open() as store:
        store.load("node")
        async with watching(store) as seen:
            path.write_bytes(good.replace(b"ephemeral", b"ephemerall"))
            change = await seen.next()
            assert (change.kind, change.key, change.doc) == ("node", 1, None)
            assert change.error is not None and change.error.key == "ephemerall"
            assert change.error.path == str(path) and change.error.line == 14
            path.write_bytes(good)
            assert await seen.next() == ExternalChange("node", 1, node(1)), "the good text is back"
            path.write_bytes(b"[")
            assert (await seen.next()).error is not None
            await store.commit([Put(node(1, hostname="ours"))])
            store.settle()
            assert path.read_bytes() == encode(node(1, hostname="ours")), "a broken text undoes nothing acknowledged"
            assert (paths.nodes_dir / "1.toml.broken").read_bytes() == b"["


async def test_a_quarantined_document_comes_alive_when_it_is_repaired(paths: StatePaths, node: MakeNode) -> None:
    path = paths.nodes_dir / "1.toml"
    path.write_bytes(b"id = ")
    with DirectoryStore(paths).open() as store:
        assert store.load("node") == {}
        async with watching(store) as seen:
            path.write_bytes(encode(node(1)))
            assert await seen.next() == ExternalChange("node", 1, node(1))
        assert store.quarantined == {}
        await store.commit([Put(node(1, hostname="x"))])


async def test_an_edit_between_start_and_watch_is_told(paths: StatePaths, node: MakeNode) -> None:
    for number in (1, 2, 3):
        (paths.nodes_dir / f"{number}.toml").write_bytes(encode(node(number)))
    with DirectoryStore(paths).open() as store:
        store.load("node")
        (paths.nodes_dir / "1.toml").write_bytes(encode(node(1, hostname="early")))
        (paths.nodes_dir / "2.toml").unlink()
        async with watching(store) as seen:
            found = [await seen.next(), await seen.next()]
    assert found == [ExternalChange("node", 1, node(1, hostname="early")), ExternalChange("node", 2)]


async def test_the_conflict_of_an_unsettled_change_is_told_to_the_server(paths: StatePaths, node: MakeNode) -> None:
    """The edit came before the settling and is told once, whichever of the two notices it first."""
    path = paths.nodes_dir / "1.toml"
    path.write_bytes(encode(node(1)))
    with DirectoryStore(paths, settle_delay_s=3600).open() as store:
        store.load("node")
        await store.commit([Put(node(1, hostname="ours"))])
        path.write_bytes(encode(node(1, hostname="hand")))
        store.settle()
        async with watching(store) as seen:
            assert await seen.next() == ExternalChange("node", 1, node(1, hostname="hand"))
            await store.commit([Put(node(1, hostname="after"))])
            store.settle()
    assert path.read_bytes() == encode(node(1, hostname="after"))
    assert (paths.nodes_dir / "1.toml.conflict").read_bytes() == encode(node(1, hostname="ours"))


async def test_settings_policy_relays_and_records_are_watched_too(paths: StatePaths) -> None:
    with DirectoryStore(paths).open() as store:
        store.load("relay")
        async with watching(store) as seen:
            paths.policy_file.write_text('{"acls": []}')
            assert await seen.next() == ExternalChange("policy", "policy.hujson", '{"acls": []}')
            paths.config_file.write_text("server_url = 'http://x'\ndomain = 'a..b'\n")
            refused = await seen.next()
            assert refused.kind == "config" and refused.error is not None
            assert (refused.error.line, refused.error.key) == (2, "domain")
            paths.config_file.write_text("server_url = 'http://x'\ndomain = 'a.b'\n")
            settings = (await seen.next()).doc
            assert isinstance(settings, Config) and settings.domain == "a.b"
            (paths.relays_dir / "900.toml").write_text("region_id = 900\ncode = 'gw'\nname = 'Home'\n")
            region = RelayRegionDoc(region_id=900, code="gw", name="Home")
            assert await seen.next() == ExternalChange("relay", 900, region)
            (paths.dns_dir / "records.toml").write_text("x = 1\n")
            assert await seen.next() == ExternalChange("dns", "records.toml", "x = 1\n")
            paths.policy_file.unlink()
            assert await seen.next() == ExternalChange("policy", "policy.hujson")


async def test_an_editor_that_moves_the_old_file_away_first_deletes_nothing(paths: StatePaths, node: MakeNode) -> None:
    path = paths.nodes_dir / "1.toml"
    path.write_bytes(encode(node(1)))
    with DirectoryStore(paths).open() as store:
        store.load("node")
        async with watching(store) as seen:
            path.rename(paths.nodes_dir / "1.toml~")
            await asyncio.to_thread(path.write_bytes, encode(node(1, hostname="vi")))
            assert await seen.next() == ExternalChange("node", 1, node(1, hostname="vi"))


async def test_a_file_with_a_name_that_no_object_has_is_refused(paths: StatePaths) -> None:
    with DirectoryStore(paths).open() as store:
        store.load("node")
        async with watching(store) as seen:
            (paths.nodes_dir / "laptop.toml").write_text("id = 1\n")
            change = await seen.next()
    assert change.key == "laptop.toml" and change.error is not None and "no name for a node" in change.error.message
