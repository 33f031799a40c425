"""The session's state machine against a control server that answers from a script, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from gw.errors import AuthRequired, GwError, TimedOut
from gw.model.addresses import AddrPort
from gw.model.gojson import decoder, encode
from gw.model.hostinfo import Hostinfo, NetInfo
from gw.model.keys import DiscoKey
from gw.model.mapping import EndpointType, MapRequest, MapResponse
from gw.model.node import Node
from gw.model.registration import ZERO_NODE_KEY, RegisterRequest, RegisterResponse
from gw.node.control import NodeUnknown
from gw.node.identity import Identity
from gw.node.netmap import Netmap, NetmapChange
from gw.node.session import ControlSession, State

from .virtualtime import run

WALL = datetime(2030, 1, 1, tzinfo=UTC)
URL = "http://control/register/one"
IN = RegisterResponse(machine_authorized=True)
EXPIRED = RegisterResponse(node_key_expired=True)
ENDPOINT = AddrPort("192.0.2.7", 41641)

copy_register = decoder(RegisterRequest)
copy_map = decoder(MapRequest)


def first(**fields: Any) -> MapResponse:
    return MapResponse(node=Node(id=1, key="nodekey:1", machine_authorized=True, **fields))


class Control:
    """A server that answers each register from `answers` (the last one for ever) and streams what `maps` holds.

    A map is a list of messages; a float among them is a pause, an exception is raised; after the list the stream ends.
    An empty `maps` makes streams that stay open. Requests are kept as they were when sent.
    """

    def __init__(self) -> None:
        self.answers: list[RegisterResponse | GwError | float] = [IN]
        self.maps: list[list[MapResponse | float | GwError]] = []
        self.update_errors: list[GwError] = []
        self.registered: list[tuple[float, RegisterRequest]] = []
        self.streams: list[tuple[float, MapRequest]] = []
        self.updates: list[tuple[float, MapRequest]] = []
        self.open_streams = 0

    async def register(self, request: RegisterRequest) -> RegisterResponse:
        self.registered.append((now(), copy_register(encode(request))))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        while isinstance(answer, float):
            await asyncio.sleep(answer)
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, GwError):
            raise answer
        return answer

    async def map_stream(self, request: MapRequest) -> AsyncGenerator[MapResponse, None]:
        self.streams.append((now(), copy_map(encode(request))))
        self.open_streams += 1
        try:
            for step in self.maps.pop(0) if self.maps else [first(), 1e6]:
                if isinstance(step, float):
                    await asyncio.sleep(step)
                elif isinstance(step, GwError):
                    raise step
                else:
                    yield step
        finally:
            self.open_streams -= 1

    async def update(self, request: MapRequest) -> None:
        self.updates.append((now(), copy_map(encode(request))))
        if self.update_errors:
            raise self.update_errors.pop(0)

    async def close(self) -> None:
        return


class Events:
    def __init__(self) -> None:
        self.states: list[State] = []
        self.urls: list[str] = []
        self.refusals: list[str] = []
        self.problems: list[str | None] = []
        self.changes: list[NetmapChange] = []

    def state(self, state: State) -> None:
        self.states.append(state)

    def browse(self, url: str) -> None:
        self.urls.append(url)

    def refused(self, text: str) -> None:
        self.refusals.append(text)

    def netmap(self, netmap: Netmap, change: NetmapChange) -> None:
        self.changes.append(change)

    def problem(self, text: str | None) -> None:
        self.problems.append(text)


class Trial:
    """A session with everything around it."""

    def __init__(self, folder: Path) -> None:
        self.control, self.events, self.identity = Control(), Events(), Identity.load(folder / "node")

    def session(self) -> ControlSession:
        def wall() -> datetime:
            return WALL + timedelta(seconds=now())

        return ControlSession(
            self.control,
            self.identity,
            DiscoKey(b"d" * 32),
            Hostinfo(hostname="ann"),
            self.events,
            jitter=lambda: 0.5,
            wall=wall,
        )

    def run(
        self,
        *steps: tuple[float, Callable[[ControlSession], None]],
        auth_key: str = "",
        until: float = 10.0,
        **more: Any,
    ) -> bool:
        """Run for `until` virtual seconds, doing each step at its time. True when the session ended by itself."""

        async def play() -> bool:
            session = self.session()
            for at, step in steps:
                asyncio.get_running_loop().call_at(at, step, session)
            try:
                async with asyncio.timeout(until):
                    await session.run(auth_key, **more)
            except TimeoutError:
                return False
            return True

        return run(play())

    async def session_log_out(self) -> None:
        await self.session().log_out()

    @property
    def times(self) -> list[float]:
        return [round(at, 3) for at, _ in self.control.registered]

    @property
    def requests(self) -> list[RegisterRequest]:
        return [request for _, request in self.control.registered]


def now() -> float:
    return asyncio.get_running_loop().time()


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    return Trial(tmp_path)


def log_in_before(trial: Trial) -> str:
    """Make the node one that a server knows; returns its key."""
    return str(trial.identity.node_key)


# Login


def test_a_new_node_logs_in_by_its_key_and_gets_the_map(trial: Trial) -> None:
    assert not trial.run(auth_key="tskey")
    (request,) = trial.requests
    assert request.auth is not None
    assert (request.auth.auth_key, request.old_node_key) == ("tskey", ZERO_NODE_KEY)
    assert trial.events.states == [State.CONNECTING, State.CONNECTED]
    assert trial.events.changes == [NetmapChange(self_changed=True)]


def test_a_known_node_asks_without_the_key_first(trial: Trial) -> None:
    """A used one-shot key must not lock a node out after a restart."""
    log_in_before(trial)
    trial.run(auth_key="tskey")
    assert [request.auth for request in trial.requests] == [None]


def test_a_refused_key_ends_the_session_with_the_servers_words(trial: Trial) -> None:
    trial.control.answers = [RegisterResponse(error="authkey already used\x1b[2J")]
    assert trial.run(auth_key="tskey")
    assert trial.events.refusals == ["authkey already used [2J"]
    assert trial.events.states == [State.CONNECTING, State.NEEDS_LOGIN]
    assert trial.control.streams == []


def test_without_a_key_a_person_is_asked_and_waited_for(trial: Trial) -> None:
    trial.control.answers = [RegisterResponse(auth_url=URL), 500.0, IN]
    trial.run(until=600)
    assert trial.events.urls == [URL]
    assert [request.followup for request in trial.requests] == ["", URL]
    assert trial.requests[0].node_key == trial.requests[1].node_key
    assert trial.events.states == [State.CONNECTING, State.NEEDS_LOGIN, State.CONNECTED]


def test_a_login_that_the_server_forgot_gets_a_new_address_to_open(trial: Trial) -> None:
    trial.control.answers = [RegisterResponse(auth_url=URL), 5.0, RegisterResponse(auth_url="http://two"), 5.0, IN]
    trial.run(until=60)
    assert trial.events.urls == [URL, "http://two"]
    assert [request.followup for request in trial.requests] == ["", URL, "http://two"]


def test_a_follow_up_answered_at_once_is_not_repeated_in_a_hurry(trial: Trial) -> None:
    """A server that does not wait must not be asked in a tight loop."""
    trial.control.answers = [RegisterResponse(auth_url=URL)]
    trial.run(until=20.5)
    assert len(trial.requests) == 12
    assert trial.events.urls == [URL]


def test_a_broken_connection_does_not_change_the_address_to_open(trial: Trial) -> None:
    trial.control.answers = [RegisterResponse(auth_url=URL), 3.0, GwError("gone"), IN]
    trial.run()
    assert [request.followup for request in trial.requests] == ["", URL, URL]
    assert trial.events.urls == [URL, URL]
    assert trial.events.problems == ["gone", None]
    assert trial.events.states[-1] is State.CONNECTED


def test_an_expired_key_is_replaced_and_the_old_one_named(trial: Trial) -> None:
    old = log_in_before(trial)
    trial.control.answers = [EXPIRED, IN]
    trial.run(auth_key="tskey")
    asked, renewed = trial.requests
    assert (asked.node_key, renewed.old_node_key) == (old, old)
    assert renewed.node_key not in (old, ZERO_NODE_KEY)
    assert renewed.auth is not None
    assert not trial.identity.previous_key


def test_a_server_that_wants_a_new_key_for_the_login_gets_one(trial: Trial) -> None:
    """Control protocol §4.3, auth key after expiry: NodeKeyExpired means again with another node key."""
    trial.control.answers = [EXPIRED, IN]
    trial.run(auth_key="tskey")
    before, after = trial.requests
    assert after.node_key != before.node_key
    assert after.auth is not None
    assert trial.events.states[-1] is State.CONNECTED


def test_a_server_that_calls_every_key_expired_is_given_up(trial: Trial) -> None:
    trial.control.answers = [EXPIRED]
    assert trial.run()
    assert len(trial.requests) == 2
    assert trial.events.states[-1] is State.NEEDS_LOGIN


def test_a_fresh_login_takes_a_new_node_key_at_once(trial: Trial) -> None:
    old = log_in_before(trial)
    trial.run(auth_key="tskey", fresh=True)
    (request,) = trial.requests
    assert request.old_node_key == old != request.node_key
    assert request.auth is not None


def test_a_node_that_awaits_approval_shows_no_peers(trial: Trial) -> None:
    waiting = MapResponse(node=Node(id=1, key="k"), peers=[])
    trial.control.answers = [RegisterResponse()]
    trial.control.maps = [[waiting, 5.0, first(), 1e6]]
    trial.run(auth_key="tskey")
    assert trial.events.states == [State.CONNECTING, State.NEEDS_APPROVAL, State.CONNECTED]
    assert len(trial.events.changes) == 1


def test_a_logout_names_a_time_in_the_past_and_forgets_the_key(trial: Trial) -> None:
    old = log_in_before(trial)
    machine = trial.identity.machine_key
    trial.control.answers = [EXPIRED]
    run(trial.session_log_out())
    (request,) = trial.requests
    assert request.node_key == old
    assert request.expiry < datetime(1971, 1, 1, tzinfo=UTC)
    assert not trial.identity.has_node_key
    assert trial.identity.machine_key == machine


def test_a_logout_that_the_server_does_not_hear_forgets_the_key_too(trial: Trial) -> None:
    log_in_before(trial)
    trial.control.answers = [TimedOut("no answer")]
    run(trial.session_log_out())
    assert not trial.identity.has_node_key


# Connection


def test_attempts_come_ever_later_up_to_half_a_minute(trial: Trial) -> None:
    log_in_before(trial)
    trial.control.answers = [GwError("refused")]
    trial.run(until=130)
    gaps = [round(b - a, 3) for a, b in zip(trial.times, trial.times[1:], strict=False)]
    assert gaps[:8] == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6]
    assert set(gaps[8:]) == {30.0}
    assert trial.events.problems == ["refused"]
    assert trial.events.states == [State.CONNECTING]


def test_a_stream_that_lived_makes_the_next_wait_short_again(trial: Trial) -> None:
    log_in_before(trial)
    trial.control.answers = [*[GwError("refused")] * 6, IN]
    trial.control.maps = [[first(), 100.0], [first(), 1e6]]
    trial.run(until=200)
    (ended, again) = (trial.control.streams[0][0] + 100.0, trial.control.streams[1][0])
    assert again - ended == pytest.approx(0.2)


def test_the_map_is_kept_while_the_connection_is_away(trial: Trial) -> None:
    log_in_before(trial)
    peers = [Node(id=2, key="p", name="bob.")]
    whole = MapResponse(node=first().node, peers=peers)
    trial.control.maps = [[whole, 1.0, TimedOut("silent")], [whole, 1e6]]
    trial.run()
    # the second stream's map is the one we had: told all the same, for whoever waits for a map to be up
    assert trial.events.changes == [NetmapChange(self_changed=True, upserted=(2,)), NetmapChange()]
    assert trial.events.states == [State.CONNECTING, State.CONNECTED, State.CONNECTING, State.CONNECTED]
    assert trial.events.problems == ["silent", None]


def test_a_map_without_this_node_is_no_map(trial: Trial) -> None:
    """Control protocol §6.1: Node is required in the first message."""
    log_in_before(trial)
    trial.control.maps = [[MapResponse(peers=[Node(id=2)]), 1e6], [first(), 1e6]]
    trial.run()
    assert trial.events.changes == [NetmapChange(self_changed=True)]
    assert "lacks this node" in str(trial.events.problems[0])


def test_keepalives_may_carry_an_address_to_open(trial: Trial) -> None:
    log_in_before(trial)
    pop = MapResponse(keep_alive=True, pop_browser_url="http://pay")
    trial.control.maps = [[first(), pop, pop, 1e6]]
    trial.run()
    assert trial.events.urls == ["http://pay"]


def test_cancelling_closes_the_stream(trial: Trial) -> None:
    log_in_before(trial)
    trial.run()
    assert len(trial.control.streams) == 1
    assert trial.control.open_streams == 0


def test_a_key_that_expires_while_connected_needs_a_login(trial: Trial) -> None:
    """Nobody has to tell us: the map said when."""
    log_in_before(trial)
    trial.control.maps = [[first(key_expiry=WALL + timedelta(seconds=90)), 1e6]]
    assert not trial.run(until=95)
    assert trial.events.states[-1] is State.NEEDS_LOGIN
    (refusal,) = trial.events.refusals
    assert "expired" in refusal


def test_an_expiry_that_is_put_off_keeps_the_node_in(trial: Trial) -> None:
    log_in_before(trial)
    soon, later = WALL + timedelta(seconds=90), WALL + timedelta(days=1)
    trial.control.maps = [[first(key_expiry=soon), 80.0, first(key_expiry=later), 1e6]]
    assert not trial.run(until=200)
    assert trial.events.refusals == []


def test_the_server_may_expire_the_node_at_any_moment(trial: Trial) -> None:
    log_in_before(trial)
    trial.control.maps = [[first(), 3.0, first(expired=True), 1e6]]
    assert not trial.run()
    assert trial.events.states[-1] is State.NEEDS_LOGIN
    assert trial.identity.has_node_key  # the next login names it as the old one


def test_an_expired_node_that_is_extended_is_in_again_by_itself(trial: Trial) -> None:
    """As stock clients do: `gwctl nodes extend` is enough, nobody has to go to the machine."""
    log_in_before(trial)
    over, later = WALL + timedelta(seconds=5), WALL + timedelta(days=1)
    peer = MapResponse(peers_changed=[Node(id=2, key="nodekey:2")])
    trial.control.maps = [[first(key_expiry=over), 20.0, peer, 20.0, first(key_expiry=later), 1e6]]
    assert not trial.run(until=60)
    assert trial.events.states == [State.CONNECTING, State.CONNECTED, State.NEEDS_LOGIN, State.CONNECTED]
    assert len(trial.events.changes) == 2  # nothing of the map is told while it does not hold
    assert trial.events.problems[-1] is None
    assert len(trial.control.streams) == 1


def test_an_expired_node_waits_for_its_extension_over_reconnects_too(trial: Trial) -> None:
    """It does not throw its key away by asking for a login that nobody wanted."""
    log_in_before(trial)
    later = WALL + timedelta(days=1)
    trial.control.maps = [
        [first(), 3.0, first(expired=True), 3.0],
        [first(expired=True), 3.0, GwError("cut off")],
        [first(key_expiry=later), 1e6],
    ]
    key = trial.identity.node_key
    assert not trial.run(until=60)
    assert trial.events.states == [State.CONNECTING, State.CONNECTED, State.NEEDS_LOGIN, State.CONNECTED]
    assert len(trial.events.refusals) == 1
    assert len(trial.requests) == 1
    assert trial.identity.node_key == key


# What we say of ourselves


def test_the_first_request_says_nothing_of_endpoints_until_they_are_known(trial: Trial) -> None:
    """Headscale replaces its list by an empty one."""
    log_in_before(trial)
    trial.run((3.0, lambda session: session.set_endpoints([(ENDPOINT, EndpointType.STUN)])))
    (_, request) = trial.control.streams[0]
    assert (request.stream, request.keep_alive, request.compress, request.omit_peers) == (True, True, "zstd", False)
    assert request.endpoints is None
    assert request.disco_key == str(DiscoKey(b"d" * 32))
    (at, update) = trial.control.updates[-1]
    assert (update.stream, update.omit_peers) == (False, True)
    assert (update.endpoints, update.endpoint_types) == (["192.0.2.7:41641"], [2])
    assert at == pytest.approx(3.1)


def test_changes_within_a_tenth_of_a_second_are_one_update(trial: Trial) -> None:
    log_in_before(trial)
    trial.run(
        (3.0, lambda session: session.set_endpoints([(ENDPOINT, 1)])),
        (3.05, lambda session: session.set_netinfo(NetInfo(preferred_derp=900))),
        (3.09, lambda session: session.set_hostinfo(Hostinfo(hostname="bob"))),
    )
    late = [update for at, update in trial.control.updates if at > 1]
    assert len(late) == 1
    assert late[0].hostinfo == Hostinfo(hostname="bob", net_info=NetInfo(preferred_derp=900))


def test_what_did_not_really_change_is_not_told(trial: Trial) -> None:
    """A change of latencies alone would cost every peer a whole node."""
    log_in_before(trial)
    trial.run(
        (3.0, lambda s: s.set_netinfo(NetInfo(preferred_derp=900, derp_latency={"900-v4": 0.1}))),
        (4.0, lambda s: s.set_netinfo(NetInfo(preferred_derp=900, derp_latency={"900-v4": 0.2}))),
        (5.0, lambda s: s.set_hostinfo(Hostinfo(hostname="ann"))),
        (6.0, lambda s: s.set_endpoints([(ENDPOINT, 1), (AddrPort("10.0.0.1", 5), 1)])),
        (7.0, lambda s: s.set_endpoints([(AddrPort("10.0.0.1", 5), 1), (ENDPOINT, 1)])),
    )
    assert [round(at, 3) for at, _ in trial.control.updates if at > 1] == [3.1, 6.1]


def test_each_new_stream_is_told_of_us_again(trial: Trial) -> None:
    """The first update of a stream: servers of Tailscale's kind ignore what the stream's own request says."""
    log_in_before(trial)
    trial.control.maps = [[first(), 5.0], [first(), 1e6]]
    trial.run((1.0, lambda session: session.set_endpoints([(ENDPOINT, 1)])))
    assert [round(at, 3) for at, _ in trial.control.updates] == [0.1, 1.1, 5.3]
    assert [request.endpoints for _, request in trial.control.streams] == [None, ["192.0.2.7:41641"]]
    assert trial.control.updates[-1][1].endpoints == ["192.0.2.7:41641"]


def test_an_update_that_failed_is_sent_again(trial: Trial) -> None:
    log_in_before(trial)
    trial.control.update_errors = [GwError("no"), GwError("no")]
    trial.run((3.0, lambda session: session.set_endpoints([(ENDPOINT, 1)])))
    times = [round(at, 3) for at, _ in trial.control.updates]
    assert times == [0.1, 1.2, 3.3]


def test_a_deleted_node_learns_it_from_an_update_and_forgets_its_key(trial: Trial) -> None:
    """The stream stays open and silent: only the 404 of a lite update tells."""
    log_in_before(trial)
    trial.control.update_errors = [NodeUnknown("deleted")]
    assert trial.run()
    assert trial.events.states == [State.CONNECTING, State.CONNECTED, State.NEEDS_LOGIN]
    assert not trial.identity.has_node_key
    assert trial.control.open_streams == 0


def test_a_map_refused_for_an_unknown_node_needs_a_login(trial: Trial) -> None:
    log_in_before(trial)
    trial.control.maps = [[NodeUnknown("unknown")]]
    assert trial.run()
    assert trial.events.states[-1] is State.NEEDS_LOGIN


def test_a_map_that_the_server_denies_ends_the_session(trial: Trial) -> None:
    log_in_before(trial)
    trial.control.maps = [[AuthRequired("not allowed")]]
    assert trial.run()
    assert trial.events.refusals == ["not allowed"]
