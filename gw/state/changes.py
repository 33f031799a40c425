"""What goes into a store and what comes out of it unasked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gw.errors import ConfigError
from gw.state.config import Config
from gw.state.documents import AnyDocument, Key, Kind

WatchedKind = Kind | Literal["config", "policy", "dns"]
Ident = tuple[Kind, Key]


@dataclass(frozen=True, slots=True)
class Put:
    """Create the document, or replace the one with its key."""

    document: AnyDocument


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove a document; one that is not there does no harm."""

    kind: Kind
    key: Key


Change = Put | Delete


@dataclass(frozen=True, slots=True)
class ExternalChange:
    """Somebody else changed a file: a person with an editor, or another program.

    key: the document's; for `config`, `policy` and `dns` the file's name.
    doc: the new document, the new settings, for `policy` and `dns` the text; None = deleted, or see error.
    error: set when the file is broken; what was read from it before stays in force.
    """

    kind: WatchedKind
    key: Key
    doc: AnyDocument | Config | str | None = None
    error: ConfigError | None = None
