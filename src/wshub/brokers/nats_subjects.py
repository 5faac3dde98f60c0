"""The subjects of channels in NATS."""

from __future__ import annotations

import hashlib
import re

from wshub.brokers.interface import PATTERN_CHANNELS, room_channel
from wshub.brokers.room_patterns import RoomPattern

__all__ = ["SubjectNames"]

# Characters of the tokens of a channel above which a hash takes the place of the last ones. A server reads lines of up
# to 4,096 bytes.
_LONGEST = 256

# Characters of the tokens that stand before the hash. A pattern has no more either, so it matches such a channel too.
_LONGEST_BEGINNING = 128

# No name is escaped like these: "=" is followed by two hexadecimal digits, or is a whole token.
_HASH = "=sha256-"
_TEST = "=test"

# Subjects that are kept, so that a message to a room that is used often finds its own.
_KEPT_SUBJECTS = 4096
_KEPT_LENGTH = 256

# A part of a name, and what separates it from the next one.
_PART = re.compile(r"([^.:/]*)([.:/])")
_PLAIN = re.compile(r"[A-Za-z0-9_-]+")
_SPECIAL = re.compile(rb"[^A-Za-z0-9_-]")


class SubjectNames:
    """Names channels in NATS: PREFIX.HUB.KIND.NAME. In a name, ``.``, ``:`` and ``/`` separate tokens.

    The room ``chat.7`` of the hub ``main`` has the subject ``wshub.main.room.chat.7``. A colon or a slash stays at the
    end of its token, escaped: ``chat:7`` has ``wshub.main.room.chat=3A.7``. Other characters than letters, digits,
    ``_`` and ``-`` are escaped likewise. So each channel of each hub has a subject of its own.

    A pattern has a subject with a wildcard. That stands behind the last separator before the ``*``, so it may match
    more rooms than the pattern does: ``chat:a*`` has ``wshub.main.room.chat=3A.>``.
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
        """Return the subject of a channel, or of the channel of a pattern."""
        subject = self._kept.get(channel)
        if subject is None:
            subject = self.start + self.tokens(channel)
            if len(channel) <= _KEPT_LENGTH:
                if len(self._kept) >= _KEPT_SUBJECTS:
                    self._kept.clear()
                self._kept[channel] = subject
        return subject

    def test_subject(self, channel: str) -> str:
        """Return a subject that the subscription of a channel matches, and no other channel has, to test it."""
        subject = self.subject(channel)
        return subject[:-1] + _TEST if subject.endswith(".>") else subject

    def tokens(self, channel: str) -> str:
        """Return the tokens of a channel, behind those of the prefix and the hub."""
        if channel.startswith(PATTERN_CHANNELS):
            pattern = RoomPattern.parse(channel.removeprefix(PATTERN_CHANNELS))
            if pattern.behind is None:
                return _tokens(room_channel(pattern.before))
            return ".".join([*_beginning(room_channel(pattern.before)), ">"])
        return _tokens(channel)


def _tokens(channel: str) -> str:
    kind, colon, name = channel.partition(":")
    if not colon:
        # Only a name behind a colon has several tokens: otherwise "a.b" and "a:b" would have one subject.
        token = _token(channel)
        return token if len(token) <= _LONGEST else f"=.{_hash(channel)}"
    if len(channel) <= _LONGEST:
        tokens = [_token(kind), *_parts(name)]
        subject = ".".join(tokens)
        if len(subject) <= _LONGEST:
            return subject
    return ".".join([*_beginning(channel), _hash(channel)])


def _parts(name: str) -> list[str]:
    """Return the tokens of a name: of each part with what separates it from the next one, and of the last part."""
    tokens = []
    end = 0
    for part in _PART.finditer(name):
        end = part.end()
        tokens.append(_token(part[1]) if part[2] == "." else _escape(part[0]))
    return [*tokens, _token(name[end:])]


def _beginning(channel: str) -> list[str]:
    """Return the first tokens of a channel: those of its kind and of the parts before the last one, up to a length."""
    kind, _, name = channel.partition(":")
    tokens = [_token(kind) if len(kind) <= 16 else "="]
    # A longer name has no further token that could be among them.
    parts = _parts(name[: _LONGEST_BEGINNING + 1])[:-1]
    length = 0
    for token in parts:
        length += len(token) + 1
        if length > _LONGEST_BEGINNING:
            break
        tokens.append(token)
    return tokens


def _hash(text: str) -> str:
    return _HASH + hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _token(text: str) -> str:
    """Return one token of a subject, which is never empty."""
    return _escape(text) if text else "="


def _escape(text: str) -> str:
    """Escape what is no plain character."""
    if _PLAIN.fullmatch(text):
        return text
    return _SPECIAL.sub(_escaped, text.encode(errors="surrogatepass")).decode()


def _escaped(match: re.Match[bytes]) -> bytes:
    return b"=%02X" % match[0][0]
