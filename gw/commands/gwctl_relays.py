"""`gwctl relays`: the relay map that nodes get."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer

from gw.commands import shell
from gw.commands.controlclient import ask
from gw.commands.output import Force, Output, check_format, confirm, show, table
from gw.errors import NotFound, UsageError

app = shell.group("relays", "Relays that carry what finds no direct path: gwctl relays list")

OFF: Final = "off"
DEFAULT_REGION: Final = 900

Code = Annotated[str | None, typer.Option("--code", metavar="CODE", help="Short name of the region: fra.")]
RegionName = Annotated[str | None, typer.Option("--region-name", metavar="TEXT", help="Name of the region: Frankfurt.")]
Port = Annotated[int | None, typer.Option("--port", metavar="PORT", help="Of TLS, if not 443.")]
Stun = Annotated[str | None, typer.Option("--stun", metavar="PORT", help="UDP, if not 3478; off: it answers no STUN.")]
Quic = Annotated[str | None, typer.Option("--quic", metavar="PORT", help="UDP, with --relay-key; off: TLS alone.")]
RelayKey = Annotated[str | None, typer.Option("--relay-key", metavar="HEX", help="The relay's public key, for QUIC.")]
Ipv4 = Annotated[str | None, typer.Option("--ipv4", metavar="ADDRESS", help="Not by DNS; none: not by IPv4.")]
Ipv6 = Annotated[str | None, typer.Option("--ipv6", metavar="ADDRESS", help="Not by DNS; none: not by IPv6.")]
CertName = Annotated[
    str | None,
    typer.Option("--cert-name", metavar="NAME", help="In its certificate, if not HOST; or sha256-raw:HEX."),
]
StunOnly = Annotated[bool | None, typer.Option("--stun-only/--no-stun-only", help="It carries nothing.")]
Http = Annotated[bool | None, typer.Option("--http/--no-http", help="It answers captive-portal checks on port 80.")]
Untrusted = Annotated[
    bool | None, typer.Option("--insecure/--no-insecure", help="Clients check no certificate: for tests alone.")
]


@app.command("list")
@app.command("ls", hidden=True)
@app.command("show", hidden=True)
def list_relays(output: Output = None) -> None:
    """List each relay of the map that nodes get, and where its region comes from.

    SOURCE is `relays` (changed here, or entered by a gwrelay beside this server), `derp` (files and URLs of [derp] in
    config.toml) or `policy`. Next: gwctl relays add relay2.example.org --region 901 --code fra
    """
    check_format(output)
    regions = ask("GET", "relays")["regions"]
    headings = ("REGION", "CODE", "RELAY", "HOST", "PORT", "STUN", "QUIC", "SOURCE")
    show(regions, output, lambda: table(headings, [row for region in regions for row in _rows(region)]))


def _rows(region: dict[str, Any]) -> list[list[str]]:
    first = [str(region["regionId"]), region["code"]]
    if not region["nodes"]:
        return [[*first, "-", "-", "-", "-", "-", region["source"]]]
    return [
        [
            *first,
            node["name"],
            node["hostName"],
            "-" if node["stunOnly"] else str(node["derpPort"]),
            OFF if node["stunPort"] < 0 else str(node["stunPort"]),
            str(node["quicPort"] or OFF),
            region["source"],
        ]
        for node in region["nodes"]
    ]


@app.command("add")
@app.command("create", hidden=True)
def add(
    host: Annotated[str, typer.Argument(metavar="HOST", help="Name or address that nodes connect to.")],
    region: Annotated[int, typer.Option("--region", metavar="NUMBER", help="900 to 999.")] = DEFAULT_REGION,
    code: Code = None,
    region_name: RegionName = None,
    name: Annotated[str, typer.Option("--name", metavar="RELAY", help="In the map; else 900a, 900b, …")] = "",
    port: Port = None,
    stun: Stun = None,
    quic: Quic = None,
    relay_key: RelayKey = None,
    ipv4: Ipv4 = None,
    ipv6: Ipv6 = None,
    cert_name: CertName = None,
    stun_only: StunOnly = None,
    http: Http = None,
    insecure: Untrusted = None,
    output: Output = None,
) -> None:
    """Enter a relay that runs elsewhere; nodes hear of it at once.

    gwctl relays add relay2.example.org --region 901 --code fra --region-name Frankfurt

    A gwrelay that shares this state directory enters itself. Several relays of one region have to be meshed.
    """
    check_format(output)
    fields = _fields(host, port, stun, quic, relay_key, ipv4, ipv6, cert_name, stun_only, http, insecure)
    body = {"regionId": region, "regionCode": code or "", "regionName": region_name or "", "name": name, **fields}
    changed = ask("POST", "relays", body=body)["region"]
    show(changed, output, lambda: f"relay entered: {_named(changed)}")


@app.command("set")
@app.command("edit", hidden=True)
def change(
    which: Annotated[str, typer.Argument(metavar="RELAY|REGION", help="Name of a relay; number or code of a region.")],
    code: Code = None,
    region_name: RegionName = None,
    host: Annotated[str | None, typer.Option("--host", metavar="HOST", help="That nodes connect to.")] = None,
    port: Port = None,
    stun: Stun = None,
    quic: Quic = None,
    relay_key: RelayKey = None,
    ipv4: Ipv4 = None,
    ipv6: Ipv6 = None,
    cert_name: CertName = None,
    stun_only: StunOnly = None,
    http: Http = None,
    insecure: Untrusted = None,
    output: Output = None,
) -> None:
    """Change a relay, or its region; what is not named stays.

    gwctl relays set 901a --port 8443 --stun off
    gwctl relays set 901 --code fra
    """
    check_format(output)
    region, relay = _find(which)
    fields = _fields(host, port, stun, quic, relay_key, ipv4, ipv6, cert_name, stun_only, http, insecure)
    common = {key: value for key, value in (("code", code), ("name", region_name)) if value is not None}
    if not fields and not common:
        raise UsageError("what is to be changed?", hint="see `gwctl relays set --help`")
    if relay is None and fields:
        raise UsageError(f"`{which}` is a region, and those are settings of a relay", hint="gwctl relays list")
    if relay is not None and common:
        raise UsageError(
            f"`{which}` is a relay, and those are settings of a region", hint=f"gwctl relays set {region['regionId']} …"
        )
    path = [str(region["regionId"]), *(["nodes", relay["name"]] if relay is not None else [])]
    changed = ask("PATCH", "relays", *path, body=fields or common)["region"]
    show(changed, output, lambda: f"relay map changed: {_named(changed)}")


@app.command("remove")
@app.command("delete", hidden=True)
@app.command("rm", hidden=True)
def remove(
    which: Annotated[str, typer.Argument(metavar="RELAY|REGION", help="Name of a relay; number or code of a region.")],
    force: Force = False,
    output: Output = None,
) -> None:
    """Take a relay out of the map, or a region with all its relays.

    A gwrelay that shares this state directory enters itself again when it starts.
    """
    check_format(output)
    region, relay = _find(which)
    what = f"relay {relay['name']}" if relay is not None else f"region {region['regionId']} and its relays"
    confirm(f"Remove {what}", force=force)
    path = [str(region["regionId"]), *(["nodes", relay["name"]] if relay is not None else [])]
    ask("DELETE", "relays", *path)
    show({}, output, lambda: f"removed from the map: {what}")


def _find(text: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The region, and the relay if one is meant. Raises NotFound, UsageError."""
    regions: list[dict[str, Any]] = ask("GET", "relays")["regions"]
    own = [region for region in regions if region["source"] == "relays"]
    for region in own:
        if text in (str(region["regionId"]), region["code"]):
            return region, None
    found = [(region, node) for region in own for node in region["nodes"] if text in (node["name"], node["hostName"])]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(node["name"] for _, node in found)
        raise UsageError(f"several relays are at `{text}`: {names}", hint="say which")
    for region in regions:
        if text in (str(region["regionId"]), region["code"], *(node["name"] for node in region["nodes"])):
            place = "[derp] in config.toml" if region["source"] == "derp" else "the policy"
            raise UsageError(f"`{text}` comes from {place}", hint="change it there; `gwctl relays list` shows all")
    raise NotFound(f"no such relay or region: `{text}`", hint="see `gwctl relays list`")


