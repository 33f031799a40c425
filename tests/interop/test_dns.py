"""`gwdns serve` with a real directory, a real control server, and an upstream that answers, lies or dies."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rrset
import pytest

from tests.netns.namespaces import Namespaces, needs_namespaces

from .controlclient import Node
from .scripts import BIN, free_port, initialise, key, run, serving


class Upstream:
    """A name server on loopback: everything under example.com is 192.0.2.80; big.example.com only fits TCP."""

    def __init__(self) -> None:
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", 0))
        self.port = self.udp.getsockname()[1]
        self.tcp = socket.create_server(("127.0.0.1", self.port))
        self.asked: list[str] = []
        for target in (self._serve_udp, self._serve_tcp):
            threading.Thread(target=target, daemon=True).start()

    def _answer(self, raw: bytes, *, tcp: bool) -> bytes:
        query = dns.message.from_wire(raw)
        name = query.question[0].name
        self.asked.append(str(name))
        answer = dns.message.make_response(query)
        if str(name).startswith("refused."):
            answer.set_rcode(dns.rcode.REFUSED)
        elif str(name).startswith("big.") and not tcp:
            answer.flags |= dns.flags.TC
        else:
            count = 100 if str(name).startswith("big.") else 1
            answer.answer.append(
                dns.rrset.from_text(name, 300, "IN", "A", *(f"192.0.2.{80 + n}" for n in range(count)))
            )
        return answer.to_wire()

    def _serve_udp(self) -> None:
        try:
            while True:
                raw, source = self.udp.recvfrom(4096)
                if not raw:
                    return
                forged = bytearray(self._answer(raw, tcp=False))
                forged[0] ^= 1  # an answer to another question comes first
                self.udp.sendto(bytes(forged), source)
                self.udp.sendto(self._answer(raw, tcp=False), source)
        except OSError:
            return  # closed

    def _serve_tcp(self) -> None:
        while True:
            try:
                flow, _ = self.tcp.accept()
            except OSError:
                return
            with flow:
                size = int.from_bytes(flow.recv(2), "big")
                answer = self._answer(flow.recv(size), tcp=True)
                flow.sendall(len(answer).to_bytes(2, "big") + answer)

    def close(self) -> None:
        if self.tcp.fileno() >= 0:
            self.tcp.shutdown(socket.SHUT_RDWR)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
                last.sendto(b"", ("127.0.0.1", self.port))  # closing alone does not wake the reader
        self.tcp.close()
        self.udp.close()


@contextmanager
def naming(state: Path, port: int, upstreams: list[int]) -> Iterator[subprocess.Popen[bytes]]:
    """`gwdns serve` until the block ends."""
    config = state / "config.toml"
    if "[dns_server]" not in config.read_text():
        servers = ", ".join(f'"127.0.0.1:{upstream}"' for upstream in upstreams)
        config.write_text(config.read_text() + f"\n[dns_server]\nupstreams = [{servers}]\nttl = 7\n")
    with listening([str(BIN / "gwdns"), "serve", "--listen", f"127.0.0.1:{port}"], state) as server:
        yield server


@contextmanager
def listening(argv: list[str], state: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A DNS server that says that it listens; it must end soon when it is told to."""
    server = subprocess.Popen(
        argv, stderr=subprocess.PIPE, cwd="/", env={"PATH": os.environ["PATH"], "GW_STATE_DIR": str(state)}
    )
    assert server.stderr is not None
    try:
        for line in server.stderr:
            if b"listens on" in line:
                break
        yield server
    finally:
        began = time.monotonic()
        server.terminate()
        server.wait(timeout=10)
        assert time.monotonic() - began < 5
        server.stderr.close()


def ask(port: int, name: str, kind: str = "A", *, tcp: bool = False) -> dns.message.Message:
    question = dns.message.make_query(name, kind)
    send = dns.query.tcp if tcp else dns.query.udp
    return send(question, "127.0.0.1", port=port, timeout=8)


def data(answer: dns.message.Message) -> list[str]:
    return sorted(record.to_text() for rrset in answer.answer for record in rrset)


