"""The name of a certificate's subject, as RFC 4514 writes it."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["subject_name"]

# OpenSSL's attributes by their names in RFC 4514 (section 3) and RFC 4519.
_NAMES = {
    "commonName": "CN",
    "countryName": "C",
    "domainComponent": "DC",
    "localityName": "L",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "stateOrProvinceName": "ST",
    "streetAddress": "STREET",
    "surname": "sn",
    "userId": "UID",
}

_SPECIAL = frozenset('"+,;<>\\')


def subject_name(subject: Sequence[Sequence[tuple[str, str]]]) -> str:
    """Return a subject as one text, the most specific part first. An empty subject is an empty string.

    Other attributes have OpenSSL's name, or their number.

    Args:
        subject: as ``ssl.SSLObject.getpeercert()`` has it.
    """
    parts = ("+".join(f"{_NAMES.get(name, name)}={_escaped(value)}" for name, value in part) for part in subject[::-1])
    return ",".join(parts)


def _escaped(text: str) -> str:
    """Escape what would end a value, and control characters (RFC 4514 section 2.4)."""
    escaped = [_escaped_character(character) for character in text]
    if text[:1] in (" ", "#"):
        escaped[0] = f"\\{text[0]}"
    if text[-1:] == " ":
        escaped[-1] = "\\ "
    return "".join(escaped)


def _escaped_character(character: str) -> str:
    if character in _SPECIAL:
        return f"\\{character}"
    return f"\\{ord(character):02x}" if character < " " or character == "\x7f" else character
