"""What the five console scripts share: global flags, error text, exit codes, logging and running a service.

Global flags (`--state-dir`, `--log-level`, `--log-format`, `--json`) may stand before or after the verb, so they are
taken out of the argument list before Typer reads it; nothing after a bare `--` is touched.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import typer

from gw import logs
from gw.commands import arguments
from gw.errors import EXIT_BUG, EXIT_INTERRUPTED, GwError, UsageError

STOP_TIMEOUT_S: Final = 5.0
_VALUE_FLAGS: Final = ("--state-dir", "--log-level", "--log-format")


@dataclass
class Settings:
    """The global flags of this run. state_dir: the flag alone; `resolve_state_dir` applies the other sources."""

    state_dir: str | None = None
    json: bool = False
    log_level: str = "info"
    log_format: str = "text"


_settings = Settings()


def settings() -> Settings:
    """The global flags as given on the command line."""
    return _settings


def state_dir() -> Path:
    """The state directory of this run: flag, `$GW_STATE_DIR`, else the platform's."""
    from gw.state.paths import resolve_state_dir

    return resolve_state_dir(_settings.state_dir)


def new_app(name: str, help: str) -> typer.Typer:
    """A Typer application with the house's habits: plain help, `-h`, no boxes, no rich tracebacks."""
    arguments.install()
    app = typer.Typer(
        name=name,
        help=help,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    def root(
        state_dir: Annotated[str | None, typer.Option("--state-dir", metavar="DIR", help="State directory.")] = None,
        log_level: Annotated[
            str | None, typer.Option("--log-level", metavar="LEVEL", help="error, warning, info or debug.")
        ] = None,
        log_format: Annotated[
            str | None, typer.Option("--log-format", metavar="FORMAT", help="text, or json (one object a line).")
        ] = None,
        json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
        version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
    ) -> None:
        """Only documents the flags: `hoist` has taken them already."""

    app.callback(help=help)(root)
    return app


def group(name: str, help: str) -> typer.Typer:
    """A Typer application for a noun below a script: `gwctl users …`."""
    return typer.Typer(
        name=name, help=help, rich_markup_mode=None, no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
    )  # fmt: skip


def hoist(argv: list[str]) -> tuple[Settings, bool, list[str]]:
    """Split argv (without the program) into global flags, whether `--version` was asked for, and the rest."""
    found = Settings(
        log_level=os.environ.get("GW_LOG_LEVEL", "info"), log_format=os.environ.get("GW_LOG_FORMAT", "text")
    )
    rest: list[str] = []
    version = False
    index = 0
    while index < len(argv):
        word = argv[index]
        index += 1
        if word == "--":
            rest += [word, *argv[index:]]
            break
        flag, equals, value = word.partition("=")
        if flag in _VALUE_FLAGS:
            if not equals:
                if index >= len(argv):
                    raise UsageError(f"`{flag}` needs a value")
                value = argv[index]
                index += 1
            setattr(found, flag[2:].replace("-", "_"), value)
        elif word == "--json":
            found.json = True
        elif word == "--version" and not rest:
            version = True
        else:
            rest.append(word)
    if found.log_level not in logs.LEVELS:
        raise UsageError(f"unknown log level: `{found.log_level}`", hint=f"one of {', '.join(logs.LEVELS)}")
    if found.log_format not in logs.FORMATS:
        raise UsageError(f"unknown log format: `{found.log_format}`", hint=f"one of {', '.join(logs.FORMATS)}")
    return found, version, rest


def verb(argv: list[str]) -> str:
    """The first word that is neither a global flag nor its value; empty where there is none."""
    try:
        _, _, rest = hoist(argv)
    except UsageError:
        return ""
    return rest[0] if rest else ""


def run(app: typer.Typer, script: str) -> NoReturn:
    """Run the script and leave with its exit code. Completion requests of the shell pass straight through."""
    global _settings
    try:
        _settings, version, rest = hoist(sys.argv[1:])
        if version:
            say(version_line(script))
            sys.exit(0)
        logs.start(_settings.log_level, _settings.log_format)
        code = app(args=rest, prog_name=script, standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code if isinstance(code, int) else 0)
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        if context is not None and str(error) == context.get_help():  # nothing was said but the noun
            note(str(error))
            sys.exit(UsageError.exit_code)
        command = context.command_path if context is not None else script
        fail(UsageError(_usage_text(error), hint=f"see `{command} --help`"))
    except typer.Abort:
        sys.exit(EXIT_INTERRUPTED)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        sys.stdout = None  # the reader left: nothing more to flush
        sys.exit(0)
    except BaseExceptionGroup as errors:
        fail(first_error(errors))
    except Exception as error:
        fail(error)


def _usage_text(error: typer.TyperException) -> str:
    text = error.format_message() if hasattr(error, "format_message") else str(error)
    text = text.strip().rstrip(".").replace("'", "`")
    return text[:1].lower() + text[1:] if text else "wrong usage"


def first_error(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The exception of a group to show: the first `GwError`, else the first of all."""
    leaves: list[BaseException] = []
    stack: list[BaseException] = [errors]
    while stack:
        item = stack.pop(0)
        if isinstance(item, BaseExceptionGroup):
            stack = [*item.exceptions, *stack]
        else:
            leaves.append(item)
    for leaf in leaves:
        if isinstance(leaf, GwError):
            return leaf
    return leaves[0]


def fail(error: BaseException) -> NoReturn:
    """Show an error on stderr and leave with its exit code."""
    if os.environ.get("GW_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)
    if isinstance(error, KeyboardInterrupt):
        sys.exit(EXIT_INTERRUPTED)
    if isinstance(error, GwError):
        message, hint, code, status = error.message, error.hint, error.code, error.exit_code
    else:
        message = f"internal error: {type(error).__name__}: {error}"
        hint = "this is a bug: run again with GW_DEBUG=1 and report what it prints"
        code, status = "bug", EXIT_BUG
    if _settings.json:
        import json

        line = json.dumps({"error": {"code": code, "message": message, "hint": hint}})
    else:
        line = f"error: {message}" + (f"\nhint: {hint}" if hint else "")
    print(line, file=sys.stderr, flush=True)
    sys.exit(status)


def say(text: str) -> None:
    """A line of result on stdout."""
    print(text)


def note(text: str) -> None:
    """A line for the person, on stderr: what changed, what to do next."""
    print(text, file=sys.stderr)


def printable(text: str) -> str:
    """A text of somebody else's with nothing in it that a terminal obeys."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def print_json(value: object) -> None:
    """A result as JSON on stdout: indented on a terminal, one line in a pipe. Takes msgspec structs too."""
    import msgspec

    raw = msgspec.json.encode(value)
    print((msgspec.json.format(raw, indent=2) if sys.stdout.isatty() else raw).decode())


def version_line(script: str) -> str:
    """`gw 0.1.0 (compiled core, Python 3.11.7)`."""
    from gw import __version__
    from gw.native import COMPILED

    core = "compiled core" if COMPILED else "interpreted core"
    return f"{script} {__version__} ({core}, Python {sys.version.split()[0]})"


@dataclass
class Service:
    """What a long-running program gets from the shell: say that it is ready, and hear of SIGHUP."""

    reload_callbacks: list[Callable[[], None]] = field(default_factory=list)

    def ready(self, status: str) -> None:
        """Tell the service manager and the log that the program now serves."""
        from gw.commands.notify import notify

        logging.getLogger("gw").info("%s", status)
        notify(f"READY=1\nSTATUS={status}")

    def on_reload(self, callback: Callable[[], None]) -> None:
        """Call `callback` on the loop at each SIGHUP."""
        self.reload_callbacks.append(callback)


def service_main(start: Callable[[Service], Coroutine[Any, Any, None]]) -> None:
    """Run `start(service)` until it ends or SIGTERM or SIGINT cancels it; then at most five seconds for cleanup."""
    import asyncio

    try:
        asyncio.run(_supervise(start))
    except asyncio.CancelledError:
        pass


async def _supervise(start: Callable[[Service], Coroutine[Any, Any, None]]) -> None:
    import asyncio
    import signal

    from gw.commands.notify import notify

    loop = asyncio.get_running_loop()
    service = Service()
    stopping = False

    def stop() -> None:
        nonlocal stopping
        if stopping:
            return
        stopping = True
        notify("STOPPING=1")
        loop.call_later(STOP_TIMEOUT_S, _give_up)
        main.cancel()

    def reload() -> None:
        for callback in service.reload_callbacks:
            callback()

    async with asyncio.TaskGroup() as tasks:
        main = tasks.create_task(start(service))
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        loop.add_signal_handler(signal.SIGHUP, reload)


def _give_up() -> None:
    logging.getLogger("gw").error("cleanup took longer than %.0f s: leaving", STOP_TIMEOUT_S)
    os._exit(1)
