"""What Prometheus reads: `/metrics` on a listener of its own, off the public one.

Counters follow the tailnet's changes and events; gauges are taken when somebody asks. `packaging/grafana/` has a
dashboard of them.

    metrics_listen = "127.0.0.1:9090"      in config.toml; nothing listens without it
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Final, final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector
from uvicorn import Config as WebConfig
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from gw import __version__
from gw.control.events import Event, Recorder
from gw.control.records import Change
from gw.control.tailnet import Tailnet

logger = logging.getLogger(__name__)
disable_created_metrics()  # type: ignore[no-untyped-call]

LAG_EVERY_S: Final = 1.0
TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


@final
class Metrics:
    """All series of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.events = Counter(
            "gw_control_events", "Events recorded: registrations, logins, administration.", ["event"],
            registry=self.registry,
        )  # fmt: skip
        self.changes = Counter(
            "gw_control_changes", "Changes told to connected nodes, by kind.", ["kind"], registry=self.registry
        )
        self.api = Counter(
            "gw_control_api_requests", "Calls of the HTTP API.", ["method", "path", "status"], registry=self.registry
        )
        self.api_seconds = Histogram(
            "gw_control_api_seconds", "Time until a call of the HTTP API is answered.", ["method", "path"],
            buckets=_BUCKETS, registry=self.registry,
        )  # fmt: skip
        self.lag = Histogram(
            "gw_control_loop_lag_seconds", "How late the event loop runs what is due.", buckets=_BUCKETS,
            registry=self.registry,
        )  # fmt: skip

    def watch(self, tailnet: Tailnet) -> None:
        """Show this tailnet."""
        self.registry.register(_State(tailnet))
        tailnet.subscribe(self._count_change)

    def counting(self, record: Recorder) -> Recorder:
        """A recorder that also counts."""

        def counted(event: Event) -> None:
            self.events.labels(event.event).inc()
            record(event)

        return counted

    def observe(self, method: str, path: str, status: int, seconds: float) -> None:
        """One call of the API. path: the template, so that ids make no series of their own."""
        name = method if method in ("GET", "POST", "PUT", "PATCH", "DELETE") else "other"
        self.api.labels(name, path, str(status)).inc()
        self.api_seconds.labels(name, path).observe(seconds)

    def _count_change(self, change: Change) -> None:
        self.changes.labels(change.kind.value).inc()

    def text(self) -> bytes:
        return generate_latest(self.registry)

    async def measure_lag(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_EVERY_S
            await asyncio.sleep(LAG_EVERY_S)
            self.lag.observe(max(0.0, loop.time() - due))


@final
class _State(Collector):
    """Gauges of a tailnet, taken when they are read."""

    def __init__(self, tailnet: Tailnet) -> None:
        self._tailnet = tailnet

    def collect(self) -> Iterator[Metric]:
        tailnet, now = self._tailnet, self._tailnet.clock()
        online = expired = waiting = ephemeral = 0
        for node in tailnet.nodes.values():
            online += node.online
            expired += node.is_expired(now)
            waiting += not node.doc.approved
            ephemeral += node.doc.ephemeral
        yield InfoMetricFamily("gw_control", "What runs.", value={"version": __version__})
        for name, meaning, value in (
            ("nodes", "Nodes of the tailnet.", len(tailnet.nodes)),
            ("nodes_online", "Nodes that hold a connection.", online),
            ("nodes_expired", "Nodes whose login is over.", expired),
            ("nodes_waiting", "Devices that wait for approval.", waiting),
            ("nodes_ephemeral", "Nodes that go when they have been away.", ephemeral),
            ("users", "Users.", len(tailnet.users)),
            ("preauth_keys", "Pre-auth keys, used and expired ones too.", len(tailnet.preauth_keys)),
            ("api_keys", "API keys and OAuth clients.", len(tailnet.api_keys)),
            ("logins_waiting", "Logins that wait for a person.", len(tailnet.logins)),
            ("policy_rules", "Rules of the policy in force.", len(tailnet.policy.policy.grants or ())),
            ("relay_regions", "Regions of the relay map.", len(tailnet.commons.relays)),
        ):
            yield GaugeMetricFamily(f"gw_control_{name}", meaning, value=value)


@asynccontextmanager
async def metrics_listener(metrics: Metrics, listener: socket.socket) -> AsyncIterator[None]:
    """Serve `/metrics` on `listener` within the block."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    async def show(request: Request) -> Response:
        return Response(metrics.text(), headers={"Content-Type": TYPE})

    app = Starlette(routes=[Route("/metrics", show)])
    settings = WebConfig(app, http="h11", ws="none", lifespan="off", log_config=None, access_log=False)
    settings.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: H11Protocol(config=settings, server_state=state, app_state={}), sock=listener
    )
    try:
        yield
    finally:
        server.close()
        for connection in list(state.connections):
            connection.shutdown()
