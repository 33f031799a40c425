"""What Prometheus reads, by name: dashboards and alerts lean on the names."""

from __future__ import annotations

from typing import Any

from gw.control.events import event
from gw.control.metrics import Metrics


async def test_gauges_say_what_is_there_when_they_are_read(world: Any) -> None:
    metrics = Metrics()
    metrics.watch(world.tailnet)
    node = await world.node(ephemeral=True)
    world.tailnet.reports.set_online(node, True)
    text = metrics.text().decode()
    for line in (
        "gw_control_nodes 1.0", "gw_control_nodes_online 1.0", "gw_control_nodes_ephemeral 1.0",
        "gw_control_nodes_waiting 0.0", "gw_control_users 1.0", "gw_control_preauth_keys 1.0",
        'gw_control_changes_total{kind="added"} 1.0', 'gw_control_changes_total{kind="patched"} 1.0',
    ):  # fmt: skip
        assert line in text.splitlines(), line
    assert "gw_control_info{version=" in text
    assert "process_resident_memory_bytes" in text


async def test_events_and_calls_are_counted_by_kind_not_by_name(world: Any) -> None:
    metrics = Metrics()
    kept: list[Any] = []
    record = metrics.counting(kept.append)
    record(event("node-renamed", "node:1", None, None, at=world.now))
    metrics.observe("GET", "/api/v1/node/{nodeId}", 404, 0.002)
    metrics.observe("BREW", "unknown", 405, 0.002)
    text = metrics.text().decode()
    assert len(kept) == 1
    assert 'gw_control_events_total{event="node-renamed"} 1.0' in text
    assert 'gw_control_api_requests_total{method="GET",path="/api/v1/node/{nodeId}",status="404"} 1.0' in text
    assert 'method="other"' in text
    assert "BREW" not in text
