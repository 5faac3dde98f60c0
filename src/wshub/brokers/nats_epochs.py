"""The epochs of channels whose messages share a stream.

A position of one channel says nothing about another one. So each channel has an epoch of its own, made of that of the
stream and of the channel's name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

from wshub.brokers.nats_subjects import SubjectNames

__all__ = ["ChannelEpochs", "Place"]

# Epochs that are kept, so that a message to a room that is used often finds its own.
KEPT = 4096

A = ord("a")


class Place(NamedTuple):
    """Where an envelope stands in the history of its channel."""

    offset: int
    previous: int
    """The offset of the one before it on its channel; 0 for the first one."""
    epoch: str


class ChannelEpochs:
    """Names the epochs of the channels of one hub.

    Args:
        names: the subjects of channels.
    """

    def __init__(self, names: SubjectNames) -> None:
        self._names = names
        self._skipped = len(names.start)
        self._kept: dict[tuple[str, str], str] = {}

    def tokens(self, channel: str) -> str:
        """Return the tokens of a channel, which are the end of its subjects."""
        return self._names.subject(channel)[self._skipped :]

    def epoch(self, of_stream: str, tokens: str) -> str:
        """Return the epoch of a channel in a stream."""
        found = self._kept.get((of_stream, tokens))
        if found is None:
            digest = hashlib.sha256(f"{of_stream} {tokens}".encode()).digest()
            found = "".join(chr(A + byte % 26) for byte in digest[:8])
            if len(self._kept) >= KEPT:
                self._kept.clear()
            self._kept[of_stream, tokens] = found
        return found

    def place(self, subject: str, headers: Mapping[str, str]) -> Place | None:
        """Return the place of an envelope that arrives from a stream; None if its headers make no sense."""
        try:
            offset, previous = int(headers["Nats-Sequence"]), int(headers.get("Nats-Last-Sequence", 0))
            of_stream = headers["Nats-Stream"].rpartition("-")[2]
        except (KeyError, ValueError):
            return None
        if not 0 <= previous < offset < 1 << 63:
            return None
        return Place(offset, previous, self.epoch(of_stream, subject[self._skipped :]))
