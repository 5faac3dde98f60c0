"""The name of a certificate's subject, as RFC 4514 writes it.

``ssl`` gives the names of attributes without their object identifiers, so the certificate itself is read here. OpenSSL
has parsed it before.
"""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["subject_name"]

# The names that every reader of RFC 4514 knows (section 3), some of RFC 4519, and OpenSSL's for an address of e-mail.
_NAMES = {
    "2.5.4.3": "CN",
    "2.5.4.4": "sn",
    "2.5.4.5": "serialNumber",
    "2.5.4.6": "C",
    "2.5.4.7": "L",
    "2.5.4.8": "ST",
    "2.5.4.9": "STREET",
    "2.5.4.10": "O",
    "2.5.4.11": "OU",
    "2.5.4.12": "title",
    "2.5.4.42": "givenName",
    "2.5.4.43": "initials",
    "0.9.2342.19200300.100.1.1": "UID",
    "0.9.2342.19200300.100.1.25": "DC",
    "1.2.840.113549.1.9.1": "emailAddress",
}

# The kinds of text by their tags. OpenSSL reads those of one byte a character in this way too.
_ENCODINGS = {
    0x0C: "utf-8",
    0x12: "latin-1",
    0x13: "latin-1",
    0x14: "latin-1",
    0x16: "latin-1",
    0x1A: "latin-1",
    0x1C: "utf-32-be",
    0x1E: "utf-16-be",
}

_VERSION = 0xA0

_SPECIAL = frozenset('"+,;<>\\')


def subject_name(certificate: bytes) -> str:
    """Return the subject of a certificate in DER, the most specific part first. An empty subject is an empty string.

    Raises ``ValueError`` for what is no certificate in DER.
    """
    try:
        _, at, _ = _element(certificate, 0)
        _, at, _ = _element(certificate, at)
        tag, _, end = _element(certificate, at)
        if tag == _VERSION:
            at = end
        for _ in ("serialNumber", "signature", "issuer", "validity"):
            _, _, at = _element(certificate, at)
        parts = [
            "+".join(_attribute(certificate, at) for _, at, _ in _elements(certificate, start, end))
            for _, start, end in _elements(certificate, *_element(certificate, at)[1:])
        ]
    except IndexError:
        raise ValueError("the certificate ends early") from None
    return ",".join(reversed(parts))


def _attribute(data: bytes, at: int) -> str:
    """Return a type and its value: text of a type with a name, or else the bytes of the value in hex."""
    _, start, value = _element(data, at)
    tag, content, end = _element(data, value)
    identifier = _identifier(data[start:value])
    name = _NAMES.get(identifier)
    if name is not None and tag in _ENCODINGS:
        try:
            return f"{name}={_escaped(data[content:end].decode(_ENCODINGS[tag]))}"
        except UnicodeDecodeError:
            pass
    return f"{name or identifier}=#{data[value:end].hex()}"


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


def _identifier(encoded: bytes) -> str:
    """Return an object identifier in dotted form (X.690 section 8.19)."""
    numbers = [0]
    for byte in encoded:
        numbers[-1] = numbers[-1] << 7 | byte & 0x7F
        if byte < 0x80:
            numbers.append(0)
    first = min(numbers[0] // 40, 2)
    return ".".join(map(str, (first, numbers[0] - 40 * first, *numbers[1:-1])))


def _elements(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    while at < end:
        element = _element(data, at)
        yield element
        at = element[2]


def _element(data: bytes, at: int) -> tuple[int, int, int]:
    """Return the tag of the element at that place, and where its content starts and ends."""
    tag, length = data[at], data[at + 1]
    start = at + 2
    if length >= 0x80:
        size = length - 0x80
        if not 1 <= size <= 4:
            raise ValueError("the length of an element is not one of DER")
        length = int.from_bytes(data[start : start + size], "big")
        start += size
    if start + length > len(data):
        raise ValueError("an element of the certificate ends early")
    return tag, start, start + length
