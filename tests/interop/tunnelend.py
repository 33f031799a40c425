"""One end of a tunnel with fixed peers, for tests: `python tunnelend.py CONFIG`. Runs until its stdin closes.

CONFIG (JSON): secret and peer keys in hex, tun, port, address, peers: [{key, allowed, endpoint?}]; address6?, lanes?,
offloads?. Prints one JSON line when ready and one for each line it is given: numbers for `stats` and `lanes`,
{"ok": …} for `kill WORKER`, `filter none|all`, `renew`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import signal
import struct
import subprocess
import sys
from mmap import mmap
from pathlib import Path

from gw.engine.tunnel import Tunnel
from gw.model.addresses import AddrPort
from gw.model.filterrule import FilterRule, NetPortRange
from gw.model.keys import NodeKey, NodeSecret
from gw.model.sendplan import SendPlan
from gw.native.counters import INBOUND, OUTBOUND, SHARED_BYTES, block_at, region_at
from gw.net.offloads import Offloads

ALL = [FilterRule(src_ips=["*"], dst_ports=[NetPortRange()])]


class Events:
    """Plain WireGuard: a peer is where it was heard from last."""

    def __init__(self) -> None:
        self.tunnel: Tunnel | None = None
        self.other: list[str] = []
        self.sessions = 0

    def datagrams(self, batch: list[tuple[bytes, AddrPort]]) -> None:
        self.other = (self.other + [data.hex() for data, _ in batch])[-100:]

    def relay_out(self, peer: NodeKey, datagrams: list[bytes]) -> None:
        pass

    def wake(self, peer: NodeKey) -> None:
        pass

    def heard(self, peer: NodeKey, source: AddrPort | None) -> None:
        assert self.tunnel is not None
        if source is not None:
            self.tunnel.set_plan(peer, SendPlan(udp=source))

    def session(self, peer: NodeKey) -> None:
        self.sessions += 1

    def tsmp(self, peer: NodeKey, packet: bytes) -> None:
        pass

    def workers_restarted(self) -> None:
        pass  # no QUIC here

    def send_failed(self, peer: NodeKey, code: int) -> None:
        pass


def lane_packets(tunnel: Tunnel, plane: int, lane: int) -> int:
    """Packets of the first peer that one worker has moved."""
    shared = mmap(tunnel._tables.counters, SHARED_BYTES)
    with shared:
        packets: int = struct.unpack_from("<q", shared, block_at(region_at(plane, lane), 0))[0]
        return packets


def answer(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


async def main() -> None:
    config = json.loads(Path(sys.argv[1]).read_text())
    events = Events()
    local = ipaddress.ip_interface(config["address"])
    async with Tunnel(
        NodeSecret(bytes.fromhex(config["secret"])),
        config["tun"],
        config["port"],
        events,
        lanes=config.get("lanes", 0),
        offloads=Offloads.parse(config.get("offloads", "all")),
    ) as tunnel:
        events.tunnel = tunnel
        local6 = ipaddress.ip_interface(config.get("address6", "fd7a:9::1/64"))
        for line in (
            f"addr add {config['address']} dev {tunnel.tun_name}",
            f"addr add {local6} dev {tunnel.tun_name} nodad",
            f"link set {tunnel.tun_name} mtu {config.get('mtu', 1280)} up",
        ):
            subprocess.run(["ip", *line.split()], check=True)
        peers = []
        for peer in config["peers"]:
            key = NodeKey(bytes.fromhex(peer["key"]))
            peers.append(key)
            tunnel.set_peer(key, [ipaddress.ip_network(text) for text in peer["allowed"]])
            if peer.get("endpoint"):
                tunnel.set_plan(key, SendPlan(udp=AddrPort.parse(peer["endpoint"])))
        tunnel.set_filter(ALL, [local.ip, local6.ip])
        answer(ready=True, health=tunnel.health())
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        async with asyncio.TaskGroup() as group:
            timers = group.create_task(tunnel.run())
            while line := (await reader.readline()).decode().split():
                match line:
                    case ["stats"]:
                        stats = tunnel.stats(peers[0])
                        assert stats is not None
                        answer(
                            rx=stats.rx_bytes,
                            tx=stats.tx_bytes,
                            handshake=stats.last_handshake,
                            sessions=events.sessions,
                            other=events.other,
                            health=tunnel.health(),
                        )
                    case ["lanes"]:
                        answer(
                            # of the outbound workers, then of the inbound ones, which seal too while there is little
                            sent=[
                                lane_packets(tunnel, OUTBOUND, sealer) for sealer in range(2 * tunnel.health()["lanes"])
                            ],
                            received=[lane_packets(tunnel, INBOUND, lane) for lane in range(tunnel.health()["lanes"])],
                        )
                    case ["kill", kind]:
                        os.kill(tunnel.health()["workers"][kind], signal.SIGKILL)
                        answer(ok=True)
                    case ["filter", "none"]:
                        tunnel.set_filter([], [local.ip, local6.ip])
                        answer(ok=True)
                    case ["filter", "all"]:
                        tunnel.set_filter(ALL, [local.ip, local6.ip])
                        answer(ok=True)
                    case ["renew"]:
                        for key in peers:
                            tunnel.reset_session(key)
                        answer(ok=True)
            timers.cancel()


if __name__ == "__main__":
    asyncio.run(main())
