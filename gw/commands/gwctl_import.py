"""`gwctl import headscale`: move from Headscale, the devices stay logged in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from gw.commands import shell
from gw.commands.output import Output, check_format, show, table
from gw.errors import Conflict, NotFound, UsageError

if TYPE_CHECKING:
    from gw.control.headscale.conversion import Converted
    from gw.control.headscale.settings import Translated
    from gw.state.paths import StatePaths

app = shell.group("import", "Move from another control server: gwctl import headscale db.sqlite --dry-run")

NOISE_KEY_NAME: Final = "noise_private.key"


@app.callback()
def _only_groups() -> None:
    """Keeps `headscale` a command of its own."""


@app.command("headscale")
def headscale(
    database: Annotated[
        Path | None, typer.Argument(metavar="[DB]", help="Headscale's db.sqlite; default: what --config names.")
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", "-c", metavar="FILE", help="Its config.yaml.")] = None,
    noise_key: Annotated[
        Path | None, typer.Option("--noise-key", metavar="FILE", help="Default: as --config says, else beside the DB.")
    ] = None,
    policy: Annotated[
        Path | None, typer.Option("--policy", metavar="FILE", help="Default: as --config says, else the database's.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Report, change nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace config.toml, policy and server key.")] = False,
    output: Output = None,
) -> None:
    """Take over users, nodes, keys, routes, policy, the server's key and the settings of Headscale 0.26 to 0.30.

    \b
        gwctl import headscale /var/lib/headscale/db.sqlite --config /etc/headscale/config.yaml --dry-run
        systemctl stop headscale
        gwctl import headscale /var/lib/headscale/db.sqlite --config /etc/headscale/config.yaml
        gwctl serve

    Devices keep keys, addresses and names, and come back without a new login if the server's URL stays. Headscale's
    files are only read. The report names all that was taken over differently or left out: read it before you go on.
    """
    from gw.control.headscale import settings
    from gw.state.paths import StatePaths

    check_format(output)
    if database is None and config is None:
        raise UsageError("what shall be imported?", hint="name db.sqlite, or --config config.yaml, or both")
    translated = None
    if config is not None:
        translated = settings.translate_settings(settings.read_settings(config), config.absolute().parent)
        if database is None and translated.database is not None and translated.database.exists():
            database = translated.database
    paths = StatePaths(shell.state_dir())
    if translated is None and not paths.config_file.exists():
        raise NotFound(
            f"no control server in `{paths.root}`", hint="add --config config.yaml, or run gwctl init --server-url URL"
        )
    plan = _Plan(paths, translated, database, noise_key, policy, force)
    report = plan.report()
    if not dry_run:
        plan.carry_out()
    report["dryRun"] = dry_run
    show(report, output, lambda: _text(report))


class _Plan:
    """All that an import will do; everything is read and checked before anything is written."""

    def __init__(
        self, paths: StatePaths, translated: Translated | None, database: Path | None, noise_key: Path | None,
        policy: Path | None, force: bool,
    ) -> None:  # fmt: skip
        from datetime import UTC, datetime

        from gw.control.headscale.conversion import Converted, convert
        from gw.control.headscale.database import Database, read_database

        self._paths, self._translated, self._force = paths, translated, force
        self._is_old = paths.config_file.exists()
        found = read_database(database) if database is not None else Database()
        self._converted: Converted = convert(found, datetime.now(UTC)) if database is not None else Converted()
        self._has_database = database is not None
        self._config = self._checked_config()
        self._noise = self._noise_text(noise_key, database)
        self._policy = self._policy_text(policy, found.policy)
        self._notes: list[tuple[str, str, str]] = [(n.level, n.subject, n.text) for n in self._converted.notes]
        self._notes += [("setting", key, text) for key, text in (translated.notes if translated is not None else ())]
        if self._has_database and self._noise is None:
            self._notes.append(
                ("left", "the server's key", "not found: devices refuse the new server; add --noise-key")
            )
        self._check_policy()
        self._check_target()

    def _checked_config(self) -> str | None:
        from gw.state.config import decode_config

        if self._translated is None:
            return None
        text = self._translated.toml()
        decode_config(text.encode(), self._paths.config_file)
        return text

    def _noise_text(self, given: Path | None, database: Path | None) -> str | None:
        from gw.errors import WireError
        from gw.model.keys import MachineSecret
        from gw.state.files import translate

        named = given or (self._translated.noise_key if self._translated is not None else None)
        path = named or (database.parent / NOISE_KEY_NAME if database is not None else None)
        if path is None or not (given or path.exists()):
            return None
        try:
            return MachineSecret.parse(path.read_text().strip()).text()
        except OSError as error:
            raise translate(error, "read the server's key", path, "check the path") from error
        except (WireError, UnicodeDecodeError):
            raise UsageError(f"not a Noise key of Headscale: `{path}`") from None

    def _policy_text(self, given: Path | None, stored: str) -> str | None:
        from gw.state.files import translate

        path = given or (self._translated.policy if self._translated is not None else None)
        if path is None:
            return stored or None
        try:
            return path.read_text()
        except OSError as error:
            raise translate(error, "read the policy", path, "check the path") from error

    def _check_policy(self) -> None:
        from gw.policy.faults import PolicyError
        from gw.policy.reader import read_policy

        if self._policy is None:
            if self._has_database:
                self._notes.append(
                    (
                        "changed",
                        "policy",
                        "Headscale had none and allowed everything; here nothing is allowed without one",
                    )
                )
            return
        try:
            read_policy(self._policy.encode())
        except PolicyError as error:
            place = f"line {error.line}: " if error.line else ""
            self._notes.append(
                ("changed", "policy", f"{place}{error.message}: nothing is allowed until it is repaired")
            )

    def _check_target(self) -> None:
        """Nothing that is there is lost. Raises Conflict."""
        from gw.state.files import read_secret
        from gw.state.store import DirectoryStore

        if not self._is_old:
            return
        if self._config is not None and not self._force:
            raise Conflict(
                f"`{self._paths.config_file}` exists", hint="leave --config away to keep it, or --force to replace it"
            )
        if not self._has_database:
            return
        with DirectoryStore(self._paths).open(lock=False) as store:
            if store.load("node") or store.load("user"):
                raise Conflict(
                    f"there are users or nodes in `{self._paths.root}`",
                    hint="import into a fresh directory: --state-dir",
                )
        key = self._paths.keys_dir / "control.key"
        is_other = key.exists() and self._noise is not None and read_secret(key).decode().strip() != self._noise
        if is_other and not self._force:
            raise Conflict("this server has a key of its own already", hint="--force replaces it")

    def report(self) -> dict[str, Any]:
        """What is done, in numbers, and what a person should know."""
        found = self._converted
        now = sum(1 for node in found.nodes if node.tags)
        return {
            "users": len(found.users), "nodes": len(found.nodes), "taggedNodes": now,
            "preAuthKeys": len(found.preauth_keys), "apiKeys": len(found.api_keys),
            "approvedRoutes": sum(len(node.approved_routes) for node in found.nodes),
            "policy": self._policy is not None, "serverKey": self._noise is not None,
            "settings": self._translated.values if self._translated is not None else {},
            "notes": [{"level": level, "subject": subject, "text": text} for level, subject, text in self._notes],
        }  # fmt: skip

    def carry_out(self) -> None:
        """Write it all; durable when it returns."""
        import time

        from gw.state.changes import Put
        from gw.state.files import write_atomic, write_secret
        from gw.state.layout import CONFIG_MODE, init_state_dir
        from gw.state.store import DirectoryStore

        paths = self._paths
        init_state_dir(paths)
        with DirectoryStore(paths).open(wait_s=1.0) as store:
            if self._has_database:
                for kind in ("user", "node", "preauthkey"):
                    store.load(kind)
                store.commit_sync([Put(document) for document in self._converted.documents()])
            if self._noise is not None:
                self._keep_old(paths.keys_dir / "control.key")
                write_secret(paths.keys_dir / "control.key", f"{self._noise}\n".encode())
            if self._policy is not None:
                self._keep_old(paths.policy_file)
                write_atomic(paths.policy_file, self._policy.encode(), CONFIG_MODE)
            if self._config is not None:  # last: without it the directory is not set up, and the import may be repeated
                self._keep_old(paths.config_file)
                write_atomic(paths.config_file, self._config.encode(), CONFIG_MODE)
            found = self._converted
            store.trail.append(
                time.time(), "imported", actor=f"uid {_uid()}, offline", subject="server:headscale",
                after={"users": len(found.users), "nodes": len(found.nodes), "preauth_keys": len(found.preauth_keys),
                       "api_keys": len(found.api_keys)},
            )  # fmt: skip

    def _keep_old(self, path: Path) -> None:
        if path.exists():
            path.rename(path.with_name(f"{path.name}.before-import"))


def _uid() -> int:
    import os

    return os.getuid()


def _text(report: dict[str, Any]) -> str:
    word = "would take over" if report["dryRun"] else "took over"
    lines = [
        f"{word} {report['users']} users, {report['nodes']} nodes ({report['taggedNodes']} tagged), "
        f"{report['preAuthKeys']} pre-auth keys, {report['apiKeys']} API keys, "
        f"{report['approvedRoutes']} approved routes",
        f"policy: {'yes' if report['policy'] else 'none'}   server key: {'yes' if report['serverKey'] else 'not found'}"
        f"   settings: {len(report['settings'])}",
    ]
    if report["notes"]:
        rows = [[note["level"], note["subject"], note["text"]] for note in report["notes"]]
        lines += ["", table(("WHAT", "OF", "WHY"), rows)]
    lines += [
        "",
        "next: gwctl import … without --dry-run" if report["dryRun"] else "next: gwctl serve, gwctl nodes list",
    ]
    return "\n".join(lines)
