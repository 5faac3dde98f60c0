"""The lists of rooms and members of the chat. Clients get them a moment after something has changed."""

import asyncio
import heapq
import json
from collections.abc import Iterable
from typing import Any

from chat_history import History

from wshub import Hub

ROOMS = ("general", "help", "random")
"""Rooms that are listed even if nobody is there."""

LISTED_ROOMS = 30
LISTED_MEMBERS = 100

DELAY = 0.1
"""Seconds in which changes are gathered. Without it, 1,000 clients that come at once would get 1,000 lists each."""


class Presence:
    """Sends the lists of rooms and of members.

    A list replaces the former one, so the policy is ``"latest"``: a client that reads slowly gets only the newest list.
    """

    def __init__(self, hub: Hub, history: History) -> None:
        self._hub = hub
        self._history = history
        self._changed: set[str] = set()
        self._timer: asyncio.TimerHandle | None = None

    def announce(self, rooms: Iterable[str] = ()) -> None:
        """Send, in a moment, the list of rooms to all clients, and to the members of these rooms who is there."""
        self._changed.update(rooms)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(DELAY, self._send_lists)

    def _send_lists(self) -> None:
        self._timer = None
        changed, self._changed = self._changed, set()
        for room in changed & self._hub.rooms:
            self._hub.broadcast(json.dumps(self._members(room)), room=room, slow_consumer="latest", key="members")
        if self._hub.connection_count:
            self._hub.broadcast(json.dumps(self._rooms()), slow_consumer="latest", key="rooms")

    def _members(self, room: str) -> dict[str, Any]:
        members = self._hub.room_members(room)
        listed = [{"id": each.id, "name": each.metadata["name"]} for each in members[:LISTED_MEMBERS]]
        return {"type": "members", "room": room, "members": listed, "count": len(members)}

    def _rooms(self) -> dict[str, Any]:
        largest = heapq.nlargest(LISTED_ROOMS, self._hub.rooms.difference(ROOMS), key=self._hub.room_size)
        return {"type": "rooms", "rooms": [self._room(name) for name in (*ROOMS, *largest)]}

    def _room(self, name: str) -> dict[str, Any]:
        return {"name": name, "members": self._hub.room_size(name), "newest": self._history.newest_number(name)}
