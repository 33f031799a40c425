"""`gwctl policy` as a person and a script see it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .test_gwctl import START_TIMEOUT_S, gwctl, ready, served, state

__all__ = ["gwctl", "ready", "served", "state"]  # fixtures

CHECK = Path(__file__).parents[1] / "vectors" / "policy" / "check.py"
GWCTL = Path(sys.executable).parent / "gwctl"
TOPOLOGY = {
    "users": [{"id": 1, "name": "ann", "email": "ann@x.org"}],
    "nodes": [
        {"id": 1, "name": "laptop", "user": "ann", "ips": ["100.64.0.1"]},
        {"id": 2, "name": "nas", "tags": ["tag:nas"], "ips": ["100.64.0.2"]},
    ],
}
POLICY = """{
	// storage
	"tagOwners": {"tag:nas": []},
	"acls": [{"action": "accept", "src": ["ann@x.org"], "dst": ["tag:nas:22"]}],
	"tests": [{"src": "ann@x.org", "accept": ["tag:nas:22"], "deny": ["tag:nas:80"]}],
}
"""
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "net.json").write_text(json.dumps(TOPOLOGY))
    (tmp_path / "p.hujson").write_text(POLICY)
    return {"net": str(tmp_path / "net.json"), "policy": str(tmp_path / "p.hujson")}


def test_the_captured_vectors_in_one_batch() -> None:
    found = subprocess.run(
        [sys.executable, CHECK, "--batch", "--", GWCTL, "policy", "eval", "--batch"],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert found.stdout.splitlines()[-1] == "476 passed, 0 failed", found.stdout + found.stderr


@pytest.mark.long
@pytest.mark.timeout(3600)  # 476 starts of an interpreter, on a machine that may have other work
def test_the_captured_vectors_one_by_one() -> None:
    found = subprocess.run(
        [sys.executable, CHECK, "--", GWCTL, "policy", "eval"], capture_output=True, text=True, check=False
    )
    assert found.stdout.splitlines()[-1] == "476 passed, 0 failed", found.stdout + found.stderr


def test_eval_ends_with_two_for_a_refused_policy(gwctl: Run, files: dict[str, str], tmp_path: Path) -> None:
    good = gwctl("policy", "eval", "--topology", files["net"], "--policy", files["policy"], "--json")
    assert good.returncode == 0
    result: dict[str, Any] = json.loads(good.stdout)
    assert result["error"] is None
    assert result["peers"] == {"laptop": {"nas": []}, "nas": {"laptop": []}}
    (tmp_path / "bad.hujson").write_text(POLICY.replace("accept", "permit", 1))
    bad = gwctl("policy", "eval", "--topology", files["net"], "--policy", str(tmp_path / "bad.hujson"))
    assert bad.returncode == 2
    assert json.loads(bad.stdout)["error"]["message"] == 'action="permit" is not supported'


def test_check_shows_each_fault_with_a_caret_under_it(gwctl: Run, tmp_path: Path) -> None:
    path = tmp_path / "bad.hujson"
    path.write_text('{\n\t"acls": [{"action": "accept", "src": ["tag:x"], "dst": ["*:0"]}],\n}\n')
    found = gwctl("policy", "check", str(path))
    assert found.returncode == 9
    lines = found.stderr.splitlines()
    assert lines[0] == f'{path}:2:40: src=tag not found: "tag:x"'
    assert lines[2].index("^") - 2 == lines[1].index('"tag:x"') - 2
    assert lines[3].startswith(f"{path}:2:58: ")
    assert "error: " in lines[-1]


BAD = [
    (("check", "half.hujson"), 9, "half.hujson:2:1: hujson: line 2, column 1: parsing value: unexpected EOF"),
    (("check", "binary.hujson"), 9, "invalid character"),
    (("check", "nowhere.hujson"), 4, "no policy: `nowhere.hujson`"),
    (("check", "."), 1, "cannot read `.`"),
    (("check", "half.toml"), 9, "half.toml: not TOML"),
    (("check", "empty.hujson"), 0, "empty.hujson is empty: a server allows nothing"),
    (("fmt", "half.toml"), 2, "gwctl policy convert half.toml"),
    (("convert", "binary.hujson"), 9, "binary.hujson:1:1"),
    (("set", "empty.hujson"), 2, "an empty policy"),
    (("set", "half.hujson"), 2, "the policy is refused: 2:1"),
    (("eval", "-t", "net.json", "-p", "nowhere"), 4, "no policy"),
    (("eval", "-t", "list.json", "-p", "p.hujson"), 2, "list.json: not a topology: Expected `object`"),
    (("eval", "-t", "where.json", "-p", "p.hujson"), 2, "node `a`: 'x' does not appear to be"),
    (("eval", "-t", "twice.json", "-p", "p.hujson"), 2, "two nodes have one id"),
    (("eval", "--batch"), 2, "standard input, line 1: not a topology"),
    (("why", "laptop", "nas", "-t", "net.json", "-p", "p.hujson"), 2, "which port of `nas`?"),
    (("why", "who", "nas:22", "-t", "net.json", "-p", "p.hujson"), 4, "no such node: `who`"),
    (("diff", "half.hujson", "-t", "net.json"), 9, "half.hujson:2:1"),
    (("test", "half.hujson", "-t", "net.json"), 9, "half.hujson:2:1"),
]


def test_every_bad_input_gets_one_clear_line(
    ready: Run, files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, raw in {
        "half.hujson": b'{"acls": [\n',
        "half.toml": b"acls = [",
        "binary.hujson": b"\xff\xfe\0",
        "empty.hujson": b" \n",
        "list.json": b"[]",
        "where.json": b'{"nodes": [{"name": "a", "ips": ["x"]}]}',
        "twice.json": b'{"nodes": [{"name": "a"}, {"name": "b"}]}',
    }.items():
        (tmp_path / name).write_bytes(raw)
    monkeypatch.chdir(tmp_path)
    for words, code, line in BAD:
        found = ready("policy", *words, said="[1]\n")
        assert (found.returncode, line in found.stderr) == (code, True), (words, found.stderr)
        assert "Traceback" not in found.stderr


def test_an_empty_policy_means_to_the_cli_what_it_means_to_a_server(
    ready: Run, files: dict[str, str], state: Path
) -> None:
    (state / "policy.hujson").write_text("")
    asked = ready("policy", "why", "laptop", "nas:22", "-t", files["net"], "-o", "json")
    assert json.loads(asked.stdout)["allowed"] is False


def test_a_policy_whose_tests_fail_is_not_put_in_force(ready: Run, state: Path, files: dict[str, str]) -> None:
    assert ready("policy", "test", files["policy"], "--topology", files["net"]).stdout == "1 tests hold\n"
    before = (state / "policy.hujson").read_bytes()
    refused = ready("policy", "set", files["policy"])  # nobody is called ann@x.org here
    assert refused.returncode == 2
    assert "test(s) failed" in refused.stderr
    assert (state / "policy.hujson").read_bytes() == before


@pytest.mark.parametrize("mode", ["ready", "served"])
def test_a_policy_that_the_server_could_not_compile_is_not_put_in_force(
    mode: str, state: Path, request: pytest.FixtureRequest
) -> None:
    """It reads well, but over the users there are a name in it means two of them."""
    run: Run = request.getfixturevalue(mode)
    assert run("users", "create", "ben@x.org").returncode == 0
    assert run("users", "create", "zed", "--email", "ben@x.org").returncode == 0
    before = (state / "policy.hujson").read_bytes()
    path = state.parent / "p.hujson"
    path.write_text('{"acls": [], "autoApprovers": {"exitNode": ["ben@x.org"]}}')
    assert run("policy", "check", str(path)).returncode == 0
    refused = run("policy", "set", str(path))
    assert refused.returncode == 2
    assert "multiple users found" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert (state / "policy.hujson").read_bytes() == before


def test_a_stored_policy_whose_tests_fail_is_loaded_with_a_warning(ready: Run, state: Path) -> None:
    """Tests are for those who write a policy: what is stored holds, and the log says what does not."""
    (state / "policy.hujson").write_text(POLICY)  # nobody is called ann@x.org here
    env = {**os.environ, "GW_STATE_DIR": str(state)}
    env.pop("GW_RUNTIME_DIR", None)
    with subprocess.Popen([GWCTL, "serve"], env=env, stderr=subprocess.PIPE, text=True) as server:
        until = time.monotonic() + START_TIMEOUT_S
        while ready("health").returncode != 0:
            assert server.poll() is None
            assert time.monotonic() < until
        assert ready("policy", "get").stdout == POLICY
        server.terminate()
        _, log = server.communicate(timeout=30)
    assert "a test of the policy fails, the policy holds all the same: ann@x.org" in log


def test_set_keeps_every_byte_and_get_gives_it_back(ready: Run, state: Path, files: dict[str, str]) -> None:
    text = POLICY.replace('"tests"', '// "tests"')
    Path(files["policy"]).write_text(text)
    done = ready("policy", "set", files["policy"])
    assert done.returncode == 0, done.stderr
    assert "rules: 1, revision " in done.stdout
    assert (state / "policy.hujson").read_text() == text
    assert ready("policy", "get").stdout == text
    assert json.loads(ready("policy", "get", "-o", "json").stdout)["policy"] == text


def test_why_and_diff_for_scripts(gwctl: Run, files: dict[str, str], tmp_path: Path) -> None:
    options = ["--policy", files["policy"], "--topology", files["net"]]
    yes = json.loads(gwctl("policy", "why", "laptop", "nas:22", *options, "-o", "json").stdout)
    assert yes["allowed"]
    assert yes["rules"][0]["line"] == 4
    no = gwctl("policy", "why", "laptop", "nas:80", *options)
    assert no.returncode == 0
    assert no.stdout.startswith("laptop -> nas:80/tcp: denied\n")
    assert "its ports do not include tcp 80" in no.stdout
    assert gwctl("policy", "why", "nobody", "nas:80", *options).returncode == 4
    (tmp_path / "new.hujson").write_text(POLICY.replace(":22", ":22,443"))
    diff = gwctl("policy", "diff", files["policy"], str(tmp_path / "new.hujson"), "-t", files["net"], "-o", "json")
    told = json.loads(diff.stdout)
    assert told["gained"] == [{"src": ["laptop"], "dst": ["nas"], "ip": ["tcp:443", "udp:443"]}]
    assert told["lost"] == []
    assert told["ssh"] == told["routes"] == told["app"] == {"gained": [], "lost": []}
    grants = r'{"src": ["ann@x.org"], "dst": ["tag:nas"], "app": {"x.org/cap": ["\ud800", 1e400]}}'
    rule = '{"action": "check", "src": ["ann@x.org"], "dst": ["tag:nas"], "users": ["root"]}'
    (tmp_path / "new.hujson").write_text(POLICY.replace('"tests"', f'"grants": [{grants}], "ssh": [{rule}], "tests"'))
    words = ("policy", "diff", files["policy"], str(tmp_path / "new.hujson"), "-t", files["net"])
    assert gwctl(*words).stdout.splitlines() == [
        "+ ssh laptop -> nas as root: check",
        r'+ app laptop -> nas: x.org/cap "\ud800", 1e400',
    ]
    for form in ("json", "yaml", "json-line"):
        assert "x.org/cap" in gwctl(*words, "-o", form).stdout
    assert gwctl(*words[:3], files["policy"], "-t", files["net"]).stdout == (
        "nothing changes for the nodes there are\n"
    )


def test_convert_there_and_back_and_fmt(gwctl: Run, files: dict[str, str], tmp_path: Path) -> None:
    toml = tmp_path / "p.toml"
    toml.write_text(gwctl("policy", "convert", files["policy"]).stdout)
    assert "[[acls]]" in toml.read_text()
    assert gwctl("policy", "check", str(toml)).stdout == f"{toml}: rules: 1, for SSH: 0, tests: 1\n"
    assert gwctl("policy", "test", str(toml), "-t", files["net"]).stdout == "1 tests hold\n"
    assert '"tag:nas:22"' in gwctl("policy", "convert", str(toml)).stdout
    assert gwctl("policy", "fmt", files["policy"]).stdout == POLICY
    Path(files["policy"]).write_text(POLICY.replace("\t", "  "))
    assert gwctl("policy", "fmt", "--write", files["policy"]).returncode == 0
    assert Path(files["policy"]).read_text() == POLICY


def test_a_running_server_is_asked_for_its_nodes(served: Run, state: Path) -> None:
    assert served("users", "create", "ann").returncode == 0
    text = '{"acls": [{"action": "accept", "src": ["ann@"], "dst": ["192.0.2.0/24:22"]}]}'
    (state.parent / "p.hujson").write_text(text)
    assert served("policy", "set", str(state.parent / "p.hujson")).returncode == 0
    found = json.loads(served("policy", "why", "100.64.0.9", "192.0.2.1:22", "-o", "json").stdout)
    assert found["note"] == "no node has an approved route to 192.0.2.1"


def events(state: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for path in sorted((state / "events").glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]


def test_without_a_server_the_event_has_the_revision_before_and_after(ready: Run, state: Path) -> None:
    revisions = []
    for text in ('{"acls": []}', '{"acls": [], "groups": {}}'):
        (state.parent / "p.hujson").write_text(text)
        revisions.append(ready("policy", "set", str(state.parent / "p.hujson")).stdout.split()[-1])
    found = [event for event in events(state) if event["event"] == "policy-changed"]
    assert [event["after"]["policy"] for event in found] == revisions
    assert found[1]["before"] == {"policy": revisions[0]}


def test_the_event_trail_names_who_set_the_policy(served: Run, state: Path) -> None:
    (state.parent / "p.hujson").write_text('{"acls": []}')
    revision = served("policy", "set", str(state.parent / "p.hujson")).stdout.split()[-1]
    for _ in range(100):
        found = [event for event in events(state) if event["event"] == "policy-changed"]
        if found:
            break
        time.sleep(0.05)
    assert found[0]["after"] == {"policy": revision}
    assert "uid" in found[0]["actor"]
    (state / "policy.hujson").write_text('{"acls": [], "groups": {}}')
    for _ in range(100):
        found = [event for event in events(state) if event["event"] == "policy-changed"]
        if len(found) == 2:
            break
        time.sleep(0.05)
    assert found[1]["actor"] == "hand edit"
