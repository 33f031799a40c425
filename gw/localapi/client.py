"""The local API from the caller's side, in Tailscale's paths: the same calls work against tailscaled's socket.

Ref: control protocol §10; tailscale ipn/localapi
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final
from urllib.parse import quote

import msgspec

from gw.errors import GwError, NotRunning, PermissionNeeded, TimedOut
from gw.localapi import unixhttp
from gw.localapi.status import Status

if TYPE_CHECKING:
    from gw.localapi.notify import Notify, PingResult
    from gw.localapi.prefs import Prefs

PREFIX: Final = "/localapi/v0"
WATCH_INITIAL_STATE: Final = 2
MAX_LINE_BYTES: Final = 64 << 20


@final
class Client:
    """One daemon. Every call raises NotRunning, PermissionNeeded, TimedOut, or the error that the daemon carries."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    def _call(self, method: str, path: str, body: object = None, *, timeout_s: float | None = 10.0) -> bytes:
        response = unixhttp.request(self._socket, method, PREFIX + path, body, timeout_s=timeout_s)
        if response.status >= 400:
            raise response.error()
        return response.body

    def status(self) -> Status:
        return msgspec.json.decode(self._call("GET", "/status"), type=Status)

    def metrics(self, *, peers: bool) -> bytes:
        """Prometheus' text format. peers: with series of each peer."""
        return self._call("GET", "/usermetrics?peers=1" if peers else "/usermetrics")

    def prefs(self) -> Prefs:
        from gw.localapi.prefs import Prefs

        return msgspec.json.decode(self._call("GET", "/prefs"), type=Prefs)

    def edit_prefs(self, **changes: object) -> Prefs:
        """Change these preferences and no others."""
        from gw.localapi.prefs import Prefs, masked

        return msgspec.json.decode(self._call("PATCH", "/prefs", masked(changes)), type=Prefs)

    def start(self, changes: dict[str, Any], auth_key: str, force_reauth: bool) -> None:
        """Change preferences and log in: by the key, else interactively where the node is not logged in."""
        self.edit_prefs(**changes)
        self._call("POST", "/start", {"AuthKey": auth_key, "ForceReauth": force_reauth})
        if force_reauth or not self.status().have_node_key or auth_key:
            self._call("POST", "/login-interactive")

    def logout(self) -> None:
        self._call("POST", "/logout", timeout_s=30.0)

    def ping(self, peer: str, *, timeout_s: float = 5.0) -> PingResult:
        """Ping a peer by name or address below the tunnel. Raises NotFound, TimedOut."""
        from gw.localapi.notify import PingResult

        address = (self.status().find(peer).tailscale_ips or [""])[0]
        query = f"/ping?ip={quote(address)}&type=disco"
        result = msgspec.json.decode(self._call("POST", query, timeout_s=timeout_s), type=PingResult)
        if result.err:
            raise GwError(f"ping of `{peer}` failed: {result.err}")
        return result

    def watch(self, *, timeout_s: float | None, ready: Callable[[], None]) -> Iterator[Notify]:
        """Notifications from now on; calls `ready` once the first one is there. Ends after `timeout_s` of silence."""
        from gw.localapi.notify import Notify

        is_first = True
        path = f"{PREFIX}/watch-ipn-bus?mask={WATCH_INITIAL_STATE}"
        try:
            for line in unixhttp.stream(self._socket, path, timeout_s=timeout_s):
                note = msgspec.json.decode(line, type=Notify)
                if is_first:
                    is_first = False
                    ready()
                    continue  # the state before what `ready` did
                yield note
        except TimedOut:
            return


async def events(socket: Path) -> AsyncGenerator[dict[str, Any], None]:
    """The daemon's event stream as `gw.tui.viewmodel` describes it. Raises NotRunning, PermissionNeeded, GwError."""
    import asyncio  # here: the commands of a person do without, and it takes a third of their start

    try:
        reader, writer = await asyncio.open_unix_connection(str(socket), limit=MAX_LINE_BYTES)
    except PermissionError:
        raise PermissionNeeded(f"no permission for `{socket}`", hint="use sudo") from None
    except OSError:
        raise NotRunning(f"nothing listens on `{socket}`") from None
    try:
        head = f"GET {PREFIX}/gw/events HTTP/1.0\r\nHost: {unixhttp.HOST}\r\n\r\n"  # 1.0: the body is not chunked
        writer.write(head.encode())
        status = await reader.readline()
        while (await reader.readline()).strip():
            pass
        if b" 200 " not in status:
            raise unixhttp.Response(int(status.split()[1] or 500), await reader.read(65536)).error()
        while line := await reader.readline():
            event = msgspec.json.decode(line)
            if isinstance(event, dict):
                yield event
    except (ConnectionError, ValueError, IndexError) as error:
        raise NotRunning(f"`{socket}` broke off: {error}") from error
    finally:
        writer.close()
