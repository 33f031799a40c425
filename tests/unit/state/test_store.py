from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gw.errors import Conflict, GwError, StateError, UsageError
from gw.state.codec import encode
from gw.state.documents import NodeDoc, RelayNode, RelayRegionDoc, ServerDoc, UserDoc
from gw.state.journal import read_journal
from gw.state.paths import StatePaths
from gw.state.store import Delete, DirectoryStore, Put
from gw.state.tomltext import NewerSchema

pytestmark = pytest.mark.enable_socket  # an event loop is a pair of sockets

MakeNode = Callable[..., NodeDoc]
MakeUser = Callable[..., UserDoc]
NEVER_S = 3600.0  # for stores that settle only when told


async def test_what_was_committed_is_there_after_a_restart(paths: StatePaths, node: MakeNode, user: MakeUser) -> None:
    region = RelayRegionDoc(region_id=900, code="gw", name="Home", nodes=[RelayNode(name="900a", host_name="h")])
    with DirectoryStore(paths).open() as store:
        await store.commit([Put(user("anna")), Put(node(1)), Put(region), Put(ServerDoc(next_node_id=2))])
        await store.commit([Put(node(1).edited(given_name="lap")), Put(node(2)), Delete("user", "anna")])
        await store.commit([Delete("node", 2), Delete("node", 99)])
    with DirectoryStore(paths).open() as store:
        assert store.load("node") == {1: node(1, given_name="lap", revision=1)}
        assert store.load("user") == {}
        assert store.load("relay") == {900: region}
        assert store.load("server") == {"server": ServerDoc(next_node_id=2)}
    assert os.listdir(paths.journal_dir) == []


async def test_a_durable_change_waits_in_the_journal_and_readers_see_it(paths: StatePaths, node: MakeNode) -> None:
    with DirectoryStore(paths, settle_delay_s=NEVER_S).open() as store:
        await store.commit([Put(node(1)), Put(node(2))])
        await store.commit([Delete("node", 2)])
        assert os.listdir(paths.nodes_dir) == []
        with DirectoryStore(paths).open(lock=False) as reader:
            assert reader.load("node") == {1: node(1)}
        assert store.settle()
        assert os.listdir(paths.nodes_dir) == ["1.toml"]
        with DirectoryStore(paths).open(lock=False) as reader:
            assert reader.load("node") == {1: node(1)}


async def test_a_new_start_settles_what_the_last_run_left(
    paths: StatePaths, node: MakeNode, caplog: pytest.LogCaptureFixture
) -> None:
    with DirectoryStore(paths, settle_delay_s=NEVER_S).open() as store:
        await store.commit([Put(node(1))])
        segment = read_journal(paths.journal_dir).segments[0]
        raw = segment.read_bytes()
    (paths.nodes_dir / "1.toml").unlink()  # as if the run had died right after the commit
    segment.write_bytes(raw + b"\x40\0\0\0torn")
    (paths.nodes_dir / ".tmp-1-0").write_bytes(b"half a docu")
    with DirectoryStore(paths).open() as store:
        assert store.load("node") == {1: node(1)}
    assert "dropped 8 bytes" in caplog.text
    assert os.listdir(paths.nodes_dir) == ["1.toml"] and os.listdir(paths.journal_dir) == []


async def test_one_commit_is_all_or_nothing(paths: StatePaths, node: MakeNode, user: MakeUser) -> None:
    with DirectoryStore(paths).open() as store:
        with pytest.raises(UsageError):
            await store.commit([Put(node(1)), Put(user("x" * 300))])
        with pytest.raises(UsageError):
            await store.commit([Put(node(1)), Delete("user", "")])
        assert store.settle()
    assert os.listdir(paths.nodes_dir) == []


