"""`gwctl events`: who changed what and when, and the proof that the trail is whole."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gw.commands import shell
from gw.commands.output import Output, check_format, moment, show, table
from gw.errors import GwError, NotFound, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Filter = Callable[[dict[str, Any]], bool]

POLL_S = 0.2
HELP = """Who changed what, and when: gwctl events -n 20

\b
    gwctl events --since 1h --event 'node-*'      what happened to nodes in the last hour
    gwctl events -f --json                        follow, one JSON object a line
    gwctl events head > head.json                 a signed statement to keep elsewhere
    gwctl events verify --head head.json          nothing up to that head was changed
"""

app = typer.Typer(
    name="events", help=HELP, rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]}
)


@app.callback(invoke_without_command=True, help=HELP)
def events(
    context: typer.Context,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what happens from now on.")] = False,
    number: Annotated[
        int | None, typer.Option("--lines", "-n", metavar="N", help="The last N; default 20, with --since all.")
    ] = None,
    since: Annotated[
        str | None, typer.Option("--since", metavar="TIME", help="1h, 7d, or 2031-05-01T00:00:00Z.")
    ] = None,
    until: Annotated[str | None, typer.Option("--until", metavar="TIME", help="As --since.")] = None,
    event: Annotated[
        list[str] | None,
        typer.Option("--event", "-e", metavar="GLOB", help="node-renamed, node-*, …; repeat for more."),
    ] = None,
    actor: Annotated[str | None, typer.Option("--actor", metavar="TEXT", help="Part of who did it.")] = None,
    subject: Annotated[
        str | None, typer.Option("--subject", "-s", metavar="GLOB", help="node:3, user:ann, preauthkey:*, …")
    ] = None,
    output: Output = None,
) -> None:
    if context.invoked_subcommand is not None:
        return
    wanted = _filter(since, until, event or [], actor, subject)
    limit = number if number is not None else (None if since or until else 20)
    if limit is not None and limit < 0:
        raise UsageError(f"not a number of lines: `{limit}`")
    _list(_folder(), wanted, limit, "json-line" if follow and check_format(output) else check_format(output), follow)


def _list(folder: Path, wanted: Filter, limit: int | None, format_: str, follow: bool) -> None:
    import time
    from collections import deque

    from gw.state.trailreading import TrailReader

    reader = TrailReader(folder)
    found: deque[dict[str, Any]] = deque(maxlen=limit)
    while lines := reader.read():
        found.extend(each for each in map(_decoded, lines) if wanted(each))
    if format_ in ("", "json-line"):
        for each in found:
            _print(each, format_)
    else:
        show(list(found), format_, lambda: "")
    while follow:
        for each in map(_decoded, reader.read()):
            if wanted(each):
                _print(each, format_)
        time.sleep(POLL_S)


def _print(event: dict[str, Any], format_: str) -> None:
    import sys

    import msgspec

    shell.say(msgspec.json.encode(event).decode() if format_ else _sentence(event))
    sys.stdout.flush()


def _decoded(line: bytes) -> dict[str, Any]:
    import msgspec

    try:
        found = msgspec.json.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        found = None
    return found if isinstance(found, dict) else {"event": "unreadable", "text": line.decode(errors="replace")}


def _sentence(event: dict[str, Any]) -> str:
    """`2031-05-01 10:00:00  node-renamed  node:3  root (uid 0)  given_name: box → nas`"""
    words = [moment(event.get("time")), event.get("event", "-"), event.get("subject", "-"), event.get("actor", "-")]
    before, after = event.get("before") or {}, event.get("after") or {}
    if before and after:
        words.append(", ".join(f"{name}: {_short(before.get(name))} → {_short(after[name])}" for name in after))
    else:
        chosen = before or after
        names = [name for name in ("given_name", "name", "user", "addresses", "tags", "policy") if chosen.get(name)]
        words.append(", ".join(f"{name}: {_short(chosen[name])}" for name in names))
    return "  ".join(str(word) for word in words).rstrip()


def _short(value: object) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return (text[:60] + "…" if len(text) > 60 else text) or "-"


def _filter(since: str | None, until: str | None, names: list[str], actor: str | None, subject: str | None) -> Filter:
    first, last = _time(since), _time(until)

    def wanted(event: dict[str, Any]) -> bool:
        time = event.get("time", "")
        return (
            (not first or time >= first)
            and (not last or time <= last)
            and (not names or any(fnmatchcase(event.get("event", ""), name) for name in names))
            and (not actor or actor.lower() in event.get("actor", "").lower())
            and (not subject or fnmatchcase(event.get("subject", ""), subject))
        )

    return wanted


def _time(text: str | None) -> str:
    """The time as it stands in the trail, to be compared as text. `7d` is so long ago."""
    from datetime import UTC, datetime, timedelta

    from gw.state.durations import parse_duration

    if not text:
        return ""
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        when = datetime.now(UTC) - timedelta(seconds=parse_duration(text))
    return (when if when.tzinfo else when.astimezone()).astimezone(UTC).isoformat(timespec="milliseconds")


@app.command("verify")
def verify(
    heads: Annotated[
        list[str] | None,
        typer.Option("--head", metavar="FILE", help="A head that was kept elsewhere; repeat for more."),
    ] = None,
    output: Output = None,
) -> None:
    """Prove that no line was altered, removed or cut off. Ends with 1 if one was.

    gwctl events verify --head head.json

    Heads beside the trail prove that it is consistent; only a head kept on another machine proves that nobody who owned
    this one rewrote it. Lines after the newest head are chained but not signed yet.
    """
    from pathlib import Path

    from gw.state import trailreading

    check_format(output)
    folder = _folder()
    given = [(path, trailreading.read_head_file(Path(path))) for path in heads or []]
    kept = [*trailreading.kept_heads(folder), *given]
    verdict = trailreading.verify(folder, _trusted_key(folder, [head.key for _, head in given]), kept)
    shape = {
        "whole": verdict.is_whole, "events": verdict.lines, "last": verdict.last, "heads": verdict.heads,
        "unsigned": verdict.unsigned, "unchained": verdict.unchained,
        "problems": [{"file": p.file, "line": p.line, "what": p.what} for p in verdict.problems],
    }  # fmt: skip
    unsigned = f", {verdict.unsigned} after the newest signed head" if verdict.unsigned else ""
    if verdict.is_whole:
        show(shape, output, lambda: f"the trail is whole: {verdict.lines} events, {verdict.heads} heads{unsigned}")
        return
    rows = [[p.file, str(p.line or "-"), p.what] for p in verdict.problems]
    show(shape, output, lambda: table(("FILE", "LINE", "WHAT"), rows))
    raise GwError("the event trail is not whole", hint="compare with a backup: `gwctl restore` can be run elsewhere")


def _trusted_key(folder: Path, given: list[str]) -> str:
    """The key that heads have to be signed by: of a head from elsewhere, else the server's, else the trail's."""
    from gw.state.heads import KEY_FILE, public_hex, signing_key
    from gw.state.trailreading import own_head

    if given:
        return given[0]
    key_file = folder.parent / "keys" / KEY_FILE
    try:
        if key_file.exists():
            return public_hex(signing_key(key_file))
    except (GwError, OSError):
        pass
    head = own_head(folder)
    return head.key if head is not None else ""


@app.command("head")
def head(output: Output = None) -> None:
    """Print the newest signed head: keep it on another machine.

    gwctl events head > /mnt/elsewhere/head.json

    It says how far the trail went and what it held. Next, whenever you doubt: gwctl events verify --head FILE
    """
    import msgspec

    from gw.state.trailreading import own_head

    check_format(output)
    found = own_head(_folder())
    if found is None:
        raise NotFound("the trail has no signed head yet", hint="it is signed within seconds of the first event")
    shape = msgspec.to_builtins(found)
    show(shape, output, lambda: msgspec.json.encode(found).decode())


def _folder() -> Path:
    from gw.commands.controlclient import state_paths

    return state_paths().events_dir