def test_names_follow_the_nodes_live_and_without_a_server(state: Path) -> None:
    control, port = int((state / "config.toml").read_text().split("127.0.0.1:")[1].split('"')[0]), free_port()
    with serving(state, control), naming(state, port, [free_port()]):
        auth = key(state, "--reusable")
        laptop = Node(control, "laptop")
        assert laptop.register(auth)["Error"] == ""
        for _ in range(100):
            if ask(port, "laptop.ghost.internal").answer:
                break
            time.sleep(0.05)
        answer = ask(port, "LapTop.ghost.internal")
        assert data(answer) == ["100.64.0.1"]
        assert answer.answer[0].ttl == 7
        assert answer.flags & dns.flags.AA
        assert data(ask(port, "laptop")) == ["100.64.0.1"]
        assert data(ask(port, "laptop.ghost.internal", "AAAA", tcp=True)) == ["fd7a:115c:a1e0::1"]
        assert data(ask(port, "1.0.64.100.in-addr.arpa", "PTR")) == ["laptop.ghost.internal."]
        assert ask(port, "laptop.ghost.internal", "MX").rcode() == dns.rcode.NOERROR
        assert ask(port, "nobody.ghost.internal").rcode() == dns.rcode.NXDOMAIN
        assert ask(port, "example.com").rcode() == dns.rcode.SERVFAIL
        assert run("gwctl", "nodes", "rename", "-i", "1", "desk", state=state).returncode == 0
        for _ in range(100):
            if ask(port, "desk.ghost.internal").answer:
                break
            time.sleep(0.05)
        assert data(ask(port, "1.0.64.100.in-addr.arpa", "PTR")) == ["desk.ghost.internal."]
        assert ask(port, "laptop.ghost.internal").rcode() == dns.rcode.NXDOMAIN
    with naming(state, port, []):  # no control server: the directory itself tells
        assert data(ask(port, "desk.ghost.internal")) == ["100.64.0.1"]


def test_the_rest_is_forwarded_and_kept_for_a_while(state: Path) -> None:
    upstream, port = Upstream(), free_port()
    try:
        with naming(state, port, [upstream.port]):
            assert data(ask(port, "www.Example.com")) == ["192.0.2.80"]
            assert data(ask(port, "www.example.com")) == ["192.0.2.80"]
            assert (
                len([name for name in upstream.asked if name.lower() == "www.example.com."]) == 2
            )  # one question, twice answered
            assert len(data(ask(port, "big.example.com", tcp=True))) == 100
            assert ask(port, "refused.example.com").rcode() == dns.rcode.REFUSED
            assert data(ask(port, "tcp.example.com", tcp=True)) == ["192.0.2.80"]
    finally:
        upstream.close()


def test_a_dead_upstream_is_waited_for_by_nobody_where_another_lives(state: Path) -> None:
    upstream, port, dead = Upstream(), free_port(), free_port()
    try:
        with naming(state, port, [dead, upstream.port]):
            began = time.monotonic()
            assert data(ask(port, "a.example.com")) == ["192.0.2.80"]
            assert time.monotonic() - began < 2
            upstream.close()
            assert ask(port, "b.example.com").rcode() == dns.rcode.SERVFAIL
    finally:
        upstream.close()


def test_nonsense_does_not_end_it(state: Path) -> None:
    port = free_port()
    with naming(state, port, []) as server:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for size in (0, 1, 11, 12, 13, 100, 5000):
                sock.sendto(os.urandom(size), ("127.0.0.1", port))
        with socket.create_connection(("127.0.0.1", port)) as flow:
            flow.sendall(b"\xff\xff" + bytes(100))
        assert ask(port, "nobody.ghost.internal").rcode() == dns.rcode.NXDOMAIN
        assert server.poll() is None


ZONE = """$TTL 300
@ IN SOA ns.example.test. admin.example.test. 1 3600 600 86400 60
@ IN NS ns.example.test.
@ IN MX 10 mail
ns IN A 192.0.2.53
www IN CNAME web
web IN A 192.0.2.80
web IN AAAA 2001:db8::80
mail IN A 192.0.2.25
* IN A 192.0.2.99
_sip._udp IN SRV 1 2 5060 web
text IN TXT "v=spf1 -all" "second string"
big IN TXT {big}
"""


@contextmanager
def bind(folder: Path, port: int, more: str) -> Iterator[None]:
    """BIND on loopback: authoritative for example.test, and whatever `more` says."""
    folder.mkdir()
    (folder / "zone").write_text(ZONE.format(big=" ".join(f'"{n:0200d}"' for n in range(12))))
    (folder / "named.conf").write_text(
        f"""options {{ directory "{folder}"; listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }};
              pid-file "{folder}/pid"; session-keyfile "{folder}/session.key"; dnssec-validation no; recursion yes;
              empty-zones-enable no; }};
            controls {{ }};
            zone "example.test" {{ type primary; file "zone"; }};
            {more}"""
    )
    (folder / "empty").write_text("$TTL 60\n@ IN SOA a. b. 1 3600 600 86400 60\n@ IN NS a.\na. IN A 192.0.2.1\n")
    server = subprocess.Popen(["named", "-g", "-c", str(folder / "named.conf")], stderr=subprocess.PIPE)
    assert server.stderr is not None
    said = []
    try:
        for line in server.stderr:
            said.append(line)
            if b"running" in line:
                break
        else:
            raise AssertionError(b"".join(said).decode())
        yield
    finally:
        server.terminate()
        server.stderr.close()
        server.wait(timeout=10)


needs_bind = pytest.mark.skipif(shutil.which("named") is None, reason="needs bind9")


