"""The TUN device: opened with a virtio_net_hdr and the offloads that the kernel grants.

Ref: Linux include/uapi/linux/if_tun.h; spec dataplane §2.2
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from dataclasses import dataclass
from typing import Final

from gw.errors import Conflict, GwError, PermissionNeeded

DEVICE: Final = "/dev/net/tun"
TUNSETIFF: Final = 0x400454CA
TUNSETOFFLOAD: Final = 0x400454D0
IFF_TUN: Final = 0x0001
IFF_NO_PI: Final = 0x1000
IFF_VNET_HDR: Final = 0x4000
CSUM_TSO: Final = 0x07  # TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6
USO: Final = 0x60  # TUN_F_USO4 | TUN_F_USO6, Linux 6.2
_IFREQ: Final = struct.Struct("16sH22x")


@dataclass(frozen=True, slots=True)
class Tun:
    """An open device. fd: non-blocking, with a virtio_net_hdr of ten bytes before each packet."""

    fd: int
    name: str
    tcp_offload: bool
    udp_offload: bool

    def close(self) -> None:
        os.close(self.fd)


def open_tun(name: str) -> Tun:
    """Make the interface, which goes away with its last descriptor. Raises GwError with what to do about it."""
    if len(name.encode()) > 15 or not name or "/" in name:
        raise GwError(f"not an interface name: `{name}`", hint="give `--tun` at most 15 characters")
    try:
        fd = os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise GwError(f"no `{DEVICE}`", hint="load the driver: modprobe tun") from None
    except PermissionError:
        raise PermissionNeeded(f"may not open `{DEVICE}`", hint="run `gwd` as root") from None
    except OSError as error:
        raise GwError(f"cannot open `{DEVICE}`: {error.strerror}", hint="load the driver: modprobe tun") from error
    try:
        request = _IFREQ.pack(name.encode(), IFF_TUN | IFF_NO_PI | IFF_VNET_HDR)
        granted = fcntl.ioctl(fd, TUNSETIFF, request)
    except OSError as error:
        os.close(fd)
        raise _refused(name, error) from error
    tcp = _offload(fd, CSUM_TSO)
    udp = tcp and _offload(fd, CSUM_TSO | USO)
    return Tun(fd, granted[:16].rstrip(b"\0").decode(), tcp, udp)


def _refused(name: str, error: OSError) -> GwError:
    if error.errno == errno.EBUSY:
        return Conflict(f"interface `{name}` is in use", hint="stop the other gwd, or give `--tun` another name")
    if error.errno in (errno.EPERM, errno.EACCES):
        return PermissionNeeded(f"may not make interface `{name}`", hint="run `gwd` as root")
    return GwError(f"cannot make interface `{name}`: {error.strerror}", hint="give `--tun` another name")


def _offload(fd: int, flags: int) -> bool:
    try:
        fcntl.ioctl(fd, TUNSETOFFLOAD, flags)
    except OSError:
        return False
    return True
