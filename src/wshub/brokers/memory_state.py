"""The channels, the calls and the counts of a broker in memory."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

from wshub.errors import BrokerError

__all__ = ["Counts", "Request", "Subscription", "fail", "fail_all"]


class Subscription:
    """A channel that the node has subscribed to, and what the engine knows about it."""

    __slots__ = ("interrupted", "is_confirmed", "request", "waiting")

    def __init__(self) -> None:
        # The number of the request that the engine was given last; None if it has to be given one.
        self.request: int | None = None
        self.is_confirmed = False
        # Whether the hub was told that envelopes of this channel alone may be lost.
        self.interrupted = False
        self.waiting: list[asyncio.Future[None]] = []


class Request:
    """A call that waits for the engine's answer."""

    __slots__ = ("answer", "expires_at", "is_sent")

    def __init__(self, answer: asyncio.Future[Any], expires_at: float) -> None:
        self.answer = answer
        self.expires_at = expires_at
        self.is_sent = False


@dataclasses.dataclass(slots=True)
class Counts:
    """The counts of a broker since its start. ``BrokerStats`` describes each of them."""

    sent: int = 0
    received: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)
    interruptions: dict[str, int] = dataclasses.field(default_factory=dict)
    reconnects: int = 0


def fail(future: asyncio.Future[Any], error: BrokerError) -> None:
    """Have whoever waits for the future get the error. If its loop has closed, nobody does."""
    if not future.done() and not future.get_loop().is_closed():
        future.set_exception(error)


def fail_all(futures: list[asyncio.Future[None]], error: BrokerError) -> None:
    """Have whoever waits for one of the futures get the error, and forget them."""
    for future in futures:
        fail(future, error)
    futures.clear()
