"""Counts messages that an engine of a cluster may have taken after other nodes had left it."""

from __future__ import annotations

__all__ = ["ClusterLosses"]


class ClusterLosses:
    """Counts envelopes that an engine has taken since it was known to own their partition.

    An engine that is cut off from its cluster goes on to take messages, and other nodes may have left it before. The
    engines do not all learn of a change at once. So two views of other engines must have confirmed the owner.

    Args:
        sent: the number of envelopes that were sent to each partition. Its owner changes it.
    """

    def __init__(self, sent: list[int]) -> None:
        self.total = 0
        """Envelopes that may not have reached all nodes."""
        self._sent = sent
        self._asked = list(sent)
        # The numbers at the time when the last two views were asked for that have confirmed the owner.
        self._last = list(sent)
        self._confirmed = list(sent)

    def ask(self) -> None:
        """Note that a view is asked for."""
        self._asked = list(self._sent)

    def confirm(self, partition: int) -> None:
        """Note that the view has the present owner of a partition."""
        self._confirmed[partition] = self._last[partition]
        self._last[partition] = self._asked[partition]

    def owner_changed(self, partition: int, *, lost: bool) -> None:
        """Begin anew. ``lost`` says whether the old owner may have kept what it has taken."""
        sent = self._sent[partition]
        if lost:
            self.total += sent - self._confirmed[partition]
        self._confirmed[partition] = self._last[partition] = self._asked[partition] = sent
