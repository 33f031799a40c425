"""Decides whether the fast path may be used: two connections in memory, and a path that loses some packets.

One end has the fast path, the other is stock, then both have it; in the middle the keys are updated. Every datagram
that was not lost has to arrive once, and the books of both ends have to be even at the end.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Final, final

from aioquic.quic.connection import NetworkAddress

from gw.quic.configuration import client_settings, ephemeral_certificate, server_settings
from gw.quic.connection import Connection
from gw.quic.fastpath import usable
from gw.quic.link import Link, apart

logger = logging.getLogger(__name__)

DATAGRAMS: Final = 200
LOST: Final = 17  # every so many-th packet of the fast end
STEP_S: Final = 0.002
CLIENT: Final = ("client", 1)
SERVER: Final = ("server", 1)


@final
class _End:
    """One of the two ends."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.is_up = False
        self.problem = ""

    def up(self) -> None:
        self.is_up = True

    def datagrams(self, batch: list[bytes], now: float) -> None:
        self.got += [frame[1:] for frame in batch]

    def stream(self, data: bytes, now: float) -> None:
        pass

    def moved(self, address: NetworkAddress) -> None:
        pass

    def closed(self, code: int, reason: str) -> None:
        self.problem = reason or f"closed with {code:#x}"


@lru_cache(maxsize=1)
def fast_path_works() -> bool:
    """Run the test once a process. What is wrong is logged."""
    try:
        for fast_server in (False, True):
            problem = _exchange(fast_server=fast_server)
            if problem:
                logger.warning("QUIC goes without its fast path: %s", problem)
                return False
    except Exception as error:  # whatever another release of aioquic does
        logger.warning("QUIC goes without its fast path: %s: %s", type(error).__name__, error)
        return False
    return True


def _exchange(*, fast_server: bool) -> str:
    certificate, private = ephemeral_certificate()
    client_end, server_end = _End(), _End()
    connection = Connection(configuration=client_settings("gw-test/1", "ghostwire", verify=False))
    if not usable(connection):
        return "this release of aioquic is not the one it was written for"
    client = Link(connection, client_end, fast=True, probes=False)
    now = 1000.0
    client.connect(SERVER, now)
    server: Link | None = None
    sent = lost = counted = 0
    losses: set[bytes] = set()
    for turn in range(2000):
        now += STEP_S
        if client.is_fast and sent < DATAGRAMS and client.waiting < 24:
            for _ in range(8):
                client.send(b"%04d" % sent + bytes(600 + sent % 3))
                sent += 1
            if sent == DATAGRAMS // 2:
                connection.request_key_update()
        for packet, _ in apart(client.poll(now)):
            if server is None:
                server = Link(
                    Connection(
                        configuration=server_settings("gw-test/1", certificate, private),
                        original_destination_connection_id=packet[6 : 6 + packet[5]],
                    ),
                    server_end,
                    fast=fast_server,
                    probes=False,
                )
            if client.is_fast and len(packet) > 600:
                counted += 1
                if counted % LOST == 0:
                    lost += 1
                    losses.add(packet)
                    continue
            server.receive(packet, len(packet), CLIENT, now)
            if turn % 5 == 0 and client.is_fast:
                server.receive(packet, len(packet), CLIENT, now)  # once more: it has to be dropped
        for packet, _ in apart(server.poll(now)) if server is not None else []:
            client.receive(packet, len(packet), SERVER, now)
        if client_end.problem or server_end.problem:
            return client_end.problem or server_end.problem
        if sent >= DATAGRAMS and not client.waiting and connection._loss.bytes_in_flight == 0:
            break
    got = server_end.got
    if len(got) != len(set(got)) or len(got) != sent - lost:
        return f"{len(set(got))} of {sent - lost} datagrams arrived, {len(got)} in all"
    if connection._loss.bytes_in_flight:
        return f"{connection._loss.bytes_in_flight} bytes stay in flight"
    return ""
