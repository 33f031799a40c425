"""Logging in: the register exchange. Ref: tailcfg.RegisterRequest/Response; control protocol §4"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import msgspec

from gw.model.gojson import ZERO_TIME, GoStruct
from gw.model.hostinfo import Hostinfo
from gw.model.keys import NodeKey

ZERO_NODE_KEY = str(NodeKey.zero())
ZERO_NL_KEY = "nlpub:" + "0" * 64


class RegisterAuth(GoStruct):
    auth_key: str = ""
    oauth2_token: Any = None  # a union with Raw would only read null


class RegisterRequest(GoStruct, omit_defaults=False):
    version: int = 0
    node_key: str = ZERO_NODE_KEY
    old_node_key: str = ZERO_NODE_KEY
    nl_key: str = msgspec.field(default=ZERO_NL_KEY, name="NLKey")
    auth: RegisterAuth | None = None
    expiry: Annotated[datetime, msgspec.Meta(tz=True)] = ZERO_TIME
    followup: str = ""
    hostinfo: Hostinfo | None = None
    ephemeral: bool = False
    node_key_signature: str | None = None
    tailnet: str = ""


class User(GoStruct):
    id: int = 0
    display_name: str = ""
    profile_pic_url: str = msgspec.field(default="", name="ProfilePicURL")


class Login(GoStruct):
    id: int = 0
    provider: str = ""
    login_name: str = ""
    display_name: str = ""


class RegisterResponse(GoStruct, omit_defaults=False):
    user: User = msgspec.field(default_factory=User)
    login: Login = msgspec.field(default_factory=Login)
    node_key_expired: bool = False
    machine_authorized: bool = False
    auth_url: str = msgspec.field(default="", name="AuthURL")
    node_key_signature: str | None = None
    error: str = ""
