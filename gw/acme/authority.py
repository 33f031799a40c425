"""A certificate from an ACME authority: account, order, proofs, certificate. Ref: RFC 8555

The library `acme` does the talking; it blocks, so it runs in a thread and calls back into the loop for the proofs. It
is an extra of the package (`ghostwire-mesh[acme]`) and imported only here.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from gw.acme.challenges import Challenger, Proof
from gw.errors import ConfigError, GwError
from gw.state.config import AcmeSettings
from gw.state.files import read_secret, write_secret

if TYPE_CHECKING:
    from acme import client, messages

logger = logging.getLogger(__name__)

NETWORK_S: Final = 45
USER_AGENT: Final = "ghostwire"
SHOW_S: Final = 600.0


@final
class Authority:
    """One authority by its settings. folder: of its account key (0600)."""

    def __init__(self, settings: AcmeSettings, folder: Path) -> None:
        self._settings = settings
        name = hashlib.sha256(settings.directory.encode()).hexdigest()[:12]
        self._account_file = folder / f"account-{name}.key"
        self._loop: asyncio.AbstractEventLoop | None = None

    async def issue(self, challenger: Challenger) -> bytes:
        """Key and chain, PEM, for the names in the settings. Raises GwError."""
        self._loop = asyncio.get_running_loop()
        return await asyncio.to_thread(self._issue, challenger)

    def _issue(self, challenger: Challenger) -> bytes:
        require_library()
        from acme import crypto_util, errors, messages
        from requests import RequestException

        key = _new_key()
        shown: list[Proof] = []
        try:
            speaker = self._client()
            order = speaker.new_order(crypto_util.make_csr(key, list(self._settings.domains)))
            for authorization in order.authorizations:
                if authorization.body.status != messages.STATUS_VALID:
                    self._prove(speaker, authorization, challenger, shown)
            finished = speaker.poll_and_finalize(order)
        except errors.ValidationError as error:
            raise GwError(
                f"the authority could not check the name: {_reasons(error)}", hint=_HINTS[challenger.kind]
            ) from error
        except messages.Error as error:
            raise GwError(f"the authority refuses: {error.detail or error.typ}") from error
        except (errors.Error, RequestException, ValueError) as error:
            raise GwError(f"no certificate from {self._settings.directory}: {_one_line(error)}") from error
        finally:
            for proof in shown:
                try:
                    self._await(challenger.hide(proof))
                except GwError as error:
                    logger.warning("a challenge was left behind: %s", error.message)
        return key + finished.fullchain_pem.encode()

    def _prove(
        self,
        speaker: client.ClientV2,
        authorization: messages.AuthorizationResource,
        challenger: Challenger,
        shown: list[Proof],
    ) -> None:
        offered = {each.chall.typ: each for each in authorization.body.challenges}
        challenge = offered.get(challenger.kind)
        if challenge is None:
            raise GwError(
                f"the authority does not offer {challenger.kind} for `{authorization.body.identifier.value}`",
                hint=f"it offers {', '.join(sorted(offered))}: see `acme.challenge`",
            )
        account_key = speaker.net.key
        proof = Proof(
            authorization.body.identifier.value,
            challenge.chall.encode("token"),
            challenge.chall.key_authorization(account_key),
        )
        shown.append(proof)
        self._await(challenger.show(proof))
        speaker.answer_challenge(challenge, challenge.response(account_key))

    def _client(self) -> client.ClientV2:
        """A client with our account, which is made at the first time."""
        from acme import client, errors, messages
        from josepy.jwa import ES256
        from josepy.jwk import JWKEC

        _teach_tls_alpn()
        key = JWKEC(key=load_pem_private_key(self._account_key(), None))
        trust: Any = self._settings.ca_file or True
        network = client.ClientNetwork(key, alg=ES256, verify_ssl=trust, user_agent=USER_AGENT, timeout=NETWORK_S)
        directory = client.ClientV2.get_directory(self._settings.directory, network)
        speaker = client.ClientV2(directory, network)
        binding = self._binding(key, directory) if self._settings.eab_kid else None
        if binding is None and speaker.external_account_required():
            raise ConfigError("this authority needs an account made before", key="acme.eab_kid")
        wanted = messages.NewRegistration.from_data(
            email=self._settings.email or None, terms_of_service_agreed=True, external_account_binding=binding
        )
        try:
            speaker.new_account(wanted)
            logger.info("account made at %s; its terms of service are agreed to", self._settings.directory)
        except errors.ConflictError as error:
            network.account = messages.RegistrationResource(uri=error.location, body=messages.Registration())
        return speaker

    def _binding(self, key: Any, directory: messages.Directory) -> dict[str, Any]:
        from acme import messages

        secret = read_secret(Path(self._settings.eab_key_file)).decode().strip()
        made: dict[str, Any] = messages.ExternalAccountBinding.from_data(
            key.public_key(), self._settings.eab_kid, secret, directory
        )
        return made

    def _account_key(self) -> bytes:
        if not self._account_file.exists():
            write_secret(self._account_file, _new_key())
        return read_secret(self._account_file)

    def _await(self, work: Coroutine[Any, Any, None]) -> None:
        """Let the loop do it, and wait."""
        assert self._loop is not None
        asyncio.run_coroutine_threadsafe(work, self._loop).result(SHOW_S)


_HINTS: Final = {
    "http-01": "port 80 of these names has to reach the plain HTTP listener from the internet",
    "tls-alpn-01": "port 443 of these names has to reach `listen` from the internet, with no proxy in between",
    "dns-01": "the TXT record has to be served by the zone's name servers",
}


def require_library() -> None:
    """Raises ConfigError where the extra is not installed."""
    try:
        import acme.client  # noqa: F401
    except ImportError:
        raise ConfigError(
            "certificates from an authority need the library `acme`", key="acme.domains",
            hint="pip install 'ghostwire-mesh[acme]'",
        ) from None  # fmt: skip


def _teach_tls_alpn() -> None:
    """The library no longer knows the challenge by itself. Ref: RFC 8737"""
    from acme import challenges

    if "tls-alpn-01" in challenges.Challenge.TYPES:
        return

    @challenges.ChallengeResponse.register
    class TlsAlpnResponse(challenges.KeyAuthorizationChallengeResponse):
        typ = "tls-alpn-01"

    @challenges.Challenge.register
    class TlsAlpn(challenges.KeyAuthorizationChallenge):
        response_cls = TlsAlpnResponse
        typ = response_cls.typ

        def validation(self, account_key: Any, **_: Any) -> str:
            return str(self.key_authorization(account_key))


def _new_key() -> bytes:
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _reasons(error: Any) -> str:
    found = [
        f"{each.body.identifier.value}: {challenge.error.detail}"
        for each in error.failed_authzrs
        for challenge in each.body.challenges
        if challenge.error is not None
    ]
    return _one_line("; ".join(found))


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:300]