async def test_ten_thousand_commits_at_once_are_grouped_and_none_is_lost(
    paths: StatePaths, node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs = 0
    real = os.fdatasync

    def counting(descriptor: int) -> None:
        nonlocal syncs
        syncs += 1
        real(descriptor)

    monkeypatch.setattr("os.fdatasync", counting)
    with DirectoryStore(paths, settle_delay_s=NEVER_S).open() as store:
        await asyncio.gather(*(store.commit([Put(node(number % 50, revision=number))]) for number in range(10_000)))
        assert syncs < 1000
    with DirectoryStore(paths).open() as store:
        nodes = store.load("node")
    assert {number: doc.revision for number, doc in nodes.items()} == {n: 9950 + n for n in range(50)}


def test_commits_from_many_threads_are_safe(paths: StatePaths, node: MakeNode) -> None:
    with DirectoryStore(paths, settle_delay_s=0.001).open() as store:

        def work(first: int) -> None:
            for number in range(first, first + 40):
                store.commit_sync([Put(node(number))])
                store.commit_sync([Put(node(number).edited(hostname="h"))])
                if number % 10 == 0:
                    store.settle()

        threads = [threading.Thread(target=work, args=(first,)) for first in (0, 100, 200, 300)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    with DirectoryStore(paths).open() as store:
        nodes = store.load("node")
    assert len(nodes) == 160 and {doc.hostname for doc in nodes.values()} == {"h"}
    assert not list(paths.nodes_dir.glob("*.conflict*")), "settling takes turns: no own text looks foreign"


async def test_a_cancelled_caller_does_not_cancel_its_commit(paths: StatePaths, node: MakeNode) -> None:
    with DirectoryStore(paths).open() as store:
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(store.commit([Put(node(1))]))
            await asyncio.sleep(0)
            task.cancel()
        await store.commit([Put(node(2))])
    with DirectoryStore(paths).open() as store:
        assert set(store.load("node")) == {1, 2}


async def test_a_closed_store_and_a_reader_take_no_commits(paths: StatePaths, node: MakeNode) -> None:
    store = DirectoryStore(paths).open()
    store.close()
    store.close()
    with pytest.raises(StateError):
        await store.commit([Put(node(1))])
    reader = DirectoryStore(paths).open(lock=False)
    with pytest.raises(StateError):
        reader.commit_sync([Put(node(1))])
    with pytest.raises(StateError):
        await anext(aiter(reader.watch()))


def test_two_servers_on_one_directory_are_refused(paths: StatePaths) -> None:
    program = "import sys; from pathlib import Path; from gw.state.store import *; from gw.state.paths import *\n"
    program += "DirectoryStore(StatePaths(Path(sys.argv[1]))).open(); print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-P", "-c", program, str(paths.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None and holder.stdin is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(Conflict, match=f"process {holder.pid}"):
            DirectoryStore(paths).open()
        holder.kill()  # the kernel gives the lock back
        holder.wait()
    DirectoryStore(paths).open(wait_s=5).close()


async def test_a_full_disk_fails_the_commit_and_nothing_is_half_done(
    paths: StatePaths, node: MakeNode, user: MakeUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    with DirectoryStore(paths).open() as store:
        store.load("node")
        await store.commit([Put(node(1))])
        with monkeypatch.context() as patch:

            def refuse(_descriptor: int, _data: bytes) -> int:
                raise OSError(errno.ENOSPC, "No space left on device")

            patch.setattr("os.write", refuse)
            with pytest.raises(GwError, match="disk full") as caught:
                await store.commit([Put(node(1).edited(hostname="x")), Put(user("anna"))])
            assert caught.value.exit_code == 1 and caught.value.hint is not None
        await store.commit([Put(node(1).edited(hostname="y"))])
    with DirectoryStore(paths).open() as store:
        assert store.load("node")[1].hostname == "y" and store.load("user") == {}
    assert not list(paths.nodes_dir.glob("*.conflict"))


async def test_files_that_cannot_be_settled_stay_in_the_journal(
    paths: StatePaths, node: MakeNode, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    with DirectoryStore(paths, settle_delay_s=NEVER_S).open() as store:
        await store.commit([Put(node(1))])
        with monkeypatch.context() as patch:
            patch.setattr("gw.state.settling.write_into", refuse)
            assert not store.settle()
            assert not store.settle()
            await store.commit([Put(node(1).edited(hostname="late")), Put(node(2))])
            store.close()
    assert caplog.text.count("stay in the journal") == 1
    assert os.listdir(paths.nodes_dir) == []
    with monkeypatch.context() as patch:
        patch.setattr("gw.state.settling.write_into", refuse)
        with DirectoryStore(paths).open() as store:
            assert store.load("node")[1].hostname == "late", "a start on a full disk reads through the journal"
    with DirectoryStore(paths).open() as store:
        assert set(store.load("node")) == {1, 2}
    assert sorted(os.listdir(paths.nodes_dir)) == ["1.toml", "2.toml"]


async def test_a_broken_document_is_quarantined_and_its_object_denied(
    paths: StatePaths, node: MakeNode, user: MakeUser, caplog: pytest.LogCaptureFixture
) -> None:
    with DirectoryStore(paths).open() as store:
        await store.commit([Put(node(1)), Put(node(2)), Put(user("anna"))])
    (paths.nodes_dir / "2.toml").write_text("id = 2\nmachine_key = 7\n")
    (paths.nodes_dir / "notes.toml").write_text("")
    (paths.users_dir / "anna.toml").write_bytes(b"\xff")
    with DirectoryStore(paths).open() as store:
        assert set(store.load("node")) == {1} and store.load("user") == {}
        assert set(store.quarantined) == {("node", 2), ("node", "notes.toml"), ("user", "anna")}
        assert "2.toml:2: `machine_key`: expected `str`, got `int`: quarantined, its node is denied" in caplog.text
        with pytest.raises(Conflict, match="quarantined") as caught:
            await store.commit([Put(user("anna")), Put(node(3))])
        assert "repair" in (caught.value.hint or "")
        await store.commit([Delete("user", "anna")])
    assert not (paths.users_dir / "anna.toml").exists()
    assert (paths.users_dir / "anna.toml.broken").read_bytes() == b"\xff"
    assert not (paths.nodes_dir / "3.toml").exists()


@pytest.mark.parametrize("shape", ["link", "dangling link", "folder", "pipe", "device", "huge"])
def test_what_is_no_plain_file_is_quarantined_and_never_hangs(paths: StatePaths, node: MakeNode, shape: str) -> None:
    path = paths.nodes_dir / "7.toml"
    if shape == "link":
        (paths.root / "real").write_bytes(encode(node(7)))
        path.symlink_to(paths.root / "real")
    elif shape == "dangling link":
        path.symlink_to("/nowhere")
    elif shape == "folder":
        path.mkdir()
    elif shape == "pipe":
        os.mkfifo(path)
    elif shape == "device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(1 << 40)
    with DirectoryStore(paths).open() as store:
        assert store.load("node") == {}
        assert set(store.quarantined) == {("node", 7)}


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_denies_its_object_alone(paths: StatePaths, node: MakeNode) -> None:
    for number in (1, 2):
        (paths.nodes_dir / f"{number}.toml").write_bytes(encode(node(number)))
    (paths.nodes_dir / "2.toml").chmod(0)
    with DirectoryStore(paths).open() as store:
        assert set(store.load("node")) == {1} and set(store.quarantined) == {("node", 2)}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: reads as another user")
def test_another_user_is_told_who_may_read(paths: StatePaths, node: MakeNode, tmp_path: Path) -> None:
    (paths.nodes_dir / "1.toml").write_bytes(encode(node(1)))
    (paths.nodes_dir / "1.toml").chmod(0)
    for folder in (paths.root, *paths.root.parents):
        if folder.is_relative_to("/tmp") and folder != Path("/tmp"):
            folder.chmod(0o755)
    program = (
        "import os, sys; from pathlib import Path; from gw.state.store import *; from gw.state.paths import *\n"
        "import gw.state.loading, gw.state.codec\n"
        "from gw.errors import *\nos.setgid(65534); os.setuid(65534)\n"
        "store = DirectoryStore(StatePaths(Path(sys.argv[1]))).open(lock=False)\n"
        "try: print(store.load('node'), dict(store.quarantined))\n"
        "except PermissionNeeded as error: print(error.message)\n"
        "try: DirectoryStore(StatePaths(Path(sys.argv[1]))).open()\n"
        "except PermissionNeeded as error: print(error.message)\n"
    )

    def run() -> list[str]:
        command = [sys.executable, "-P", "-c", program, str(paths.root)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()

    closed = run()
    assert closed == [f"may not read `{paths.nodes_dir}`", f"may not lock `{paths.lock_file}`"]
    paths.control_dir.chmod(0o755)
    paths.nodes_dir.chmod(0o755)
    assert run()[0].startswith("{} {('node', 1): ConfigError"), "one unreadable file denies its object alone"


def test_a_newer_schema_stops_the_start_with_one_line(paths: StatePaths, node: MakeNode) -> None:
    (paths.nodes_dir / "1.toml").write_bytes(encode(node(1)).replace(b"schema = 1", b"schema = 2"))
    with DirectoryStore(paths).open() as store, pytest.raises(NewerSchema, match="schema 2") as caught:
        store.load("node")
    assert "\n" not in caught.value.message and caught.value.exit_code == 9


def schema_0(tables: dict[str, Any]) -> None:
    tables["given_name"] = tables.pop("nickname")


def test_older_documents_are_migrated_after_a_snapshot(paths: StatePaths, node: MakeNode) -> None:
    for number in (1, 2):
        old = encode(node(number)).replace(b"schema = 1", b"schema = 0").replace(b"given_name", b"nickname")
        (paths.nodes_dir / f"{number}.toml").write_bytes(b"# by hand\n" + old if number == 2 else old)
    migrations = {("node", 0): schema_0}
    with DirectoryStore(paths, migrations=migrations).open(lock=False) as reader:
        assert reader.load("node") == {1: node(1), 2: node(2)}
    assert not paths.snapshots_dir.exists(), "a reader writes nothing"
    with DirectoryStore(paths, migrations=migrations, wall=lambda: 1.8e9).open() as store:
        assert store.load("node") == {1: node(1), 2: node(2)}
        store.load("user")
    (snapshot,) = paths.snapshots_dir.iterdir()
    assert snapshot.name == "20270115T080000Z-before-schema-1"
    assert b"nickname" in (snapshot / "control" / "nodes" / "1.toml").read_bytes()
    assert (snapshot / "config.toml").exists() and not (snapshot / "keys").exists()
    assert paths.snapshots_dir.stat().st_mode & 0o777 == 0o700
    with DirectoryStore(paths).open() as store:
        assert store.load("node") == {1: node(1), 2: node(2)}, "the new version alone reads them now"
    assert (paths.nodes_dir / "2.toml").read_bytes().startswith(b"# by hand\n")


async def test_comments_survive_our_changes(paths: StatePaths, node: MakeNode) -> None:
    path = paths.nodes_dir / "1.toml"
    path.write_bytes(b"# the one in the hall\n" + encode(node(1)))
    with DirectoryStore(paths, settle_delay_s=NEVER_S).open() as store:
        doc = store.load("node")[1]
        await store.commit([Put(doc.edited(hostname="a"))])
        await store.commit([Put(doc.edited(hostname="b"))])
    assert path.read_bytes() == b"# the one in the hall\n" + encode(node(1, hostname="b", revision=1))


async def test_a_hand_edit_overtakes_an_unsettled_change_and_the_trail_says_so(
    paths: StatePaths, node: MakeNode, caplog: pytest.LogCaptureFixture
) -> None:
    path = paths.nodes_dir / "1.toml"
    path.write_bytes(encode(node(1)))
    with DirectoryStore(paths, settle_delay_s=NEVER_S, wall=lambda: 0.0).open() as store:
        doc = store.load("node")[1]
        await store.commit([Put(doc.edited(hostname="ours"))])
        path.write_bytes(encode(node(1, hostname="hand")))
    assert b'"hand"' in path.read_bytes() and b'"ours"' in (paths.nodes_dir / "1.toml.conflict").read_bytes()
    trail = (paths.events_dir / "1970-01-01.jsonl").read_text()
    assert '"event":"conflict","actor":"hand edit","subject":"node:1","kept":"control/nodes/1.toml.conflict"' in trail
    assert "a hand edit overtook a change" in caplog.text


async def test_a_kind_that_was_not_loaded_can_be_changed_too(paths: StatePaths, node: MakeNode) -> None:
    """`gwctl` offline reads only what it needs."""
    (paths.nodes_dir / "1.toml").write_bytes(encode(node(1)))
    with DirectoryStore(paths, settle_delay_s=NEVER_S).open() as store:
        await store.commit([Put(node(1, hostname="a"))])
        await store.commit([Put(node(1, hostname="b"))])
    assert b'"b"' in (paths.nodes_dir / "1.toml").read_bytes()
    assert os.listdir(paths.nodes_dir) == ["1.toml"]


async def test_a_clock_that_jumps_changes_nothing(paths: StatePaths, node: MakeNode) -> None:
    """Order comes from numbers, never from the clock: years back and forth lose nothing."""
    wall = iter([2e9, 0.0, -1e9, 4e9, 1.0] * 10)
    for round_ in range(3):
        with DirectoryStore(paths, wall=lambda: next(wall), settle_delay_s=NEVER_S).open() as store:
            for step in range(3):
                await store.commit([Put(node(1, revision=round_ * 3 + step))])
    with DirectoryStore(paths).open() as store:
        assert store.load("node")[1].revision == 8


def test_a_missing_directory_reads_as_empty_and_is_made_by_the_writer(tmp_path: Path, node: MakeNode) -> None:
    paths = StatePaths(tmp_path / "not" / "yet")
    with DirectoryStore(paths).open(lock=False) as reader:
        assert reader.load("node") == {}
    assert not paths.root.exists()


async def test_the_garbage_collector_is_left_as_it_was(paths: StatePaths) -> None:
    import gc

    assert gc.isenabled()
    with DirectoryStore(paths).open() as store:
        store.load("node")
    assert gc.isenabled()
