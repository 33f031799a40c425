"""A host whose resolv.conf is written by resolvconf (the real openresolv): our record comes, goes, and never stays."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .namespaces import needs_namespaces
from .sandbox import Sandbox

pytestmark = [needs_namespaces(), pytest.mark.timeout(120)]


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Sandbox]:
    """The package is unpacked, not installed: it would take over this machine's resolver."""
    got = subprocess.run(["apt-get", "download", "-q", "openresolv"], cwd=tmp_path, capture_output=True, check=False)
    packages = list(tmp_path.glob("openresolv_*.deb"))
    if got.returncode or not packages:
        pytest.skip("apt-get cannot download openresolv")
    unpacked = tmp_path / "openresolv"
    subprocess.run(["dpkg", "-x", packages[0], unpacked], check=True)
    text = (unpacked / "sbin/resolvconf").read_text()
    with Sandbox(tmp_path / "box", "192.0.2.10") as sandbox:
        script = sandbox.folder / "tools" / "resolvconf"
        script.write_text(text.replace("LIBEXECDIR=/lib/resolvconf", f"LIBEXECDIR={unpacked}/lib/resolvconf"))
        script.chmod(0o755)
        sandbox.run("printf 'nameserver 192.0.2.53\\nsearch lan.test\\n' | resolvconf -a eth0.dhcp")
        yield sandbox


def join(box: Sandbox) -> None:
    box.run(f"gwctl init --server-url http://{box.address}:8080")
    box.run(f"""gwctl config set dns.nameservers '["{box.address}"]'""")
    for name, words in (("gwctl", "gwctl serve"), ("gwd", "gwd run")):
        box.run(f"setsid {words} >/run/{name}.log 2>&1 </dev/null & echo $! >/run/{name}.pid; sleep 2")
    box.run("gwctl users create ann")
    made = json.loads(box.run("gwctl preauthkeys create -u ann -o json").stdout)
    box.run(f"umask 077; echo {shlex.quote(made['key'])} > key.txt")
    box.run(f"gw up --login-server http://{box.address}:8080 --auth-key file:key.txt --hostname box --timeout 30")


def settings(box: Sandbox) -> list[str]:
    """What the resolver reads."""
    return [line for line in box.run("cat /etc/resolv.conf").stdout.splitlines() if not line.startswith("#")]


def test_our_record_is_joined_with_the_host_s_and_goes_with_us(box: Sandbox) -> None:
    before = settings(box)
    assert before == ["search lan.test", "nameserver 192.0.2.53"]
    join(box)
    joined = settings(box)
    assert f"nameserver {box.address}" in joined
    assert "nameserver 192.0.2.53" in joined
    assert "ghost.internal" in joined[0]
    assert box.run("resolvconf -l | grep -c ghost.internal").stdout == "1\n"
    box.run("kill $(cat /run/gwd.pid); sleep 2")
    assert settings(box) == before


def test_a_killed_node_s_record_is_removed_by_uninstalling(box: Sandbox) -> None:
    before = settings(box)
    join(box)
    box.run("kill -9 $(cat /run/gwd.pid); sleep 0.3")
    assert settings(box) != before
    box.run("gw uninstall --yes")
    assert settings(box) == before
    assert "ghostwire" not in box.run("ls -R /run/resolvconf").stdout
