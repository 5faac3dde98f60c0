"""Messages between the hubs that a broker joins.

A message leaves as an envelope with its payload and its options. Each hub that gets it frames and compresses it once,
and fans it out to its own connections, as if it had been sent there.
"""

from collections.abc import Callable
from typing import Any

from typing_extensions import Buffer

from wshub.brokers.envelope_receiver import EnvelopeReceiver
from wshub.core.cluster_types import IgnoredEnvelopes
from wshub.protocol.message import Message

class RemoteMessages(EnvelopeReceiver):
    """Gives envelopes to the broker, and takes those that other nodes have sent.

    Args:
        hub: whose connections get the messages.
        node: the id of this node, a number.
        broker_send: the broker's ``send``.
    """

    broker_send: Callable[[str, bytes], bool] | None
    """The broker's ``send``; None once there is no broker."""
    rejected_count: int
    """Envelopes that the broker has not taken."""

    def __init__(self, hub: Any, node: int, broker_send: Callable[[str, bytes], bool] | None) -> None: ...
    def send(self, channel: str, envelope: bytes) -> bool:
        """Give an envelope to the broker. Return whether the broker has taken it. Nothing is raised."""
    def log_failure(self) -> None:
        """Log the exception of a method of the broker, unless one was logged before."""
    @property
    def own_number(self) -> int:
        """The id of this node, as envelopes have it."""
    @property
    def has_broker(self) -> bool:
        """Whether envelopes go to the broker."""
    def control_received(self, node: int, body: bytes) -> None:
        """Take a command of another node. A subclass overrides this."""
    @property
    def received_count(self) -> int:
        """The number of envelopes that have arrived."""
    @property
    def delivered_count(self) -> int:
        """The number of envelopes that were for this node."""
    @property
    def ignored_counts(self) -> IgnoredEnvelopes:
        """The IgnoredEnvelopes."""
    @property
    def lag_seconds(self) -> float | None:
        """Seconds that a message took on its way, by the clocks of both nodes; None before there was one.

        If the clocks differ, it is wrong by their difference, and may be negative.
        """
    @property
    def sent_count(self) -> int:
        """The number of envelopes that this node has made."""
    def measure_lag(self) -> None:
        """Have the next envelope of another node measured."""
    def deliver_stored(self, name: str, envelope: bytes, data: str | Buffer | Message | None = None) -> None:
        """Send an envelope of a history to the members of its room.

        Args:
            name: of the room.
            envelope: without a head.
            data: what members receive instead of its payload: a str, bytes or another buffer, or a Message.

        Raises:
            ValueError: it is no envelope.
            TypeError, InvalidMessageError: as ``Connection.send``, for ``data``.
        """
    def log_without_position(self, room: str) -> None:
        """Log a message to a room with history that was published without it, unless one was logged before."""
    def next_number(self) -> int:
        """Return the number of the next envelope, which counts as made."""
    def renumbered(self, envelope: bytes) -> bytes:
        """Return an envelope that has waited as one that is made now. Others may have been sent meanwhile."""
