"""The outbound plane: `gw.native.outbound` between TUN, UDP and the engine."""

from __future__ import annotations

import socket
from typing import Final, final

from gw.engine.link import (
    AddPeer,
    DropStaged,
    EndSession,
    Inject,
    Note,
    Plan,
    QuicNumbers,
    QuicSent,
    RelayOut,
    RemovePeer,
    Routes,
    SealQuic,
    Sender,
    SendKeepalive,
    SendSession,
    ToWorker,
)
from gw.engine.worker import Setup, share, udp_socket
from gw.native.flows import FlowTable
from gw.native.outbound import Outbound
from gw.native.quicsealing import SealingLine
from gw.wire import cipher

RELAY_BATCH: Final = 48  # datagrams a message


@final
class OutboundPlane:
    """TUN -> `gw.native.outbound` -> UDP, and word to the engine."""

    def __init__(self, setup: Setup, link: socket.socket) -> None:
        counters, flows = share(setup)
        self.sender = Sender(link)
        self._tun = setup.tun
        self._v4 = udp_socket(setup.udp4, socket.AF_INET)
        self._v6 = udp_socket(setup.udp6, socket.AF_INET6)
        self.core = Outbound(
            setup.tun,
            counters,
            FlowTable(flows),
            setup.mtu,
            setup.gso,
            setup.lanes,
            setup.sealer,
            setup.sealers,
        )
        self._cipher = cipher.named(setup.cipher)
        self.core.numbered = self._cipher.numbered
        self.core.report = self._report
        self._sealer = setup.sealer

    def descriptors(self) -> list[int]:
        return [self._tun]

    def apply(self, message: ToWorker) -> None:
        core = self.core
        match message:
            case AddPeer(slot):
                core.add_peer(slot)
            case RemovePeer(slot):
                core.remove_peer(slot)
            case Routes(slot, add, remove):
                core.routes.change(slot, add, remove)
            case Plan(slot, host, port, relay, wake, head, quic):
                sock = self._socket(host) if host else None
                core.set_plan(slot, sock, (host, port) if sock is not None else None, relay, wake, head, quic)
            case SealQuic(slot, line, secrets, cid, host, port, limit):
                core.set_line(slot, line, self._line(line, secrets, cid, host, port, limit))
            case QuicNumbers(slot, line, first, stop, fresh, room):
                core.give_numbers(slot, line, first, stop, fresh, room)
            case SendSession(slot, session, key, remote_index, expires_ns):
                core.set_session(slot, session, self._cipher.seal(key), remote_index, expires_ns)
            case EndSession(slot, session):
                core.end_session(slot, session)
            case SendKeepalive(slot):
                core.keepalive(slot)
            case DropStaged(slot):
                core.drop_staged(slot)
            case Inject(slot, packet):
                core.inject(slot, packet)
            case _:
                raise ValueError(f"not for the outbound plane: {type(message).__name__}")

    def _socket(self, host: str) -> socket.socket | None:
        return self._v6 if ":" in host else self._v4

    def _line(
        self, line: int, secrets: tuple[int, bytes, bytes, bytes, int], cid: bytes, host: str, port: int, limit: int
    ) -> SealingLine | None:
        sock = self._socket(host)
        if not secrets[1] or sock is None:
            return None
        from gw.quic.protection import Secrets, keys_of  # only where there is QUIC

        return SealingLine(line, keys_of(Secrets(*secrets), sealing=True), cid, sock, (host, port), limit)

    def _report(self, line: int, first: int, sizes: list[int], now_ns: int) -> bool:
        """Has the engine know of QUIC packets before they leave."""
        return self.sender.bulk(QuicSent(line, self._sealer, first, sizes, now_ns))

    def tell(self) -> None:
        core, sender = self.core, self.sender
        sender.flush()
        if core.notes:
            for kind, slot, detail in core.notes:
                sender.control(Note(kind, slot, detail))
            core.notes = []
        if core.relayed:
            for slot, datagrams in core.relayed.items():
                for at in range(0, len(datagrams), RELAY_BATCH):
                    sender.bulk(RelayOut(slot, datagrams[at : at + RELAY_BATCH]))
            core.relayed = {}
