"""`gwctl config`: read and change config.toml, comments kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from gw.commands import shell
from gw.commands.output import Output, check_format, show, table
from gw.errors import NotFound, UsageError

if TYPE_CHECKING:
    from gw.state.config import Config

app = shell.group("config", "Settings in config.toml: gwctl config explain")

KeyArgument = Annotated[str, typer.Argument(metavar="KEY", help="server_url, dns.nameservers, relay.hostname, …")]


@app.command("get")
def get(key: KeyArgument, output: Output = None) -> None:
    """Print the value in force: the file's, else the default."""
    check_format(output)
    values = _flat(_load())
    if key not in values:
        raise NotFound(f"no such setting: `{key}`", hint="see `gwctl config explain`")
    value = values[key]
    show(value, output, lambda: value if isinstance(value, str) else _toml(value))


@app.command("set")
def set_value(
    key: KeyArgument,
    value: Annotated[str, typer.Argument(metavar="VALUE", help="TOML; a bare word is a string.")],
    output: Output = None,
) -> None:
    """Change one setting in config.toml; comments stay. A running server takes it over at once where it can.

    gwctl config set dns.nameservers '["1.1.1.1", "9.9.9.9"]'
    """
    from gw.commands.controlclient import ask

    check_format(output)
    known = _flat(_load())
    if key not in known and not key.startswith("dns.routes."):
        raise NotFound(f"no such setting: `{key}`", hint="see `gwctl config explain`")
    changed = ask("PATCH", "config", body={"settings": {key: _parsed(value, isinstance(known.get(key), str))}})
    show(changed, output, lambda: f"{key} = {_toml(changed['settings'][key])}")
    if changed["restart"] and not check_format(output):
        shell.note("in force when the server starts again")


def _parsed(text: str, is_string: bool) -> Any:
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    if is_string and not text.startswith('"'):
        return text
    try:
        return tomlkit.parse(f"x = {text}").unwrap()["x"]
    except TOMLKitError:
        if text[:1] in '["{':
            raise UsageError(f"not a TOML value: `{text}`") from None
        return text


@app.command("explain")
def explain(output: Output = None) -> None:
    """List every setting, its value, and whether the file or the default gives it."""
    import tomli

    from gw.commands.controlclient import state_paths

    check_format(output)
    config = _load()
    written = _flat_tables(tomli.loads(state_paths().config_file.read_text()))
    rows = [
        {"key": key, "value": value, "source": "config.toml" if key in written else "default"}
        for key, value in _flat(config).items()
    ]
    show(
        rows, output,
        lambda: table(("KEY", "VALUE", "FROM"), [[str(r["key"]), _toml(r["value"]), str(r["source"])] for r in rows]),
    )  # fmt: skip


def _load() -> Config:
    from gw.commands.controlclient import state_paths
    from gw.state.config import load_config

    return load_config(state_paths().config_file)


def _flat(config: Config) -> dict[str, Any]:
    import msgspec

    return _flat_tables(msgspec.to_builtins(config))


def _flat_tables(tables: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tables.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and key != "dns.routes":
            flat |= _flat_tables(value, f"{key}.")
        else:
            flat[key] = value
    return flat


def _toml(value: Any) -> str:
    import msgspec

    return msgspec.json.encode(value).decode()
