"""`gwctl` as a person and a script see it: stdout, stderr and exit codes, with and without a server."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

GWCTL = Path(sys.executable).parent / "gwctl"
START_TIMEOUT_S = 20.0

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "s"


@pytest.fixture
def gwctl(state: Path) -> Run:
    """Run gwctl on the test's own state directory."""

    def run(*words: str, said: str = "") -> subprocess.CompletedProcess[str]:
        """said: on standard input."""
        env = {**os.environ, "GW_STATE_DIR": str(state), "TZ": "UTC", "COLUMNS": "100"}
        env.pop("GW_RUNTIME_DIR", None)
        return subprocess.run(
            [GWCTL, *words], capture_output=True, text=True, env=env, check=False, input=said, timeout=60
        )

    return run


@pytest.fixture
def ready(gwctl: Run) -> Run:
    """The same on an initialised directory; a port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert gwctl("init", "--server-url", f"http://127.0.0.1:{port}", "--listen", f"127.0.0.1:{port}").returncode == 0
    return gwctl


@pytest.fixture
def served(ready: Run, state: Path) -> Iterator[Run]:
    """The same with a server running."""
    env = {**os.environ, "GW_STATE_DIR": str(state)}
    env.pop("GW_RUNTIME_DIR", None)
    with subprocess.Popen([GWCTL, "serve"], env=env, stderr=subprocess.PIPE, text=True) as server:
        until = time.monotonic() + START_TIMEOUT_S
        while ready("health").returncode != 0:
            assert server.poll() is None
            assert time.monotonic() < until
        yield ready
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=10) == 0


def good(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stderr
    return result.stdout


def data(result: subprocess.CompletedProcess[str]) -> Any:
    return json.loads(good(result))


def bad(result: subprocess.CompletedProcess[str], code: int) -> str:
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return result.stderr


def test_init_writes_a_short_config_and_a_commented_policy(gwctl: Run, state: Path) -> None:
    result = gwctl("init", "--server-url", "https://mesh.example.org", "--listen", "0.0.0.0:8443")
    assert good(result) == f"wrote {state}/config.toml\nwrote {state}/policy.hujson: own devices only\n"
    lines = (state / "config.toml").read_text().splitlines()
    assert len(lines) <= 10
    assert 'listen = "0.0.0.0:8443"' in lines
    policy = (state / "policy.hujson").read_text()
    assert "autogroup:self:*" in policy
    assert policy.startswith("//")


def test_init_refuses_to_overwrite(ready: Run, state: Path) -> None:
    before = (state / "config.toml").read_bytes()
    assert bad(ready("init", "--server-url", "https://other.test"), 8) == (
        f"error: `{state}` is set up already\nhint: edit `{state}/config.toml`, or choose another `--state-dir`\n"
    )
    assert (state / "config.toml").read_bytes() == before


def test_init_refuses_a_bad_url_and_writes_nothing(gwctl: Run, state: Path) -> None:
    message = "error: `server_url`: not an http or https URL: `mesh`\nhint: see `gwctl init --help`\n"
    assert bad(gwctl("init", "--server-url", "mesh"), 2) == message
    assert not state.exists()


def test_init_open_lets_every_device_reach_every_other_one(gwctl: Run, state: Path) -> None:
    assert "every device" in good(gwctl("init", "--server-url", "http://x.test", "--open"))
    rules = [line for line in (state / "policy.hujson").read_text().splitlines() if not line.strip().startswith("//")]
    assert '"dst": ["*:*"]' in "".join(rules)


def test_a_wrong_directory_is_named(gwctl: Run, state: Path) -> None:
    assert bad(gwctl("nodes", "list"), 4).startswith(f"error: no state directory: `{state}`\nhint: gwctl init")
    state.mkdir()
    assert bad(gwctl("nodes", "list"), 4).startswith(f"error: no control server in `{state}`: there is no config.toml")


def test_a_broken_config_is_named_with_line_and_key(ready: Run, state: Path) -> None:
    (state / "config.toml").write_text('server_url = "http://x.test"\nlistn = "0.0.0.0:1"\n')
    for words in (("nodes", "list"), ("serve",)):
        error = bad(ready(*words), 9)
        assert error.startswith(f"error: {state}/config.toml:2: `listn`: ")
        assert len(error.splitlines()) <= 2


@pytest.mark.parametrize("mode", ["ready", "served"])
def test_users_keys_and_nodes_work_with_and_without_a_server(mode: str, request: pytest.FixtureRequest) -> None:
    run: Run = request.getfixturevalue(mode)
    assert good(run("users", "create", "alice")) == "user created: alice\n"
    assert bad(run("users", "create", "alice"), 8) == "error: user exists: `alice`\nhint: see `gwctl users list`\n"
    (user,) = data(run("user", "ls", "-o", "json"))
    assert (user["id"], user["name"]) == ("1", "alice")
    key = data(run("preauthkeys", "create", "-u", "alice", "--reusable", "-e", "24h", "-o", "json"))
    assert key["key"].startswith("hskey-auth-")
    assert len(key["key"]) == 88
    assert good(run("preauthkeys", "create", "--user", "1", "--tags", "tag:a,tag:b")).startswith("hskey-auth-")
    listed = data(run("--json", "preauthkeys", "list"))
    assert [each["aclTags"] for each in listed] == [[], ["tag:a", "tag:b"]]
    assert all(each["key"].endswith("-***") for each in listed)
    assert good(run("preauthkeys", "expire", key["key"])) == "key expired\n"
    assert data(run("nodes", "list", "-o", "json")) == []
    assert bad(run("nodes", "delete", "-i", "7", "--force"), 4).startswith("error: no such node: `7`\n")
    assert good(run("users", "rename", "alice", "anna")) == "user renamed: alice is anna\n"
    assert bad(run("users", "destroy", "anna"), 2).endswith("hint: add --force\n")
    assert good(run("users", "destroy", "anna", "--force")) == "user removed: anna\n"
    assert data(run("users", "list", "--json")) == []


def test_the_same_changes_leave_a_trail_without_secrets(ready: Run, state: Path) -> None:
    good(ready("users", "create", "alice"))
    key = good(ready("preauthkeys", "create", "-u", "alice")).strip()
    (day,) = (state / "events").glob("2*.jsonl")
    events = [json.loads(line) for line in day.read_text().splitlines()]
    assert (events[0]["event"], events[0]["subject"]) == ("user-created", "user:alice")
    assert events[1]["event"] == "preauthkey-created"
    assert all(event["actor"] == f"uid {os.getuid()}, offline" for event in events)
    assert key[-64:] not in day.read_text()
    everything = b"".join(path.read_bytes() for path in state.rglob("*") if path.is_file())
    assert key[-64:].encode() not in everything


def test_a_table_has_headings_and_yaml_quotes_what_it_must(ready: Run) -> None:
    good(ready("users", "create", "alice"))
    head, row = good(ready("users", "list")).splitlines()
    assert head.split() == ["ID", "NAME", "DISPLAY", "NAME", "EMAIL", "CREATED"]
    assert row.startswith("1   alice  -")
    assert good(ready("-o", "yaml", "users", "list")).splitlines()[:2] == ['- id: "1"', "  name: alice"]
    assert good(ready("users", "list", "-o", "json-line")).count("\n") == 1
    assert bad(ready("users", "list", "-o", "xml"), 2).startswith("error: unknown output format: `xml`\n")


def test_logins_need_a_running_server(ready: Run) -> None:
    assert bad(ready("auth", "list"), 3).endswith("hint: gwctl serve\n")
    assert bad(ready("health"), 3).startswith("error: the control server is not running\n")


def test_an_unknown_login_is_named(served: Run) -> None:
    unknown = "hskey-authreq-" + "0" * 24
    assert good(served("health")) == "pass\n"
    good(served("users", "create", "ann"))
    assert bad(served("auth", "approve", unknown), 4).startswith(f"error: no login waits under `{unknown}`\n")
    assert data(served("auth", "list", "-o", "json")) == []


def test_two_servers_on_one_directory_are_refused(served: Run, state: Path) -> None:
    assert bad(served("serve"), 8).startswith(f"error: another server holds `{state}`: process ")


def test_a_port_in_use_is_named(ready: Run) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        assert f"error: address is in use: `127.0.0.1:{port}`\n" in bad(
            ready("serve", "--listen", f"127.0.0.1:{port}"), 8
        )


def test_a_stranger_may_read_the_feed_and_administer_nothing(served: Run, state: Path) -> None:
    """The kernel says who calls: a relay or DNS server in the socket's group gets no further than the feed."""
    if os.geteuid() != 0:
        pytest.skip("needs root to become another user")
    for folder in (state, *state.parents):
        if folder.owner() == "root" and folder != Path("/tmp"):
            folder.chmod(folder.stat().st_mode | 0o011)
    (state / "run" / "gwctl.sock").chmod(0o666)
    program = (
        "import os,sys,socket\nos.setgid(65534);os.setuid(65534)\n"
        "s=socket.socket(socket.AF_UNIX);s.connect(sys.argv[1])\n"
        "s.sendall(f'GET {sys.argv[2]} HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n'.encode());print(s.recv(9999).decode())"
    )

    def ask(target: str) -> str:
        words = [sys.executable, "-P", "-c", program, str(state / "run" / "gwctl.sock"), target]
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=20).stdout

    assert "HTTP/1.1 200" in ask("/feed")
    refused = ask("/api/v1/user")
    assert "HTTP/1.1 403" in refused
    assert "permission-needed" in refused


