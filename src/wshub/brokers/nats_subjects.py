"""The subjects of channels in NATS."""

from __future__ import annotations

import hashlib
import re

__all__ = ["SubjectNames"]

# Characters of a subject above which it has a hash in place of the name. A server reads lines of up to 4,096 bytes.
_LONGEST = 256

# Stands before the hash. No name is escaped like this: "=" is followed by two hexadecimal digits, or is a whole token.
_HASH = "=sha256-"

# Subjects that are kept, so that a message to a room that is used often finds its own.
_KEPT_SUBJECTS = 4096
_KEPT_LENGTH = 256

_PLAIN = re.compile(r"[A-Za-z0-9_-]+")
_SPECIAL = re.compile(rb"[^A-Za-z0-9_-]")


class SubjectNames:
    """Names channels in NATS: PREFIX.HUB.KIND.NAME, where a dot in the name separates tokens.

    Other characters than letters, digits, ``_`` and ``-`` are escaped, so each channel of each hub has a subject of its
    own. The room ``chat.7`` of the hub ``main`` has the subject ``wshub.main.room.chat.7``.
    """

    def __init__(self, prefix: str, hub: str) -> None:
        token = _token(hub)
        self.hub = token if len(token) <= _LONGEST else _hash(hub)
        """The token of the hub."""
        self.prefix = prefix
        self.start = f"{prefix}.{self.hub}."
        """The beginning of the subjects of all channels."""
        self._kept: dict[str, str] = {}

    def subject(self, channel: str) -> str:
        """Return the subject of a channel."""
        subject = self._kept.get(channel)
        if subject is None:
            subject = self.start + self.tokens(channel)
            if len(channel) <= _KEPT_LENGTH:
                if len(self._kept) >= _KEPT_SUBJECTS:
                    self._kept.clear()
                self._kept[channel] = subject
        return subject

    def tokens(self, channel: str) -> str:
        """Return the tokens of a channel, behind those of the prefix and the hub."""
        return _tokens(channel)


def _tokens(channel: str) -> str:
    kind, colon, name = channel.partition(":")
    if len(channel) <= _LONGEST:
        # Only a name behind a colon has several tokens: otherwise "a.b" and "a:b" would have one subject.
        tokens = [_token(kind), *map(_token, name.split("."))] if colon else [_token(channel)]
        subject = ".".join(tokens)
        if len(subject) <= _LONGEST:
            return subject
    head = _token(kind) if colon and len(kind) <= 16 else "="
    return f"{head}.{_hash(channel)}"


def _hash(text: str) -> str:
    return _HASH + hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _token(text: str) -> str:
    """Return one token of a subject, which is never empty."""
    if _PLAIN.fullmatch(text):
        return text
    if not text:
        return "="
    return _SPECIAL.sub(_escaped, text.encode(errors="surrogatepass")).decode()


def _escaped(match: re.Match[bytes]) -> bytes:
    return b"=%02X" % match[0][0]
