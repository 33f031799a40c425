"""The extension module of `qh3`, which brings AWS-LC's primitives: faster than OpenSSL's on what we do most.

It is not a promise of theirs, so whoever takes something from it checks first that it is right (`gw.wire.cipher`,
`gw.wire.x25519`). It is loaded without the package around it, which would take a quarter of a second.
"""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
import sys
from types import ModuleType
from typing import Final

_MODULE: Final = "qh3._hazmat"


@functools.cache
def load() -> ModuleType | None:
    """The module; None where it is not installed or made for another system."""
    known = sys.modules.get(_MODULE)
    if known is not None:
        return known
    try:
        package = importlib.util.find_spec("qh3")
        if package is None or not package.submodule_search_locations:
            return None
        spec = importlib.machinery.PathFinder.find_spec("_hazmat", package.submodule_search_locations)
        if spec is None or spec.origin is None:
            return None
        spec = importlib.util.spec_from_file_location(_MODULE, spec.origin)
        if spec is None or spec.loader is None:
            return None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except Exception:  # built for another system, or broken
        return None
    sys.modules[_MODULE] = module  # it can be loaded once a process
    return module
