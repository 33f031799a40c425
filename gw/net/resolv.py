"""The host's resolver: mesh names for every program on it, and the old settings back when we go.

    systemd-resolved   per-link settings by `resolvectl`
    resolvconf         a record of ours by `resolvconf -a`
    direct             /etc/resolv.conf itself; the host's own (file, link, or none) kept until we stop

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
MOUNTS: Final = Path("/proc/self/mountinfo")
BACKUP_NAME: Final = "resolv.conf.backup"
ABSENT: Final = b"# there was no resolv.conf\n"
OURS: Final = b"# written by gwd of GhostWire"
HEADER: Final = OURS.decode() + "; the host's own settings are in {backup} and come back when it stops\n"
COMMAND_S: Final = 5
RECORD_SUFFIX: Final = ".ghostwire"
RECORD_FOLDERS: Final = ("interface", "interfaces", "keys")  # Debian's resolvconf; openresolv, before and since 3.13


@dataclass(frozen=True, slots=True)
class ResolvConfig:
    """nameservers: addresses that answer everything. search: domains, the tailnet's own first."""

    nameservers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()


class Resolver(Protocol):
    """One way to set the host's resolver. Methods block for a moment."""

    def apply(self, config: ResolvConfig) -> None:
        """Raises GwError. An empty configuration restores the host's own."""

    def heal(self) -> None:
        """Another program (a DHCP client) may have put its own settings over ours. Raises GwError."""

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
    """resolv.conf replaced in one step, so that a reader never sees half of it."""

    def __init__(self, path: Path, backup: Path) -> None:
        self._path = path
        self._backup = backup
        self._applied = ResolvConfig()

    def apply(self, config: ResolvConfig) -> None:
        if config == self._applied:
            return
        if config == ResolvConfig():
            self.stop()
            return
        try:
            self._write(config)
        except OSError as error:
            raise _translate(error, self._path) from error
        self._applied = config

    def heal(self) -> None:
        """What another program wrote is the host's own from now on; ours goes over it again."""
        if self._applied != ResolvConfig() and not self._is_ours():
            log.warning("another program wrote `%s`; mesh names are put back", self._path)
            config, self._applied = self._applied, ResolvConfig()
            self.apply(config)

    def stop(self) -> None:
        self._applied = ResolvConfig()
        try:
            self.restore()
        except GwError as error:
            log.warning("%s", error.message)

    def restore(self) -> None:
        """Put back what was kept, if anything was. Raises GwError."""
        if not os.path.lexists(self._backup):
            return
        try:
            if self._is_ours():  # else somebody replaced it since: theirs stays
                self._put_back()
            self._backup.unlink()
        except OSError as error:
            raise _translate(error, self._path) from error

    def _write(self, config: ResolvConfig) -> None:
        if not self._is_ours():
            self._keep()
        lines = [HEADER.format(backup=self._backup)]
        if config.nameservers:
            lines += [f"nameserver {server}\n" for server in config.nameservers]
        else:  # only search domains: the host's own servers stay
            lines += [line for line in self._kept_lines() if line.startswith("nameserver")]
        lines += [line for line in self._kept_lines() if line.startswith("options")]
        if config.search:
            lines.append(f"search {' '.join(config.search)}\n")
        _replace(self._path, "".join(lines).encode())

    def _is_ours(self) -> bool:
        try:
            return self._path.read_bytes().startswith(OURS)
        except FileNotFoundError:
            return False

    def _keep(self) -> None:
        """A link is kept as a link: where it points is another program's business."""
        self._backup.parent.mkdir(parents=True, exist_ok=True)
        self._backup.unlink(missing_ok=True)
        if self._path.is_symlink() and not _is_mounted(self._path.resolve()):
            self._backup.symlink_to(self._path.readlink())
        else:
            _replace(self._backup, self._path.read_bytes() if self._path.exists() else ABSENT)

    def _kept_lines(self) -> list[str]:
        kept = self._backup
        if kept.is_symlink():
            kept = self._path.parent / kept.readlink()
        try:
            return [f"{line}\n" for line in kept.read_text(errors="replace").splitlines()]
        except FileNotFoundError:  # a link to nothing
            return []

    def _put_back(self) -> None:
        if self._backup.is_symlink():
            temporary = _temporary(self._path)
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(self._backup.readlink())
            os.replace(temporary, self._path)
            return
        kept = self._backup.read_bytes()
        if kept == ABSENT:
            self._path.unlink()
        else:
            _replace(self._path, kept)


