"""What an administrator does to one node: approve the device, choose its addresses, give it to another user.

Renaming, tags, routes, expiry and deletion are the tailnet's own (`gw.control.tailnet`). Every change is durable when
the call returns.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Final

from gw.control.names import follows
from gw.control.records import NodeRecord
from gw.control.tailnet import Tailnet
from gw.errors import Conflict, UsageError
from gw.state.changes import Put
from gw.state.documents import UserDoc

USUAL_S: Final = 180 * 86400.0


async def approve(tailnet: Tailnet, node: NodeRecord, approved: bool = True) -> None:
    """Let a device take part, or no longer: it stays listed, keeps its addresses, and reaches nobody."""
    await tailnet.change_node(node, "node-approved" if approved else "node-approval-withdrawn", approved=approved)


def waiting(tailnet: Tailnet) -> list[NodeRecord]:
    """The devices that wait for approval, oldest first."""
    return sorted((node for node in tailnet.nodes.values() if not node.doc.approved), key=lambda node: node.id)


async def set_addresses(tailnet: Tailnet, node: NodeRecord, chosen: Iterable[str]) -> None:
    """Give the node these addresses in place of those it has of the same families.

    Raises UsageError for an address that no node may have, Conflict for one that is taken.
    """
    await tailnet.durably(_set_addresses(tailnet, node, list(chosen)))


async def _set_addresses(tailnet: Tailnet, node: NodeRecord, chosen: list[str]) -> None:
    async with node.lock:
        tailnet.check_there(node)
        wanted = tailnet.addresses.check_chosen(chosen)
        if not wanted:
            raise UsageError("which address?", hint="gwctl nodes set-ip NODE 100.64.0.7")
        fresh = tailnet.promised.claim(address for address in wanted if address not in node.addresses)
        if not fresh:
            return
        families = {":" in address for address in wanted}
        kept = [address for address in node.addresses if (":" in address) not in families]
        await _replace_addresses(tailnet, node, [*kept, *wanted], fresh, "node-addresses-set")


async def fill_addresses(tailnet: Tailnet) -> list[NodeRecord]:
    """Give every node an address of each family that it lacks: a pool was added after it had come. The changed ones."""
    return await tailnet.durably(_fill_addresses(tailnet))


async def _fill_addresses(tailnet: Tailnet) -> list[NodeRecord]:
    changed = []
    for node in list(tailnet.nodes.values()):
        async with node.lock:
            has = {6 if ":" in address else 4 for address in node.addresses}
            lacking = [family for family in tailnet.addresses.families if family not in has]
            if not lacking or not tailnet.roster.has(node):
                continue
            fresh = tailnet.addresses.allocate(lacking)
            await _replace_addresses(tailnet, node, [*node.addresses, *fresh], fresh, "node-addresses-filled")
            changed.append(node)
    return changed


async def _replace_addresses(
    tailnet: Tailnet, node: NodeRecord, addresses: list[str], fresh: list[str], event: str
) -> None:
    """fresh: those of them that were taken for it just now."""
    after = node.doc.edited(addresses=sorted(addresses, key=lambda address: ":" in address))
    try:
        await tailnet.commit([Put(after)])
    except BaseException:
        tailnet.addresses.release(fresh)
        raise
    tailnet.replace_doc(node, after, event)


async def move(tailnet: Tailnet, node: NodeRecord, user: UserDoc) -> None:
    """Make the node another user's; a tagged node loses its tags. Raises Conflict if its machine is that user's too."""
    twin = next((each for each in tailnet.by_machine_key.get(node.doc.machine_key, []) if each.user == user.name), None)
    if twin is not None and twin is not node:
        raise Conflict(
            f"the machine is logged in as `{user.name}` too: node {twin.id}", hint=f"gwctl nodes delete {twin.id}"
        )
    with tailnet.holds.enrolling(user.name):
        await tailnet.change_node(node, "node-moved", user=user.name, tags=[])


async def follow_hostname(tailnet: Tailnet, node: NodeRecord) -> None:
    """Take back the name an administrator gave: the node is called after its host again."""
    hostname = node.hostinfo.hostname or node.doc.hostname
    if follows(node.doc.given_name, hostname):
        return
    label = tailnet.names.take(hostname)
    try:
        await tailnet.change_node(node, "node-renamed", given_name=label, hostname=hostname)
    finally:
        if tailnet.by_name.get(label) is not node:
            tailnet.names.release(label)


async def set_key_expiry(tailnet: Tailnet, node: NodeRecord, *, disabled: bool) -> None:
    """Let the node's key never expire, or again after the usual time: the setting's, else 180 days from now."""
    if disabled:
        await tailnet.expire(node, None)
    elif node.doc.expiry is None:
        await tailnet.expire(node, tailnet.clock() + timedelta(seconds=tailnet.config.node.key_expiry_s or USUAL_S))
