"""The documents of the state directory: one struct a kind, one TOML file an object.

They hold declared state alone (who may be here); what is only observed (endpoints, online) never comes here. A document
is never changed in place: `doc.edited(tags=[...])` gives the next revision, `Store.commit` makes it durable, and only
then does anyone act on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, ClassVar, Final, Literal, Self
from urllib.parse import quote, unquote

import msgspec

from gw.errors import UsageError
from gw.model.derpmap import DERPNode, DERPRegion

SCHEMA: Final = 1
MAX_NAME_BYTES: Final = 200  # of a file name, so that temporary and conflict names fit in 255

Time = Annotated[datetime, msgspec.Meta(tz=True)]
Kind = Literal["user", "node", "preauthkey", "apikey", "relay", "server"]
Key = str | int


class Document(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all kinds. schema: of the file; revision: counts the changes of this object."""

    kind: ClassVar[Kind]

    schema: int = SCHEMA
    revision: int = 0

    @property
    def key(self) -> Key:
        """What tells objects of one kind apart; it names the file."""
        raise NotImplementedError

    def edited(self, **changes: Any) -> Self:
        """The next revision, with these fields changed."""
        return msgspec.structs.replace(self, revision=self.revision + 1, **changes)


class UserDoc(Document, frozen=True, kw_only=True):
    kind = "user"

    id: int
    name: str
    display_name: str = ""
    email: str = ""
    provider: str = ""  # "" = made by hand, `oidc` = by the identity provider
    provider_id: str = ""  # issuer/subject: what makes this person the same one at every login
    picture: str = ""  # URL
    groups: list[str] = []  # that the identity provider named at the last login
    created: Time

    @property
    def key(self) -> str:
        return self.name


class NodeDoc(Document, frozen=True, kw_only=True):
    kind = "node"

    id: int
    machine_key: str
    node_key: str
    user: str = ""  # name; "" when tagged
    given_name: str
    addresses: list[str] = []  # IPv4 first
    hostname: str = ""
    created: Time
    expiry: Time | None = None
    tags: list[str] = []
    register_method: Literal["authkey", "cli", "oidc"] = "cli"
    preauth_key: str = ""  # prefix of the key it came with
    ephemeral: bool = False
    approved: bool = True  # false: it waits until a person approves the device, and reaches nobody meanwhile
    approved_routes: list[str] = []
    last_seen: Time | None = None

    @property
    def key(self) -> int:
        return self.id


class PreauthKeyDoc(Document, frozen=True, kw_only=True):
    kind = "preauthkey"

    id: int
    prefix: str
    hash: str  # hex, of the secret part
    user: str = ""
    reusable: bool = False
    ephemeral: bool = False
    tags: list[str] = []
    addresses: list[str] = []  # what the node it admits gets; kept free for it while the key can be used
    preapproved: bool = False  # the node needs no approval of a person
    description: str = ""
    used: bool = False
    created: Time
    expiration: Time | None = None
    revoked: bool = False

    @property
    def key(self) -> str:
        return self.prefix


class ApiKeyDoc(Document, frozen=True, kw_only=True):
    """A key for the HTTP API, or the client that gets such keys for an hour each by OAuth."""

    kind = "apikey"

    id: int
    prefix: str
    hash: str  # hex, of the secret part
    role: Literal["key", "client"] = "key"
    scopes: list[str] = []
    tags: list[str] = []  # a client may make pre-auth keys for these tags alone
    description: str = ""
    created: Time
    expiration: Time | None = None
    last_used: Time | None = None  # to the hour

    @property
    def key(self) -> str:
        return self.prefix


class RelayNode(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One server of a region; the fields are those of `DERPNode`.

    entered: of one that a `gwrelay` wrote itself (`gw.state.relayentries`); nodes do not get it.
    """

    name: str
    region_id: int = 0  # 0 = the region's
    host_name: str
    cert_name: str = ""
    ipv4: str = ""
    ipv6: str = ""
    stunport: int = 0
    stunonly: bool = False
    derpport: int = 0
    insecure_for_tests: bool = False
    stun_test_ip: str = ""
    can_port80: bool = False
    quic_port: int = 0  # UDP, 0 = no QUIC
    relay_key: str = ""  # 64 hex digits, for clients over QUIC
    entered: str = ""


class RelayRegionDoc(Document, frozen=True, kw_only=True):
    kind = "relay"

    region_id: int
    code: str
    name: str
    nodes: list[RelayNode] = []

    @property
    def key(self) -> int:
        return self.region_id

    def derp_region(self) -> DERPRegion:
        """The region as the map of the control protocol has it."""
        nodes = []
        for node in self.nodes:
            fields = msgspec.structs.asdict(node)
            del fields["entered"]
            fields["region_id"] = node.region_id or self.region_id
            nodes.append(DERPNode(**fields))
        return DERPRegion(region_id=self.region_id, region_code=self.code, region_name=self.name, nodes=nodes)


class ServerDoc(Document, frozen=True, kw_only=True):
    """What the control server counts. An id is never given twice."""

    kind = "server"

    next_user_id: int = 1
    next_node_id: int = 1
    next_preauthkey_id: int = 1
    next_apikey_id: int = 1

    @property
    def key(self) -> str:
        return "server"


AnyDocument = UserDoc | NodeDoc | PreauthKeyDoc | ApiKeyDoc | RelayRegionDoc | ServerDoc


@dataclass(frozen=True, slots=True)
class Place:
    """Where the documents of a kind lie. folder: below the state directory; numbered: whether keys are numbers."""

    type: type[AnyDocument]
    folder: str
    numbered: bool = False
    mode: int = 0o640


PLACES: Final[dict[Kind, Place]] = {
    "user": Place(UserDoc, "control/users"),
    "node": Place(NodeDoc, "control/nodes", numbered=True),
    "preauthkey": Place(PreauthKeyDoc, "control/preauthkeys"),
    "apikey": Place(ApiKeyDoc, "control/apikeys"),
    "relay": Place(RelayRegionDoc, "relays", numbered=True, mode=0o644),
    "server": Place(ServerDoc, "control"),
}
SUFFIX: Final = ".toml"


def file_name(key: Key) -> str:
    """The name of the document's file. Raises UsageError for a key that cannot be one.

    Letters and digits of any script, `@+-_.` and blanks stay; the rest is written as `%XX`.
    """
    text = str(key)
    try:
        safe = "".join(char if char.isalnum() or char in "@+-_. " else quote(char, safe="") for char in text)
    except UnicodeEncodeError:
        raise UsageError(f"not a name: {text!r}") from None
    if safe.startswith("."):
        safe = "%2E" + safe[1:]
    if not safe or len(safe.encode()) > MAX_NAME_BYTES:
        raise UsageError(f"not a name: `{text[:60]}`", hint=f"1 to {MAX_NAME_BYTES} bytes")
    return safe + SUFFIX


def key_of(kind: Kind, name: str) -> Key | None:
    """The key that a file name stands for; None where `file_name` never writes that name."""
    if not name.endswith(SUFFIX):
        return None
    stem = name[: -len(SUFFIX)]
    key: Key = unquote(stem)
    if PLACES[kind].numbered:
        if not (stem.isascii() and stem.isdigit() and len(stem) < 19):
            return None
        key = int(stem)
    elif kind == "server" and stem != "server":
        return None
    try:
        return key if file_name(key) == name else None
    except UsageError:
        return None
