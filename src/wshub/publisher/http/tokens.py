"""The bearer tokens of the HTTP API."""

from __future__ import annotations

import hashlib
import hmac
import string
from collections.abc import Iterable

from wshub.errors import ConfigurationError
from wshub.protocol.validation import check_strings

__all__ = ["Tokens"]

SHORTEST_TOKEN = 16

ALLOWED = frozenset(string.ascii_letters + string.digits + "-._~+/=")
"""The characters of a bearer token (RFC 6750 section 2.1)."""


class Tokens:
    """The tokens that are accepted. It keeps their hashes only.

    Args:
        tokens: at least one.

    Raises:
        ConfigurationError: a token is too short, or cannot be sent in a header.
    """

    def __init__(self, tokens: Iterable[str]) -> None:
        if isinstance(tokens, str | bytes):
            # No message may have a token.
            raise ConfigurationError("tokens must be a sequence of strings, not one string: tokens=[token]")
        given = check_strings("tokens", tokens)
        if not given:
            raise ConfigurationError("the HTTP API needs a token: secrets.token_urlsafe() makes one")
        for token in given:
            if len(token) < SHORTEST_TOKEN or not ALLOWED.issuperset(token):
                raise ConfigurationError(
                    f"a token must have at least {SHORTEST_TOKEN} characters, which are letters, digits or -._~+/=: "
                    "secrets.token_urlsafe() makes one"
                )
        self._hashes = tuple(_hash(token.encode("ascii")) for token in given)

    def accept(self, authorization: str | None) -> bool:
        """Whether a request may pass. The time that it takes does not depend on how much of a token is right.

        Args:
            authorization: the header field of the request, or None.
        """
        scheme, _, token = (authorization or "").partition(" ")
        given = _hash(token.strip().encode("latin-1", "replace"))
        # Each hash is compared, also after one that was equal.
        matches = [hmac.compare_digest(given, known) for known in self._hashes]
        return scheme.lower() == "bearer" and any(matches)


def _hash(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
