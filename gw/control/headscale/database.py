"""Headscale's SQLite database, versions 0.26 to 0.30, read only.

    users          0.26 on   id, name, display_name, email, provider_identifier, provider, profile_pic_url
    nodes          0.26 on   forced_tags until 0.27, tags from 0.28
    pre_auth_keys  0.26 on   key in plain text; prefix and bcrypt hash from 0.28
    api_keys       0.26 on   prefix, bcrypt hash
    policies       0.26 on   where `policy.mode` is `database`: the newest row is in force

Columns that a version does not have read as None. Ref: headscale hscontrol/db/schema.sql, hscontrol/db/db.go
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final

from gw.errors import ConfigError, NotFound
from gw.state.files import translate

TABLES: Final = ("users", "nodes", "pre_auth_keys", "api_keys", "policies")
OLDEST: Final = "202502171819"  # the last migration of 0.25 and before
_TIME: Final = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[ T](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?\s*(Z|UTC|[+-]\d\d:?\d\d)?.*", re.ASCII
)
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Database:
    """The rows of a database that were not deleted, in order of their ids."""

    users: list[Row] = field(default_factory=list)
    nodes: list[Row] = field(default_factory=list)
    preauth_keys: list[Row] = field(default_factory=list)
    api_keys: list[Row] = field(default_factory=list)
    oauth_clients: list[Row] = field(default_factory=list)  # from 0.30 on
    policy: str = ""


def read_database(path: Path) -> Database:
    """Everything in one consistent look; a running Headscale is not disturbed. Raises GwError."""
    try:
        with path.open("rb") as file:
            magic = file.read(16)
    except OSError as error:
        raise translate(error, "read the database", path, "check the path") from error
    if magic != b"SQLite format 3\0":
        raise ConfigError("not an SQLite database", path=str(path), hint="Headscale's is `db.sqlite` where it runs")
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            connection.row_factory = sqlite3.Row
            connection.execute("BEGIN")
            names = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            missing = [table for table in TABLES if table not in names]
            if missing:
                raise ConfigError(f"no table `{missing[0]}`: not a database of Headscale 0.26 or newer", path=str(path))
            if "routes" in names or not _has_migration(connection, OLDEST):
                raise NotFound(
                    f"`{path}` is of Headscale 0.25 or older", hint="start Headscale 0.26 on it once, then import it"
                )
            policies = _rows(connection, "policies")
            return Database(
                users=_rows(connection, "users"),
                nodes=_rows(connection, "nodes"),
                preauth_keys=_rows(connection, "pre_auth_keys"),
                api_keys=_rows(connection, "api_keys"),
                oauth_clients=_rows(connection, "oauth_clients") if "oauth_clients" in names else [],
                policy=str(policies[-1]["data"] or "") if policies else "",
            )
    except sqlite3.Error as error:
        raise ConfigError(f"cannot read the database: {error}", path=str(path)) from error


def _has_migration(connection: sqlite3.Connection, wanted: str) -> bool:
    try:
        found = {str(row[0]) for row in connection.execute("SELECT id FROM migrations")}
    except sqlite3.Error:
        return False
    return wanted in found


def _rows(connection: sqlite3.Connection, table: str) -> list[Row]:
    rows = [dict(row) for row in connection.execute(f"SELECT * FROM {table} ORDER BY id")]
    return [row for row in rows if row.get("deleted_at") is None]


def time_of(value: object) -> datetime | None:
    """A time as Go's SQLite drivers write it; None for none, for Go's zero time and for nonsense."""
    match = _TIME.fullmatch(str(value or ""))
    if match is None:
        return None
    year, month, day, hour, minute, second = map(int, match.groups()[:6])
    zone = match[8] or "Z"
    offset = timedelta()
    if zone not in ("Z", "UTC"):
        offset = timedelta(hours=int(zone[1:3]), minutes=int(zone[-2:]))
        offset = -offset if zone[0] == "-" else offset
    try:
        found = datetime(
            year, month, day, hour, minute, second, int((match[7] or "0").ljust(9, "0")[:6]), timezone(offset)
        ).astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return found if found.year > 1 else None


def list_of(value: object) -> list[str]:
    """A column that holds a JSON list of texts; anything else is an empty one."""
    try:
        found = json.loads(value) if isinstance(value, str | bytes) and value else []
    except (ValueError, RecursionError):
        return []
    return [each for each in found if isinstance(each, str)] if isinstance(found, Sequence) else []


def table_of(value: object) -> dict[str, Any]:
    """A column that holds a JSON object; anything else is an empty one."""
    try:
        found = json.loads(value) if isinstance(value, str | bytes) and value else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def text_of(value: object) -> str:
    """A text or blob column as text."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "")