def test_settings_are_read_and_changed_with_their_comments(ready: Run, state: Path) -> None:
    path = state / "config.toml"
    path.write_text(path.read_text() + "# a note\n")
    assert good(ready("config", "get", "domain")) == "ghost.internal\n"
    assert good(ready("config", "set", "dns.nameservers", '["1.1.1.1"]')) == 'dns.nameservers = ["1.1.1.1"]\n'
    assert data(ready("config", "get", "dns.nameservers")) == ["1.1.1.1"]
    assert "# a note\n" in path.read_text()
    before = path.read_text()
    assert "`domain`: not a domain name" in bad(ready("config", "set", "domain", "a b"), 9)
    assert bad(ready("config", "set", "domian", "x.test"), 4).startswith("error: no such setting: `domian`\n")
    assert path.read_text() == before
    rows = {row["key"]: row for row in data(ready("config", "explain", "-o", "json"))}
    assert rows["dns.nameservers"]["source"] == "config.toml"
    assert rows["dns.magic"] == {"key": "dns.magic", "value": True, "source": "default"}


@pytest.mark.parametrize(
    "word",
    ["users", "nodes", "preauthkeys", "oauth-clients", "auth", "routes", "relays", "config", "configtest", "serve"],
)
def test_every_noun_has_help(gwctl: Run, word: str) -> None:
    assert good(gwctl(word, "--help")).startswith(f"Usage: gwctl {word}")


