"""SSH policy as it travels from control to node. Ref: tailcfg.SSHPolicy, SSHRule, SSHPrincipal, SSHAction"""

from __future__ import annotations

import msgspec


class _Lower(msgspec.Struct, rename="camel", omit_defaults=True):
    pass


class SSHPrincipal(_Lower):
    """Whom a rule is about: a node by its address, or any."""

    node_ip: str = msgspec.field(default="", name="nodeIP")
    any: bool = False


class SSHAction(_Lower):
    accept: bool = False
    reject: bool = False
    hold_and_delegate: str = ""
    message: str = ""  # shown to who connects
    allow_agent_forwarding: bool = False
    allow_local_port_forwarding: bool = False
    allow_remote_port_forwarding: bool = False


class SSHRule(_Lower):
    """ssh_users: login asked for -> local user, "=" for the same, "" for none; "*" for logins without an entry."""

    principals: list[SSHPrincipal] = []
    ssh_users: dict[str, str] = {}
    action: SSHAction = msgspec.field(default_factory=SSHAction)
    accept_env: list[str] | None = None


class SSHPolicy(msgspec.Struct, rename="camel"):
    rules: list[SSHRule] = []
