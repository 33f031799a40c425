"""A relay on a host with several addresses: who asks one of them is answered from that one, STUN and QUIC alike.

127.0.0.1 ──▶ 127.0.0.2 of a relay that is bound to every address; left to itself the kernel answers from 127.0.0.1
"""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from gw.model.derpmap import DERPMap
from gw.net.trains import TrainSocket
from gw.wire import stun

from .scripts import free_port
from .test_relay_mesh import Relay, stopped
from .test_relay_quic import QuicEnd


@pytest.mark.parametrize("quic", ["quic = true", "quic = false"])
def test_stun_is_answered_from_where_it_was_asked(tmp_path: Path, quic: str) -> None:
    udp = free_port()
    relay = Relay(tmp_path, "a", free_port())
    relay.state.mkdir()
    (relay.state / "config.toml").write_text(f'server_url = "http://127.0.0.1:1"\n[relay]\n{quic}\n')
    with stopped([relay]), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        relay.start("--stun", f"0.0.0.0:{udp}")
        asking.settimeout(20)
        asking.bind(("127.0.0.1", 0))
        for host in ("127.0.0.2", "127.0.0.1", "127.0.0.3"):
            asking.sendto(stun.encode_request(b"t" * 12), (host, udp))
            answer, source = asking.recvfrom(2048)
            assert stun.decode_answer(answer)[0] == b"t" * 12
            assert source == (host, udp)


@pytest.mark.parametrize("everywhere", ["0.0.0.0", "[::]"])
async def test_quic_is_answered_from_where_it_was_asked(tmp_path: Path, everywhere: str) -> None:
    udp = free_port()
    relay = Relay(tmp_path, "a", free_port())
    ann, bob = QuicEnd(), QuicEnd()
    with stopped([relay]):
        relay.start("--stun", f"{everywhere}:{udp}")
        node = relay.node()
        region = {"ipv4": "127.0.0.2", "quic_port": udp}
        async with ann.pool, bob.pool:
            for end in (ann, bob):
                end.pool.set_map(_map(node, region))
                end.pool.set_home(1)
            for end in (ann, bob):
                await end.over("quic")
            await bob.got_from(ann, b"\x04" + bytes(1200))
            await ann.got_from(bob, b"\x04" + bytes(1200))


def _map(node: object, changes: dict[str, object]) -> DERPMap:
    import msgspec

    from gw.model.derpmap import DERPNode, DERPRegion

    assert isinstance(node, DERPNode)
    changed = msgspec.structs.replace(node, **changes)
    return DERPMap(regions={1: DERPRegion(region_id=1, region_code="one", nodes=[changed])})


def test_a_socket_with_one_address_asks_nothing_of_the_kernel() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
        bound.bind(("127.0.0.1", 0))
        trains = TrainSocket(bound)
        trains.answer_from_where_asked()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.sendto(b"x", bound.getsockname())
        bound.setblocking(True)
        assert type(trains.receive()[2]) is tuple


@pytest.mark.parametrize("count", [1, 5])
def test_a_train_leaves_from_where_it_was_asked(count: int) -> None:
    """With UDP_SEGMENT in the same call."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
    ):
        bound.bind(("0.0.0.0", 0))
        other.bind(("127.0.0.1", 0))
        other.settimeout(20)
        trains = TrainSocket(bound)
        trains.answer_from_where_asked()
        other.sendto(b"x", ("127.0.0.7", bound.getsockname()[1]))
        bound.setblocking(True)
        _, _, source = trains.receive()
        assert trains.send([(b"y" * 50, 50, source)] * count) == 0
        trains.send_train(b"y" * 50 * count, 50, source)
        for _ in range(2 * count):
            answer, where = other.recvfrom(100)
            assert (answer, where[0]) == (b"y" * 50, "127.0.0.7")
