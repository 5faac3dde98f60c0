"""Publishing through NATS: bounded and counted."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from functools import partial

from wshub.brokers.interface import Published
from wshub.brokers.nats_barriers import Barriers
from wshub.brokers.nats_connection import NatsConnection
from wshub.brokers.nats_subjects import SubjectNames
from wshub.errors import BrokerError, BrokerUnavailable, BrokerUncertain

__all__ = ["Publishing"]

logger = logging.getLogger("wshub.broker")

# Seconds between two barriers while envelopes are sent. Envelopes behind the last one that has come back may be lost
# with their connection, and count as unanswered then.
CONFIRMATION_SECONDS = 0.1


class Publishing:
    """Sends envelopes over the connection that is open.

    Each envelope counts once: as sent, or as dropped. It may count as sent until the engine refuses it, or until the
    connection ends before a barrier behind it has come back.

    Args:
        names: the subjects of the channels.
        max_pending: bytes that may wait to be sent. While as many do, a further envelope is dropped.
        barriers: tell when the engine has taken an envelope.
        now: returns the time in seconds.
    """

    def __init__(self, names: SubjectNames, max_pending: int, barriers: Barriers, now: Callable[[], float]) -> None:
        self.dropped: Counter[str] = Counter(disconnected=0, full=0, too_large=0, refused=0, unanswered=0)
        # Envelopes that were handed over, and how many of them a barrier has confirmed.
        self._handed = 0
        self._confirmed = 0
        self._refused_since = 0
        self._confirm_at = 0.0
        self._now = now
        self._names = names
        self._max_pending = max_pending
        self._barriers = barriers
        self._connection: NatsConnection | None = None
        self.why_dropped = ""
        """Why the last envelope was dropped."""
        # The subjects of the answers that are waited for.
        self._waiting: dict[asyncio.Future[None], str] = {}
        self._logged: set[str] = set()

    @property
    def sent(self) -> int:
        """Envelopes that were sent, as far as is known."""
        return self._handed - self.dropped["refused"] - self.dropped["unanswered"]

    def attach(self, connection: NatsConnection) -> None:
        """Send over a connection from now on."""
        self._connection = connection
        self._logged.clear()

    def detach(self) -> None:
        """Drop envelopes from now on: there is no connection."""
        self._connection = None

    def confirm(self) -> None:
        """Find out whether what was sent arrives, unless that is known."""
        if self._handed > self._confirmed:
            self._confirm_at = self._now() + CONFIRMATION_SECONDS
            self._barriers.after(partial(self._take_confirmation, self._handed))

    def _take_confirmation(self, handed: int, error: BrokerUncertain | None) -> None:
        if error is None:
            self._confirmed = handed
            # The engine refuses an envelope before it sends the barrier back.
            self._refused_since = 0

    def count_unanswered(self) -> None:
        """Count the envelopes of a connection that has ended before it was known whether they arrive."""
        self.dropped["unanswered"] += self._handed - self._confirmed - self._refused_since
        self._confirmed = self._handed
        self._refused_since = 0

    def send(self, channel: str, envelope: bytes) -> bool:
        """Send an envelope. Return False if it was dropped."""
        connection = self.admit(len(envelope))
        if connection is None:
            return False
        if not connection.publish(self._names.subject(channel), envelope):
            return self._drop("disconnected", "the connection to the engine has ended")
        self._handed += 1
        if self._now() >= self._confirm_at:
            self.confirm()
        return True

    def admit(self, size: int, waiting: int = 0) -> NatsConnection | None:
        """Return the connection for an envelope; None if it has to be dropped, which is counted.

        Args:
            size: bytes of the envelope.
            waiting: bytes that wait elsewhere.
        """
        connection = self._connection
        if connection is None:
            self._drop("disconnected", "there is no connection to the engine")
        elif connection.pending_bytes + waiting >= self._max_pending:
            self._drop("full", "too many bytes wait to be sent to the engine already")
        elif size > connection.largest_message:
            why = f"the engine takes at most {connection.largest_message} bytes (max_payload), not {size}"
            if self._is_first("too_large"):
                logger.warning("messages are too large, and are dropped and counted: %s", why)
            self._drop("too_large", why)
        else:
            return connection
        return None

    async def publish(self, channel: str, envelope: bytes) -> Published:
        """Send an envelope, and return when the engine has taken it."""
        if not self.send(channel, envelope):
            raise BrokerUnavailable(self.why_dropped)
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.confirm()
        self._waiting[answer] = self._names.subject(channel).lower()
        self._barriers.after(partial(settle, answer))
        try:
            await answer
        finally:
            del self._waiting[answer]
            # An error of this future holds the traceback, and so this frame and the future: only the collector would
            # free them.
            del answer
        return Published()

    def refused(self, error: BrokerError) -> None:
        """Count an envelope that the engine has refused."""
        self.dropped["refused"] += 1
        self.log_refusal(error)
        self._refused_since += 1

    def fail_waiting(self, subject: str, error: BrokerError) -> None:
        """Fail the calls that publish on a subject which the engine refuses. It is in small letters."""
        for answer, waiting_for in self._waiting.items():
            if waiting_for == subject and not answer.done():
                answer.set_exception(BrokerError(*error.args))

    def log_refusal(self, error: BrokerError) -> None:
        """Log the first refusal of the connection."""
        if self._is_first("refused"):
            logger.warning("the engine refuses messages, which are dropped and counted: %s", error)

    def _drop(self, reason: str, why: str) -> bool:
        self.dropped[reason] += 1
        self.why_dropped = why
        return False

    def _is_first(self, reason: str) -> bool:
        """Return whether this is the first drop for a reason on the connection, which is logged."""
        is_first = reason not in self._logged
        self._logged.add(reason)
        return is_first


def settle(answer: asyncio.Future[None], error: BrokerUncertain | None) -> None:
    """Set the outcome of a future. Each has an error of its own."""
    if answer.done():
        return
    if error is None:
        answer.set_result(None)
    else:
        answer.set_exception(BrokerUncertain(*error.args))
