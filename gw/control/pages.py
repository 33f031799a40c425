"""Pages for people: how to join with each kind of device, and what to type to let a machine in."""

from __future__ import annotations

import html
import uuid
from typing import Final
from xml.sax.saxutils import escape

PAGE: Final = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><title>{title}</title>
<style>body{{font:16px/1.5 system-ui;max-width:44em;margin:4em auto;padding:0 1em}}
code,pre{{background:#eee;padding:.2em .4em;border-radius:.2em;word-break:break-all}}pre{{padding:1em;overflow:auto}}
@media(prefers-color-scheme:dark){{body{{background:#111;color:#eee}}code,pre{{background:#333}}a{{color:#8bf}}}}
</style><h1>{title}</h1>{body}</html>"""

# name in the address → payload type, the bundle that reads it, what people call it
PROFILES: Final = {
    "ios": ("io.tailscale.ipn.ios", "iOS"),
    "macos-app-store": ("io.tailscale.ipn.macos", "macOS, from the App Store"),
    "macos-standalone": ("io.tailscale.ipn.macsys", "macOS, the standalone package"),
}
PROFILE_TYPE: Final = "application/x-apple-aspen-config"
_SPACE: Final = uuid.UUID("5bd6d7a0-07d9-5f0d-9a41-3f0a0f3a8b6e")


def home(domain: str) -> str:
    """The front page: what this is, and where to go on."""
    body = (
        f"<p>A control server of the private mesh <code>{html.escape(domain)}</code>.</p>"
        '<p>Join with <a href="/apple">an Apple device</a> or <a href="/windows">Windows</a>; elsewhere type '
        "<code>tailscale up --login-server=URL</code> or <code>gw up --login-server URL</code>.</p>"
        '<p><a href="/api/v1/docs">The API</a> of this server.</p>'
    )
    return PAGE.format(title="GhostWire", body=body)


def register(auth_id: str) -> str:
    """What to do about a machine that wants to join. auth_id: as it stands in the address, not to be trusted."""
    body = (
        "<p>This device wants to join. Whoever runs the control server approves it by typing</p>"
        f"<p><code>gwctl auth approve {html.escape(auth_id)} --user NAME</code></p>"
        "<p>The device continues by itself within a second.</p>"
    )
    return PAGE.format(title="One more step", body=body)


def ssh_check(auth_id: str) -> str:
    """What to do about an SSH connection that has to be confirmed. auth_id: as it stands in the address."""
    body = (
        "<p>An SSH connection waits to be confirmed. Whoever runs the control server does so by typing</p>"
        f"<p><code>gwctl auth approve {html.escape(auth_id)}</code></p>"
        "<p>The connection goes on by itself within a second.</p>"
    )
    return PAGE.format(title="One more step", body=body)


def waiting() -> str:
    """Where clients send people while their device waits for approval."""
    body = (
        "<p>This device is logged in and waits for an administrator, who approves it by typing</p>"
        "<p><code>gwctl nodes list --pending</code><br><code>gwctl nodes approve NODE</code></p>"
        "<p>The device continues by itself within a second.</p>"
    )
    return PAGE.format(title="This device waits for approval", body=body)


def apple(server_url: str) -> str:
    """How an Apple device joins."""
    url = html.escape(server_url)
    links = "".join(
        f'<li><a href="/apple/{name}">{html.escape(shown)}</a></li>' for name, (_, shown) in PROFILES.items()
    )
    body = (
        "<h2>iOS and tvOS</h2><ol><li>Install Tailscale from the App Store.</li>"
        "<li>Open it, choose the account menu, <i>Log in…</i>, then <i>Use custom coordination server</i>.</li>"
        f"<li>Enter <code>{url}</code> and log in.</li></ol>"
        "<h2>macOS</h2><ol><li>Install Tailscale.</li>"
        "<li>Hold Option, click the icon in the menu bar, and choose <i>Debug</i>, <i>Custom login server</i>, "
        "<i>Add account</i>.</li>"
        f"<li>Enter <code>{url}</code> and log in.</li></ol>"
        f"<p>Or in a terminal: <code>tailscale login --login-server {url}</code></p>"
        f"<h2>By a profile</h2><p>A profile sets the server for all users of a device:</p><ul>{links}</ul>"
        "<p>Read a profile before you install it: it decides whom the client talks to.</p>"
    )
    return PAGE.format(title="Join with an Apple device", body=body)


def apple_profile(server_url: str, name: str) -> bytes:
    """The configuration profile of one kind of client. name: a key of PROFILES."""
    kind, shown = PROFILES[name]
    outer, inner = (str(uuid.uuid5(_SPACE, f"{server_url} {kind} {part}")).upper() for part in ("outer", "inner"))
    url = escape(server_url)
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0"><dict>
  <key>PayloadUUID</key><string>{outer}</string>
  <key>PayloadDisplayName</key><string>GhostWire for {escape(shown)}</string>
  <key>PayloadDescription</key><string>Sets the control server of Tailscale to {url}</string>
  <key>PayloadIdentifier</key><string>dev.ghostwire.{outer.lower()}</string>
  <key>PayloadRemovalDisallowed</key><false/>
  <key>PayloadType</key><string>Configuration</string>
  <key>PayloadVersion</key><integer>1</integer>
  <key>PayloadContent</key><array><dict>
    <key>PayloadType</key><string>{kind}</string>
    <key>PayloadUUID</key><string>{inner}</string>
    <key>PayloadIdentifier</key><string>dev.ghostwire.{inner.lower()}</string>
    <key>PayloadVersion</key><integer>1</integer>
    <key>PayloadEnabled</key><true/>
    <key>ControlURL</key><string>{url}</string>
  </dict></array>
</dict></plist>
""".encode()


def windows(server_url: str) -> str:
    """How a Windows machine joins."""
    url = html.escape(server_url)
    body = (
        "<ol><li>Install Tailscale.</li><li>In a terminal type "
        f"<code>tailscale login --login-server {url}</code> and follow the address that it shows.</li></ol>"
        "<h2>For all users of the machine</h2><p>As an administrator, before the first login:</p>"
        '<pre>$key = "HKLM:\\SOFTWARE\\Tailscale IPN"\nNew-Item -Path $key\n'
        "New-ItemProperty -Path $key -Name UnattendedMode -PropertyType String -Value always\n"
        f"New-ItemProperty -Path $key -Name LoginURL -PropertyType String -Value {url}</pre>"
    )
    return PAGE.format(title="Join with Windows", body=body)
