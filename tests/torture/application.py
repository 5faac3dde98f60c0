"""The application of the torture test around one hub: handlers of every kind, and checks of its connections."""

from __future__ import annotations

import asyncio
import random
import threading
from typing import Any

from tests.torture.chaos import Chaos
from tests.torture.findings import DeliberateError, Findings, check_balance
from tests.torture.plan import SLOW_CONSUMERS, config_of
from tests.torture.wire import (
    ALL,
    APPLICATION,
    DIRECT,
    ECHO,
    JOIN,
    LEAVE,
    LOSSY,
    POLICIES,
    ROOM,
    TAME,
    WILD,
    Message,
    decode,
    encode,
    room_name,
)
from wshub import Connection, ConnectionClosed, EventHandler, HandshakeError, Hub
from wshub import Message as Received
from wshub.protocol.http.request import RequestHead

__all__ = ["Application"]

CLOSE_POLICY = POLICIES.index("close")
PATIENCE = 60.0
"""Maximum seconds from the clients' end to the end of everything: a hub's timeouts, several times over."""


class Application:
    """The handlers of one hub, during the life of that hub."""

    def __init__(self, drawn: dict[str, Any], seed: int, threads: int, findings: Findings, fault: str | None) -> None:
        hooks = {"function": self._on_upgrade, "coroutine": self._on_upgrade_later}
        self.hub = Hub(config_of(drawn), on_upgrade=hooks.get(drawn["on_upgrade"]))
        self._asks = drawn["on_upgrade"] is not None
        self.findings = findings
        self.chance = random.Random(seed)
        self.chaos = self._chaos(APPLICATION, fault)
        self._kind: str = drawn["handler"]
        self._states: dict[Connection, str] = {}
        self._endpoints = 0
        self._opened = 0
        self._closed = 0
        self._stopping = asyncio.Event()
        self._threads_stopping = threading.Event()
        self._thread_chaos = [self._chaos(number + 1, fault) for number in range(threads)]
        self._threads: list[threading.Thread] = []
        self._running: asyncio.Task[None] | None = None
        for room in [*TAME, *WILD]:
            self.hub.configure_room(
                room_name(room),
                compression="shared" if drawn["compression"] and room % 3 == 0 else "message",
                slow_consumer=self.chance.choice(SLOW_CONSUMERS[room in LOSSY :]),
                restart_interval=self.chance.choice((2, 16, 128)),
            )

    def _chaos(self, number: int, fault: str | None) -> Chaos:
        return Chaos(lambda: self.hub, number, random.Random(self.chance.getrandbits(32)), self.findings, fault)

    # Random acts of the application

    def start(self) -> None:
        """Begin to act at random."""
        self._stopping.clear()
        self._threads_stopping.clear()
        self._running = asyncio.get_running_loop().create_task(self.chaos.run(self._stopping))
        self._threads = [
            threading.Thread(target=chaos.run_in_thread, args=(self._threads_stopping,), daemon=True)
            for chaos in self._thread_chaos
        ]
        for thread in self._threads:
            thread.start()

    async def stop(self) -> None:
        """Stop acting."""
        self._stopping.set()
        self._threads_stopping.set()
        for thread in self._threads:
            await asyncio.to_thread(thread.join)
        if self._running is not None:
            await self._running
            self._running = None

    async def end(self) -> None:
        """Stop acting after the end of the hub, and check its counters."""
        await self.stop()
        self.check_ended()
        self.findings.count(self.hub.stats())

    async def rest(self) -> None:
        """Wait until all connections have ended, and check that the counters add up."""
        deadline = asyncio.get_running_loop().time() + PATIENCE
        while self.hub.connection_count or self._endpoints or self._opened != self._closed:
            if asyncio.get_running_loop().time() > deadline:
                break
            await asyncio.sleep(0.02)
        self.check_ended()

    def check_ended(self) -> None:
        stats = self.hub.stats()
        left = {repr(connection): state for connection, state in self._states.items() if state != "closed"}
        if stats.connections or stats.messages_pending or self.hub.rooms or self._endpoints or left:
            self.findings.add(
                f"not all has ended: {self._endpoints} endpoints, connections {left}, rooms {self.hub.rooms}, {stats}"
            )
        if self._opened != self._closed:
            self.findings.add(f"{self._opened} have opened, and {self._closed} have closed")
        try:
            check_balance(stats)
        except AssertionError as error:
            self.findings.add(str(error))
        self._states.clear()

    # Handlers

    def handler(self) -> Any:
        """Return the handler of all connections: an EventHandler or a coroutine function."""
        match self._kind:
            case "events":
                return self.events()
            case "coroutine_events":
                return self.coroutine_events()
            case "endpoint":
                return self.endpoint
            case _:
                return self.receiver

    def events(self) -> EventHandler:
        return EventHandler(
            on_open=self._on_open,
            on_message=self._on_message,
            on_close=self._on_close,
            on_error=self._on_error,
            on_ping=lambda connection, payload: self._meddle(connection, 0.2),
            on_pong=lambda connection, payload: self._meddle(connection, 0.2),
            on_drain=lambda connection: self._meddle(connection, 0.5),
        )

    def coroutine_events(self) -> EventHandler:
        async def on_open(connection: Connection) -> None:
            self._on_open(connection)
            await self._pause(connection)

        async def on_message(connection: Connection, message: Received) -> None:
            if self.chance.random() < 0.3:
                await self._pause(connection)
            self._on_message(connection, message)
            if self.chance.random() < 0.3:
                await self._pause(connection)

        async def on_close(connection: Connection, code: int, reason: str) -> None:
            await asyncio.sleep(0)
            self._on_close(connection, code, reason)

        async def on_drain(connection: Connection) -> None:
            await self._pause(connection)

        return EventHandler(
            on_open=on_open,
            on_message=on_message,
            on_close=on_close,
            on_error=self._on_error,
            on_ping=lambda connection, payload: self._meddle(connection, 0.2),
            on_drain=on_drain,
        )

    async def endpoint(self, connection: Connection) -> None:
        """An endpoint that iterates over its connection's messages."""
        self._endpoints += 1
        try:
            async for message in connection:
                self._on_message(connection, message)
        except ConnectionClosed:
            pass
        finally:
            self._endpoints -= 1

    async def receiver(self, connection: Connection) -> None:
        """An endpoint that calls receive(), often with a timeout or a cancellation."""
        self._endpoints += 1
        try:
            while True:
                await self._pause(connection)
                message = await self._receive(connection)
                if message is not None:
                    self._on_message(connection, message)
        except ConnectionClosed:
            pass
        finally:
            self._endpoints -= 1

    async def _receive(self, connection: Connection) -> Received | None:
        form = self.chance.randrange(3)
        if form == 0:
            return await connection.receive()
        try:
            if form == 1:
                return await connection.receive(timeout=self.chance.expovariate(10))
            async with asyncio.timeout(self.chance.expovariate(10)):
                return await connection.receive()
        except TimeoutError:
            return None

    def _on_upgrade(self, request: RequestHead) -> dict[str, str]:
        if self.chance.random() < 0.05:
            raise HandshakeError(429, "by chance")
        return {"path": request.path}

    async def _on_upgrade_later(self, request: RequestHead) -> dict[str, str]:
        await asyncio.sleep(self.chance.choice((0, self.chance.expovariate(50))))
        return self._on_upgrade(request)

    def _on_open(self, connection: Connection) -> None:
        self._opened += 1
        if connection in self._states:
            self.findings.add(f"on_open for {connection}, which is {self._states[connection]}")
        self._states[connection] = "open"
        if self._asks and connection.get_metadata("path") != connection.path:
            self.findings.add(f"{connection} lacks the metadata of on_upgrade: {connection.metadata}")
        self._meddle(connection, 0.5)

    def _on_close(self, connection: Connection, code: int, reason: str) -> None:
        self._closed += 1
        if self._states.get(connection) != "open":
            self.findings.add(f"on_close for {connection}, which is {self._states.get(connection)}")
        self._states[connection] = "closed"
        if connection.close_code != code or connection.close_reason != reason:
            self.findings.add(
                f"on_close with {code} {reason!r}, and {connection.close_code} {connection.close_reason!r}"
            )
        self._meddle(connection, 0.2)

    def _on_error(self, connection: Connection, error: BaseException) -> None:
        if not isinstance(error, DeliberateError):
            self.findings.raised("on_error", error, connection)

    def _on_message(self, connection: Connection, received: Received) -> None:
        try:
            message = decode(bytes(received))
            self._check_order(connection, message)
        except Exception as error:
            self.findings.raised("a client's message", error, connection)
            return
        self._answer(connection, message, received)
        self._meddle(connection, 0.05)
        if self.chance.random() < 0.003:
            raise DeliberateError

    def _check_order(self, connection: Connection, message: Message) -> None:
        """Check that no message of the client is missing, and that they come in order."""
        stream = ("received", message.kind, message.room, message.policy)
        last = connection.get_metadata(stream, 0)
        assert message.number == last + 1, f"{message} came after number {last}"
        connection.set_metadata(stream, message.number)

    def _answer(self, connection: Connection, message: Message, received: Received) -> None:
        name = room_name(message.room)
        try:
            if message.kind == ECHO:
                connection.send(received, slow_consumer="close")
            elif message.kind in (JOIN, LEAVE):
                if message.kind == JOIN:
                    connection.join(name)
                else:
                    connection.leave(name)
                number = self.chaos.sent[ROOM, CLOSE_POLICY, message.room, 0]
                answer = Message(message.kind, 0, message.room, APPLICATION, number, self.chaos.next_serial())
                connection.send(encode(answer, b""), slow_consumer="close")
            else:
                options: dict[str, Any] = {"key": str(message.key)}
                if POLICIES[message.policy] is not None:
                    options["slow_consumer"] = POLICIES[message.policy]
                room = {ROOM: name, ALL: None}
                if message.kind == DIRECT:
                    connection.send(received, **options)
                else:
                    self.hub.broadcast(received, room=room[message.kind], **options)
        except ConnectionClosed:
            pass

    def _meddle(self, connection: Connection, probability: float) -> None:
        """Act at random in a handler, often on its own connection."""
        if self.chance.random() < probability:
            self.chaos.act(connection if self.chance.random() < 0.5 else None)

    async def _pause(self, connection: Connection) -> None:
        form = self.chance.randrange(5)
        if form == 0:
            await asyncio.sleep(0)
        elif form == 1:
            await asyncio.sleep(self.chance.expovariate(200))
        elif form == 2:
            try:
                async with asyncio.timeout(self.chance.expovariate(50)):
                    await connection.drain()
            except (TimeoutError, ConnectionClosed):
                pass
