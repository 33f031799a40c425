"""Who is in the region: keys of our own clients, of other workers and of other relays, and who has to hear of it.

    enter, leave        our own connections           ─▶  Switch.local      one active connection a key
    learn, unlearn      what links tell               ─▶  Switch.remote     a worker of ours before another relay,
                                                                            the relay where the client came last,
                                                                            QUIC before TLS
    watchers            siblings hear of our own keys, other relays of those of all workers

Of several connections with one key the last that spoke receives, also where they are at different workers. The others
are told, unless they are those of the same process, which moves from one transport to another.

Ref: tailscale derp/derpserver/derpserver.go registerClient, AddPacketForwarder, broadcastPeerStateChangeLocked
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final, final

from gw.model.addresses import AddrPort
from gw.native.relaying import Port, Switch
from gw.wire.derp import frames

DUPLICATE: Final = "another client uses the same node key: only the one that spoke last receives"

MIN_LEFT: Final = 256
FLOOD_S: Final = 1.0  # how long a new link may take to tell all that it has


@final
class Presence:
    """All keys of the region as one process knows them."""

    def __init__(self, switch: Switch, clock: Callable[[], float] = time.monotonic) -> None:
        self.switch: Final = switch
        self._clock = clock
        self.holders: dict[bytes, list[Port]] = {}
        self._about: dict[bytes, tuple[AddrPort, int, float]] = {}  # with when its newest connection came
        self._sources: dict[bytes, list[Port]] = {}  # links that announce a key, in the order of `_rank`
        self._keys_of: dict[Port, dict[bytes, float]] = {}  # → when the client came there, by our clock
        self._began: dict[Port, float] = {}  # links, with when they announced their first key
        self._instances: dict[Port, bytes] = {}  # whose process said which it is; empty: it is about to
        self.sibling_watchers: set[Port] = set()
        self.mesh_watchers: set[Port] = set()
        self.duplicates = 0
        self._left = 0  # keys, since it was last forgotten whom packets had reached

    # Our own connections

    def enter(self, port: Port, address: AddrPort, flags: int, instance: bytes | None = None) -> None:
        """A client was admitted: from now on it receives what is for its key.

        instance: what all connections of its process say; empty where `identify` follows; None where it says nothing.
        """
        if instance is not None:
            self._instances[port] = instance
        others = self.holders.setdefault(port.key, [])
        others.append(port)
        self._about[port.key] = address, flags, self._clock()
        rivals = self._rivals(port)
        if rivals:
            self.duplicates += 1
            self._warn([each for each in rivals if each.is_active])
        self._activate(port)
        self._announce_to_siblings(port.key)
        self._announce_to_mesh(port.key)  # also where it was here before: it may have been elsewhere meanwhile

    def identify(self, port: Port, instance: bytes) -> None:
        """A client that came in before says which process it is."""
        if port.is_closed or self._instances.get(port) != b"":
            return
        self._instances[port] = instance
        rivals = self._rivals(port)
        if rivals:
            self.duplicates += 1
            self._warn(rivals if port.is_active else [port])

    def spoke(self, port: Port) -> None:
        """A connection that is not the active one of its key sent something: it is now."""
        if port.is_closed or port.is_active or not port.key:
            return
        was_elsewhere = port.key not in self.switch.local
        self._warn([each for each in self._rivals(port) if each.is_active])
        self._activate(port)
        if was_elsewhere:
            self._announce_to_siblings(port.key)

    def leave(self, port: Port) -> None:
        """A connection is gone. Who got packets from its key hears of it when nobody has the key any more."""
        if port.is_closed:
            return
        port.is_closed = True
        self._instances.pop(port, None)
        self.sibling_watchers.discard(port)
        self.mesh_watchers.discard(port)
        self._forget_link(port)
        others = self.holders.get(port.key)
        if others is None or port not in others:
            return
        others.remove(port)
        if others:
            if port.is_active:
                self._activate(others[-1])
            if len(others) == 1:
                self.switch.push(others[0], frames.encode(frames.HEALTH, b""))  # the conflict is over
            return
        del self.holders[port.key]
        del self._about[port.key]
        if port.is_active:
            self.switch.local.pop(port.key, None)
        port.is_active = False
        gone = frames.encode(frames.PEER_GONE, port.key + bytes([frames.GONE_DISCONNECTED]))
        self._tell(self.sibling_watchers, gone)
        if not self.is_here(port.key):
            self._tell(self.mesh_watchers, gone)
        self._if_gone(port.key)
        self._left += 1
        if self._left > max(MIN_LEFT, len(self.holders)):
            self._left = 0
            self._forget_who_left()

    def _forget_who_left(self) -> None:
        """Of those whom packets reached. As many left as are here now, so that each pays a small share of the look."""
        reached, local = self.switch.reached, self.switch.local
        for source, known in list(reached.items()):
            here = {key for key in known if key in local}
            if here:
                reached[source] = here
            else:
                del reached[source]
            port = local.get(source)
            if port is not None:
                port.last_destination = b""  # the next packet is noted again, whoever it is for
        self._note_again()

    def _note_again(self) -> None:
        """Links forget whose packet they brought last."""
        for link in self._keys_of:
            link.last_source = b""
        for port in (*self.sibling_watchers, *self.mesh_watchers):
            port.last_source = b""

    def strike(self, port: Port) -> None:
        """A connection is gone, and `leave` may have met a defect: at least nothing is given to it any more."""
        port.is_closed, port.is_active = True, False
        if self.switch.local.get(port.key) is port:
            del self.switch.local[port.key]
        for watchers in (self.sibling_watchers, self.mesh_watchers):
            watchers.discard(port)

    def ports_of(self, key: bytes) -> list[Port]:
        """Our own connections of a key."""
        return list(self.holders.get(key, ()))

    def _activate(self, port: Port) -> None:
        for other in self.holders[port.key]:
            other.is_active = False
        port.is_active = True
        self.switch.local[port.key] = port

    def _rivals(self, port: Port) -> list[Port]:
        """The other connections of its key that are not known to be of the same process."""
        own = self._instances.get(port)
        rivals = []
        for other in self.holders[port.key]:
            instance = self._instances.get(other)
            if other is not port and b"" not in (own, instance) and (own is None or own != instance):
                rivals.append(other)
        return rivals

    def _warn(self, losing: list[Port]) -> None:
        for port in losing:
            if not port.is_blocked:
                self.switch.push(port, frames.encode(frames.HEALTH, DUPLICATE.encode()))

    # Links to other workers and relays

    def learn(self, link: Port, key: bytes, age_s: float | None = None) -> None:
        """A link announces a key. age_s: how long its client has been there.

        A stock relay does not tell that: it has just come, unless the link is new, which tells all that it has.
        """
        now = self._clock()
        known = self._keys_of.setdefault(link, {})
        sources = self._sources.setdefault(key, [])
        if age_s is None:
            age_s = 0.0 if now - self._began.setdefault(link, now) > FLOOD_S else now
        if key in known and not link.is_sibling:
            sources.remove(link)
        known[key] = now - age_s
        if link not in sources:
            sources.insert(0, link)
            sources.sort(key=self._rank(key, sources))
            self.switch.remote[key] = sources[0]
        if link.is_sibling:
            active = self.switch.local.pop(key, None)
            if active is not None:  # the newest connection is there; ours comes back when it speaks
                active.is_active = False
            self._announce_to_mesh(key)

    def _rank(self, key: bytes, sources: list[Port]) -> Callable[[Port], tuple[bool, float, bool]]:
        """The order of links: to workers, the newest announcement first; to the relay where the client came last."""
        came: dict[bytes, float] = {}  # by relay: two links to one tell nearly the same
        for each in sources:
            came[each.relay] = max(came.get(each.relay, 0.0), self._keys_of[each][key])
        return lambda link: (
            not link.is_sibling, 0.0 if link.is_sibling else -came[link.relay], not link.is_quic,
        )  # fmt: skip

    def unlearn(self, link: Port, key: bytes) -> None:
        """A link says that a key has gone."""
        known = self._keys_of.get(link)
        if known is not None and key in known:
            del known[key]
            self._lose(link, key)

    def links(self) -> Iterator[Port]:
        yield from self._keys_of

    @property
    def remote_keys(self) -> int:
        return len(self._sources)

    def _forget_link(self, link: Port) -> None:
        self._began.pop(link, None)
        for key in self._keys_of.pop(link, {}):
            self._lose(link, key)

    def _lose(self, link: Port, key: bytes) -> None:
        sources = self._sources[key]
        sources.remove(link)
        if sources:
            self.switch.remote[key] = sources[0]
        else:
            del self._sources[key], self.switch.remote[key]
        if not link.is_sibling:
            self._if_gone(key)
            return
        held = self.holders.get(key)
        if held and key not in self.switch.local and not (sources and sources[0].is_sibling):
            self._activate(held[-1])
        if not self.is_here(key):
            self._tell(self.mesh_watchers, frames.encode(frames.PEER_GONE, key + bytes([frames.GONE_DISCONNECTED])))
        self._if_gone(key)

    def _if_gone(self, key: bytes) -> None:
        """Tell those who heard from a key that it left the region."""
        if key in self.holders or key in self._sources:
            return
        self._note_again()
        for reached in self.switch.reached.pop(key, ()):
            peer = self.switch.local.get(reached)
            if peer is not None:
                self.switch.push(peer, frames.encode(frames.PEER_GONE, key + bytes([frames.GONE_DISCONNECTED])))

    # Watchers

    def watch(self, port: Port) -> None:
        """A worker or relay wants to hear of keys: those that are here now, then every change."""
        watchers = self.sibling_watchers if port.is_sibling else self.mesh_watchers
        if port in watchers or port.is_closed:
            return
        watchers.add(port)
        keys = {key for key in self.switch.local if key in self.holders}  # not the relay's own
        if not port.is_sibling:
            keys |= {key for key, sources in self._sources.items() if sources[0].is_sibling} | set(self.holders)
        for key in keys:
            self.switch.push(port, self._present(key))

    def is_here(self, key: bytes) -> bool:
        """Whether a worker of this relay has the key."""
        sources = self._sources.get(key)
        return bool(self.holders.get(key)) or (sources is not None and sources[0].is_sibling)

    def _present(self, key: bytes) -> bytes:
        came = [self._keys_of[link][key] for link in self._sources.get(key, ()) if link.is_sibling]
        address, flags, ours = self._about.get(key, (AddrPort("0.0.0.0", 0), frames.PRESENT_REGULAR, 0.0))  # noqa: S104
        return frames.encode_present(key, address, flags, self._clock() - max(ours, *came, 0.0))

    def _announce_to_siblings(self, key: bytes) -> None:
        if self.sibling_watchers:
            self._tell(self.sibling_watchers, self._present(key))

    def _announce_to_mesh(self, key: bytes) -> None:
        if self.mesh_watchers:
            self._tell(self.mesh_watchers, self._present(key))

    def _tell(self, watchers: set[Port], frame: bytes) -> None:
        for port in watchers:
            self.switch.push(port, frame)
