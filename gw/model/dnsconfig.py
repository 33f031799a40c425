"""DNS settings a control server gives a node. Ref: tailcfg.DNSConfig"""

from __future__ import annotations

from gw.model.gojson import GoStruct


class Resolver(GoStruct):
    addr: str = ""  # `1.1.1.1`, `1.1.1.1:53`, `https://…`, `http://<peer>:port/dns-query`
    bootstrap_resolution: list[str] | None = None
    use_with_exit_node: bool = False


class DNSRecord(GoStruct):
    name: str = ""
    type: str = ""
    value: str = ""


class DNSConfig(GoStruct):
    resolvers: list[Resolver] | None = None
    routes: dict[str, list[Resolver] | None] | None = None  # write [], never null: null is dropped and leaks queries
    fallback_resolvers: list[Resolver] | None = None
    domains: list[str] | None = None
    proxied: bool = False
    nameservers: list[str] | None = None
    cert_domains: list[str] | None = None
    extra_records: list[DNSRecord] | None = None
    exit_node_filtered_set: list[str] | None = None
