"""`gw uninstall` on a host that ran all four daemons: nothing of ours stays."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from .namespaces import needs_namespaces
from .sandbox import Sandbox

pytestmark = [needs_namespaces(), pytest.mark.timeout(180)]

TRACES = """
ls -d /var/lib/ghostwire /run/ghostwire /etc/systemd/system/gw*.service /etc/sysusers.d/ghostwire.conf \
   /etc/tmpfiles.d/ghostwire.conf 2>/dev/null
ip link show gw0 2>/dev/null
ip rule | grep 'lookup 52'
ip -6 rule | grep 'lookup 52'
getent passwd gwctl gwrelay gwdns
getent group ghostwire
grep -l gwd /etc/resolv.conf
true
"""


def install(box: Sandbox) -> None:
    """The single box of the readme, itself a node."""
    box.run(f"gwctl init --server-url http://{box.address}:8080")
    box.run(f"""gwctl config set dns.nameservers '["{box.address}"]'""")
    box.run("gw service install control relay dns node")
    box.run("gwctl users create ann")
    made = json.loads(box.run("gwctl preauthkeys create -u ann -o json").stdout)
    box.run(f"umask 077; echo {shlex.quote(made['key'])} > key.txt")
    box.run(f"gw up --login-server http://{box.address}:8080 --auth-key file:key.txt --hostname box --timeout 30")


def test_nothing_stays_on_the_host(tmp_path: Path) -> None:
    with Sandbox(tmp_path / "box", "192.0.2.10") as box:
        before = box.run("cat /etc/resolv.conf").stdout
        install(box)
        assert "gw0" in box.run(TRACES).stdout
        planned = box.run("gw uninstall --dry-run").stdout
        assert "/var/lib/ghostwire" in planned
        assert box.run("gw status").stdout
        box.run("gw uninstall --yes")
        assert box.run(TRACES).stdout == ""
        assert box.run("cat /etc/resolv.conf").stdout == before


def test_state_stays_when_asked_to(tmp_path: Path) -> None:
    with Sandbox(tmp_path / "box", "192.0.2.10") as box:
        install(box)
        refused = box.run("gw uninstall </dev/null", check=False)
        assert refused.returncode == 2
        assert "--yes" in refused.stderr
        box.run("gw uninstall --keep-state")
        assert box.run(TRACES).stdout == "/var/lib/ghostwire\n"
        assert box.run("ls /var/lib/ghostwire/config.toml").stdout
