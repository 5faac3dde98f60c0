"""The number of subscriptions that a connection should have, beside the number that the engine tells."""

from __future__ import annotations

import logging

__all__ = ["SubscriptionCount"]

logger = logging.getLogger("wshub.broker")

# Searches without a find after which the engine's number is not believed any more.
SEARCHES_IN_VAIN = 2


class SubscriptionCount:
    """Finds out that an engine has lost subscriptions: each of its answers to SUBSCRIBE has their number.

    Answers come in the order of the commands. So the numbers are equal after each answer, whatever is under way. An
    engine that has more subscriptions is none of its business: a refused command can leave one behind.
    """

    def __init__(self) -> None:
        self.held = 0
        """Channels whose subscription the engine has acknowledged, and has not ended since."""
        self._told: int | None = None
        self._found = 0
        self._in_vain = 0
        self._is_believed = True

    def clear(self) -> None:
        """Begin anew with another connection."""
        self.held = self._found = self._in_vain = 0
        self._told = None

    def take(self, count: object) -> bool:
        """Take the number in an answer. Return whether it is larger than the one before."""
        before = self._told
        self._told = count if isinstance(count, int) else None
        return before is not None and self._told is not None and self._told > before

    def note_found(self) -> None:
        """Note that a search has found a subscription that the engine had lost."""
        self._found += 1

    def must_search(self) -> bool:
        """Return whether the engine has lost subscriptions. It is time to search for them then."""
        if self._told is None or self._told >= self.held or not self._is_believed:
            self._found = self._in_vain = 0
            return False
        self._in_vain = 0 if self._found else self._in_vain + 1
        self._found = 0
        if self._in_vain > SEARCHES_IN_VAIN:
            self._is_believed = False
            logger.info(
                "the engine says that a connection has %d subscriptions, and %d were acknowledged: the number is not "
                "compared any more",
                self._told,
                self.held,
            )
        return self._is_believed