@final
class SystemdResolved:
    """Settings of our link: resolved forgets them with the link."""

    def __init__(self, tun_name: str) -> None:
        self._link = tun_name
        self._applied = ResolvConfig()

    def apply(self, config: ResolvConfig) -> None:
        if config == self._applied:
            return
        if config == ResolvConfig():
            self.stop()
            return
        _run("resolvectl", "dns", self._link, *(config.nameservers or [""]))
        _run("resolvectl", "domain", self._link, *config.search, *(["~."] if config.nameservers else []))
        _run("resolvectl", "default-route", self._link, "yes" if config.nameservers else "no")
        self._applied = config

    def heal(self) -> None:
        """Nothing to do: resolved keeps a link's settings, even when it starts anew."""

    def stop(self) -> None:
        if self._applied != ResolvConfig():
            self._applied = ResolvConfig()
            _try("resolvectl", "revert", self._link)


@final
class Resolvconf:
    """A record of ours among those that resolvconf joins."""

    def __init__(self, tun_name: str) -> None:
        self._record = f"{tun_name}{RECORD_SUFFIX}"
        self._applied = ResolvConfig()
        _try("resolvconf", "-d", self._record)  # a killed run may have left it

    def apply(self, config: ResolvConfig) -> None:
        if config == self._applied:
            return
        if config == ResolvConfig():
            self.stop()
            return
        lines = [f"nameserver {server}\n" for server in config.nameservers]
        lines += [f"search {' '.join(config.search)}\n"] if config.search else []
        _run("resolvconf", "-a", self._record, text="".join(lines))
        self._applied = config

    def heal(self) -> None:
        """Nothing to do: records stay until they are removed."""

    def stop(self) -> None:
        if self._applied != ResolvConfig():
            self._applied = ResolvConfig()
            _try("resolvconf", "-d", self._record)


def remove_leftovers(backup: Path, path: Path = RESOLV_CONF) -> None:
    """Undo what a killed run left, whatever way it had chosen. backup: what `Direct` kept. Raises GwError."""
    Direct(path, backup).restore()
    folders = [Path("/run/resolvconf") / name for name in RECORD_FOLDERS]
    for name in {each.name for folder in folders for each in folder.glob(f"*{RECORD_SUFFIX}")}:
        _run("resolvconf", "-d", name)


def _replace(path: Path, raw: bytes) -> None:
    """By rename; where the file is a mount point of its own, or its folder may not change, in place."""
    if _is_mounted(path.resolve()):
        path.write_bytes(raw)
        return
    temporary = _temporary(path)
    try:
        temporary.write_bytes(raw)
        temporary.chmod(0o644)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno not in (errno.EBUSY, errno.EXDEV, errno.EACCES, errno.EROFS, errno.EPERM):
            raise
        if path.is_symlink():  # writing through it would change a file that is not ours to bring back
            raise
        path.write_bytes(raw)


def _is_mounted(path: Path) -> bool:
    """Whether a file system, such as a container's resolv.conf, is mounted on just this file."""
    try:
        lines = MOUNTS.read_text().splitlines()
    except OSError:
        return False
    return any(line.split()[4] == str(path) for line in lines)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.gwd-{os.getpid()}")


def _try(*argv: str) -> None:
    try:
        _run(*argv)
    except GwError as error:
        log.debug("%s", error.message)


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
