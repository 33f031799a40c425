"""Observed state over a restart: told again at once, never trusted, never in the way."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from gw.control.observed import ObservedFile, read_observed
from gw.control.tailnet import Tailnet
from gw.model.hostinfo import Hostinfo

from .conftest import OWN_DEVICES, MakeWorld, World

DISCO = f"discokey:{'ab' * 32}"


def kept(world: World, path: Path) -> ObservedFile:
    file = ObservedFile(path, world.tailnet.nodes, world.tailnet.clock)
    world.tailnet.subscribe(file.take)
    return file


def restarted(world: World, path: Path) -> Tailnet:
    config, clock = world.tailnet.config, world.tailnet.clock
    return Tailnet.load(world.store, config, OWN_DEVICES, clock=clock, observed=read_observed(path))


async def test_a_restarted_server_knows_where_nodes_were(world: World, tmp_path: Path) -> None:
    path = tmp_path / "observed.jsonl"
    file = kept(world, path)
    nas = await world.node(hostname="nas")
    world.tailnet.reports.set_online(nas, True)
    world.tailnet.reports.observe(
        nas,
        endpoints=["192.0.2.7:41641"],
        disco_key=DISCO,
        home_derp=9,
        cap=113,
        hostinfo=Hostinfo(hostname="nas", os="linux", routable_ips=["10.0.0.0/8"]),
    )
    world.forward(minutes=5)
    await file.save()
    assert path.stat().st_mode & 0o777 == 0o600
    again = restarted(world, path).roster.node(nas.id)
    assert (again.endpoints, again.disco_key, again.home_derp, again.cap) == (["192.0.2.7:41641"], DISCO, 9, 113)
    assert again.advertised_routes == ["10.0.0.0/8"]
    assert again.last_seen == world.now
    assert not again.online


async def test_only_changed_nodes_are_appended_until_most_of_the_file_is_old(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gw.control.observed.SPARE_LINES", 3)
    path = tmp_path / "observed.jsonl"
    file = kept(world, path)
    first, second = await world.node(hostname="a"), await world.node(hostname="b")
    await file.save()
    assert len(path.read_bytes().splitlines()) == 2
    for port in range(1, 6):
        world.tailnet.reports.observe(first, endpoints=[f"192.0.2.7:{port}"])
        await file.save()
        assert len(path.read_bytes().splitlines()) == 2 + port
    world.tailnet.reports.observe(second, endpoints=["192.0.2.8:1"])
    await file.save()
    assert len(path.read_bytes().splitlines()) == 2
    assert read_observed(path)[first.id].endpoints == ["192.0.2.7:5"]
    before = path.stat().st_mtime_ns
    await file.save()
    assert path.stat().st_mtime_ns == before


async def test_what_is_left_is_written_at_the_end(world: World, tmp_path: Path) -> None:
    path = tmp_path / "observed.jsonl"
    file = kept(world, path)
    async with file.running():
        node = await world.node()
        world.tailnet.reports.observe(node, home_derp=7)
    assert read_observed(path)[node.id].home_derp == 7


async def test_removed_nodes_and_torn_lines_do_no_harm(world: World, tmp_path: Path) -> None:
    path = tmp_path / "observed.jsonl"
    node = await world.node()
    path.write_bytes(
        b'{"id":%d,"home_derp":3}\n{"id":99,"home_derp":1}\n{"id":"x"}\n\xff\n' % node.id
        + b'{"id":%d,"last_seen":"2031-05-01T00:00:00"}\n{"id":%d,"home_de{"id":%d}\n{"id":' % ((node.id,) * 3)
    )
    again = restarted(world, path)
    assert set(again.nodes) == {node.id}
    assert again.roster.node(node.id).home_derp == 3


async def test_a_full_disk_is_told_once_and_made_good_later(
    make_world: MakeWorld, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = make_world()
    folder = tmp_path / "gone"
    file = kept(world, folder / "observed.jsonl")
    node = await world.node()
    with caplog.at_level(logging.WARNING):
        await file.save()
        await file.save()
    assert len(caplog.records) == 1
    folder.mkdir()
    await file.save()
    assert set(read_observed(folder / "observed.jsonl")) == {node.id}
