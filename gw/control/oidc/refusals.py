"""Why a login through the identity provider ends. `LoginRefused` is for the person, its `detail` for the log alone."""

from __future__ import annotations

from gw.errors import AuthRequired, GwError


class LoginRefused(AuthRequired):
    """message: one sentence without secrets, for the page. detail: what the log says beside it. status: of the page."""

    def __init__(self, message: str, *, detail: str = "", status: int = 403, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.detail = detail
        self.status = status


class ProviderFailed(GwError):
    """The identity provider cannot be reached, or answers what it must not."""
