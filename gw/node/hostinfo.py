"""What a node says of its host. Ref: tailcfg.Hostinfo; tailscale hostinfo/hostinfo_linux.go"""

from __future__ import annotations

import platform
import re
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from gw import __version__
from gw.model.hostinfo import QUIC_PEER, Hostinfo, Service

_GO_ARCH: Final = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386", "riscv64": "riscv64"}


def gather(
    hostname: str = "", routable_ips: Sequence[str] = (), *, shields_up: bool = False, quic: bool = False
) -> Hostinfo:
    """hostname: asked for by the person, else the host's own. routable_ips: subnets to offer a way into. quic: whether
    peers may connect by QUIC."""
    release = _os_release()
    return Hostinfo(
        ipn_version=f"{__version__}-ghostwire",
        backend_log_id="0" * 64,
        os="linux",
        os_version=platform.release(),
        distro=release.get("ID", ""),
        distro_version=release.get("VERSION_ID", ""),
        distro_code_name=release.get("VERSION_CODENAME", ""),
        app="ghostwire",
        hostname=hostname or socket.gethostname().partition(".")[0],
        machine=platform.machine(),
        go_arch=_GO_ARCH.get(platform.machine(), platform.machine()),
        routable_ips=list(routable_ips) or None,
        shields_up=shields_up,
        services=[Service(proto=QUIC_PEER, description="ghostwire")] if quic else None,
    )


def _os_release() -> dict[str, str]:
    try:
        text = Path("/etc/os-release").read_text()
    except (OSError, UnicodeDecodeError):
        return {}
    return {name: value.strip("\"'") for name, value in re.findall(r"^([A-Z_]+)=(.*)$", text, re.MULTILINE)}
