"""The access policies this version understands, and the reading of a policy file.

Two policies, in Tailscale's words, and nothing else:

    own devices   {"acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]}]}
    allow all     {"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}

No file, an empty file, an object without rules, or an empty list of rules allows nothing. Any other policy is refused:
to leave out a rule that is not understood could grant what its author forbade.

Ref: spec policy §2, §3
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from gw.errors import ConfigError
from gw.policy.hujson import HuJSONError, Value, parse, position

OWN_DEVICES: Final = ("autogroup:member", "autogroup:self:*")
ALLOW_ALL: Final = ("*", "*:*")
HINT: Final = (
    'this version understands one rule, from ["autogroup:member"] to ["autogroup:self:*"] or from ["*"] to ["*:*"]; '
    "a later one understands more"
)
_RULE_KEYS: Final = ("action", "src", "dst")


class Policy(Enum):
    """What nodes may do with one another."""

    NOTHING = "nothing"
    OWN_DEVICES = "own devices"
    ALLOW_ALL = "allow all"


def read_policy(raw: bytes, path: str) -> Policy:
    """The policy that a HuJSON text states. path: only for messages.

    Raises ConfigError `path:line:column: what` if the text is no HuJSON or says anything this version cannot enforce.
    """
    if not raw:
        return Policy.NOTHING
    try:
        root = parse(raw)
    except HuJSONError as error:
        raise ConfigError(error.reason, path=f"{path}:{error.line}:{error.column}") from None
    return _Judge(raw, path).policy(root)


class _Judge:
    def __init__(self, raw: bytes, path: str) -> None:
        self.raw, self.path = raw, path

    def refuse(self, offset: int, what: str) -> ConfigError:
        line, column = position(self.raw, offset)
        return ConfigError(what, path=f"{self.path}:{line}:{column}", hint=HINT)

    def policy(self, root: Value) -> Policy:
        if not isinstance(root.data, dict):
            raise self.refuse(root.start, "a policy is an object: `{…}`")
        rules: Value | None = None
        for name, member in root.data.items():
            if name.lower() != "acls":
                raise self.refuse(member.start, f"section not understood: `{name}`")
            if rules is not None:
                raise self.refuse(member.start, f"section given twice: `{name}`")
            rules = member.value
        if rules is None or rules.data is None:
            return Policy.NOTHING
        if not isinstance(rules.data, list):
            raise self.refuse(rules.start, "`acls` is a list: `[…]`")
        found = [self.rule(rule) for rule in rules.data]
        if len(found) > 1:
            raise self.refuse(rules.data[1].start, "more than one rule")
        return found[0] if found else Policy.NOTHING

    def rule(self, rule: Value) -> Policy:
        if not isinstance(rule.data, dict):
            raise self.refuse(rule.start, "a rule is an object: `{…}`")
        fields: dict[str, Value] = {}
        for name, member in rule.data.items():
            if name.startswith("#"):  # admin front ends store notes of their own there
                continue
            if name.lower() not in _RULE_KEYS:
                raise self.refuse(member.start, f"field of a rule not understood: `{name}`")
            if name.lower() in fields:
                raise self.refuse(member.start, f"field given twice: `{name}`")
            fields[name.lower()] = member.value
        for key in _RULE_KEYS:
            if key not in fields:
                raise self.refuse(rule.start, f"a rule needs `{key}`")
        action = fields["action"]
        if action.data != "accept":
            raise self.refuse(action.start, f"action not understood: `{action.plain()}`")
        pair = (self.only(fields["src"], trim=True), self.only(fields["dst"], trim=False))
        if pair == OWN_DEVICES:
            return Policy.OWN_DEVICES
        if pair == ALLOW_ALL:
            return Policy.ALLOW_ALL
        known_source = pair[0] in (OWN_DEVICES[0], ALLOW_ALL[0])
        wrong = fields["dst"] if known_source else fields["src"]
        raise self.refuse(wrong.start, f"rule not understood: from `{pair[0]}` to `{pair[1]}`")

    def only(self, selectors: Value, *, trim: bool) -> str:
        if not isinstance(selectors.data, list):
            raise self.refuse(selectors.start, 'expected a list: `["…"]`')
        if len(selectors.data) != 1:
            raise self.refuse(selectors.start, f"expected one entry, found {len(selectors.data)}")
        selector = selectors.data[0]
        if not isinstance(selector.data, str):
            raise self.refuse(selector.start, "expected a string")
        return selector.data.strip() if trim else selector.data


OWN_DEVICES_TEXT: Final = """\
// Who may reach whom, in Tailscale's policy language (JSON with comments).
// Saved changes apply at once; a mistake is reported and the last good policy stays in force.
{
	"acls": [
		// The devices of one user reach each other, on every port. Nothing else is allowed.
		{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]},
	],

	// To let every device reach every other one, replace the rule above by:
	//	{"action": "accept", "src": ["*"], "dst": ["*:*"]},
}
"""

ALLOW_ALL_TEXT: Final = """\
// Who may reach whom, in Tailscale's policy language (JSON with comments).
// Saved changes apply at once; a mistake is reported and the last good policy stays in force.
{
	"acls": [
		// Every device reaches every other one, on every port.
		{"action": "accept", "src": ["*"], "dst": ["*:*"]},
	],

	// To let only the devices of one user reach each other, replace the rule above by:
	//	{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]},
}
"""