def test_an_unknown_verb_is_refused(gwctl: Run) -> None:
    assert bad(gwctl("nodez"), 2).startswith("error: no such command `nodez`")


def test_an_import_into_a_directory_in_use_is_refused_and_a_fresh_one_is_filled(
    ready: Run, gwctl: Run, state: Path, tmp_path: Path
) -> None:
    import sqlite3

    text = (Path(__file__).resolve().parents[1] / "vectors" / "headscale" / "0.26.sql").read_text()
    database = tmp_path / "db.sqlite"
    connection = sqlite3.connect(database)
    connection.executescript(text)
    connection.close()
    words = ("import", "headscale", str(database))
    said = good(ready(*words, "--dry-run"))
    assert "would take over 4 users, 4 nodes (1 tagged), 2 pre-auth keys, 1 API keys" in said
    assert "another node has the same node key" in said
    assert data(ready("nodes", "list", "-o", "json")) == []
    good(ready(*words))
    nodes = data(ready("nodes", "list", "-o", "json"))
    assert [(node["id"], node["givenName"]) for node in nodes] == [
        ("1", "nas"), ("2", "web"), ("3", "ann-s-mac"), ("9", "nas-1"),
    ]  # fmt: skip
    assert "ann@" in (state / "policy.hujson").read_text()
    assert (state / "policy.hujson.before-import").exists()
    bad_words = ready(*words)
    assert bad_words.returncode == 8
    assert "there are users or nodes" in bad_words.stderr


def test_the_trail_of_a_directory_is_verified_and_tampering_ends_with_one(ready: Run, state: Path) -> None:
    good(ready("users", "create", "alice"))
    good(ready("users", "create", "bob"))
    head = state.parent / "head.json"
    head.write_text(good(ready("events", "head")))
    assert "the trail is whole: 2 events" in good(ready("events", "verify", "--head", str(head)))
    assert data(ready("events", "-o", "json", "--subject", "user:b*"))[0]["subject"] == "user:bob"
    assert [json.loads(line)["seq"] for line in good(ready("events", "-o", "json-line", "-n", "1")).splitlines()] == [2]
    (day,) = (state / "events").glob("2*.jsonl")
    day.write_text(day.read_text().replace("alice", "carol"))
    result = ready("events", "verify", "--head", str(head), "-o", "json")
    assert result.returncode == 1
    assert "altered" in json.loads(result.stdout)["problems"][0]["what"]


