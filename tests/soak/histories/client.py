"""A connection of the histories' soak test."""

from __future__ import annotations

import json
from typing import Any

from tests.soak.histories.ledger import Ledger, Place, View
from tests.support.frame_protocol import FrameProtocol

__all__ = ["Client"]

TEXT = 1


class Client(FrameProtocol):
    """A connection of one client, whose views outlive it.

    Args:
        ledger: of all clients.
        views: by room.
        who: the client, for messages.
    """

    def __init__(self, ledger: Ledger, views: dict[int, View], who: str) -> None:
        super().__init__()
        self.pending = ""
        """The data that is being published; empty once it is stored, or has failed."""
        self.stored: Place | None = None
        """Where it was stored; None if it has failed."""
        self._ledger = ledger
        self._views = views
        self._who = who

    def ask(self, kind: str, *fields: Any) -> None:
        """Send a request. It has at most 125 bytes."""
        self.write(TEXT, json.dumps([kind, *fields], separators=(",", ":")).encode())

    def publish(self, room: int, data: str) -> None:
        """Publish a message. No other one may be under way."""
        self.pending, self.stored = data, None
        self.ask("publish", room, data)

    @property
    def is_member(self) -> bool:
        """Whether it is a member of all its rooms."""
        return all(view.is_member for view in self._views.values())

    def data_received(self, data: bytes) -> None:
        try:
            super().data_received(data)
        except AssertionError as error:
            # A worker that is about to end refuses the handshake.
            if not self.opened.done():
                self.opened.set_exception(ConnectionRefusedError(str(error)))
            else:
                self._ledger.fail(f"{self._who}: {error!r}")
            self.transport.abort()
        except Exception as error:
            self._ledger.fail(f"{self._who}: {error!r}")
            self.transport.abort()

    def message_received(self, payload: bytes) -> None:
        kind, *fields = json.loads(payload)
        if kind == "message":
            room, offset, epoch, data = fields
            self._views[room].message((epoch, offset), data)
        elif kind == "back":
            room, gap, offset, epoch = fields
            self._views[room].back(gap, (epoch, offset))
        elif kind == "gap":
            room, gap = fields
            self._views[room].gap(gap)
        elif fields[0] == self.pending:
            self.pending = ""
            if kind == "stored":
                _, offset, epoch = fields
                self.stored = (epoch, offset)
