"""Random calls of every method of a hub and its connections, on the event loop and in threads."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable

from tests.torture.findings import Findings, check_balance
from tests.torture.wire import (
    ALL,
    APPLICATION,
    DIRECT,
    POLICIES,
    ROOM,
    TAME,
    WILD,
    Message,
    as_text,
    draw_policy,
    encode,
    filler,
    room_name,
)
from wshub import Connection, ConnectionClosed, Hub, MisuseError

__all__ = ["Chaos"]

CODES = (1000, 1001, 1008, 1011, 3000, 4999)
CLOSE_POLICY = POLICIES.index("close")
FAULTS = ("skip", "repeat", "damage")


class Chaos:
    """One sender: the application's event loop, or one of its threads.

    Args:
        hub: returns the current hub.
        number: the sender in its messages.
        fault: one of FAULTS, which it commits now and then so that the clients must find it.
    """

    def __init__(
        self, hub: Callable[[], Hub], number: int, chance: random.Random, findings: Findings, fault: str | None = None
    ) -> None:
        self._hub = hub
        self._number = number
        self._chance = chance
        self._findings = findings
        self._fault = fault
        self.sent: Counter[tuple[int, ...]] = Counter()
        self._serial = 0
        self._acts: list[tuple[Callable[[Hub, Connection | None], None], float]] = [
            (self._say_in_room, 40),
            (self._say_to_all, 2),
            (self._say_to_one, 15),
            (self._enter, 8),
            (self._leave, 6),
            (self._ping, 4),
            (self._look, 6),
            (self._remember, 4),
            (self._close, 0.4),
            (self._configure, 1),
        ]

    def act(self, connection: Connection | None = None) -> None:
        """Do one random thing, on a connection of the hub if it needs one."""
        hub = self._hub()
        if connection is None:
            connection = self._any_connection(hub)
        function = self._chance.choices(*zip(*self._acts, strict=True))[0]
        try:
            function(hub, connection)
        except ConnectionClosed:
            pass
        except Exception as error:
            self._findings.raised(f"{function.__name__} of sender {self._number}", error, connection)

    async def run(self, stopping: asyncio.Event) -> None:
        waiting: set[asyncio.Task[None]] = set()
        while not stopping.is_set():
            for _ in range(self._chance.randrange(12)):
                self.act()
            if self._chance.random() < 0.2 and (connection := self._any_connection(self._hub())) is not None:
                task = asyncio.create_task(self._wait(connection))
                waiting.add(task)
                task.add_done_callback(waiting.discard)
            await asyncio.sleep(self._chance.expovariate(100))
        if waiting:
            await asyncio.wait(waiting)

    def run_in_thread(self, stopping: threading.Event) -> None:
        while not stopping.is_set():
            self.act()
            time.sleep(self._chance.expovariate(100))

    async def _wait(self, connection: Connection) -> None:
        """Wait on the connection, with a timeout or a cancellation."""
        what = connection.drain() if self._chance.random() < 0.5 else connection.wait_closed()
        task = asyncio.ensure_future(what)
        try:
            if self._chance.random() < 0.5:
                await asyncio.wait_for(task, self._chance.expovariate(20))
            else:
                await asyncio.wait([task], timeout=self._chance.expovariate(50))
                task.cancel()
                await task
        except (TimeoutError, asyncio.CancelledError, ConnectionClosed):
            pass
        except Exception as error:
            self._findings.raised("a wait", error, connection)

    def _any_connection(self, hub: Hub) -> Connection | None:
        rooms = self._chance.sample([*TAME, *WILD], 3)
        for room in rooms:
            if members := hub.room_members(room_name(room)):
                return self._chance.choice(members)
        return None

    def next_serial(self) -> int:
        self._serial += 1
        return self._serial

    def _message(self, kind: int, policy: int, room: int = 0, connection: int = 0) -> tuple[bytes, int]:
        """Return the next message of a stream, and its key."""
        key = self._chance.randrange(3)
        stream = (kind, policy, room, connection)
        self.sent[stream] += 1
        faulty = self._fault if self._chance.random() < 0.02 else None
        if faulty == "skip":
            self.sent[stream] += 1
        elif faulty == "repeat":
            self.sent[stream] -= 1
        payload = encode(
            Message(kind, policy, room, self._number, self.sent[stream], self.next_serial(), key),
            filler(self._chance, 20_000),
        )
        if faulty == "damage":
            place = self._chance.randrange(2, len(payload))
            payload = payload[:place] + bytes((payload[place] ^ 1,)) + payload[place + 1 :]
        return payload, key

    def _options(self, policy: int, key: int) -> dict[str, object]:
        options: dict[str, object] = {"key": str(key), "compress": self._chance.choice((None, None, True, False))}
        if POLICIES[policy] is not None:
            options["slow_consumer"] = POLICIES[policy]
        return options

    def _form(self, payload: bytes) -> str | bytes | bytearray:
        return self._chance.choice((payload, bytearray(payload), as_text(payload)))

    def _say_in_room(self, hub: Hub, connection: Connection | None) -> None:
        room = self._chance.choice(WILD if self._chance.random() < 0.3 else TAME)
        policy = draw_policy(self._chance, room)
        payload, key = self._message(ROOM, policy, room)
        options = self._options(policy, key)
        if room in WILD and connection is not None and self._chance.random() < 0.5:
            excluded = self._chance.choice((connection, connection.id))
            if self._chance.random() < 0.5:
                hub.broadcast(self._form(payload), room=room_name(room), exclude=excluded, **options)
            else:
                hub.broadcast_to_room_except(room_name(room), self._form(payload), excluded, **options)
        elif self._chance.random() < 0.5:
            hub.broadcast(self._form(payload), room=room_name(room), **options)
        else:
            hub.broadcast_to_room(room_name(room), self._form(payload), **options)

    def _say_to_all(self, hub: Hub, connection: Connection | None) -> None:
        policy = draw_policy(self._chance, None)
        payload, key = self._message(ALL, policy)
        if policy != CLOSE_POLICY and connection is not None and self._chance.random() < 0.5:
            hub.broadcast_except(self._form(payload), connection, **self._options(policy, key))
        else:
            hub.broadcast(self._form(payload), **self._options(policy, key))

    def _say_to_one(self, hub: Hub, connection: Connection | None) -> None:
        if connection is None:
            return
        policy = draw_policy(self._chance, None)
        payload, key = self._message(DIRECT, policy, connection=connection.id)
        options = self._options(policy, key)
        form = self._chance.randrange(4)
        if form == 0:
            connection.send(self._form(payload), **options)
        elif form == 1:
            connection.send_text(as_text(payload), **options)
        elif form == 2:
            connection.send_binary(payload, **options)
        else:
            connection.send_json(as_text(payload), **options)

    def _enter(self, hub: Hub, connection: Connection | None) -> None:
        if connection is not None:
            room = room_name(self._chance.choice(WILD))
            if self._chance.random() < 0.5:
                connection.join(room)
            else:
                hub.join_room(connection, room)

    def _leave(self, hub: Hub, connection: Connection | None) -> None:
        if connection is not None:
            room = room_name(self._chance.choice(WILD))
            if self._chance.random() < 0.5:
                connection.leave(room)
            else:
                hub.leave_room(connection, room)

    def _ping(self, hub: Hub, connection: Connection | None) -> None:
        if connection is not None:
            if self._chance.random() < 0.5:
                connection.send_ping(self._chance.randbytes(self._chance.randrange(126)))
            else:
                connection.send_pong(b"unasked")

    def _look(self, hub: Hub, connection: Connection | None) -> None:
        if self._number == APPLICATION:
            check_balance(hub.stats())
            check_balance(hub.stats(room=room_name(self._chance.choice(TAME))))
        else:
            hub.stats()
            hub.stats(room=room_name(self._chance.choice(TAME)))
        for name in hub.rooms:
            assert hub.room_size(name) >= 0
        assert hub.connection_count >= 0
        if connection is None:
            return
        for name in ("id", "hub", "state", "handler", "request", "compression", "subprotocol", "forwarded_address"):
            getattr(connection, name)
        for name in ("path_params", "path", "close_code", "close_reason", "buffered", "last_ping_time"):
            getattr(connection, name)
        with contextlib.suppress(OSError):
            repr((connection.remote_address, connection, connection.last_pong_time))
        found = hub.get_connection(connection.id)
        assert found is None or found is connection
        for room in connection.rooms:
            connection.in_room(room)

    def _remember(self, hub: Hub, connection: Connection | None) -> None:
        if connection is not None:
            key = self._chance.randrange(4)
            connection.set_metadata(key, self._number)
            connection.get_metadata(key)
            assert isinstance(connection.metadata, dict)

    def _close(self, hub: Hub, connection: Connection | None) -> None:
        if connection is not None:
            code = self._chance.choice(CODES)
            if self._chance.random() < 0.7:
                connection.close(code, "by chance")
            else:
                hub.unregister(connection, code, "by chance")

    def _configure(self, hub: Hub, connection: Connection | None) -> None:
        compression = "shared" if hub.config.compression is not None and self._chance.random() < 0.5 else "message"
        with contextlib.suppress(MisuseError):
            hub.configure_room(
                room_name(self._chance.choice(WILD)),
                compression=compression,  # type: ignore[arg-type]
                restart_interval=self._chance.choice((1, 3, 128)),
                slow_consumer=self._chance.choice((None, "drop_newest", "drop_oldest", "latest", "close")),
            )