def test_a_change_is_taken_back_with_and_without_a_server(ready: Run) -> None:
    good(ready("users", "create", "alice"))
    assert good(ready("undo", "--dry-run")) == "user alice: removed\n"
    result = ready("undo")
    assert good(result) == "user alice: removed\n"
    assert "took back the change of uid" in result.stderr
    assert data(ready("users", "list", "-o", "json")) == []
    assert "no administrative change" in bad(ready("undo"), 4)


def test_a_running_server_is_backed_up_undone_and_restored_elsewhere(served: Run, state: Path, tmp_path: Path) -> None:
    good(served("users", "create", "alice"))
    file = tmp_path / "mesh.tar.gz"
    assert f"wrote {file}" in good(served("backup", str(file)))
    assert file.stat().st_mode & 0o777 == 0o600
    assert not list((state / "snapshots").glob(".tmp*"))
    assert "exists" in bad(served("backup", str(file)), 8)
    assert "is whole" in good(served("restore", str(file), "--check"))
    assert "another server holds" in bad(served("restore", str(file), "--force"), 8)
    good(served("users", "create", "bob"))
    assert good(served("undo")) == "user bob: removed\n"

    elsewhere = ("--state-dir", str(tmp_path / "elsewhere"))
    good(served("restore", str(file), *elsewhere))
    assert [user["name"] for user in data(served("users", "list", "-o", "json", *elsewhere))] == ["alice"]
    assert "the trail is whole" in good(served("events", "verify", *elsewhere))


@pytest.mark.parametrize("mode", ["ready", "served"])
def test_a_policy_that_is_there_already_is_no_change(mode: str, request: pytest.FixtureRequest, state: Path) -> None:
    gwctl: Run = request.getfixturevalue(mode)
    file, own = state / "new.hujson", state / "policy.hujson"
    file.write_text('{"grants": []}')
    assert good(gwctl("policy", "set", str(file))).startswith(f"{own}: rules: 0, revision ")
    written, told = own.stat().st_mtime_ns, data(gwctl("events", "--event", "policy-*", "--json"))
    until = time.monotonic() + 20
    while not told:  # a running server tells it when it has taken the file over
        assert time.monotonic() < until
        told = data(gwctl("events", "--event", "policy-*", "--json"))
    assert good(gwctl("policy", "set", str(file))).startswith(f"{own}: unchanged, rules: 0, revision ")
    assert data(gwctl("policy", "set", str(file), "--json"))["unchanged"] is True
    assert own.stat().st_mtime_ns == written
    assert data(gwctl("events", "--event", "policy-*", "--json")) == told


@pytest.mark.parametrize("mode", ["ready", "served"])
def test_the_relay_map_is_changed_with_and_without_a_server(
    mode: str, request: pytest.FixtureRequest, state: Path
) -> None:
    gwctl: Run = request.getfixturevalue(mode)
    own = state / "own.json"
    own.write_text('{"Regions": {"950": {"RegionID": 950, "Nodes": [{"Name": "950a", "HostName": "d.example.org"}]}}}')
    good(gwctl("config", "set", "derp.files", json.dumps([str(own)])))
    assert "901a at r.example.org" in good(gwctl("relays", "add", "r.example.org", "--region", "901", "--code", "fra"))
    changed = data(gwctl("relays", "set", "901a", "--port", "8443", "--stun", "off", "--json"))
    assert [(each["derpPort"], each["stunPort"]) for each in changed["nodes"]] == [(8443, -1)]
    until = time.monotonic() + 20
    while len(regions := data(gwctl("relays", "list", "-o", "json"))) < 2:
        assert time.monotonic() < until
    assert [(each["regionId"], each["source"]) for each in regions] == [(901, "relays"), (950, "derp")]
    assert good(gwctl("relays", "list")).splitlines()[1].split() == [
        "901", "fra", "901a", "r.example.org", "8443", "off", "off", "relays"
    ]  # fmt: skip
    assert "change it there" in bad(gwctl("relays", "remove", "950", "--force"), 2)
    assert "needs a confirmation" in bad(gwctl("relays", "remove", "901"), 2)
    assert "not a host" in bad(gwctl("relays", "add", "no_host"), 2)
    assert "no such relay" in bad(gwctl("relays", "set", "77", "--port", "1"), 4)
    assert "what is to be changed" in bad(gwctl("relays", "set", "901a"), 2)
    good(gwctl("relays", "remove", "fra", "--force"))
    assert good(gwctl("undo")) == "relay fra: brought back\n"
    assert good(gwctl("undo")) == "relay fra: 901a.stunport = 0, 901a.derpport = 0\n"
    told = data(gwctl("events", "--json"))
    assert [each["event"] for each in told if each["subject"] == "relay:901"] == [
        "relay-added", "relay-changed", "relay-removed", "relay-added", "change-undone", "relay-changed",
        "change-undone",
    ]  # fmt: skip


