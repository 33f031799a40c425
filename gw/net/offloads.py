"""What the kernel may do for many packets at once. It can refuse each, and who has a broken driver can leave it out.

    tso   TUN: TCP super-packets both ways (TSO, TCP coalescing)     TUN_F_TSO4, TUN_F_TSO6
    uso   TUN: UDP super-packets both ways; needs tso                TUN_F_USO4, TUN_F_USO6, Linux 6.2
    gso   UDP: trains of datagrams in one send                       UDP_SEGMENT, Linux 4.18
    gro   UDP: trains of datagrams in one receive                    UDP_GRO, Linux 5.0

Ref: spec dataplane §2
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final, Self

from gw.errors import UsageError


@dataclass(frozen=True, slots=True)
class Offloads:
    """Which of them to ask the kernel for."""

    tso: bool = True
    uso: bool = True
    gso: bool = True
    gro: bool = True

    @classmethod
    def parse(cls, text: str) -> Self:
        """`all`, `none`, or names with commas between. Raises UsageError."""
        names = [field.name for field in fields(cls)]
        chosen = {"all": set(names), "none": set()}.get(text, set(filter(None, text.split(","))))
        unknown = sorted(chosen - set(names))
        if unknown:
            raise UsageError(f"no offload `{unknown[0]}`", hint=f"all, none, or some of {','.join(names)}")
        return cls(**{name: name in chosen for name in names})


ALL: Final = Offloads()
