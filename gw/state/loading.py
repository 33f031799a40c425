"""Reading the documents of a kind: the only scan there is, at start.

One object that cannot be read is denied, not fatal: its error is returned beside the others. A newer schema is fatal.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from gw.errors import ConfigError
from gw.state.changes import Ident
from gw.state.codec import decode
from gw.state.documents import PLACES, SUFFIX, AnyDocument, Key, Kind, file_name, key_of
from gw.state.files import translate
from gw.state.journal import Entry, fingerprint
from gw.state.migrations import Migrations
from gw.state.settling import read_document
from gw.state.tomltext import NewerSchema

# From here on, documents are kept out of garbage collections: 50,000 of them halved the rate of many commits at once.
MANY: Final = 1000


@dataclass(slots=True)
class Loaded:
    """The documents of one kind. heads: fingerprints of the texts they came from."""

    documents: dict[Key, AnyDocument] = field(default_factory=dict)
    heads: dict[Key, int] = field(default_factory=dict)
    commented: set[Key] = field(default_factory=set)
    migrated: list[AnyDocument] = field(default_factory=list)
    broken: dict[Key, tuple[ConfigError, int]] = field(default_factory=dict)  # and the fingerprint of the text


def document_names(root: Path, kind: Kind) -> list[str]:
    """The file names of a kind's documents; an absent folder has none. Raises GwError."""
    folder = root / PLACES[kind].folder
    if kind == "server":
        return [file_name(kind)] if os.path.lexists(folder / file_name(kind)) else []
    try:
        return [name for name in os.listdir(folder) if name.endswith(SUFFIX) and not name.startswith(".")]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise translate(error, "read", folder) from error


def load_kind(root: Path, kind: Kind, pending: Mapping[Ident, list[Entry]], migrations: Migrations) -> Loaded:
    """Read all documents of a kind, as if the pending journal entries were settled. Raises NewerSchema or GwError."""
    loaded = Loaded()
    names = document_names(root, kind)
    for pending_kind, key in pending:
        if pending_kind == kind and file_name(key) not in names:
            names.append(file_name(key))
    was_enabled = gc.isenabled()
    gc.disable()  # 50,000 fresh objects that all live on: collecting in between only costs
    try:
        _load_names(root, kind, names, pending, migrations, loaded)
    finally:
        if was_enabled:
            gc.enable()
    if len(loaded.documents) >= MANY:
        gc.freeze()
    return loaded


def _load_names(
    root: Path, kind: Kind, names: Iterable[str], pending: Mapping[Ident, list[Entry]], migrations: Migrations,
    loaded: Loaded,
) -> None:  # fmt: skip
    folder = root / PLACES[kind].folder
    for name in names:
        key = key_of(kind, name)
        path = folder / name
        raw: bytes | None = None
        try:
            if key is None:
                raise ConfigError(f"no name for a {kind}", path=str(path))
            raw = read_document(path)
            raw = _with_pending(raw, pending.get((kind, key), []))
            if raw is None:
                continue
            document, migrated = decode(kind, name, raw, str(path), migrations)
        except NewerSchema:
            raise
        except ConfigError as error:
            loaded.broken[name if key is None else key] = (error, fingerprint(raw))
            continue
        loaded.documents[key] = document
        loaded.heads[key] = fingerprint(raw)
        if b"#" in raw:
            loaded.commented.add(key)
        if migrated:
            loaded.migrated.append(document)


def _with_pending(raw: bytes | None, chain: list[Entry]) -> bytes | None:
    """The text a file will have once its entries are settled (the rule of `settling`, for readers)."""
    if not chain:
        return raw
    start = 0
    for index in range(1, len(chain)):
        if chain[index].before != chain[index - 1].after:
            start = index
    run = chain[start:]
    found = fingerprint(raw)
    return run[-1].text if found == run[0].before or any(found == entry.after for entry in run) else raw
