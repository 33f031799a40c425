"""Policies to begin with: what `gwctl init` writes, and what holds where there is none."""

from __future__ import annotations

from typing import Final

from gw.policy.model import Policy

DENY_ALL: Final = Policy(grants=())

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
