"""Writes header fields: of responses, and of requests (RFC 9110 section 5)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeAlias

from wshub.errors import InvalidMessageError
from wshub.protocol.http.headers import is_token
from wshub.protocol.validation import check_fields

__all__ = ["HeaderField", "encode_fields", "encode_latin_1", "encode_value"]

HeaderField: TypeAlias = tuple[str | bytes, str | bytes]
"""A header field to be sent: name and value, as latin-1 text or as bytes."""

# HTTP allows a tab in values. It is left out: nobody needs it, and some readers treat it as the end of a line.
_VALUE_CHARACTERS = bytes(range(0x20, 0x7F)) + bytes(range(0x80, 0x100))


def encode_fields(fields: Iterable[HeaderField], own_names: frozenset[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Yield each field as bytes.

    ``own_names``, in lower case, are those that the message writes itself. Raises ``InvalidMessageError`` for one of
    them, for a name that is not a token, and for a value as ``encode_value`` does.
    """
    for name, value in check_fields("headers", fields):
        encoded_name = encode_value(name, "the name of a header field")
        if not is_token(encoded_name):
            raise InvalidMessageError("the name of a header field must be a token of HTTP")
        if encoded_name.lower() in own_names:
            raise InvalidMessageError(f"the response itself has the field {encoded_name.decode('ascii')}")
        yield encoded_name, encode_value(value, "the value of a header field")


def encode_value(value: str | bytes, what: str) -> bytes:
    """Return a value as bytes. Raises ``InvalidMessageError`` for a control character and for text outside latin-1."""
    encoded = value if isinstance(value, bytes) else encode_latin_1(value, what)
    if encoded.translate(None, _VALUE_CHARACTERS):
        raise InvalidMessageError(f"{what} must not contain control characters")
    return encoded


def encode_latin_1(value: str, what: str) -> bytes:
    """Return text as latin-1. Raises ``InvalidMessageError``, which names ``what``, for anything else."""
    if not isinstance(value, str):
        raise InvalidMessageError(f"{what} must be a str or bytes, not {type(value).__name__}")
    try:
        return str.encode(value, "latin-1")
    except UnicodeEncodeError:
        raise InvalidMessageError(f"{what} must be latin-1 text") from None
