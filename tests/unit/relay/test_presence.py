"""Who is in the region, and what is remembered of who was."""

from __future__ import annotations

from gw.model.addresses import AddrPort
from gw.native.relaying import Port, Switch
from gw.relay.presence import MIN_LEFT, Presence

ANYWHERE = AddrPort("192.0.2.1", 1)


class Carrier:
    """Implements `Owner`, and is never asked for anything."""

    drained = 0

    def flush(self) -> None: ...

    def close(self) -> None: ...


def client(presence: Presence, key: bytes) -> Port:
    port = Port(Carrier())
    port.key = key
    presence.enter(port, ANYWHERE, 1)
    return port


def test_whom_packets_reached_is_forgotten_after_it_left() -> None:
    """One source that talks to ever new clients kept an entry for each of them until it left itself."""
    switch = Switch()
    presence = Presence(switch)
    source, stays = client(presence, b"s" * 32), client(presence, b"t" * 32)
    switch.forward(source, stays.key, b"x")
    for number in range(20 * MIN_LEFT):
        port = client(presence, number.to_bytes(32, "big"))
        switch.forward(source, port.key, b"x")
        presence.leave(port)
        assert len(switch.reached[source.key]) <= MIN_LEFT + 2
    assert stays.key in switch.reached[source.key]
    back = client(presence, port.key)  # the last one that got something comes back
    switch.forward(source, back.key, b"x")
    assert back.key in switch.reached[source.key]
    presence.leave(source)
    for who in (stays, back):
        assert any(frame[:1] == b"\x08" and source.key in frame for frame in who.out)  # told who left, as ever
    assert source.key not in switch.reached
