"""The messages that arrive by the patterns of a node."""

from __future__ import annotations

from collections.abc import Callable

from nats.aio.msg import Msg

from wshub.brokers.nats_barriers import Barriers
from wshub.brokers.nats_epochs import ChannelEpochs
from wshub.brokers.nats_order import StoredOrder

__all__ = ["STORED", "Patterns"]

# The header of a message that a stream has stored.
STORED = "Nats-Sequence"


class Patterns:
    """Passes the messages of patterns on, those of streams in the order of their channels.

    Each pattern has a subscription of its own, so a message of a room may arrive by several of them, and by the room's.

    Args:
        receivers: the functions that take the envelopes of each pattern, by channel. The broker changes it.
        epochs: the epochs of channels.
        barriers: tell when what is on its way has arrived.
    """

    def __init__(
        self, receivers: dict[str, Callable[[bytes], None]], epochs: ChannelEpochs, barriers: Barriers
    ) -> None:
        self._receivers = receivers
        self._epochs = epochs
        self._barriers = barriers
        self._orders: dict[str, StoredOrder] = {}
        self._is_closed = False
        self.received = 0
        """Envelopes that were passed on."""

    def clear(self) -> None:
        """Forget the messages that wait: the connection has ended."""
        for order in self._orders.values():
            order.clear()
        self._orders.clear()

    def close(self) -> None:
        """Pass nothing more on."""
        self._is_closed = True

    def take(self, channel: str, message: Msg) -> None:
        """Take a message that has arrived by a pattern."""
        if message.headers is None or STORED not in message.headers:
            self._pass_on(channel, message.data)
            return
        place = self._epochs.place(message.subject, message.headers)
        if place is None:
            return
        order = self._orders.get(channel)
        if order is None:
            order = StoredOrder(self._barriers, lambda envelope: self._pass_on(channel, envelope))
            self._orders[channel] = order
        order.take(message.subject, place, message.data)

    def forget(self, channel: str) -> None:
        """Forget a pattern that was unsubscribed from."""
        self._orders.pop(channel, None)

    def _pass_on(self, channel: str, envelope: bytes) -> None:
        receive = self._receivers.get(channel)
        if receive is not None and not self._is_closed:
            self.received += 1
            receive(envelope)
