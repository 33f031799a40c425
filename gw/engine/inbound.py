"""The inbound packet worker's process: `gw.native.inbound` between UDP, TUN and the engine."""

from __future__ import annotations

import select
import socket
import time
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from gw.engine.link import (
    MESSAGE_BYTES,
    AddPeer,
    EndSession,
    FilterRules,
    Foreign,
    Heard,
    Note,
    ReceiveSession,
    Relayed,
    RemovePeer,
    Routes,
    Sender,
    ToWorker,
    Tsmp,
    read_to_worker,
)
from gw.engine.worker import read_setup, share, udp_socket
from gw.native.coalesce import Coalescer
from gw.native.filter import Filter, Rule
from gw.native.flows import FlowTable
from gw.native.inbound import Inbound
from gw.native.prefixes import PrefixMap

ROUNDS: Final = 8  # reads of a socket before the engine is listened to again
FOREIGN_BATCH: Final = 64


def main() -> None:
    setup = read_setup()
    counters, flows = share(setup)
    table = FlowTable(flows)
    link = socket.socket(fileno=setup.link)
    sockets: dict[int, socket.socket] = {}
    for descriptor, family in ((setup.udp4, socket.AF_INET), (setup.udp6, socket.AF_INET6)):
        sock = udp_socket(descriptor, family)
        if sock is not None:
            sockets[descriptor] = sock
    core = Inbound(
        counters,
        Filter([], PrefixMap(), table),
        Coalescer(setup.tun, setup.tcp_offload, setup.udp_offload),
    )
    core.invalid_tag = InvalidTag
    rules = _Rules(table)
    sender = Sender(link)
    poller = select.poll()
    for descriptor in sockets:
        poller.register(descriptor, select.POLLIN)
    poller.register(link, select.POLLIN)
    while True:
        ready = [descriptor for descriptor, _events in poller.poll(50 if sender.is_behind else None)]
        # the engine first: a datagram may be of a session that it is just telling of
        if setup.link in ready and not _listen(link, core, rules):
            return
        for descriptor in ready:
            sock = sockets.get(descriptor)
            if sock is not None:
                core.pump(sock, ROUNDS)
        if core.early:
            if not _listen(link, core, rules):
                return
            core.retry()
        core.flush()
        _tell(core, sender)


def _listen(link: socket.socket, core: Inbound, rules: _Rules) -> bool:
    """Do what the engine says; False when it is gone."""
    while True:
        try:
            raw = link.recv(MESSAGE_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not raw:
            return False
        _apply(read_to_worker(raw), core, rules)


def _apply(message: ToWorker, core: Inbound, rules: _Rules) -> None:
    match message:
        case Relayed(datagrams):
            now_ns = time.monotonic_ns()
            for datagram in datagrams:
                if datagram:
                    core.receive(datagram, len(datagram), None, now_ns)
        case AddPeer(slot):
            core.add_peer(slot)
        case RemovePeer(slot):
            core.remove_peer(slot)
        case Routes(slot, add, remove):
            for network, length in remove:
                core.routes.take(network, length, slot)
            for network, length in add:
                core.routes.put(network, length, slot)
        case ReceiveSession(slot, session, key, expires_ns, confirm):
            core.add_session(slot, session, ChaCha20Poly1305(key).decrypt, expires_ns, confirm)
        case EndSession(_, session):
            core.end_session(session)
        case FilterRules():
            ready = rules.add(message)
            if ready is not None:
                core.filter = ready
        case _:
            raise ValueError(f"not for the inbound worker: {type(message).__name__}")


class _Rules:
    """The next packet filter, gathered from its messages."""

    def __init__(self, table: FlowTable) -> None:
        self._table = table
        self._rules: list[Rule] = []
        self._local = PrefixMap()

    def add(self, message: FilterRules) -> Filter | None:
        """The whole filter when the last message is here."""
        number = int.from_bytes
        for protocols, sources, targets in message.rules:
            self._rules.append(
                Rule(
                    protocols,
                    [(v6, number(first, "big"), number(last, "big")) for v6, first, last in sources],
                    [
                        (v6, number(first, "big"), number(last, "big"), low, high)
                        for v6, first, last, low, high in targets
                    ],
                )
            )
        for network, length in message.local:
            self._local.put(network, length, 1)
        if not message.last:
            return None
        ready = Filter(self._rules, self._local, self._table)
        self._rules, self._local = [], PrefixMap()
        return ready


def _tell(core: Inbound, sender: Sender) -> None:
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
    if core.foreign:
        found = core.foreign
        for at in range(0, len(found), FOREIGN_BATCH):
            sender.bulk(Foreign([(data, source[0], source[1]) for data, source in found[at : at + FOREIGN_BATCH]]))
        core.foreign = []


if __name__ == "__main__":
    main()