def _fields(
    host: str | None, port: int | None, stun: str | None, quic: str | None, relay_key: str | None, ipv4: str | None,
    ipv6: str | None, cert_name: str | None, stun_only: bool | None, http: bool | None, insecure: bool | None,
) -> dict[str, object]:  # fmt: skip
    """What was said, by the names of the API."""
    if quic == OFF:
        relay_key = ""
    said = {
        "hostName": host, "derpPort": port, "stunPort": _port("stun", stun, -1), "quicPort": _port("quic", quic, 0),
        "relayKey": relay_key, "ipv4": ipv4, "ipv6": ipv6, "certName": cert_name, "stunOnly": stun_only,
        "canPort80": http, "insecureForTests": insecure,
    }  # fmt: skip
    return {name: value for name, value in said.items() if value is not None}


def _port(flag: str, text: str | None, off: int) -> int | None:
    if text is None:
        return None
    if text == OFF:
        return off
    if not text.isascii() or not text.isdigit() or not 0 < int(text[:9]) <= 65535:
        raise UsageError(f"not a port: `{text[:40]}`", hint=f"--{flag} 3478, or --{flag} {OFF}")
    return int(text)


def _named(region: dict[str, Any]) -> str:
    relays = ", ".join(f"{node['name']} at {node['hostName']}" for node in region["nodes"])
    return f"region {region['regionId']} ({region['code']}): {relays or 'no relays'}"
