"""Whatever a machine sends through Noise is answered, and never by a fault of ours."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gw.control.desk import FrontDesk
from gw.control.fanout import Fanout
from gw.control.mapper import Mapper
from gw.control.registration import register as register_request
from gw.model.keys import MachineKey
from gw.policy.reader import read_policy
from gw.policy.starting import ALLOW_ALL_TEXT
from gw.wire.ts2021.server import Request
from tests.unit.control.conftest import MemoryStore, World

NODE, KEY, AUTH_ID = "NODE", "KEY", "hskey-authreq-" + "0" * 24  # the first two become what is good
TIMES = [
    "0001-01-01T00:00:00Z",
    "1970-01-01T00:02:03Z",
    "2031-05-02T00:00:00",
    "9999-12-31T23:59:59-14:00",
    "2031-13-01",
]
texts = st.text(max_size=20) | st.sampled_from(
    [NODE, KEY, AUTH_ID, "nodekey:" + "0" * 64, "zstd", "\0", "tag:x", *TIMES]
)
leaves = st.none() | st.booleans() | st.integers(-(1 << 65), 1 << 65) | st.floats() | texts
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=5
)


def some_of(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """An object with these fields; each is left out, as it should be, or anything."""
    return st.fixed_dictionaries(
        {},
        optional={
            name: st.integers(0, 5).flatmap(lambda dice, good=good: good if dice else values)
            for name, good in fields.items()
        },
    )


def mostly(good: dict[str, Any], **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """The same, most with what it takes to be listened to."""
    return st.tuples(some_of(**fields), st.sampled_from([good, good, good, {}])).map(lambda each: each[0] | each[1])


hostinfo = some_of(
    Hostname=texts, OS=texts, RoutableIPs=st.lists(texts, max_size=2), RequestTags=st.lists(texts, max_size=2),
    Services=st.lists(some_of(Proto=texts, Port=st.integers(0, 65535)), max_size=2),
    NetInfo=some_of(PreferredDERP=st.integers(0, 999)), sshHostKeys=st.lists(texts, max_size=2),
)  # fmt: skip
register = mostly(
    {"Version": 116, "NodeKey": NODE}, OldNodeKey=texts, Auth=some_of(AuthKey=st.just(KEY)), Followup=texts,
    Expiry=st.sampled_from(TIMES), Hostinfo=hostinfo, Ephemeral=st.booleans(), Tailnet=texts,
)  # fmt: skip
mapping = mostly(
    {"Version": 116, "NodeKey": NODE}, DiscoKey=texts, Stream=st.booleans(), OmitPeers=st.booleans(),
    ReadOnly=st.booleans(), Compress=st.just("zstd"), Endpoints=st.lists(texts, max_size=3), Hostinfo=hostinfo,
)  # fmt: skip
bodies = (
    st.tuples(st.just("/machine/register"), register.map(json.dumps))
    | st.tuples(st.just("/machine/map"), mapping.map(json.dumps))
    | st.tuples(st.just("/machine/set-dns"), some_of(Version=st.just(116), NodeKey=st.just(NODE)).map(json.dumps))
    | st.tuples(
        st.sampled_from(["/machine/register", "/machine/map", "/machine/set-dns", "/machine/ssh/action/1/to/1?x", ""])
        | st.text(max_size=30).map("/machine/ssh/action/{}".format),
        st.text(max_size=30) | values.map(json.dumps),
    )
)


class Edge:
    """Keeps what was answered, by stream."""

    def __init__(self) -> None:
        self.answered: dict[int, int] = {}

    def reply(self, connection: int, stream: int, status: int, body: bytes, content_type: str) -> None:
        self.answered[stream] = status

    def open(self, connection: int, stream: int, number: int, compress: bool) -> None:
        self.answered[stream] = 200

    def deliver(self, message: bytes, numbers: Iterable[int], *, is_whole: bool) -> None:
        json.loads(message)

    def end(self, number: int) -> None: ...

    def is_full(self) -> bool:
        return False


@settings(max_examples=80)
@given(st.lists(bodies, min_size=1, max_size=8), st.sampled_from(["POST", "POST", "POST", "GET"]))
def test_every_request_is_answered_and_none_by_a_fault(requests: list[tuple[str, str]], method: str) -> None:
    asyncio.run(asked(requests, method))


async def asked(requests: list[tuple[str, str]], method: str) -> None:
    world = World(MemoryStore(), read_policy(ALLOW_ALL_TEXT.encode()))
    key, machine = await world.key(reusable=True), world.fresh("mkey:")
    node_key = world.fresh("nodekey:")
    fanout = Fanout(world.tailnet, Mapper(world.tailnet))
    world.tailnet.subscribe(fanout.take)
    tasks: set[asyncio.Task[None]] = set()
    desk, edge = FrontDesk(world.tailnet, fanout, tasks.add), Edge()
    first = world.request(key, node_key=node_key)
    assert (await register_request(world.tailnet, MachineKey.parse(machine), first)).machine_authorized
    for stream, (path, text) in enumerate(requests, 1):
        body = text.replace(NODE, node_key).replace(KEY, key).encode(errors="surrogatepass")
        desk.ask(edge, 1, machine, Request(stream, method, path, body))
        await asyncio.sleep(0)
    for _ in range(200):
        if len(edge.answered) == len(requests):
            break
        await asyncio.sleep(0.002)
    waiting = {task for task in tasks if not task.done()}  # for a verdict, which nobody gives here
    faults = {stream: status for stream, status in edge.answered.items() if status >= 500 and status != 501}
    assert not faults, [requests[stream - 1] for stream in faults]
    assert len(edge.answered) + len(waiting) == len(requests)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    fanout.close_all()
