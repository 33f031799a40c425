"""The host's resolver: mesh names for every program on it, and the old settings back when we go.

    systemd-resolved   per-link settings by `resolvectl`
    resolvconf         a record of ours by `resolvconf -a`
    direct             /etc/resolv.conf itself, the old one kept in the state directory until we stop

Ref: spec dataplane §4.1
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, final

from gw.errors import GwError, PermissionNeeded

log: Final = logging.getLogger(__name__)

RESOLV_CONF: Final = Path("/etc/resolv.conf")
BACKUP_NAME: Final = "resolv.conf.backup"
HEADER: Final = "# written by gwd of GhostWire; the host's own settings are in {backup} and come back when it stops\n"
COMMAND_S: Final = 5


@dataclass(frozen=True, slots=True)
class ResolvConfig:
    """nameservers: addresses that answer everything. search: domains, the tailnet's own first."""

    nameservers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()


class Resolver(Protocol):
    """One way to set the host's resolver. Methods block for a moment."""

    def apply(self, config: ResolvConfig) -> None:
        """Raises GwError. An empty configuration restores the host's own."""

    def stop(self) -> None:
        """Restore the host's own settings; safe to call twice."""


def choose(tun_name: str, keep: Path, path: Path = RESOLV_CONF) -> Resolver:
    """The way of this host, after undoing what a killed run left behind. keep: folder for the host's own settings."""
    direct = Direct(path, keep / BACKUP_NAME)
    direct.restore()
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return direct
    comments = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    servers = [
        line.split()[1] for line in text.splitlines() if line.startswith("nameserver ") and len(line.split()) > 1
    ]
    if "systemd-resolved" in comments and servers == ["127.0.0.53"] and shutil.which("resolvectl"):
        return SystemdResolved(tun_name)
    if "resolvconf" in comments and shutil.which("resolvconf"):
        return Resolvconf(tun_name)
    return direct


@final
class Direct:
    """resolv.conf rewritten, in one step where the file system allows it."""

    def __init__(self, path: Path, backup: Path) -> None:
        self._path = path
        self._backup = backup
        self._applied = ResolvConfig()

    def apply(self, config: ResolvConfig) -> None:
        if config == self._applied:
            return
        if not config.nameservers and not config.search:
            self.stop()
            return
        if not self._backup.exists():
            self._save()
        try:
            lines = [HEADER.format(backup=self._backup)]
            if config.nameservers:
                lines += [f"nameserver {server}\n" for server in config.nameservers]
            else:  # only search domains: the host's own servers stay
                own = self._backup.read_text(errors="replace").splitlines()
                lines += [f"{line}\n" for line in own if line.startswith("nameserver")]
            if config.search:
                lines.append(f"search {' '.join(config.search)}\n")
            _replace(self._path, "".join(lines).encode())
        except OSError as error:
            raise _translate(error, self._path) from error
        self._applied = config

    def stop(self) -> None:
        self._applied = ResolvConfig()
        try:
            self.restore()
        except GwError as error:
            log.warning("%s", error.message)

    def restore(self) -> None:
        """Put the saved file back, if there is one."""
        try:
            saved = self._backup.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise _translate(error, self._backup) from error
        try:
            current = self._path.read_bytes() if self._path.exists() else b""
            if current.startswith(b"# written by gwd"):  # else somebody replaced it since: theirs stays
                _replace(self._path, saved)
            self._backup.unlink()
        except OSError as error:
            raise _translate(error, self._path) from error

    def _save(self) -> None:
        try:
            saved = self._path.read_bytes() if self._path.exists() else b""
            self._backup.parent.mkdir(parents=True, exist_ok=True)
            _replace(self._backup, saved)
        except OSError as error:
            raise _translate(error, self._backup) from error


@final
class SystemdResolved:
    """Settings of our link: resolved forgets them with the link."""

    def __init__(self, tun_name: str) -> None:
        self._link = tun_name
        self._applied = ResolvConfig()

    def apply(self, config: ResolvConfig) -> None:
        if config == self._applied:
            return
        if not config.nameservers and not config.search:
            self.stop()
            return
        _run("resolvectl", "dns", self._link, *(config.nameservers or [""]))
        _run("resolvectl", "domain", self._link, *config.search, *(["~."] if config.nameservers else []))
        _run("resolvectl", "default-route", self._link, "yes" if config.nameservers else "no")
        self._applied = config

    def stop(self) -> None:
        if self._applied != ResolvConfig():
            self._applied = ResolvConfig()
            try:
                _run("resolvectl", "revert", self._link)
            except GwError as error:
                log.warning("%s", error.message)


@final
class Resolvconf:
    """A record of ours among those that resolvconf joins."""

    def __init__(self, tun_name: str) -> None:
        self._record = f"{tun_name}.ghostwire"
        self._applied = ResolvConfig()

    def apply(self, config: ResolvConfig) -> None:
        if config == self._applied:
            return
        if not config.nameservers and not config.search:
            self.stop()
            return
        lines = [f"nameserver {server}\n" for server in config.nameservers]
        lines += [f"search {' '.join(config.search)}\n"] if config.search else []
        _run("resolvconf", "-a", self._record, text="".join(lines))
        self._applied = config

    def stop(self) -> None:
        if self._applied != ResolvConfig():
            self._applied = ResolvConfig()
            try:
                _run("resolvconf", "-d", self._record)
            except GwError as error:
                log.warning("%s", error.message)


def _replace(path: Path, raw: bytes) -> None:
    """By rename; where the file is a mount point of its own, in place."""
    temporary = path.with_name(f".{path.name}.gwd-{os.getpid()}")
    try:
        temporary.write_bytes(raw)
        temporary.chmod(0o644)
        os.replace(temporary, path.resolve() if path.is_symlink() else path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno not in (errno.EBUSY, errno.EXDEV, errno.EACCES, errno.EROFS, errno.EPERM):
            raise
        path.write_bytes(raw)


def _run(*argv: str, text: str = "") -> None:
    try:
        done = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=COMMAND_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise GwError(f"`{argv[0]}` does not work: {error}") from error
    if done.returncode:
        raise GwError(f"`{' '.join(argv[:2])}` failed: {done.stderr.strip()[:200]}")


def _translate(error: OSError, path: Path) -> GwError:
    if error.errno in (errno.EACCES, errno.EPERM):
        return PermissionNeeded(f"may not write `{path}`", hint="run `gwd` as root, or: gw set --accept-dns=false")
    return GwError(f"cannot write `{path}`: {error.strerror}")
