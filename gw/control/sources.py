"""What the settings name and others write: relay maps in files and at URLs, DNS records in a file. Followed live.

Files are looked at every second by name, size and time, wherever they lie; URLs are fetched again every `derp.refresh`.
What cannot be read leaves the last good state in force, is logged once and tried again. The last good answer of a URL
is kept in `control/derpmaps/`, so that a start without the internet has relays.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, final

import msgspec

from gw.control.derpsources import Regions, fetch, read_file, read_map
from gw.control.tailnet import Tailnet
from gw.errors import ConfigError, GwError
from gw.model.dnsconfig import DNSRecord
from gw.model.gojson import encode
from gw.state.config import DerpSettings
from gw.state.files import make_folder, translate, write_atomic

logger = logging.getLogger(__name__)

LOOK_S: Final = 1.0
RETRY_S: Final = 30.0
MAX_RECORDS_BYTES: Final = 4 << 20
Stamp = tuple[int, int, int] | None


def read_records(path: Path) -> list[DNSRecord]:
    """The records of a file, `[{"name": "grafana.ghost.internal", "type": "A", "value": "100.64.0.3"}]`.

    Raises ConfigError for any that clients could not use.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_RECORDS_BYTES)
    except OSError as error:
        raise translate(error, "read the DNS records", path) from error
    try:
        items = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not JSON: {error}", path=str(path)) from None
    if not isinstance(items, list):
        raise ConfigError("not a list of records", path=str(path))
    return [_record(item, index, path) for index, item in enumerate(items, 1)]


def _record(item: Any, index: int, path: Path) -> DNSRecord:
    fields = {str(key).lower(): value for key, value in item.items()} if isinstance(item, dict) else {}
    name, value = str(fields.get("name", "")).lower().removesuffix("."), str(fields.get("value", ""))
    try:
        address = ip_address(value)
    except ValueError:
        raise ConfigError(f"record {index}: not an address: `{value[:80]}`", path=str(path)) from None
    kind = str(fields.get("type") or ("A" if address.version == 4 else "AAAA")).upper()
    if kind != ("A" if address.version == 4 else "AAAA"):
        raise ConfigError(f"record {index}: no address for {kind[:10]}: `{value}`", path=str(path))
    labels = name.split(".")
    if len(name) > 253 or not all(0 < len(label) < 64 and label.isascii() for label in labels):
        raise ConfigError(f"record {index}: not a name: `{name[:80]}`", path=str(path))
    return DNSRecord(name=name, type=kind, value=str(address))


def kept_maps(derp: DerpSettings, folder: Path) -> Regions:
    """The regions that a server would begin with: of the files, and of the last good answers of URLs."""
    urls: dict[str, Regions] = {}
    files: dict[str, Regions] = {}
    for kept, found, names in ((True, urls, derp.urls), (False, files, derp.files)):
        for name in names:
            path = _kept(folder, name) if kept else Path(name)
            try:
                found[name] = read_file(path)
            except GwError as error:
                if not kept:
                    logger.warning("%s", error.message)
    return _merged(derp, urls, files)


def _merged(derp: DerpSettings, urls: Mapping[str, Regions], files: Mapping[str, Regions]) -> Regions:
    """The later of two regions with one number: URLs in their order, then files."""
    merged: Regions = {}
    for source in (*(urls.get(url, {}) for url in derp.urls), *(files.get(name, {}) for name in derp.files)):
        merged |= source
    return merged


def _kept(folder: Path, url: str) -> Path:
    return folder / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}.json"


@final
class Sources:
    """Follows the sources that the settings in force name. `run` until cancelled; `look` is one round of it."""

    def __init__(self, tailnet: Tailnet, folder: Path, fetch_map: Callable[[str], Regions] = fetch) -> None:
        """folder: where the last good answers of URLs are kept."""
        self._tailnet = tailnet
        self._folder = folder
        self._fetch = fetch_map
        self._stamps: dict[str, Stamp] = {}
        self._files: dict[str, Regions] = {}
        self._urls: dict[str, Regions] = {}
        self._due: dict[str, float] = {}
        self._complained: set[str] = set()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self.look(loop.time())
            await asyncio.sleep(LOOK_S)

    async def look(self, now: float) -> None:
        """Take over what is new. now: monotonic seconds."""
        self._look_at_records()
        derp = self._tailnet.config.derp
        changed = self._forget(derp.files, self._files) | self._forget(derp.urls, self._urls)
        for name in derp.files:
            changed |= self._look_at_file(name)
        for url in derp.urls:
            changed |= await self._look_at_url(url, now, derp.refresh_s)
        if changed:
            self._tailnet.commons.set_derp_sources(_merged(derp, self._urls, self._files))

    def _forget(self, named: list[str], kept: dict[str, Regions]) -> bool:
        gone = [name for name in kept if name not in named]
        for name in gone:
            del kept[name]
            self._stamps.pop(name, None)
            self._due.pop(name, None)
        return bool(gone)

    def _is_new(self, name: str) -> bool:
        try:
            status = Path(name).stat()
            stamp: Stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
        except OSError:
            stamp = None
        if name in self._stamps and self._stamps[name] == stamp:
            return False
        self._stamps[name] = stamp
        return True

    def _look_at_records(self) -> None:
        name = self._tailnet.config.dns.extra_records_file
        if not name:
            self._tailnet.commons.set_extra_records([])
        elif self._is_new(name):
            try:
                records = read_records(Path(name))
            except GwError as error:
                self._complain(name, error)
            else:
                self._complained.discard(name)
                self._tailnet.commons.set_extra_records(records)

    def _look_at_file(self, name: str) -> bool:
        if not self._is_new(name):
            return False
        try:
            regions = read_file(Path(name))
        except GwError as error:
            self._complain(name, error)
            return False
        self._complained.discard(name)
        is_other = encode(regions) != encode(self._files.get(name))
        self._files[name] = regions
        return is_other

    async def _look_at_url(self, url: str, now: float, refresh_s: float) -> bool:
        if now < self._due.get(url, 0.0):
            return False
        kept = _kept(self._folder, url)
        try:
            regions = await asyncio.to_thread(self._fetch, url)
        except GwError as error:
            self._due[url] = now + RETRY_S
            self._complain(url, error)
            if url in self._urls:
                return False
            try:
                regions = read_map(kept.read_bytes(), str(kept))
            except (OSError, GwError):
                return False
            logger.info("relay map `%s`: the last good one of an earlier run is used", url)
        else:
            self._due[url] = now + refresh_s if refresh_s else float("inf")
            self._complained.discard(url)
            self._keep(kept, regions)
        is_other = encode(regions) != encode(self._urls.get(url))
        self._urls[url] = regions
        return is_other

    def _keep(self, path: Path, regions: Regions) -> None:
        try:
            make_folder(path.parent, 0o750)
            write_atomic(path, encode({"Regions": regions}), 0o640)
        except GwError as error:
            logger.warning("%s", error.message)

    def _complain(self, name: str, error: GwError) -> None:
        if name not in self._complained:
            logger.error("%s: the last good state stays", error.message)
            self._tailnet.record("source-refused", f"source:{name}", None, Reason(error.message))
        self._complained.add(name)


class Reason(msgspec.Struct, frozen=True):
    """What the event trail keeps of a refusal."""

    reason: str