@needs_bind
def test_answers_of_bind_pass_through_unchanged(state: Path, tmp_path: Path) -> None:
    theirs, port = free_port(), free_port()
    names = ["www", "web", "mail", "nothing.here", "_sip._udp", "text", "big", "ns"]
    asked = [(f"{name}.example.test", kind) for name in names for kind in ("A", "AAAA", "TXT", "SRV", "MX")]
    with bind(tmp_path / "bind", theirs, 'zone "." { type primary; file "empty"; };'), naming(state, port, [theirs]):
        for name, kind in [*asked, ("example.test", "SOA"), ("example.test", "MX"), ("nowhere.invalid.", "A")]:
            for tcp in (False, True):
                ours, real = ask(port, name, kind, tcp=tcp), ask(theirs, name, kind, tcp=tcp)
                assert (ours.rcode(), data(ours)) == (real.rcode(), data(real)), (name, kind, tcp)
                assert [each.name for each in ours.authority] == [each.name for each in real.authority]
                assert bool(ours.flags & dns.flags.TC) == bool(real.flags & dns.flags.TC)


@needs_bind
def test_bind_takes_our_answers_as_a_forwarder(state: Path, tmp_path: Path) -> None:
    control, port = int((state / "config.toml").read_text().split("127.0.0.1:")[1].split('"')[0]), free_port()
    theirs = free_port()
    more = "\n".join(
        f'zone "{zone}" {{ type forward; forward only; forwarders {{ 127.0.0.1 port {port}; }}; }};'
        for zone in ("ghost.internal", "64.100.in-addr.arpa")
    )
    with serving(state, control), bind(tmp_path / "bind", theirs, more):
        assert Node(control, "laptop").register(key(state))["Error"] == ""
        with naming(state, port, []):
            assert data(ask(theirs, "laptop.ghost.internal")) == ["100.64.0.1"]
            assert data(ask(theirs, "laptop.ghost.internal", "AAAA", tcp=True)) == ["fd7a:115c:a1e0::1"]
            assert data(ask(theirs, "1.0.64.100.in-addr.arpa", "PTR")) == ["laptop.ghost.internal."]
            missing = ask(theirs, "nobody.ghost.internal")
            assert missing.rcode() == dns.rcode.NXDOMAIN
            assert [str(each.name) for each in missing.authority] == ["ghost.internal."]
            empty = ask(theirs, "laptop.ghost.internal", "MX")
            assert (empty.rcode(), data(empty)) == (dns.rcode.NOERROR, [])


@needs_namespaces()
def test_strangers_are_refused_and_answers_leave_from_the_address_that_was_asked(state: Path) -> None:
    with Namespaces("dns", ["server", "client"]) as spaces:
        server_end, _ = spaces.link("server", "5.5.5.1/24", "client", "5.5.5.9/24")
        spaces.ip("server", f"addr add 5.5.5.2/24 dev {server_end}")
        spaces.ip("server", f"addr add 10.5.5.2/24 dev {server_end}")
        spaces.ip("client", "addr add 10.5.5.9/24 dev v1b")
        argv = spaces.argv("server", str(BIN / "gwdns"), "serve", "--listen", "0.0.0.0:53")
        with listening(argv, state) as process:

            def dig(server: str, *more: str) -> str:
                return spaces.run(
                    "client", "dig", "+tries=1", "+time=3", *more, f"@{server}", "x.ghost.internal", check=False
                )

            assert "status: NXDOMAIN" in dig("10.5.5.2")
            assert "status: REFUSED" in dig("5.5.5.2")
            assert "status: REFUSED" in dig("5.5.5.2", "+tcp")
            config = state / "config.toml"
            config.write_text(config.read_text() + '\n[dns_server]\nclients = ["5.5.5.0/24"]\n')
            process.send_signal(signal.SIGHUP)
            for _ in range(50):
                if "status: NXDOMAIN" in dig("5.5.5.1"):
                    break
                time.sleep(0.1)
            assert "status: NXDOMAIN" in dig("5.5.5.2")  # dig drops what comes from another address
            assert "status: NXDOMAIN" in dig("5.5.5.2", "+tcp")


def test_records_of_the_policy_are_served_and_follow_it(tmp_path: Path) -> None:
    state, control, port = tmp_path / "s", free_port(), free_port()
    initialise(state, control)
    policy = tmp_path / "p.hujson"

    def put(records: str) -> None:
        policy.write_text(f'{{"acls": [], "extraDNSRecords": [{records}]}}')
        assert run("gwctl", "policy", "set", policy, state=state).returncode == 0

    put('{"Name": "nas.home.test", "Value": "192.0.2.7"}')
    with serving(state, control), naming(state, port, []):
        assert data(ask(port, "nas.home.test")) == ["192.0.2.7"]
        put('{"Name": "tv.home.test", "Value": "192.0.2.8"}')
        for _ in range(100):
            if data(ask(port, "tv.home.test")):
                break
            time.sleep(0.05)
        assert data(ask(port, "tv.home.test")) == ["192.0.2.8"]
        assert data(ask(port, "nas.home.test")) == []
