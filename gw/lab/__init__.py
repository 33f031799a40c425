"""A whole mesh on one machine: each node in a network namespace of its own, behind the NAT of your choice.

Lab        builds and removes it            Topology   namespaces, cables, NAT
demo       shows it, step by step           Ledger     what was made, so that a killed run can be cleaned up
"""

from __future__ import annotations

from gw.lab.lab import Lab
from gw.lab.topology import Nat, NodeSpec

__all__ = ["Lab", "Nat", "NodeSpec"]
