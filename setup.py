"""Builds with mypyc what packets pass: `gw/native/`, and a few modules where they stand. Everything else about the
package stands in pyproject.toml.

GW_NATIVE=auto (default)   compile; where that fails, install the same code to be interpreted
GW_NATIVE=require          compile, or fail
GW_NATIVE=off              do not compile
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext

MODE = os.environ.get("GW_NATIVE", "auto")
SOURCES = sorted(str(path) for path in Path("gw/native").glob("*.py") if path.name != "__init__.py")
SOURCES += [  # tied to aioquic or to sockets, and run for each train: compiled they take two thirds of the time
    "gw/net/trains.py",
    "gw/quic/fastpath.py",
    "gw/quic/link.py",
    "gw/relay/inboxes.py",
    "gw/relay/quicoutflow.py",
    "gw/relay/quicport.py",
    "gw/relay/quicsession.py",
]


class AllOrNothing(build_ext):
    """mypyc's group file and its shims are one thing: with one of them missing the package cannot be imported."""

    def build_extensions(self) -> None:
        try:
            super().build_extensions()
        except Exception as error:
            if MODE == "require":
                raise
            print(f"gw.native is not compiled and will run interpreted: {error}", file=sys.stderr)
            for extension in self.extensions:
                Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)
            self.extensions = []


def extensions() -> list:
    if MODE == "off":
        return []
    if MODE not in ("auto", "require"):
        raise SystemExit(f"GW_NATIVE is `{MODE}`: off, auto or require")
    # mypyc translates `__init__.py` too, so that COMPILED is what the package really is
    from mypyc.build import mypycify

    try:
        return mypycify(
            # silent: of what is only imported not all may be installed here, and `make lint` has looked at it
            ["--strict", "--follow-imports=silent", "gw/native/__init__.py", *SOURCES],
            opt_level="3",
            debug_level="0",
            group_name="gw_native",
        )
    except SystemExit as error:  # another release of a library may have other types
        if MODE == "require":
            raise
        print(f"gw.native is not compiled and will run interpreted: {error}", file=sys.stderr)
        return []


setup(ext_modules=extensions(), cmdclass={"build_ext": AllOrNothing})
