"""What goes wrong at a terminal: one clear line, a hint, the right exit code, nothing half-done."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from .scripts import BIN, free_port, initialise, run, serving


def assert_refused(result: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """One `error:` line with these words, at most one `hint:`, no traceback, the exit code."""
    lines = result.stderr.strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert result.returncode == code, result.stderr
    assert len(errors) == 1, result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word.lower() in result.stderr.lower(), result.stderr
    assert len([line for line in lines if line.startswith("hint: ")]) <= 1


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


def test_a_directory_that_was_never_initialised(state: Path) -> None:
    for words in (("serve",), ("users", "list"), ("nodes", "list")):
        result = run("gwctl", *words, state=state)
        assert_refused(result, result.returncode, "gwctl init")
        assert result.returncode in (4, 9)
    assert not (state / "control").exists()


def test_init_never_overwrites(state: Path, port: int) -> None:
    initialise(state, port)
    before = (state / "config.toml").read_bytes()
    assert_refused(run("gwctl", "init", "--server-url", "http://other:1", state=state), 8, "config.toml")
    assert (state / "config.toml").read_bytes() == before


@pytest.mark.parametrize("url", ["control.example", "ftp://x", "http://", ""])
def test_a_server_url_that_is_none(state: Path, url: str) -> None:
    assert_refused(run("gwctl", "init", "--server-url", url, state=state), 2)
    assert not (state / "config.toml").exists()


def test_a_working_config_has_at_most_ten_lines(state: Path, port: int) -> None:
    initialise(state, port)
    lines = [line for line in (state / "config.toml").read_text().splitlines() if line.strip() and line[0] != "#"]
    assert len(lines) <= 10


def test_broken_toml_names_file_line_and_key(state: Path, port: int) -> None:
    initialise(state, port)
    config = state / "config.toml"
    good = config.read_text()
    config.write_text(good + "\nlisten = [\n")
    assert_refused(run("gwctl", "serve", state=state), 9, "config.toml:")
    config.write_text("surver_url = 'x'\n" + good)
    assert_refused(run("gwctl", "serve", state=state), 9, "config.toml:1", "surver_url")


def test_two_servers_on_one_directory(state: Path, port: int) -> None:
    initialise(state, port)
    with serving(state, port) as first:
        result = run("gwctl", "serve", "--listen", f"127.0.0.1:{free_port()}", state=state)
        assert_refused(result, 8, str(first.pid))


def test_the_port_is_in_use(state: Path, port: int) -> None:
    initialise(state, port)
    with socket.create_server(("127.0.0.1", port)):
        assert_refused(run("gwctl", "serve", state=state), 8, str(port), "in use")
    with serving(state, port):
        pass  # nothing half-done: it starts when the port is free


def test_the_daemon_is_not_running(state: Path) -> None:
    for words in (("status",), ("ping", "nas"), ("ip",), ("down",), ("up", "--login-server", "http://127.0.0.1:1")):
        assert_refused(run("gw", *words, state=state), 3, "gwd")


def test_wrong_words_are_a_usage_error(state: Path) -> None:
    for words in (
        ("gw", "statsu"),
        ("gw", "ping"),
        ("gwctl", "users", "create"),
    ):
        result = run(words[0], *words[1:], state=state)
        assert_refused(result, 2)


def test_a_user_that_exists_or_does_not(state: Path, port: int) -> None:
    initialise(state, port)
    assert run("gwctl", "users", "create", "ann", state=state).returncode == 0
    assert_refused(run("gwctl", "users", "create", "ann", state=state), 8, "ann")
    assert_refused(run("gwctl", "preauthkeys", "create", "-u", "bob", state=state), 4, "bob")
    assert_refused(run("gwctl", "nodes", "delete", "-i", "99", state=state), 4, "99")


def test_errors_are_json_where_json_was_asked_for(state: Path, port: int) -> None:
    initialise(state, port)
    result = run("gwctl", "preauthkeys", "create", "-u", "bob", "--json", state=state)
    assert json.loads(result.stderr)["error"]["code"] == "not-found"
    assert result.stdout == ""


def test_a_policy_with_a_fault_is_refused_with_its_place(state: Path, port: int) -> None:
    initialise(state, port)
    (state / "policy.hujson").write_text(
        '{\n  // soon\n  "acls": [{"action": "accept", "src": ["tag:soon"], "dst": ["*:22"]}],\n}\n'
    )
    with serving(state, port) as server:
        server.send_signal(signal.SIGTERM)
        _, log = server.communicate(timeout=10)
    assert "policy.hujson:3" in log


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a tmpfs")
def test_a_full_disk_refuses_and_leaves_nothing_half_done(tmp_path: Path, port: int) -> None:
    state = tmp_path / "small"
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(state)], check=True)
    try:
        initialise(state, port)
        assert run("gwctl", "users", "create", "first", state=state).returncode == 0
        (state / "filler").write_bytes(b"")
        filler = os.open(state / "filler", os.O_WRONLY)
        try:
            while True:
                os.write(filler, b"x" * 4096)
        except OSError:
            pass
        finally:
            os.close(filler)
        result = run("gwctl", "users", "create", "second", state=state)
        assert_refused(result, 1, "disk full")
        (state / "filler").unlink()
        names = [user["name"] for user in json.loads(run("gwctl", "users", "list", "-o", "json", state=state).stdout)]
        assert names == ["first"]
        assert run("gwctl", "users", "create", "second", state=state).returncode == 0
    finally:
        subprocess.run(["umount", "-l", str(state)], check=True)


def gwd(state: Path, *words: str, user: int | None = None) -> subprocess.CompletedProcess[str]:
    """`gwd run` that is expected to end by itself, in a network of its own."""
    return subprocess.run(
        ["unshare", "--net", str(BIN / "gwd"), "run", *words],
        capture_output=True, text=True, check=False, timeout=30, user=user, cwd="/",
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GW_STATE_DIR": str(state)},
    )  # fmt: skip


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@needs_root
def test_a_node_daemon_with_a_strange_interface_name(state: Path) -> None:
    assert_refused(gwd(state, "--tun", "muchtoolongforaninterface"), 1, "not an interface name", "--tun")


@needs_root
def test_a_node_daemon_with_broken_preferences(state: Path) -> None:
    (state / "node").mkdir(parents=True, mode=0o700)
    (state / "node" / "prefs.toml").write_text("x = = 1")
    assert_refused(gwd(state), 9, "prefs.toml", "line 1")


@needs_root
def test_a_node_daemon_with_a_key_that_others_may_read(state: Path) -> None:
    (state / "node").mkdir(parents=True, mode=0o700)
    (state / "node" / "machine.key").write_text("privkey:" + "1" * 64)
    (state / "node" / "machine.key").chmod(0o644)
    assert_refused(gwd(state), 5, "readable by others", "chmod 600")


@needs_root
def test_a_node_daemon_without_a_tun_device(state: Path) -> None:
    result = subprocess.run(
        ["unshare", "--net", "--mount", "sh", "-c", f"mount -t tmpfs none /dev/net && exec {BIN / 'gwd'} run"],
        capture_output=True, text=True, check=False, timeout=30, cwd="/",
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GW_STATE_DIR": str(state)},
    )  # fmt: skip
    assert_refused(result, 1, "no `/dev/net/tun`", "modprobe tun")


@needs_root
def test_a_udp_port_in_use_is_named_and_a_second_daemon_refused(state: Path, tmp_path: Path) -> None:
    first = subprocess.Popen(
        ["unshare", "--net", str(BIN / "gwd"), "run", "--port", "5000"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/",
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GW_STATE_DIR": str(state)},
    )  # fmt: skip
    try:
        for _ in range(200):
            if (state / "run" / "gwd.sock").exists() and (state / "node" / "port").exists():
                break
            time.sleep(0.05)
        inside = ["nsenter", "-t", str(first.pid), "--net", str(BIN / "gwd"), "run"]
        environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
        for words, folder, said in (
            (["--port", "5000"], tmp_path / "other", "UDP port 5000"),
            ([], tmp_path / "third", "`gw0`"),
            ([], state, "another gwd"),
            (["--tun", "gw9", "--port", "0", "--socket", str(tmp_path / "s")], state, "another gwd"),
        ):
            result = subprocess.run(
                [*inside, *words], capture_output=True, text=True, check=False, timeout=30, cwd="/",
                env={**environment, "GW_STATE_DIR": str(folder)},
            )  # fmt: skip
            assert_refused(result, 8, said)
    finally:
        first.terminate()
        first.wait(timeout=10)


def test_commands_without_a_daemon_say_how_to_start_it(state: Path) -> None:
    for words in (("status",), ("up", "--login-server", "http://192.0.2.1"), ("ping", "nas"), ("ip",), ("down",)):
        assert_refused(run("gw", *words, state=state), 3, "gwd is not running", "gwd run")


@needs_root
def test_an_unknown_control_server_is_named_by_gw_up(state: Path) -> None:
    daemon = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", f"ip link set lo up; exec {BIN / 'gwd'} run"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/",
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GW_STATE_DIR": str(state)},
    )  # fmt: skip
    try:
        for _ in range(200):
            if (state / "node" / "port").exists():
                break
            time.sleep(0.05)
        for server, said in (
            ("http://127.0.0.1:9", "cannot reach 127.0.0.1:9"),
            ("http://no-such.invalid", "no such host"),
        ):
            result = run(
                "gw", "up", "--login-server", server, "--auth-key", "x", "--timeout", "4", state=state, timeout_s=20
            )
            assert_refused(result, 7, said, "--login-server")
    finally:
        daemon.terminate()
        daemon.wait(timeout=10)
