"""A relay without sockets: its reception, and clients of our own on it."""

from __future__ import annotations

from gw.model.addresses import AddrPort
from gw.model.keys import NodeKey, NodeSecret, RelaySecret
from gw.native.relaying import Port, Switch
from gw.relay.admission import Admission
from gw.relay.link import LinkSession
from gw.relay.presence import Presence
from gw.relay.session import Offer, Reception, Session
from gw.wire.derp import client as c
from gw.wire.derp.handshake import RelayIdentity
from gw.wire.x25519 import clamp, public_key

UPGRADE = b"GET /derp HTTP/1.1\r\nHost: x\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n"
MESH_KEY = "ab" * 32
SIBLING_KEY = "cd" * 32


class House:
    """One relay process. `turn` moves bytes between all its ends until nothing is left to move."""

    def __init__(self, number: int = 0x77) -> None:
        self.verdict = Admission.ALLOWED
        self.reception = Reception(
            identity=RelayIdentity(RelaySecret(clamp(bytes([number]) * 32))),
            presence=Presence(Switch()),
            admit=lambda node, source: self.verdict,
            nonce=lambda: bytes(24),
            mesh_key=MESH_KEY,
            sibling_key=SIBLING_KEY,
        )
        self.secret = NodeSecret(clamp(bytes([number]) * 32))

    @property
    def switch(self) -> Switch:
        return self.reception.switch

    @property
    def presence(self) -> Presence:
        return self.reception.presence


class End:
    """The relay's side of one connection; implements Owner. `down` is what it wrote and nobody took yet."""

    def __init__(self, house: House, source: str = "192.0.2.1") -> None:
        self.house = house
        self.down = b""
        self.drained = 0
        self.is_stuck = False
        self.must_be_closed = False
        self.session = Session(house.reception, self, AddrPort(source, 1), 0.0, Offer())

    @property
    def port(self) -> Port:
        return self.session.port

    def flush(self) -> None:
        if self.is_stuck:
            self.house.switch.set_aside(self.port)
            return
        data = self.session.take()
        self.down += data
        self.drained += len(data)
        self.house.switch.taken(self.port)

    def close(self) -> None:
        self.must_be_closed = True

    def unstick(self) -> None:
        self.is_stuck = False
        self.house.switch.taken(self.port)


class Guest:
    """A client of ours on a relay."""

    def __init__(self, house: House, number: int, *, fast: bool = False, instance: bytes = b"") -> None:
        self.secret = NodeSecret(clamp(bytes([number]) * 32))
        self.key = NodeKey(public_key(self.secret.raw))
        self.house = house
        self.end = End(house)
        self.end.session.feed(UPGRADE + (b"Derp-Fast-Start: 1\r\n\r\n" if fast else b"\r\n"), 0.0)
        relay_key = house.reception.identity.key if fast else b""
        self.client = c.Client(self.secret, bytes(24), relay_key=relay_key, instance=instance)
        self.events: list[c.Event] = []
        self.is_http = not fast
        settle(house, self)

    @property
    def packets(self) -> list[tuple[NodeKey, bytes]]:
        return [(event.source, event.packet) for event in self.events if isinstance(event, c.Received)]

    def send(self, to: NodeKey, *packets: bytes) -> None:
        self.client.send(to, list(packets))
        settle(self.house, self)

    def move(self) -> bool:
        down, self.end.down = self.end.down, b""
        moved = bool(down)
        if self.is_http and down:
            assert down.startswith(b"HTTP/1.1 101 ")
            down = down.partition(b"\r\n\r\n")[2]
            self.is_http = False
        self.events += self.client.feed(down)
        up = self.client.data_to_send()
        if up:
            self.end.session.feed(up, 0.0)
        return moved or bool(up)

    def leave(self) -> None:
        self.end.session.leave()
        flush(self.house)


class Cable:
    """A link from one house to another: `own` dials, `other` accepts."""

    def __init__(self, own: House, other: House, *, is_sibling: bool = False) -> None:
        self.own, self.other = own, other
        self.far = End(other)
        self.near_down = b""
        self.failures: list[str] = []
        self.session = LinkSession(
            own.presence, self, own.secret, bytes(24), SIBLING_KEY if is_sibling else MESH_KEY, "x",
            own_key=b"" if is_sibling else own.reception.identity.key, connected=lambda: None,
            failed=self.failures.append,
        )  # fmt: skip
        settle(own, other, self)

    def flush(self) -> None:
        self.near_down += self.session.take()
        self.own.switch.taken(self.session.port)

    def close(self) -> None: ...

    def move(self) -> bool:
        up, self.near_down = self.near_down, b""
        down, self.far.down = self.far.down, b""
        if up:
            self.far.session.feed(up, 0.0)
        if down:
            self.session.feed(down, 0.0)
        return bool(up or down)

    def cut(self) -> None:
        self.session.leave()
        self.far.session.leave()
        flush(self.own)
        flush(self.other)


def flush(house: House) -> None:
    switch = house.switch
    while switch.dirty:
        for port in switch.clear_dirty():
            if not port.is_closed:
                port.owner.flush()  # type: ignore[attr-defined]


def settle(*things: House | Guest | Cable) -> None:
    """Let everything written arrive."""
    houses = {thing for thing in things if isinstance(thing, House)}
    houses |= {thing.house for thing in things if isinstance(thing, Guest)}
    for _ in range(50):
        for house in houses:
            flush(house)
        moved = [thing.move() for thing in things if not isinstance(thing, House)]
        if not any(moved):
            return
    raise AssertionError("it never settles")
