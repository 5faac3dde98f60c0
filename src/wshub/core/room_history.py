"""A room with history at one node: its messages reach the members in the order of the history, each once.

A message names the one before it. If that is not the last one that the members were sent, some are missing: the room
waits, reads them, and goes on. Messages that arrive meanwhile are held back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from wshub.brokers.envelope import decode_envelope, decode_stored, encode_envelope, mark_of
from wshub.brokers.history_interface import StoredEnvelope, StoredHistory
from wshub.brokers.interface import Gap, HistoryConfig, Position, Publication, room_channel
from wshub.core.history_cursor import HistoryCursor
from wshub.core.history_window import HistoryWindow, Page, Prepared
from wshub.protocol.message import Message

if TYPE_CHECKING:
    from wshub.core.remote_messages import RemoteMessages

__all__ = ["RoomHistory", "publication_of"]

logger = logging.getLogger("wshub.server")

# Messages, and bytes of them, that are held back while the history is read. More are read again.
MAX_HELD = 256
MAX_HELD_BYTES = 1024 * 1024

# Envelopes, and bytes of them, of one reading.
READ_LIMIT = 1000
READ_BYTES = 4 * 1024 * 1024

NUMBERS = 1 << 32
"""How many different numbers envelopes have."""


def publication_of(stored: StoredEnvelope, epoch: str) -> Publication:
    """Return an envelope as the application sees it. Raises ``ValueError`` if it is no envelope."""
    decoded = decode_envelope(stored.envelope)
    return Publication(
        stored.offset,
        epoch,
        decoded.payload if decoded.is_binary else decoded.payload.decode(),
        decoded.publisher,
        decoded.sent_at / 1e6,
    )


class RoomHistory(HistoryCursor):
    """The history of one room, for its members at this node.

    Args:
        name: of the room.
        config: how much of the room is kept, and what members receive.
        messages: delivers envelopes to the members.
        is_wanted: whether the room has members here, or clients that come back to it.
        is_missing: is called when messages have to be read.
    """

    def __init__(
        self,
        name: str,
        config: HistoryConfig,
        messages: RemoteMessages,
        is_wanted: Callable[[RoomHistory], bool],
        is_missing: Callable[[RoomHistory], None],
    ) -> None:
        super().__init__(name)
        self.channel = room_channel(name)
        self.config = config
        self.recoveries = 0
        """Clients that come back at present."""
        self.window: HistoryWindow | None = None
        self.window_ends_at = 0.0
        """When the window is dropped, if nobody comes back."""
        self.is_live = False
        """Whether the members have been sent all that has arrived."""
        self.first_sent: int | None = None
        """The number of the first envelope that this node has sent to the room before it knew the room's position."""
        self.reading: asyncio.Task[Gap] | None = None
        """Reads a page for the window."""
        self._live = asyncio.Event()
        self._messages = messages
        self._is_wanted = is_wanted
        self._is_missing = is_missing
        self._held: list[tuple[int, int, str, bytes]] = []
        self._held_bytes = 0
        # How many of them had arrived before the history was read.
        self._held_before = 0
        # Some messages were not held back, for want of space.
        self._has_overflowed = False
        self._is_delivering = False

    def __repr__(self) -> str:
        return f"<RoomHistory {self.name!r} at {self.offset} of {self.epoch or 'no epoch'}>"

    @property
    def has_members(self) -> bool:
        """Whether messages of the room are to arrive here."""
        return self._is_wanted(self)

    @property
    def position(self) -> Position:
        """The position of the last message that the members were sent."""
        return Position(self.offset, self.epoch)

    def settings_changed(self, config: HistoryConfig) -> None:
        """Take another configuration."""
        self.config = config
        self.drop_window()

    def note_sent(self, envelope: bytes) -> None:
        """Note that this node sends a message to the room, whose position is not known yet. Members are to get it."""
        if self.first_sent is None and not self.epoch:
            self.first_sent = decode_envelope(envelope).number

    def was_sent_here(self, envelope: bytes) -> bool:
        """Whether an envelope is one of those that ``note_sent`` was called with."""
        decoded = decode_envelope(envelope)
        if self.first_sent is None or decoded.node != self._messages.own_number:
            return False
        # Numbers begin anew after the highest one.
        return (decoded.number - self.first_sent) % NUMBERS < NUMBERS // 2

    def begin_at(self, position: Position, mark: bytes) -> None:
        """Go on behind the newest message, since the members expect none before it."""
        self.move(position.offset, position.epoch, mark)
        self._go_live()

    def interrupt(self) -> None:
        """Hold messages back until what may be missing was read."""
        self.is_live = False
        self.passes_on = False
        self._live.clear()
        self._is_missing(self)

    async def wait_live(self) -> None:
        """Return when the members have been sent all that has arrived."""
        await self._live.wait()

    # Messages

    def take(self, stored: bytes) -> bool:
        """Take a stored envelope that has arrived. Return False if the members were sent it before."""
        head, envelope = decode_stored(stored)
        if head.epoch == self.epoch and head.offset <= self.offset:
            return False
        if self.is_live and not self._is_delivering and head.epoch == self.epoch and head.previous <= self.offset:
            self._deliver(StoredEnvelope(head.offset, envelope))
            self._release()
            return True
        self._hold(head.offset, head.previous, head.epoch, envelope)
        if self.is_live and not self._is_delivering:
            self.interrupt()
        return True

    def _hold(self, offset: int, previous: int, epoch: str, envelope: bytes) -> None:
        if len(self._held) >= MAX_HELD or self._held_bytes + len(envelope) > MAX_HELD_BYTES:
            self._has_overflowed = True
            return
        self._held.append((offset, previous, epoch, envelope))
        self._held_bytes += len(envelope)

    def _release(self) -> None:
        """Deliver what was held back, as far as nothing is missing."""
        while self._held and self.is_live:
            held, self._held, self._held_bytes = self._held, [], 0
            earlier, self._held_before = self._held_before, 0
            for index, (offset, previous, epoch, envelope) in enumerate(held):
                if (epoch == self.epoch and offset <= self.offset) or (epoch != self.epoch and index < earlier):
                    # The members have got it, or it is of an epoch that has ended.
                    continue
                if self.is_live and epoch == self.epoch and previous <= self.offset:
                    self._deliver(StoredEnvelope(offset, envelope))
                else:
                    self._hold(offset, previous, epoch, envelope)
                    if self.is_live:
                        self.interrupt()
        if self._has_overflowed and self.is_live:
            self._has_overflowed = False
            self.interrupt()

    def _deliver(self, stored: StoredEnvelope) -> None:
        """Send a message to the members, and note its offset."""
        self._is_delivering = True
        self.passes_on = False
        try:
            data = self._encode(stored) if self.config.encode is not None else None
            if self.config.encode is None or data is not None:
                self._messages.deliver_stored(self.name, stored.envelope, data)
            if self.window is not None:
                self.window.append(self._prepare(stored, data))
        except MemoryError:
            self._is_delivering = False
            self.interrupt()
            raise
        except Exception:
            logger.exception("message %d of the room %r could not be delivered", stored.offset, self.name)
            self.window = None
        self._is_delivering = False
        self.move(stored.offset, self.epoch, mark_of(stored.envelope))
        self._settle()

    def _encode(self, stored: StoredEnvelope) -> Message | None:
        """Return what members receive; None if the application's function fails, which is logged."""
        if self.config.encode is None:
            return None
        try:
            return Message(self.config.encode(publication_of(stored, self.epoch)))
        except Exception:
            logger.exception("encode() of the room %r has failed for message %d", self.name, stored.offset)
            return None

    def _prepare(self, stored: StoredEnvelope, data: Message | None) -> Prepared:
        try:
            decoded = decode_envelope(stored.envelope)
            if self.config.encode is None:
                data = Message(decoded.payload if decoded.is_binary else decoded.payload.decode())
        except ValueError:
            # Members have not got it either.
            return Prepared(stored.offset, None, None, len(stored.envelope))
        excluded = decoded.excluded if decoded.node == self._messages.own_number else None
        return Prepared(stored.offset, data, decoded.compress, len(stored.envelope), excluded)

    # What was missed

    def begin_reading(self) -> None:
        """Note that the history is about to be read."""
        self._held_before = len(self._held)

    def caught_up(self, found: StoredHistory) -> bool:
        """Deliver what was read behind the room's position. Return whether nothing more is to be read."""
        if found.gap:
            self._tell_gap(found)
        for stored in found.envelopes:
            self._deliver(stored)
        if self.offset < found.position.offset and found.envelopes:
            return False
        if self.offset != found.position.offset:
            self.window = None
            self.move(found.position.offset, found.position.epoch, found.mark)
        elif found.mark:
            self.move(self.offset, self.epoch, found.mark)
        self._go_live()
        return self.is_live

    def _tell_gap(self, found: StoredHistory) -> None:
        """Go on with another epoch, or behind messages that are not kept any more, and tell the members."""
        self.move(found.start, found.position.epoch, b"")
        self.window = None
        logger.warning("members of the room %r miss messages that are not kept any more: %s", self.name, found.gap)
        if self.config.encode_gap is None:
            return
        try:
            data = self.config.encode_gap(found.gap)
            if data is not None:
                self._messages.deliver_stored(self.name, encode_envelope("room", self.name, b""), data)
        except Exception:
            logger.exception("encode_gap() of the room %r has failed", self.name)

    def _go_live(self) -> None:
        self.is_live = True
        self._settle()
        self._release()
        if self.is_live:
            self._live.set()

    def _settle(self) -> None:
        is_observed = self.window is not None or self.config.encode is not None
        self.passes_on = self.is_live and not is_observed and not self._is_delivering

    # Clients that come back

    def open_window(self) -> HistoryWindow:
        """Return what is ready for clients that come back. From now on it gets each message that is delivered."""
        if self.window is None:
            self.window = HistoryWindow(self.offset)
            self._settle()
        return self.window

    def prepare_page(self, start: int, found: StoredHistory, delivered: int) -> Page:
        """Return what was read behind an offset, as far as the members have been sent it.

        Args:
            start: the offset.
            found: what was read.
            delivered: the offset of the last message that the members had been sent before.
        """
        envelopes = [stored for stored in found.envelopes if stored.offset <= self.offset]
        end = max(min(found.position.offset, self.offset), delivered)
        if envelopes and envelopes[-1] is found.envelopes[-1] and envelopes[-1].offset < found.position.offset:
            # More messages follow.
            end = envelopes[-1].offset
        return Page(start, end, [self._prepare(stored, self._encode(stored)) for stored in envelopes])

    def drop_window(self) -> None:
        """Forget the prepared messages."""
        self.window = None
        self._settle()