@pytest.mark.parametrize("mode", ["ready", "served"])
def test_a_setting_that_is_changed_names_who_did_it_and_is_taken_back(
    mode: str, request: pytest.FixtureRequest, state: Path
) -> None:
    gwctl: Run = request.getfixturevalue(mode)
    real = state / "real.toml"
    (state / "config.toml").rename(real)
    (state / "config.toml").symlink_to(real)
    assert good(gwctl("config", "set", "dns.routes.corp.example.org", '["10.0.0.53"]')) == (
        'dns.routes.corp.example.org = ["10.0.0.53"]\n'
    )
    assert good(gwctl("config", "set", "node.require_approval", "true")) == "node.require_approval = true\n"
    assert "expected `bool`" in bad(gwctl("config", "set", "dns.magic", "perhaps"), 9)
    assert "no such setting" in bad(gwctl("config", "set", "dns.magic.x", "1"), 4)
    changed = gwctl("config", "set", "domain", "ghost.test", "-o", "json")
    assert data(changed)["restart"] == (["domain"] if mode == "served" else [])
    assert (state / "config.toml").is_symlink() and "ghost.test" in real.read_text()
    assert good(gwctl("undo")) == 'config: domain = "ghost.internal"\n'
    assert good(gwctl("undo")) == "config: node.require_approval = false\n"
    assert good(gwctl("undo")) == "config: dns.routes.corp.example.org not set\n"
    assert "corp.example.org" not in real.read_text()
    told = data(gwctl("events", "-n", "50", "--json"))
    names = {each["subject"]: each["actor"] for each in told if each["event"] == "setting-changed"}
    assert set(names) == {"config:dns.routes", "config:node.require_approval", "config:domain"}
    assert all("uid 0" in actor or f"uid {os.getuid()}" in actor for actor in names.values())


HEADSCALES = """
users create ann -d Ann -e ann@example.org -p https://example.org/ann.png | users list -n ann | users new zed
users rename -i 1 -r anna | users destroy --identifier 2 --force | user ls
preauthkeys create -u 1 --reusable --ephemeral -e 1h --tags tag:x,tag:y | preauthkeys list | pre revoke -i 1
authkey rm -i 1 | apikeys create -e 90d | api ls | apikeys expire -i 1 | apikeys remove -i 1
policy get | policy view | policy set -f FILE | policy put --file FILE --force | policy check -f FILE
policy check -f FILE --bypass-grpc-and-access-database-directly
oauth-clients create -s auth_keys -t tag:ci -d ci | oauth ls | oauth-clients delete --id 2
nodes list -u anna | node ls -o yaml | nodes list-routes | nodes backfillips --force | configtest | version -o json
"""


def test_headscales_words_and_flags_work_as_they_are(ready: Run, state: Path) -> None:
    for line in HEADSCALES.replace("\n", "|").split("|"):
        words = line.replace("FILE", str(state / "policy.hujson")).split()
        if words:
            result = ready(*words)
            assert result.returncode == 0, (line, result.stderr)


def test_a_noun_alone_shows_what_there_is_and_calls_nothing_an_error(gwctl: Run) -> None:
    for words in ((), ("users",), ("import",)):
        assert bad(gwctl(*words), 2).startswith("Usage: gwctl")
    assert bad(gwctl("users", "create"), 2) == "error: missing argument `NAME`\nhint: see `gwctl users create --help`\n"


def test_a_configuration_is_tested_before_a_start(ready: Run, state: Path) -> None:
    assert "are good" in good(ready("configtest"))
    (state / "policy.hujson").write_text("{")
    assert f"{state}/policy.hujson:1:" in bad(ready("configtest"), 9)
    (state / "config.toml").write_text("listn = 1\n")
    assert f"{state}/config.toml:1: `listn`" in bad(ready("configtest"), 9)
