"""`gwctl policy`: read, check, try and explain the access policy, on files or with the nodes of the state directory."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gw.commands import remote, shell
from gw.commands.output import Output, check_format, show
from gw.errors import ConfigError, GwError, NotFound, UsageError

if TYPE_CHECKING:
    from gw.policy.explain import Explanation
    from gw.policy.faults import PolicyError
    from gw.policy.topology import Topology

app = shell.group("policy", "Who may reach whom: gwctl policy why laptop nas:22")

REFUSED = 2
NAMED = "check the path"
NOTHING = b'{"grants": []}'
BATCH_HINT = 'one object a line: {"name": "…", "topology": {…}, "policy": "…"}'
FileArgument = Annotated[
    Path | None, typer.Argument(metavar="[FILE]", help="A policy; default: the one of the state directory.")
]
PolicyOption = Annotated[
    Path | None, typer.Option("--policy", "-p", metavar="FILE", help="Default: the one of the state directory.")
]
TopologyOption = Annotated[
    Path | None, typer.Option("--topology", "-t", metavar="FILE", help="Users and nodes; default: those there are.")
]
FileOption = Annotated[Path | None, typer.Option("--file", "-f", metavar="FILE", help="The same, as Headscale has it.")]
Bypass = Annotated[bool, typer.Option("--bypass-grpc-and-access-database-directly", hidden=True)]  # we always may
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("eval")
def evaluate(
    topology: TopologyOption = None,
    policy: PolicyOption = None,
    batch: Annotated[
        bool, typer.Option("--batch", help="Read one JSON object a line: name, topology, policy.")
    ] = False,
    json_: Json = False,
) -> None:
    """Print all that a policy means for every node, as JSON. Ends with 2 where the policy is refused.

    gwctl policy eval --topology net.json --policy policy.hujson
    """
    import msgspec

    from gw.policy.evaluate import evaluate as run
    from gw.policy.faults import PolicyError
    from gw.policy.topology import read_asked

    if batch:
        for number, line in enumerate(sys.stdin.buffer, 1):
            if not line.strip():
                continue
            try:
                asked = read_asked(line)
            except PolicyError as error:
                raise UsageError(f"standard input, line {number}: {error.message}", hint=BATCH_HINT) from None
            result = run(asked.topology, asked.policy.encode(errors="surrogatepass"))
            sys.stdout.write(f"{msgspec.json.encode(result).decode()}\n")
            sys.stdout.flush()
        return
    result = run(_topology(topology), _read(policy, empty=b""))
    sys.stdout.write(f"{msgspec.json.encode(result).decode()}\n")
    if result["error"] is not None:
        raise typer.Exit(REFUSED)


@app.command("check")
def check(file: FileArgument = None, named: FileOption = None, bypass: Bypass = False, output: Output = None) -> None:
    """Say whether a policy is one, or show every fault with its place.

    gwctl policy check policy.hujson

    Next: gwctl policy test
    """
    from gw.policy.faults import PolicyError
    from gw.policy.reader import read_policy
    from gw.policy.toml import SUFFIX, read_toml_policy

    check_format(output)
    file = named or file
    raw = _raw(file)
    if not raw.strip():
        shell.note(f"{_path(file)} is empty: a server allows nothing")
        if check_format(output):
            show(_counted(0, 0, 0), output, str)
        return
    try:
        policy = read_toml_policy(raw) if _path(file).suffix == SUFFIX else read_policy(raw)
    except PolicyError as error:
        _show_faults(_path(file), raw, error)
        raise ConfigError(f"the policy is refused: {error.message}", path=str(_path(file))) from None
    if policy.grants is None:
        shell.note('neither "acls" nor "grants": as with Tailscale, everything is allowed')
    count = len(policy.grants or ())
    tests = len(policy.tests) + len(policy.ssh_tests)
    text = f"{_path(file)}: rules: {count}, for SSH: {len(policy.ssh)}, tests: {tests}"
    show(_counted(count, len(policy.ssh), tests), output, lambda: text)


def _counted(rules: int, ssh: int, tests: int) -> dict[str, int]:
    return {"rules": rules, "sshRules": ssh, "tests": tests}


@app.command("test")
def test(file: FileArgument = None, topology: TopologyOption = None, output: Output = None) -> None:
    """Run the policy's own `tests` and `sshTests` against the nodes there are.

    gwctl policy test policy.hujson --topology net.json
    """
    from gw.policy.checks import Checks
    from gw.policy.faults import PolicyError
    from gw.policy.topology import view_of

    check_format(output)
    raw = _read(file)
    try:
        view = view_of(_topology(topology), raw)
    except PolicyError as error:
        raise _refusal(_path(file), error) from None
    failures = Checks(view).failures()
    count = len(view.policy.tests) + len(view.policy.ssh_tests)
    if check_format(output):
        show({"tests": count, "failures": failures}, output, str)
    else:
        for line in failures:
            shell.note(line)
    if failures:
        raise GwError(f"{len(failures)} expectations do not hold", hint="gwctl policy why SRC DST:PORT")
    if not check_format(output):
        shell.say(f"{count} tests hold" if count else 'no tests: add "tests" to the policy')


@app.command("why")
def why(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A node's name or address, or any address.")],
    target: Annotated[str, typer.Argument(metavar="DST:PORT[/PROTO]", help="nas:22, nas:53/udp, nas/icmp, [v6]:443.")],
    policy: PolicyOption = None,
    topology: TopologyOption = None,
    output: Output = None,
) -> None:
    """Say which rule lets SRC reach DST, or what comes nearest and would allow it.

    gwctl policy why laptop nas:22
    """
    from gw.policy.explain import Explainer, parse_question
    from gw.policy.faults import PolicyError
    from gw.policy.topology import view_of

    check_format(output)
    try:
        question = parse_question(source, target)
    except ValueError as error:
        raise UsageError(str(error)) from None
    try:
        view = view_of(_topology(topology), _read(policy))
    except PolicyError as error:
        raise _refusal(_path(policy), error) from None
    try:
        found = Explainer(view).explain(question)
    except PolicyError as error:
        raise NotFound(error.message, hint="gwctl nodes list") from None
    show(found.plain(), output, lambda: _told(found, _path(policy)))


@app.command("diff")
def diff(
    old: Annotated[Path, typer.Argument(metavar="OLD")],
    new: Annotated[
        Path | None, typer.Argument(metavar="[NEW]", help="Left out: what is in force is compared with OLD.")
    ] = None,
    topology: TopologyOption = None,
    output: Output = None,
) -> None:
    """Show what a changed policy would open (+) and close (-), before it is applied: at nodes, behind routers and exit
    nodes, by SSH and by `app` grants; and whose attributes and route approvals would change.

    gwctl policy diff policy.new.hujson
    """
    from gw.policy.difference import difference
    from gw.policy.faults import PolicyError
    from gw.policy.topology import view_of

    check_format(output)
    before, after = (None, old) if new is None else (old, new)
    nodes = _topology(topology)
    views = []
    for file in (before, after):
        try:
            views.append(view_of(nodes, _read(file)))
        except PolicyError as error:
            raise _refusal(_path(file), error) from None
    found = difference(views[0], views[1])
    show(found.plain(), output, lambda: "\n".join(found.lines()) or "nothing changes for the nodes there are")


@app.command("get")
@app.command("show", hidden=True)
@app.command("view", hidden=True)
@app.command("fetch", hidden=True)
def get(bypass: Bypass = False, output: Output = None) -> None:
    """Print the policy of the state directory as it stands, comments and all."""
    from gw.commands.controlclient import ask

    raw = ask("GET", "policy")["policy"].encode() if remote.address() else _raw(None)
    show({"policy": raw.decode(errors="replace")}, output, lambda: raw.decode(errors="replace").rstrip("\n"))


@app.command("set")
@app.command("put", hidden=True)
@app.command("update", hidden=True)
def set_policy(
    file: Annotated[str | None, typer.Argument(metavar="[FILE]", help="- for standard input.")] = None,
    named: Annotated[str | None, typer.Option("--file", "-f", metavar="FILE", help="The same.")] = None,
    bypass: Bypass = False,
    force: Annotated[bool, typer.Option("--force", hidden=True)] = False,
    output: Output = None,
) -> None:
    """Put a policy in force, byte for byte, after checking it and running its tests.

    gwctl policy set policy.hujson

    A running server takes it over at once. The text that is there already changes nothing.
    Next: gwctl policy why SRC DST:PORT
    """
    from gw.commands.controlclient import ask, state_paths
    from gw.policy.toml import SUFFIX, from_toml
    from gw.state.files import write_atomic

    check_format(output)
    file = named or file
    if not file:
        raise UsageError("which file?", hint="gwctl policy set policy.hujson")
    if remote.address():
        text = (sys.stdin.buffer.read() if file == "-" else _raw(Path(file))).decode(errors="surrogateescape")
        put = ask("PUT", "policy", body={"policy": text})
        state = "unchanged" if put.get("unchanged") else "in force"
        show(put, output, lambda: f"{state} at {remote.address()}")
        return
    path = state_paths().policy_file
    raw = sys.stdin.buffer.read() if file == "-" else _raw(Path(file))
    if not raw.strip():
        raise UsageError("an empty policy", hint=f"to allow nothing, say so: {NOTHING.decode()}")
    text = from_toml(raw) if path.suffix == SUFFIX else raw
    answer = ask("POST", "policy", "check", body={"policy": text.decode(errors="surrogateescape"), "announce": True})
    is_there = answer.get("unchanged") and path.exists() and path.read_bytes() == raw
    if not is_there:
        write_atomic(path, raw, path.stat().st_mode & 0o777 if path.exists() else 0o640)
    state = "unchanged, " if is_there else ""
    show(answer, output, lambda: f"{path}: {state}rules: {answer['rules']}, revision {answer['revision']}")


@app.command("fmt")
def fmt(
    file: FileArgument = None,
    write: Annotated[bool, typer.Option("--write", "-w", help="Change the file instead of printing.")] = False,
) -> None:
    """Print a policy in one style, its comments kept.

    gwctl policy fmt --write policy.hujson
    """
    from gw.policy.formatting import formatted
    from gw.policy.hujson import HuJSONError
    from gw.policy.toml import SUFFIX
    from gw.state.files import write_atomic

    path = _path(file)
    if path.suffix == SUFFIX:
        raise UsageError(f"`{path}` is TOML, which has no one style here", hint=f"gwctl policy convert {path}")
    raw = _raw(file)
    try:
        neat = formatted(raw)
    except HuJSONError as error:
        raise ConfigError(error.reason, path=f"{path}:{error.line}:{error.column}") from None
    if not write:
        sys.stdout.write(neat.decode())
    elif neat != raw:
        write_atomic(path, neat, path.stat().st_mode & 0o777)


@app.command("convert")
def convert(
    file: FileArgument = None,
) -> None:
    """Print a policy in the other spelling: HuJSON as TOML, TOML as HuJSON. Comments are not carried over.

    gwctl policy convert policy.hujson > policy.toml

    A server reads policy.toml where there is no policy.hujson.
    """
    from gw.policy.faults import PolicyError
    from gw.policy.formatting import formatted
    from gw.policy.toml import SUFFIX, from_toml, to_toml

    path, raw = _path(file), _raw(file)
    try:
        out = formatted(from_toml(raw)) if path.suffix == SUFFIX else to_toml(raw)
    except PolicyError as error:
        raise _refusal(path, error) from None
    sys.stdout.write(out.decode())


# Where things come from


def _path(file: Path | None) -> Path:
    if file is not None:
        return file
    from gw.commands.controlclient import state_paths

    return state_paths().policy_file


def _read(file: Path | None, *, empty: bytes = NOTHING) -> bytes:
    """The HuJSON of a policy, however it is spelled. empty: what a file without a word means; to a server, nothing."""
    from gw.policy.faults import PolicyError
    from gw.policy.toml import SUFFIX, from_toml

    raw, path = _raw(file), _path(file)
    if not raw or (empty and not raw.strip()):
        return empty
    if path.suffix != SUFFIX:
        return raw
    try:
        return from_toml(raw)
    except PolicyError as error:
        raise _refusal(path, error) from None


def _raw(file: Path | None) -> bytes:
    from gw.state.tomltext import read_bytes

    if file is not None:
        return read_bytes(file, what="policy", hint=NAMED)
    return read_bytes(_path(file), what="policy")


def _topology(file: Path | None) -> Topology:
    """Of a file, else the users and nodes of the server or state directory."""
    import msgspec

    from gw.policy.faults import PolicyError
    from gw.policy.topology import Topology, read_topology

    if file is None:
        from gw.commands.controlclient import ask

        return msgspec.convert(ask("GET", "policy", "topology"), Topology)
    from gw.state.tomltext import read_bytes

    try:
        return read_topology(read_bytes(file, what="topology", hint=NAMED))
    except PolicyError as error:
        raise UsageError(f"{file}: {error.message}") from None


# What people read


def _refusal(path: Path, error: PolicyError) -> ConfigError:
    place = f"{path}:{error.line}:{error.column}" if error.line else str(path)
    return ConfigError(error.message, path=place, hint=f"gwctl policy check {path}")


def _show_faults(path: Path, raw: bytes, error: PolicyError) -> None:
    """Each fault with its line, and a caret under its place."""
    lines = raw.decode(errors="replace").splitlines()
    for line, column, message in error.located or [(error.line, error.column, error.message)]:
        shell.note(f"{path}:{line}:{column}: {message}" if line else f"{path}: {message}")
        if 0 < line <= len(lines):
            text = lines[line - 1]
            before = text.encode()[: column - 1].decode(errors="replace")
            shell.note(f"  {text}")
            shell.note("  " + "".join("\t" if letter == "\t" else " " for letter in before) + "^")


def _told(found: Explanation, path: Path) -> str:
    lines = [f"{found.question}: {'allowed' if found.is_allowed else 'denied'}"]
    for rule in found.allowed_by:
        place = f"{path}:{rule.line}: " if rule.line else ""
        lines.append(f"  {place}{rule.text}")
    if found.through:
        lines.append(f"  by way of {', '.join(found.through)}")
    for miss in found.misses:
        lines += [f"  nearest: {path}:{miss.rule.line}: {miss.rule.text}", f"    but {miss.lacks}"]
    if found.note:
        lines.append(f"  {found.note}")
    if found.suggestion:
        lines.append(f"  would allow it: {found.suggestion}")
    return "\n".join(lines)
