"""The idempotency keys of messages that are kept."""

from __future__ import annotations

from wshub.errors import InvalidMessageError
from wshub.protocol.validation import check_str

__all__ = ["MAX_KEY_LENGTH", "check_idempotency_key"]

MAX_KEY_LENGTH = 512
"""Maximum number of characters of a key. A history has the keys of five minutes."""


def check_idempotency_key(key: str) -> None:
    """Check a key that the application has given.

    Raises:
        TypeError: it is not a str.
        InvalidMessageError: it is too long.
    """
    check_str("idempotency_key", key)
    if len(key) > MAX_KEY_LENGTH:
        raise InvalidMessageError(
            f"an idempotency key has at most {MAX_KEY_LENGTH} characters, not {len(key)}: use a hash of it as the key"
        )
