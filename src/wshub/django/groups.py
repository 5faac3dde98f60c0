"""The groups that channels of this process are in."""

from __future__ import annotations

import logging
import threading
import time

from wshub.django.mailboxes import Futures, Mailboxes

__all__ = ["Groups"]

logger = logging.getLogger("wshub.broker")

ABANDONED_AFTER = 10
"""A channel that nothing has read for so many times the expiry leaves all its groups: its consumer has ended."""


class Groups:
    """The channels of this process in each group.

    Args:
        lock: guards everything. The mailboxes share it.
        mailboxes: the queues of the channels.
        group_expiry: seconds after which a channel leaves a group, unless it was added again.
        expiry: seconds after which a message that was not read is dropped.
    """

    def __init__(self, lock: threading.Lock, mailboxes: Mailboxes, group_expiry: float, expiry: float) -> None:
        self._lock = lock
        self._mailboxes = mailboxes
        self._group_expiry = group_expiry
        self._expiry = expiry
        # By group: its channels, each with the time at which it leaves.
        self._members: dict[str, dict[str, float]] = {}
        self._groups_of: dict[str, set[str]] = {}
        # Groups whose messages from other processes arrive.
        self._subscribed: set[str] = set()
        self._expire_at = 0.0
        self._is_limit_logged = False

    def add(self, group: str, channel: str) -> bool:
        """Add a channel to a group. Return whether messages of other processes to the group arrive already."""
        with self._lock:
            self._members.setdefault(group, {})[channel] = time.monotonic() + self._group_expiry
            self._groups_of.setdefault(channel, set()).add(group)
            return group in self._subscribed

    def discard(self, group: str, channel: str) -> None:
        """Remove a channel from a group, if it is there."""
        with self._lock:
            self._discard(group, channel)

    def _discard(self, group: str, channel: str) -> None:
        members = self._members.get(group, {})
        if members.pop(channel, None) is None:
            return
        if not members:
            del self._members[group]
        groups = self._groups_of[channel]
        groups.discard(group)
        if not groups:
            del self._groups_of[channel]

    def put(self, group: str, payload: bytes) -> None:
        """Put a message into each channel of a group that has space for it."""
        now = time.monotonic()
        waiters: Futures = {}
        full = 0
        expired = []
        with self._lock:
            members = self._members.get(group, {})
            put = self._mailboxes.put_locked
            for channel, leaves_at in members.items():
                if leaves_at <= now:
                    expired.append(channel)
                elif not put(channel, payload, now, waiters):
                    full += 1
            for channel in expired:
                self._discard(group, channel)
        self._mailboxes.wake(waiters)
        if full and not self._is_limit_logged:
            self._is_limit_logged = True
            logger.warning(
                "%d channels of the group %s are full (capacity): messages for them are dropped; this is logged once, "
                "and stats() counts",
                full,
                group,
            )

    def clear(self) -> None:
        """Remove all channels from all groups, and drop all messages."""
        with self._lock:
            self._members.clear()
            self._groups_of.clear()
            self._mailboxes.clear()

    def expire(self, now: float) -> None:
        """Drop what has expired, unless that was done a moment ago."""
        if now < self._expire_at:
            return
        with self._lock:
            self._expire_at = now + self._expiry / 10
            for channel in self._mailboxes.expire_locked(now, self._expiry * ABANDONED_AFTER):
                for group in tuple(self._groups_of.get(channel, ())):
                    self._discard(group, channel)
            for group, members in list(self._members.items()):
                for channel in [channel for channel, leaves_at in members.items() if leaves_at <= now]:
                    self._discard(group, channel)

    def names(self) -> list[str]:
        """Return the names of the groups."""
        with self._lock:
            return list(self._members)

    @property
    def count(self) -> int:
        """The number of groups."""
        return len(self._members)

    # For the broker's side

    def set_subscribed(self, group: str) -> None:
        """Note that messages of other processes to a group arrive."""
        with self._lock:
            self._subscribed.add(group)

    def forget_subscribed(self, group: str) -> None:
        """Note that messages of other processes to a group may not arrive."""
        with self._lock:
            self._subscribed.discard(group)

    def forget_all_subscribed(self) -> None:
        """Note that messages of other processes may not arrive."""
        with self._lock:
            self._subscribed.clear()

    def is_empty(self, group: str) -> bool:
        """Whether no channel of this process is in the group. Then its messages need not arrive."""
        with self._lock:
            if group in self._members:
                return False
            self._subscribed.discard(group)
            return True
