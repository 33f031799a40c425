"""The outbound packet worker's process: `gw.native.outbound` between TUN, UDP and the engine."""

from __future__ import annotations

import select
import socket
from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from gw.engine.link import (
    MESSAGE_BYTES,
    AddPeer,
    DropStaged,
    EndSession,
    Inject,
    Note,
    Plan,
    RelayOut,
    RemovePeer,
    Routes,
    Sender,
    SendKeepalive,
    SendSession,
    ToWorker,
    read_to_worker,
)
from gw.engine.worker import read_setup, share, udp_socket
from gw.native.flows import FlowTable
from gw.native.outbound import Outbound

ROUNDS: Final = 16  # reads of the TUN before the engine is listened to again
RELAY_BATCH: Final = 48  # datagrams a message


def main() -> None:
    setup = read_setup()
    counters, flows = share(setup)
    link = socket.socket(fileno=setup.link)
    v4 = udp_socket(setup.udp4, socket.AF_INET)
    v6 = udp_socket(setup.udp6, socket.AF_INET6)
    core = Outbound(setup.tun, counters, FlowTable(flows), setup.mtu, setup.gso)
    sender = Sender(link)
    poller = select.poll()
    poller.register(setup.tun, select.POLLIN)
    poller.register(link, select.POLLIN)
    while True:
        ready = [descriptor for descriptor, _events in poller.poll(50 if sender.is_behind else None)]
        # the engine first: a packet may be waiting for what it has to say
        if setup.link in ready and not _listen(link, core, v4, v6):
            return
        if setup.tun in ready and core.pump(ROUNDS) == 0:
            poller.poll(1)  # an interface that is down reports ready: do not spin on it
        _tell(core, sender)


def _listen(link: socket.socket, core: Outbound, v4: socket.socket | None, v6: socket.socket | None) -> bool:
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
        _apply(read_to_worker(raw), core, v4, v6)


def _apply(message: ToWorker, core: Outbound, v4: socket.socket | None, v6: socket.socket | None) -> None:
    match message:
        case AddPeer(slot):
            core.add_peer(slot)
        case RemovePeer(slot):
            core.remove_peer(slot)
        case Routes(slot, add, remove):
            for network, length in remove:
                core.routes.take(network, length, slot)
            for network, length in add:
                core.routes.put(network, length, slot)
        case Plan(slot, host, port, relay, wake):
            sock = (v6 if ":" in host else v4) if host else None
            core.set_plan(slot, sock, (host, port) if sock is not None else None, relay, wake)
        case SendSession(slot, session, key, remote_index, expires_ns):
            core.set_session(slot, session, ChaCha20Poly1305(key).encrypt, remote_index, expires_ns)
        case EndSession(slot, session):
            core.end_session(slot, session)
        case SendKeepalive(slot):
            core.keepalive(slot)
        case DropStaged(slot):
            core.drop_staged(slot)
        case Inject(slot, packet):
            core.inject(slot, packet)
        case _:
            raise ValueError(f"not for the outbound worker: {type(message).__name__}")


def _tell(core: Outbound, sender: Sender) -> None:
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


if __name__ == "__main__":
    main()
