"""The inbound plane: `gw.native.inbound` between UDP, TUN and the engine."""

from __future__ import annotations

import socket
import time
from typing import Final, final

from gw.engine.link import (
    AddPeer,
    EndSession,
    FilterRules,
    Foreign,
    Heard,
    Jail,
    Note,
    OpenQuic,
    Quic,
    QuicOpened,
    ReceiveSession,
    Rejected,
    Relayed,
    RemovePeer,
    Routes,
    Sender,
    ToWorker,
    Tsmp,
)
from gw.engine.worker import Setup, listen, share, udp_socket
from gw.native.coalesce import Coalescer
from gw.native.filter import Filter
from gw.native.flows import FlowTable
from gw.native.inbound import Inbound
from gw.native.prefixes import PrefixMap
from gw.native.quicsealing import OpeningLine
from gw.native.rules import RuleSet
from gw.wire import cipher

FOREIGN_BATCH: Final = 64
MAX_ACKS: Final = 16  # of a connection in one message
MAX_RUNS: Final = 4096  # numbers: first, stop, first, stop
QUIC_BYTES: Final = 96 << 10  # of a message; the train that passes it is the last


@final
class InboundPlane:
    """UDP -> `gw.native.inbound` -> TUN, and word to the engine."""

    def __init__(self, setup: Setup, link: socket.socket) -> None:
        counters, flows = share(setup)
        table = FlowTable(flows)
        self.sender = Sender(link)
        self._link = link
        self.core = Inbound(
            counters,
            Filter(RuleSet(), PrefixMap(), table),
            Coalescer(setup.tun, setup.tcp_offload, setup.udp_offload),
            setup.lane,
            setup.lanes,
        )
        for descriptor, family in ((setup.udp4, socket.AF_INET), (setup.udp6, socket.AF_INET6)):
            sock = udp_socket(descriptor, family)
            if sock is not None:
                self.core.sockets[sock.fileno()] = sock
        self._cipher = cipher.named(setup.cipher)
        self.core.numbered = self._cipher.numbered
        self.core.invalid_tag = self._cipher.refused
        self._rules = _Rules(table)

    def descriptors(self) -> list[int]:
        return list(self.core.sockets)

    def apply(self, message: ToWorker) -> None:
        core = self.core
        match message:
            case Relayed(datagrams, host, port):
                now_ns = time.monotonic_ns()
                source = (host, port) if host else None
                for datagram in datagrams:
                    if datagram:
                        core.receive(datagram, len(datagram), source, now_ns)
            case AddPeer(slot):
                core.add_peer(slot)
            case RemovePeer(slot):
                core.remove_peer(slot)
            case Routes(slot, add, remove):
                core.routes.change(slot, add, remove)
            case ReceiveSession(slot, session, key, expires_ns, confirm):
                core.add_session(slot, session, self._cipher.unseal(key), expires_ns, confirm)
            case EndSession(_, session):
                core.end_session(session)
            case OpenQuic(slot, line, secrets, cids, expected):
                core.set_line(slot, line, self._line(slot, line, secrets, cids, expected))
            case FilterRules():
                ready = self._rules.add(message)
                if ready is not None:
                    core.set_filter(ready)
            case Jail(slot, jailed):
                core.set_jailed(slot, jailed)
            case _:
                raise ValueError(f"not for the inbound plane: {type(message).__name__}")

    def _line(
        self, slot: int, line: int, secrets: tuple[int, bytes, bytes, bytes, int], cids: list[bytes], expected: int
    ) -> OpeningLine | None:
        if not cids:
            return None
        from gw.quic.protection import Secrets, keys_of  # only where there is QUIC

        return OpeningLine(slot, line, keys_of(Secrets(*secrets), sealing=False), cids, expected)

    def tell(self) -> None:
        core, sender = self.core, self.sender
        if core.early:  # of a session that the engine may be just telling of
            listen(self._link, self)
            core.retry()
        core.flush()  # of those, and of what came by way of the engine
        sender.flush()
        if core.notes:
            for kind, slot, detail in core.notes:
                sender.control(Note(kind, slot, detail))
            core.notes = []
        if core.heard:
            for slot, source in core.heard:
                sender.control(Heard(slot, "", 0) if source is None else Heard(slot, source[0], source[1]))
            core.heard = []
        if core.tsmp:
            for slot, packet in core.tsmp:
                sender.bulk(Tsmp(slot, packet))
            core.tsmp = []
        if core.rejected:
            for slot, head in core.rejected:
                sender.bulk(Rejected(slot, head))
            core.rejected = []
        if core.foreign:
            found = core.foreign
            for at in range(0, len(found), FOREIGN_BATCH):
                batch = [(data, source[0], source[1]) for data, source in found[at : at + FOREIGN_BATCH]]
                sender.bulk(Foreign(batch))
            core.foreign = []
        if core.opened:
            core.opened = [line for line in core.opened if not self._tell_opened(line)]
        if core.quic:
            trains: list[tuple[bytes, int, str, int]] = []
            size = 0
            for train, segment, source in core.quic:
                trains.append((train, segment, source[0], source[1]))
                size += len(train)
                if size > QUIC_BYTES:
                    sender.bulk(Quic(trains))
                    trains, size = [], 0
            if trains:
                sender.bulk(Quic(trains))
            core.quic = []

    def _tell_opened(self, line: OpeningLine) -> bool:
        """Whether the engine could be told. Else frames are lost, as on any path, and the books wait."""
        sender, frames, line.frames = self.sender, line.frames, []
        line.acks = line.acks[-MAX_ACKS:]  # each tells what those before it did
        line.runs = line.runs[-MAX_RUNS:]
        if sender.is_behind:
            return False
        host, port = ("", 0) if line.source is None else (line.source[0], line.source[1])
        sender.control(QuicOpened(line.slot, line.number, line.count, [], line.runs, line.acks, host, port))
        line.count, line.runs, line.acks, line.source = 0, [], [], None
        batch: list[bytes] = []
        size = 0
        for frame in frames:
            if batch and (len(batch) == FOREIGN_BATCH or size + len(frame) > QUIC_BYTES):
                sender.bulk(QuicOpened(line.slot, line.number, 0, batch, [], [], "", 0))
                batch, size = [], 0
            batch.append(frame)
            size += len(frame)
        if batch:
            sender.bulk(QuicOpened(line.slot, line.number, 0, batch, [], [], "", 0))
        return True


@final
class _Rules:
    """The next packet filter, gathered from its messages."""

    def __init__(self, table: FlowTable) -> None:
        self._table = table
        self._rules = RuleSet()
        self._local = PrefixMap()

    def add(self, message: FilterRules) -> Filter | None:
        """The whole filter when the last message is here."""
        for protocols, sources, targets in message.rules:
            self._rules.add(protocols, sources, targets)
        for network, length in message.local:
            self._local.put(network, length, 1)
        if not message.last:
            return None
        ready = Filter(self._rules, self._local, self._table)
        self._rules, self._local = RuleSet(), PrefixMap()
        return ready
