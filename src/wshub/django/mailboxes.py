"""The queues of the channels of this process. Coroutines of any event loop, and any thread, may use them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

__all__ = ["Mailboxes", "WaitingMessage"]

READER_SECONDS = 60.0
"""Seconds for which a channel counts as read after the last ``get()`` has returned: a worker handles what it got."""

Futures = dict[asyncio.AbstractEventLoop, list["Waiter"]]


class WaitingMessage(NamedTuple):
    """A message in a channel, and when it expires by ``time.monotonic()``."""

    expires_at: float
    payload: bytes


class Waiter:
    """A coroutine that waits in ``get()``. It is given its message before it goes on."""

    __slots__ = ("channel", "future", "loop", "message")

    def __init__(self, channel: str, loop: asyncio.AbstractEventLoop) -> None:
        self.channel = channel
        self.loop = loop
        self.future: asyncio.Future[None] = loop.create_future()
        self.message: WaitingMessage | None = None


class Mailbox:
    """The messages that wait in one channel, or the coroutines that wait for one: never both."""

    __slots__ = ("capacity", "messages", "offered", "unread_since", "waiters")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.messages: deque[WaitingMessage] = deque()
        self.waiters: deque[Waiter] = deque()
        # Messages that are offered to other processes. Their places are kept, because they may come back.
        self.offered = 0
        # When the first message came that nothing has read since; None if the last one was read.
        self.unread_since: float | None = None

    @property
    def space(self) -> int:
        """The number of messages that it can take."""
        return max(self.capacity - len(self.messages) - self.offered, 0)


class Reader:
    """The coroutines of this process that read a channel, and when one of them got a message last."""

    __slots__ = ("read_at", "waiting")

    def __init__(self) -> None:
        self.waiting = 0
        self.read_at = 0.0


class Mailboxes:
    """The queues of the channels of this process, each with its capacity.

    Args:
        lock: guards everything. Groups share it.
        capacity_of: returns the number of messages that may wait in a channel.
        expiry: seconds after which a message that was not read is dropped.
    """

    def __init__(self, lock: threading.Lock, capacity_of: Callable[[str], int], expiry: float) -> None:
        self.queued = self.full = self.expired = 0
        self._lock = lock
        self._capacity_of = capacity_of
        self._expiry = expiry
        self._mailboxes: dict[str, Mailbox] = {}
        self._readers: dict[str, Reader] = {}

    # Putting

    def put(self, channel: str, payload: bytes) -> bool:
        """Put a message into a channel. Return False if the channel is full."""
        waiters: Futures = {}
        with self._lock:
            taken = self.put_locked(channel, payload, time.monotonic(), waiters)
        self.wake(waiters)
        return taken

    def put_locked(self, channel: str, payload: bytes, now: float, waiters: Futures) -> bool:
        """Do what ``put()`` does while the lock is held. Add a waiter that ``wake()`` is to get afterwards."""
        mailbox = self._mailboxes.get(channel)
        if mailbox is None:
            mailbox = self._mailboxes[channel] = Mailbox(self._capacity_of(channel))
        message = WaitingMessage(now + self._expiry, payload)
        if mailbox.waiters:
            self.queued += 1
            self._give(mailbox, message, waiters)
            return True
        if not mailbox.space:
            self._expire(mailbox, now)
            if not mailbox.space:
                self.full += 1
                return False
        self.queued += 1
        mailbox.messages.append(message)
        if mailbox.unread_since is None:
            mailbox.unread_since = now
        return True

    def _give(self, mailbox: Mailbox, message: WaitingMessage, waiters: Futures) -> None:
        """Give a message to the coroutine that has waited longest."""
        waiter = mailbox.waiters.popleft()
        waiter.message = message
        waiters.setdefault(waiter.loop, []).append(waiter)

    def wake(self, waiters: Futures) -> None:
        """Have coroutines go on, each on its loop. The lock is not held."""
        for loop, woken in waiters.items():
            if asyncio._get_running_loop() is loop:
                _set_results(woken)
                continue
            try:
                loop.call_soon_threadsafe(_set_results, woken)
            except RuntimeError:
                # The loop was closed.
                for waiter in woken:
                    self._stop_waiting(waiter)

    def put_back(self, channel: str, message: WaitingMessage) -> None:
        """Put a message in front of the others of a channel. It expires when it would have expired there."""
        now = time.monotonic()
        waiters: Futures = {}
        with self._lock:
            if message.expires_at <= now:
                self.expired += 1
                return
            mailbox = self._mailboxes.get(channel)
            if mailbox is None:
                mailbox = self._mailboxes[channel] = Mailbox(self._capacity_of(channel))
            if mailbox.waiters:
                self._give(mailbox, message, waiters)
            else:
                mailbox.messages.appendleft(message)
                if mailbox.unread_since is None:
                    mailbox.unread_since = now
        self.wake(waiters)

    # Getting

    async def get(self, channel: str) -> bytes:
        """Return the oldest message of a channel, once there is one. A call that is cancelled takes none."""
        reader = None
        with self._lock:
            if "!" not in channel:
                reader = self._readers.setdefault(channel, Reader())
            mailbox = self._mailboxes.get(channel)
            message = self._pop(channel, mailbox) if mailbox is not None and mailbox.messages else None
            if message is not None:
                if reader is not None:
                    reader.read_at = time.monotonic()
                return message.payload
            # The last message may have expired, and the mailbox with it.
            mailbox = self._mailboxes.get(channel)
            if mailbox is None:
                mailbox = self._mailboxes[channel] = Mailbox(self._capacity_of(channel))
            mailbox.unread_since = None
            waiter = Waiter(channel, asyncio.get_running_loop())
            mailbox.waiters.append(waiter)
            if reader is not None:
                reader.waiting += 1
        try:
            await waiter.future
        except BaseException:
            self._stop_waiting(waiter)
            raise
        finally:
            if reader is not None:
                self._stop_reading(channel, reader, has_read=waiter.message is not None)
        assert waiter.message is not None
        return waiter.message.payload

    def _pop(self, channel: str, mailbox: Mailbox) -> WaitingMessage | None:
        """Return the oldest message of a channel that has not expired, or None. The lock is held."""
        self._expire(mailbox, time.monotonic())
        if not mailbox.messages:
            return None
        message = mailbox.messages.popleft()
        mailbox.unread_since = None
        self._forget_idle(channel, mailbox)
        return message

    def _stop_waiting(self, waiter: Waiter) -> None:
        """Give a coroutine no message. One that it was given already goes to the next, or back into the channel."""
        with self._lock:
            message, waiter.message = waiter.message, None
            mailbox = self._mailboxes.get(waiter.channel)
            if message is None and mailbox is not None and waiter in mailbox.waiters:
                mailbox.waiters.remove(waiter)
                self._forget_idle(waiter.channel, mailbox)
        if message is not None:
            self.put_back(waiter.channel, message)

    def _stop_reading(self, channel: str, reader: Reader, *, has_read: bool) -> None:
        with self._lock:
            reader.waiting -= 1
            if has_read:
                reader.read_at = time.monotonic()
            elif not reader.waiting and self._readers.get(channel) is reader:
                # It has stopped reading, as far as one can tell.
                del self._readers[channel]

    def take(self, channel: str) -> WaitingMessage | None:
        """Return the oldest message of a channel that nothing in this process reads; None if there is none.

        Offer it to other processes. Its place is kept until ``free_place()``.
        """
        with self._lock:
            mailbox = self._mailboxes.get(channel)
            if mailbox is None or self._is_read(channel):
                return None
            mailbox.offered += 1
            message = self._pop(channel, mailbox)
            if message is None:
                self._free_place(channel, mailbox)
            return message

    def free_place(self, channel: str) -> None:
        """Free the place of a message that ``take()`` has returned: it is elsewhere, or back in the channel."""
        with self._lock:
            self._free_place(channel, self._mailboxes[channel])

    def _free_place(self, channel: str, mailbox: Mailbox) -> None:
        mailbox.offered -= 1
        self._forget_idle(channel, mailbox)

    # Looking

    @property
    def waiting(self) -> int:
        """The number of messages that wait."""
        with self._lock:
            return sum(len(mailbox.messages) for mailbox in self._mailboxes.values())

    def is_read(self, channel: str) -> bool:
        """Whether something in this process reads the channel."""
        with self._lock:
            return self._is_read(channel)

    def _is_read(self, channel: str) -> bool:
        reader = self._readers.get(channel)
        return reader is not None and (reader.waiting > 0 or time.monotonic() - reader.read_at < READER_SECONDS)

    def capacity_left(self, channel: str) -> tuple[int, bool]:
        """Return how many messages the channel can take, and whether a receiver waits for the next one.

        The number is -1 if nothing in this process reads the channel.
        """
        with self._lock:
            if not self._is_read(channel):
                return -1, False
            mailbox = self._mailboxes.get(channel)
            if mailbox is None:
                return self._capacity_of(channel), False
            self._expire(mailbox, time.monotonic())
            return mailbox.space, bool(mailbox.waiters)

    def unread_channels(self) -> list[str]:
        """Return the channels with messages that any process may read, and that nothing in this process reads."""
        with self._lock:
            return [
                channel
                for channel, mailbox in self._mailboxes.items()
                if mailbox.messages and "!" not in channel and not self._is_read(channel)
            ]

    # Ending

    def clear(self) -> None:
        """Drop all messages. Coroutines that wait go on waiting. The lock is held."""
        for channel, mailbox in list(self._mailboxes.items()):
            mailbox.messages.clear()
            mailbox.unread_since = None
            self._forget_idle(channel, mailbox)

    def expire_locked(self, now: float, patience: float) -> list[str]:
        """Drop the messages that have expired, and return the channels that nothing has read for ``patience`` seconds.

        The lock is held.
        """
        abandoned = []
        for channel, mailbox in list(self._mailboxes.items()):
            if mailbox.unread_since is None and not mailbox.messages:
                # Nearly always: a consumer waits.
                continue
            self._expire(mailbox, now)
            if mailbox.unread_since is not None and now - mailbox.unread_since >= patience:
                mailbox.unread_since = None
                abandoned.append(channel)
            self._forget_idle(channel, mailbox)
        for channel in [channel for channel in self._readers if not self._is_read(channel)]:
            del self._readers[channel]
        return abandoned

    def _expire(self, mailbox: Mailbox, now: float) -> None:
        messages = mailbox.messages
        while messages and messages[0].expires_at <= now:
            messages.popleft()
            self.expired += 1

    def _forget_idle(self, channel: str, mailbox: Mailbox) -> None:
        if not mailbox.messages and not mailbox.waiters and not mailbox.offered and mailbox.unread_since is None:
            del self._mailboxes[channel]


def _set_results(waiters: Iterable[Waiter]) -> None:
    for waiter in waiters:
        if not waiter.future.done():
            waiter.future.set_result(None)
