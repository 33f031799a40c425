"""`gwctl`: the control server and its administration."""

from __future__ import annotations

import sys
from typing import Final

import typer

from gw.commands import remote, shell, verbs

HELP: Final = """Run and administer a control server.

\b
    gwctl init --server-url https://mesh.example.org
    gwctl serve
    gwctl users create ann
    gwctl preauthkeys create -u ann --reusable -e 24h

Works with a running server, and without one on the state directory. With --address https://SERVER and
--api-key-file FILE (or GWCTL_ADDRESS, GWCTL_API_KEY_FILE) it works from elsewhere.
Next: gw up --login-server URL --auth-key file:PATH
"""
VERBS: Final = (
    "init", "serve", "users", "nodes", "preauthkeys", "apikeys", "oauth-clients", "auth", "routes", "relays", "policy",
    "config", "events", "webhooks", "undo", "backup", "restore", "import", "configtest", "health", "version",
)  # fmt: skip
ALIASES: Final = {
    "user": "users", "namespace": "users", "namespaces": "users", "node": "nodes", "machine": "nodes",
    "machines": "nodes", "apikey": "apikeys", "api": "apikeys", "oauth-client": "oauth-clients",
    "oauthclients": "oauth-clients", "oauthclient": "oauth-clients", "oauth": "oauth-clients",
    "preauthkey": "preauthkeys", "authkey": "preauthkeys", "pre": "preauthkeys", "route": "routes",
    "relay": "relays", "derp": "relays",
}  # fmt: skip
_OUTPUT_FLAGS: Final = ("-o", "--output")


def build() -> typer.Typer:
    """The whole application."""
    return verbs.build("gwctl", HELP, VERBS)


def trailing_output(words: list[str]) -> list[str]:
    """Move `-o FORMAT` behind the verb, because Headscale takes it anywhere."""
    moved: list[str] = []
    rest: list[str] = []
    index = 0
    while index < len(words) and words[index] != "--":
        word = words[index]
        if word in _OUTPUT_FLAGS and index + 1 < len(words):
            moved += words[index : index + 2]
            index += 1
        elif word.startswith("--output="):
            moved.append(word)
        else:
            rest.append(word)
        index += 1
    return rest + moved + words[index:]


def main() -> None:
    sys.argv[1:] = trailing_output(remote.take_flags(sys.argv[1:]))
    shell.run(verbs.application("gwctl", HELP, VERBS, sys.argv[1:], ALIASES), "gwctl")
