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
from gw.net.offloads import ALL, Offloads

DEVICE: Final = "/dev/net/tun"
TUNSETIFF: Final = 0x400454CA
TUNSETOFFLOAD: Final = 0x400454D0
IFF_TUN: Final = 0x0001
IFF_NO_PI: Final = 0x1000
IFF_MULTI_QUEUE: Final = 0x0100
IFF_VNET_HDR: Final = 0x4000
CSUM_TSO: Final = 0x07  # TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6
USO: Final = 0x60  # TUN_F_USO4 | TUN_F_USO6, Linux 6.2
_IFREQ: Final = struct.Struct("16sH22x")


@dataclass(frozen=True, slots=True)
class Tun:
    """An open device. queues: non-blocking descriptors, with a virtio_net_hdr of ten bytes before each packet; the
    kernel keeps a flow in one queue."""

    queues: tuple[int, ...]
    name: str
    tcp_offload: bool
    udp_offload: bool

    def close(self) -> None:
        for fd in self.queues:
            os.close(fd)


def open_tun(name: str, queues: int = 1, offloads: Offloads = ALL) -> Tun:
    """Make the interface, which goes away with its last descriptor. Raises GwError with what to do about it.

    queues: how many are wanted; there is one where the kernel does not give them.
    """
    if len(name.encode()) > 15 or not name or "/" in name:
        raise GwError(f"not an interface name: `{name}`", hint="give `--tun` at most 15 characters")
    flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR | (IFF_MULTI_QUEUE if queues > 1 else 0)
    fd = _open()
    try:
        granted = fcntl.ioctl(fd, TUNSETIFF, _IFREQ.pack(name.encode(), flags))
    except OSError as error:
        os.close(fd)
        if queues > 1 and error.errno == errno.EINVAL:
            return open_tun(name, 1, offloads)
        raise _refused(name, error) from error
    given = granted[:16].rstrip(b"\0")
    opened = [fd]
    try:
        for _ in range(queues - 1):
            opened.append(_open())
            fcntl.ioctl(opened[-1], TUNSETIFF, _IFREQ.pack(given, flags))
    except OSError as error:
        for each in opened:
            os.close(each)
        raise _refused(name, error) from error
    tcp = offloads.tso and all(_offload(each, CSUM_TSO) for each in opened)
    udp = tcp and offloads.uso and all(_offload(each, CSUM_TSO | USO) for each in opened)
    if not tcp:
        for each in opened:
            _offload(each, 0)
    return Tun(tuple(opened), given.decode(), tcp, udp)


def _open() -> int:
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise GwError(f"no `{DEVICE}`", hint="load the driver: modprobe tun") from None
    except PermissionError:
        raise PermissionNeeded(f"may not open `{DEVICE}`", hint="run `gwd` as root") from None
    except OSError as error:
        raise GwError(f"cannot open `{DEVICE}`: {error.strerror}", hint="load the driver: modprobe tun") from error


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
