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
) -> None:
    """Change one setting in config.toml; comments stay. A running server takes it over at once where it can.

    gwctl config set dns.nameservers '["1.1.1.1", "9.9.9.9"]'
    """
    import tomlkit

    from gw.commands.controlclient import state_paths
    from gw.state.config import decode_config
    from gw.state.files import write_atomic

    paths = state_paths()
    known = _flat(_load())
    if key not in known and not key.startswith("dns.routes."):
        raise NotFound(f"no such setting: `{key}`", hint="see `gwctl config explain`")
    document = tomlkit.parse(paths.config_file.read_text())
    table_of: Any = document
    *folders, name = key.split(".", 2) if key.startswith("dns.routes.") else key.split(".")
    for folder in folders:
        if folder not in table_of:
            table_of[folder] = tomlkit.table()
        table_of = table_of[folder]
    table_of[name] = _parsed(value, isinstance(known.get(key), str))
    raw = tomlkit.dumps(document).rstrip("\n").encode() + b"\n"
    decode_config(raw, paths.config_file)
    write_atomic(paths.config_file, raw, paths.config_file.stat().st_mode & 0o777)
    shell.say(f"{key} = {_toml(document.unwrap() if not folders else _flat_tables(document.unwrap())[key])}")


def _parsed(text: str, is_string: bool) -> Any:
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    if is_string and not text.startswith('"'):
        return text
    try:
        return tomlkit.parse(f"x = {text}")["x"]
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
