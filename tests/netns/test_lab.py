"""`gw lab` itself: NATs are what they say, and nothing is ever left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest

from gw.errors import Conflict, PermissionNeeded, UsageError
from gw.lab import Lab, Nat, NodeSpec
from gw.lab.lab import last_words
from gw.lab.ledger import Ledger, prefix
from gw.lab.ledger import lab_folder as lab_folder_of_this_run
from gw.lab.topology import HUB_ADDRESS, Topology

from .namespaces import needs_namespaces

pytestmark = [needs_namespaces(), pytest.mark.timeout(180)]

GW = str(Path(sys.executable).parent / "gw")

ECHO = """
import socket,select,sys
socks=[]
for p in (7001,7002):
    s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM);s.bind(('198.51.100.1',p));socks.append(s)
print('ready',flush=True)
while True:
    for s in select.select(socks,[],[])[0]:
        d,a=s.recvfrom(100)
        s.sendto(('%s:%d'%a).encode(),a)
"""
ASK = """
import socket
s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM);s.settimeout(2);s.bind(('',5555))
for p in (7001,7002):
    try:
        s.sendto(b'x',('198.51.100.1',p));print(s.recv(100).decode())
    except TimeoutError:
        print('nothing')
"""


def left_over(folder: Path) -> list[str]:
    """What there is of the lab of a folder: its namespaces and their /etc."""
    listed = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout.splitlines()
    found = [line.split()[0] for line in listed] + [path.name for path in Path("/etc/netns").glob("*")]
    return [name for name in found if name.startswith(prefix(folder))]


def test_each_nat_maps_as_its_name_says(lab_folder: Path) -> None:
    ledger = Ledger.begin(lab_folder)
    try:
        topology = Topology(ledger)
        topology.build_internet()
        kinds = {"plain": Nat.NONE, "cone": Nat.ENDPOINT_INDEPENDENT, "sym": Nat.SYMMETRIC, "block": Nat.UDP_BLOCKED}
        for name, nat in kinds.items():
            topology.add_node(NodeSpec(name, nat))
        inside = ["ip", "netns", "exec"]
        echo = subprocess.Popen(
            [*inside, ledger.namespace("hub"), sys.executable, "-c", ECHO], stdout=subprocess.PIPE, text=True
        )
        with echo:
            assert echo.stdout is not None
            assert echo.stdout.readline() == "ready\n"
            seen = {
                name: subprocess.run(
                    [*inside, ledger.namespace(name), sys.executable, "-c", ASK],
                    capture_output=True,
                    text=True,
                    check=True,
                ).stdout.split()
                for name in kinds
            }
            echo.kill()
        assert seen["plain"] == ["198.51.100.11:5555"] * 2
        assert seen["cone"][0] == seen["cone"][1]
        assert seen["cone"][0].startswith("198.51.100.102:")
        assert seen["sym"][0] != seen["sym"][1]
        assert seen["block"] == ["nothing", "nothing"]
        pinged = [*inside, ledger.namespace("block"), "ping", "-c", "1", "-W", "1", HUB_ADDRESS]
        assert subprocess.run(pinged, capture_output=True, check=False).returncode == 0
    finally:
        ledger.remove_all()
    assert left_over(lab_folder) == []


def test_the_demo_holds_twice_in_a_row_and_leaves_nothing(lab_folder: Path) -> None:
    for _ in range(2):
        done = subprocess.run([GW, "lab", "demo"], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Gb/s" in done.stdout
        assert "every step held" in done.stdout
        assert left_over(lab_folder) == []
    assert not lab_folder.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing(lab_folder: Path, number: signal.Signals) -> None:
    """The suite itself may run as a background job, whose children inherit that SIGINT is ignored."""
    process = subprocess.Popen(
        [GW, "lab", "demo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    time.sleep(3.0)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode != 0
    assert left_over(lab_folder) == []


def test_the_next_run_cleans_up_after_a_killed_one(lab_folder: Path) -> None:
    process = subprocess.Popen([GW, "lab", "demo"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(4.0)
    process.kill()
    process.wait()
    assert left_over(lab_folder) != []
    done = subprocess.run([GW, "lab", "demo"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert left_over(lab_folder) == []


def test_a_namespace_of_its_name_that_no_record_tells_of_is_made_anew(lab_folder: Path) -> None:
    """A killed run whose folder somebody removed; a process of it still lives inside."""
    name = prefix(lab_folder) + "ann"
    subprocess.run(["ip", "netns", "add", name], check=True)
    inside = subprocess.Popen(["ip", "netns", "exec", name, "sleep", "120"])
    try:
        with Lab([NodeSpec("ann")]) as lab:
            assert inside.wait(5) == -signal.SIGTERM
            assert lab.status("ann")["BackendState"] == "Running"
    finally:
        inside.kill()
        inside.wait()
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    assert left_over(lab_folder) == []


def test_the_plain_prefix_belongs_to_one_folder_whatever_tmpdir_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Namespaces are the machine's: a lab of another TMPDIR must not take the names of the usual one."""
    monkeypatch.delenv("GW_LAB_DIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert prefix(lab_folder_of_this_run()) != prefix(Path("/tmp/ghostwire-lab"))


def test_a_record_that_another_user_can_write_is_not_followed(lab_folder: Path) -> None:
    """It would have root end their choice of processes, and write logs through their links."""
    victim = subprocess.Popen(["sleep", "60"])
    try:
        ledger = Ledger.begin(lab_folder)
        ledger.note_process(victim.pid, "gwd")
        os.chown(lab_folder, 65534, 65534)
        for command in (["demo"], ["down"]):
            done = subprocess.run([GW, "lab", *command], capture_output=True, text=True, check=False)
            assert done.returncode == PermissionNeeded.exit_code, done.stderr
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()


def test_a_service_that_ends_is_quoted_with_its_error_not_its_hint() -> None:
    said = "warning: core is interpreted\nerror: may not open `/dev/net/tun`\nhint: run `gwd` as root\n"
    assert last_words(said) == ("may not open `/dev/net/tun`", "run `gwd` as root")
    assert last_words("Traceback\nValueError: x\n") == ("ValueError: x", None)
    assert last_words("") == ("", None)


def test_labs_of_two_folders_stand_side_by_side(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    with Lab([NodeSpec("ann")], folder=folders[0]) as one:
        with Lab([NodeSpec("ann")], folder=folders[1]) as two:
            assert one.status("ann")["BackendState"] == two.status("ann")["BackendState"] == "Running"
        assert left_over(folders[1]) == []
        assert one.status("ann")["BackendState"] == "Running"
    assert left_over(folders[0]) == []


def test_two_that_begin_at_once_in_one_folder_do_not_share_it(lab_folder: Path) -> None:
    racers = [
        subprocess.Popen([GW, "lab", "demo"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [racer.communicate(timeout=90)[1] for racer in racers]
    codes = sorted(racer.returncode for racer in racers)
    assert codes in ([0, Conflict.exit_code], [0, 0]), said
    assert left_over(lab_folder) == []


def test_a_lab_stands_until_it_is_taken_down(lab_folder: Path) -> None:
    up = subprocess.run(
        [GW, "lab", "up", "--nodes", "ann,bob"], capture_output=True, text=True, timeout=90, check=False
    )
    assert up.returncode == 0, up.stderr
    try:
        assert "gw lab exec ann" in up.stdout
        again = subprocess.run([GW, "lab", "demo"], capture_output=True, text=True, check=False)
        assert again.returncode == Conflict.exit_code
        assert "gw lab down" in again.stderr
        pinged = subprocess.run(
            [GW, "lab", "exec", "ann", "ping", "-c", "1", "-W", "5", "bob"], capture_output=True, text=True, check=False
        )
        assert pinged.returncode == 0, pinged.stdout + pinged.stderr
        status = subprocess.run([GW, "lab", "status", "--json"], capture_output=True, text=True, check=True)
        assert {node["BackendState"] for node in json.loads(status.stdout).values()} == {"Running"}
        assert subprocess.run([GW, "lab", "exec", "nobody", "true"], capture_output=True, check=False).returncode == 4
    finally:
        down = subprocess.run([GW, "lab", "down"], capture_output=True, text=True, check=False)
    assert down.returncode == 0, down.stderr
    assert left_over(lab_folder) == []


def test_a_step_that_fails_fails_the_demo_and_keeps_the_logs(lab_folder: Path, tmp_path: Path) -> None:
    """A `ping` that always fails stands first on the path of the nodes."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "ping").write_text("#!/bin/sh\necho no answer >&2\nexit 1\n")
    (tools / "ping").chmod(0o755)
    script = f"""
import sys
import gw.lab.demo as demo
from gw.errors import GwError
from gw.lab import Lab

real = Lab.argv

def argv(self, name, *words):
    return real(self, name, "{tools}/ping" if words[0] == "ping" else words[0], *words[1:])

Lab.argv = argv
try:
    demo.demo(print)
except GwError as error:
    print(error.hint)
    sys.exit(3)
"""
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 3, done.stdout + done.stderr
    assert str(lab_folder) in done.stdout
    assert (lab_folder / "gwctl.log").exists()
    assert left_over(lab_folder) == []


def test_names_that_cannot_be_nodes_are_refused() -> None:
    for name in ("", "Ann", "a-b", "hub", "toolongname"):
        with pytest.raises(UsageError):
            Lab([NodeSpec(name)])
    with pytest.raises(UsageError):
        Lab([NodeSpec("ann"), NodeSpec("ann")])


NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]


def is_usable_by_nobody(*argv: str | Path) -> bool:
    """As root of a user namespace that is nobody outside, or as nobody where there can be no such namespace."""
    for inside in (["unshare", "--user", "--map-root-user"], []):
        if subprocess.run([*NOBODY, *inside, "true"], capture_output=True, check=False).returncode == 0:
            return subprocess.run([*NOBODY, *inside, *argv], capture_output=True, check=False).returncode == 0
    return False


def link_or_copy(source: str, target: str) -> str:
    """An installation is half a gigabyte."""
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)
    return target


@pytest.fixture
def public_gw() -> Iterator[Path]:
    """`gw` where every user may run it: this installation, or a copy of it under the system's own interpreter."""
    if is_usable_by_nobody(GW, "--version"):
        yield Path(GW)
        return
    with tempfile.TemporaryDirectory(prefix="gw-public-") as text:
        folder = Path(text)
        folder.chmod(0o755)
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        system = Path("/usr/bin") / version
        made = subprocess.run([system, "-m", "venv", "--without-pip", folder], capture_output=True, check=False)
        if made.returncode:
            pytest.skip(f"this installation lies where other users may not go, and there is no {system} with venv")
        ours, theirs = sysconfig.get_path("purelib"), folder / "lib" / version / "site-packages"
        shutil.copytree(ours, theirs, dirs_exist_ok=True, copy_function=link_or_copy)
        for entry in distribution("ghostwire-mesh").entry_points:
            script = folder / "bin" / entry.name
            script.write_text(f"#!{folder}/bin/python\nimport sys\nimport {entry.module} as it\nsys.exit(it.main())\n")
            script.chmod(0o755)
        script = folder / "bin" / "gw"
        if not is_usable_by_nobody(script, "--version"):
            pytest.skip("this package is linked to a folder where other users may not go")
        yield script


def test_without_root_it_runs_in_a_user_namespace_or_says_why_not(public_gw: Path, tmp_path: Path) -> None:
    """As `nobody`: either the whole demo holds, or one line tells what to do."""
    done = subprocess.run(
        [*NOBODY, public_gw, "lab", "demo", "--nodes", "ann,bob"],
        capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "HOME": str(tmp_path), "TMPDIR": "/tmp"},
    )  # fmt: skip
    if done.returncode:
        assert done.returncode == 5, done.stdout + done.stderr
        assert "user namespaces" in done.stderr or "/dev/net/tun" in done.stderr
        assert done.stdout == ""
        assert [line.partition(": ")[0] for line in done.stderr.splitlines()] == ["error", "hint"]
    else:
        assert "every step held" in done.stdout
